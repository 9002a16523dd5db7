"""A run that is killed at any moment, a dozen times, ends with the same bits as one that is not.

The kills are real: SIGKILL to a process that runs `celrec train`. The processes are forked from a
server that has the libraries loaded, so that a start takes milliseconds instead of seconds.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median

import pytest
import torch

from celrec.checkpoint import load_state
from tests.experiments.making import write_planted

NUM_EPOCHS = 30
SECONDS_TO_WAIT = 60.0

SERVER = multiprocessing.get_context("forkserver")
# torch imports torch._dynamo when the first optimizer is made; that alone takes seconds.
SERVER.set_forkserver_preload(["celrec.experiments.run", "celrec.cli", "torch._dynamo"])

# fmt: off
OPTIONS = [
    "--time-col", "timestamp", "--task", "rating", "--rows", "40", "--width", "200",
    "--epochs", str(NUM_EPOCHS), "--batch-size", "500", "--seed", "3",
]
# fmt: on


# As text, for the server knows nothing of this module.
RUN_CELREC = """
import os
from celrec.cli import main
log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)
os._exit(main(arguments))
"""


def begin(arguments: list[str], log: Path) -> BaseProcess:
    """Run the command line in a process of its own."""
    names = {"arguments": arguments, "log_path": str(log)}
    process = SERVER.Process(target=exec, args=(RUN_CELREC, names))
    process.start()
    return process


def wait_for(condition: Callable[[], bool], process: BaseProcess) -> None:
    """Busy, for a pause would miss what lasts a millisecond."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not condition() and process.is_alive():
        assert time.monotonic() < deadline, "the moment to kill never came"


def size_of(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def moments(
    run: Path, seconds_per_epoch: float, rng: random.Random
) -> Iterator[tuple[str, Callable[[BaseProcess], None]]]:
    """Names of moments, and functions that wait for them."""
    history, last, encoded = (
        run / name for name in ("history.jsonl", "last.safetensors", "encoded.safetensors")
    )

    def is_trained() -> bool:
        if history.read_bytes().count(b"\n") < NUM_EPOCHS:
            return False
        return bool(load_state(last, kind="training")["state"]["epoch"] == NUM_EPOCHS)

    def after_an_epoch(process: BaseProcess) -> None:
        size = size_of(history)
        wait_for(lambda: size_of(history) > size, process)

    def before_the_first(process: BaseProcess) -> None:
        wait_for((run / "config.toml").exists, process)

    def during_the_best(process: BaseProcess) -> None:
        wait_for((run / "best.safetensors.partial").exists, process)

    def during_the_last(process: BaseProcess) -> None:
        after_an_epoch(process)
        wait_for((run / "last.safetensors.partial").exists, process)

    def at_random(process: BaseProcess) -> None:
        after_an_epoch(process)
        time.sleep(rng.uniform(0, 2 * seconds_per_epoch))

    def before_the_codes(process: BaseProcess) -> None:
        wait_for(is_trained, process)

    def during_the_codes(process: BaseProcess) -> None:
        partial = encoded.with_name(encoded.name + ".partial")
        wait_for(lambda: partial.exists() or encoded.exists(), process)

    yield "before the first checkpoint", before_the_first
    yield "during the write of best.safetensors", during_the_best
    for _ in range(4):
        yield "during the write of last.safetensors", during_the_last
    for _ in range(4):
        yield "at random", at_random
    yield "while codes are made", before_the_codes
    yield "during the write of encoded.safetensors", during_the_codes


@pytest.mark.slow
def test_a_dozen_kills_change_no_bit(tmp_path: Path) -> None:
    data = write_planted(tmp_path / "data.parquet", num_interactions=4000)
    log = tmp_path / "log.txt"
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train = ["train", str(data), *OPTIONS, "--out"]

    process = begin([*train, str(undisturbed)], log)
    process.join()
    assert process.exitcode == 0, log.read_text()

    timing = [json.loads(line) for line in (undisturbed / "timing.jsonl").read_text().splitlines()]
    # Some epochs take much longer than others, the first above all.
    seconds_per_epoch = median(line["train_seconds"] + line["round_seconds"] for line in timing)

    left_behind: list[str] = []
    command = [*train, str(killed)]
    for name, wait in moments(killed, seconds_per_epoch, random.Random(0)):
        process = begin(command, log)
        wait(process)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"{name}: over too soon\n{log.read_text()}"
        if name == "before the first checkpoint":
            assert not (killed / "last.safetensors").exists()
        left_behind += [path.name for path in killed.glob("*.partial")]
        command = ["train", "--resume", str(killed)]
    assert "last.safetensors.partial" in left_behind, "no kill fell into a checkpoint's write"

    process = begin(command, log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    for name in ("history.jsonl", "last.safetensors", "best.safetensors", "items.parquet"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    codes, expected = (
        load_state(run / "encoded.safetensors", kind="encoded") for run in (killed, undisturbed)
    )
    assert codes["encoding"]["events"] == expected["encoding"]["events"]
    assert codes["model"].keys() == expected["model"].keys()
    for name, value in expected["model"].items():
        assert torch.equal(codes["model"][name], value), name
    assert not list(killed.glob("*.partial"))


def test_ctrl_c_says_how_to_go_on_and_the_run_can(tmp_path: Path) -> None:
    data = write_planted(tmp_path / "data.parquet")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "celrec.cli", "train", str(data), *OPTIONS, "--out", str(run)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while size_of(run / "history.jsonl") == 0:
            assert time.monotonic() < deadline, "training never began"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said == f"stopped; go on with: celrec train --resume {run}\n"
    resumed = begin(["train", "--resume", str(run)], tmp_path / "log.txt")
    resumed.join()
    assert resumed.exitcode == 0, (tmp_path / "log.txt").read_text()
