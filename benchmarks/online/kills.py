"""Kill `celrec stream` at random moments, again and again, and compare with a run left in peace.

    python -m benchmarks.online.kills --out FOLDER [--kills 50] [--source file|redis]
        [--events 200_000] [--seed 0]

The kills are SIGKILL to the process that learns. Each comes a random time after the process has
saved for the first time; a part hits it while it writes a checkpoint, which is counted. Then the
same command goes on from the folder, is killed again, and in the end runs through. Model, codes,
optimizer state, maps of ids, figures, history and dead letters must then be the same to the last
bit as without a kill. The source is a file, or a Redis server that this program starts on loopback.

Written to kills-SOURCE.json. Exit status 0 if they are, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.jobs import current_commit
from celrec.checkpoint import load_state, pack_state
from celrec.experiments.stream import CHECKPOINT_FILE, DEAD_LETTERS_FILE, HISTORY_FILE

CELREC = [sys.executable, "-m", "celrec.cli"]
BATCH = 32
# fmt: off
OPTIONS = [
    "--time-col", "time", "--max-bytes", "400kB", "--batch-size", str(BATCH), "--window", "2000",
    "--checkpoint-every", "320",
]
# fmt: on
SECONDS_TO_WAIT = 120.0


def event_lines(count: int, seed: int) -> list[bytes]:
    """Skewed, drifting events as JSON, ids that are new, and a bad record after each fiftieth."""
    rng = np.random.default_rng(seed)
    newest = np.arange(count) // 20
    users = newest + 2000 - np.minimum(rng.zipf(1.2, count), 2000)
    items = newest // 4 + 500 - np.minimum(rng.zipf(1.2, count), 500)
    is_liked = (users % 3 == items % 3) ^ (rng.random(count) < 0.1)
    lines = []
    for time_, (user, item, liked) in enumerate(zip(users, items, is_liked, strict=True)):
        event = {"user": int(user), "item": f"i{item}", "label": int(liked), "time": time_}
        lines.append(json.dumps(event).encode())
        if time_ % 50 == 49:
            lines.append(b'{"user": null, "item": 1, "label": 1, "time": %d}' % time_)
    return lines


def arguments_for(address: str, folder: Path, *more: str) -> list[str]:
    """Of `celrec`, to begin or to go on."""
    return ["stream", address, "--out", str(folder), "--resume", *OPTIONS, *more]


def run_through(arguments: Sequence[str]) -> None:
    """Run to the end.

    raises : RuntimeError with what it said if it fails
    """
    command = [*CELREC, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")


def kill_once(arguments: Sequence[str], folder: Path, delay: float) -> str:
    """Start, wait until it has saved once and `delay` seconds more, and kill it.

    arguments : of `celrec`
    returns : "killed", "killed within a save", or "ended" if it was through by then
    raises : RuntimeError with what it said if it failed
    """
    checkpoint = folder / CHECKPOINT_FILE
    partial = checkpoint.with_name(checkpoint.name + ".partial")
    partial.unlink(missing_ok=True)  # of the last kill

    def saved_at() -> int:
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    before, deadline = saved_at(), time.monotonic() + SECONDS_TO_WAIT
    with subprocess.Popen(
        [*CELREC, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while saved_at() == before and process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                raise RuntimeError("it did not save")
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        _, said = process.communicate()
    if process.returncode == -signal.SIGKILL:
        return "killed within a save" if partial.exists() else "killed"
    if process.returncode == 0:
        return "ended"
    raise RuntimeError(f"it ended with {process.returncode}: {said}")


def differences(folder: Path, wanted: Path) -> list[str]:
    """What is not the same, bit for bit, in two folders that learned the same events."""
    found = [
        name
        for name in (HISTORY_FILE, DEAD_LETTERS_FILE)
        if (folder / name).read_bytes() != (wanted / name).read_bytes()
    ]
    checkpoints = [load_state(path / CHECKPOINT_FILE, kind="stream") for path in (folder, wanted)]
    bookmarks = [checkpoint["bookmark"] for checkpoint in checkpoints]
    counts = ("num_events", "num_bad", "num_dropped", "dead_letters")
    found += [name for name in counts if bookmarks[0][name] != bookmarks[1][name]]
    (ours, structure), (theirs, other) = (pack_state(some["learner"]) for some in checkpoints)
    if structure != other:
        found.append("numbers of the learner")
    found += ours.keys() ^ theirs.keys()
    for name in ours.keys() & theirs.keys():
        a, b = (some[name].contiguous().reshape(-1).view(torch.uint8) for some in (ours, theirs))
        if not torch.equal(a, b):
            found.append(name)
    return found


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of our own on loopback; its URL."""
    import redis

    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed")
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        port = finder.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as server:
        try:
            with redis.Redis(port=port) as client:
                for _ in range(200):
                    try:
                        client.ping()
                        break
                    except redis.ConnectionError:
                        time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()


def fill_redis(url: str, lines: Sequence[bytes]) -> str:
    """The address of a stream that holds these records."""
    import redis

    with redis.Redis.from_url(url) as client, client.pipeline(transaction=False) as together:
        for number, line in enumerate(lines):
            together.xadd("kills", {"event": line})
            if number % 1000 == 999:
                together.execute()
        together.execute()
    return f"{url}/kills?field=event"


def compare(
    folder: Path, address: str, more: Sequence[str], kills: int, seed: int
) -> dict[str, Any]:
    """Kill so many times, and compare."""
    rng = random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    # In a group of its own: a server counts for each group.
    run_through(arguments_for(address, whole, *more, "--group", "whole"))
    arguments = arguments_for(address, killed, *more)
    outcomes: Counter[str] = Counter()
    for number in range(1, kills + 1):
        outcome = kill_once(arguments, killed, rng.uniform(0, 0.6))
        events = load_state(killed / CHECKPOINT_FILE, kind="stream")["bookmark"]["num_events"]
        print(f"{number}: {outcome}, {events:,} events saved", flush=True)
        if outcome == "ended":
            raise SystemExit("it ended before it was killed often enough; give more --events")
        outcomes[outcome] += 1
    run_through(arguments)
    found = differences(killed, whole)
    events = load_state(killed / CHECKPOINT_FILE, kind="stream")["bookmark"]["num_events"]
    return {
        "commit": current_commit(),
        "kills": kills,
        "within_a_save": outcomes["killed within a save"],
        "events": events,
        "different": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/online"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--source", choices=["file", "redis"], default="file")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen: Any = parser.parse_args()
    events = chosen.events // BATCH * BATCH
    lines = event_lines(events, chosen.seed)
    more = ["--max-events", str(events)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.source == "file":
            path = folder / "events.jsonl"
            path.write_bytes(b"\n".join(lines) + b"\n")
            found = compare(folder, str(path), more, chosen.kills, chosen.seed)
        else:
            with redis_server() as url:
                address = fill_redis(url, lines)
                found = compare(folder, address, more, chosen.kills, chosen.seed)
    print(found)
    chosen.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1) + "\n"
    (chosen.out / f"kills-{chosen.source}.json").write_text(text, encoding="utf-8")
    return bool(found["different"])


if __name__ == "__main__":
    sys.exit(main())
