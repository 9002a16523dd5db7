"""`celrec stream`: learn, stop, be killed, go on, and report."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from benchmarks.online.kills import arguments_for, differences, event_lines, kill_once
from celrec.experiments.stream import CHECKPOINT_FILE
from tests.cli.making import CommandLine
from tests.training.stream_making import json_line, planted_events, write_lines

LINES = [json_line(event) for event in planted_events(150)]
# fmt: off
SMALL = [
    "--max-bytes", "20kB", "--width", "4", "--rows", "4", "--batch-size", "10", "--window", "50",
]
# fmt: on


@pytest.fixture
def events(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "events.jsonl", [*LINES, b"{bad"])


def test_a_file_is_learned_and_reported(celrec: CommandLine, events: Path, tmp_path: Path) -> None:
    done = celrec("stream", events, "--out", "run", "--time-col", "time", *SMALL)
    assert done.status == 0
    assert done.stdout.startswith("150 events, 1 dead letters; of the last 50: AUC 0.")
    assert "of 20,000 bytes" in done.stdout
    assert done.stdout.splitlines()[-1] == "stream: run"
    assert "dead letters: 1 not JSON; see run/dead_letters.jsonl" in done.stderr
    assert "the source has no more; next: celrec report run" in done.stderr
    page = celrec("report", "run", "--out", "page.html", "--title", "Clicks & more")
    assert page.stdout == "page.html\n"
    assert "Clicks &amp; more" in (tmp_path / "page.html").read_text()
    assert "has a page of its own; give it alone" in celrec("report", "run", "run2").stderr


def test_json_is_all_that_is_written_to_standard_output(celrec: CommandLine, events: Path) -> None:
    found = celrec("stream", events, "--out", "run", *SMALL, "--json").json
    assert found["folder"] == "run"
    assert found["figures"]["num_events"] == found["bookmark"]["num_events"] == 150
    assert found["dead_letters"] == {"not JSON": 1}
    assert found["is_finished"] is True


def test_a_stream_goes_on_with_its_own_settings(celrec: CommandLine, events: Path) -> None:
    whole = celrec("stream", events, "--out", "whole", *SMALL, "--json").json
    part = celrec("stream", events, "--out", "parts", *SMALL, "--max-events", 60)
    assert part.stdout.startswith("60 events")
    assert "stopped and saved; go on with: celrec stream --out parts --resume" in part.stderr
    rest = celrec("stream", "--out", "parts", "--resume", "--json").json
    assert {**rest, "folder": "whole"} == whole
    refused = celrec("stream", "--out", "parts", "--resume", "--rows", 8)
    assert refused.status == 2
    assert "the stream in parts has settings.rows 4, but 8 is asked for" in refused.stderr


def test_ratings_and_csv_without_a_header(celrec: CommandLine, tmp_path: Path) -> None:
    rows = [f"{n % 7}|{n % 5}|{n % 5 + 1}|2020-01-{n % 28 + 1:02}" for n in range(40)]
    write_lines(tmp_path / "ratings.log", [row.encode() for row in rows])
    # fmt: off
    found = celrec(
        "stream", "ratings.log", "--out", "run", "--separator", "|", "--columns", "u,i,stars,day",
        "--user-col", "u", "--item-col", "i", "--label-col", "stars", "--time-col", "day",
        "--positive-from", "4", "--drop-rating", "3", "--ids", "integer", *SMALL, "--json",
    ).json
    # fmt: on
    assert found["bookmark"]["num_events"] == 32
    assert found["bookmark"]["num_dropped"] == 8
    assert found["dead_letters"] == {}


def test_fields_of_other_names_are_hinted_at(celrec: CommandLine, tmp_path: Path) -> None:
    write_lines(tmp_path / "clicks.jsonl", [b'{"person": 1, "item": 2, "label": 1}'])
    done = celrec("stream", "clicks.jsonl", "--out", "run")
    assert "no record is an event; name their fields: --user-col, --item-col" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no folder to keep what is learned; name one: --out"),
        (["--out", "run"], "there is nothing to learn from; name a source"),
        (["--out", "run", "--resume"], "run holds no checkpoint to go on from; name a source"),
        (["--out", "r", "--resume", "--overwrite"], "--resume goes on and --overwrite begins anew"),
        (["e.jsonl", "--out", "run", "--max-bytes", "many"], "--max-bytes is 'many'; wanted such"),
        (["e.jsonl", "--out", "run", "--max-bytes", "10"], "max_bytes is 10, but two tables of"),
        (["e.jsonl", "--out", "run", "--checkpoint-every", "1h"], "--checkpoint-every is '1h'"),
        (["e.jsonl", "--out", "run", "--ids", "words"], "ids is 'words'; wanted 'integer'"),
        (["e.avro", "--out", "run"], "e.avro has no ending that tells its kind"),
        (["e.jsonl", "--out", "run"], "e.jsonl"),
    ],
)
def test_mistakes_are_told(celrec: CommandLine, arguments: list[str], message: str) -> None:
    done = celrec("stream", *arguments)
    assert done.status == 2
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_gently(
    celrec: CommandLine, events: Path, tmp_path: Path, number: signal.Signals
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def send_when_it_learns() -> None:
        while not (tmp_path / "run" / CHECKPOINT_FILE).exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send_when_it_learns, daemon=True)
    sender.start()
    done = celrec("stream", events, "--out", "run", "--follow", "--checkpoint-every", 10, *SMALL)
    sender.join(10)
    assert done.status == 0
    assert " events, " in done.stdout
    assert "go on with: celrec stream --out run --resume --follow" in done.stderr
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    rest = celrec("stream", "--out", "run", "--resume", "--json").json
    assert rest["figures"]["num_events"] == 150


def test_kills_at_random_moments_change_no_bit(celrec: CommandLine, tmp_path: Path) -> None:
    """A few; `python -m benchmarks.online.kills` does more, on Redis, too."""
    rng = random.Random(0)
    path = write_lines(tmp_path / "events.jsonl", event_lines(4800, seed=0))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert celrec(*arguments_for(str(path), whole)).status == 0
    outcomes = [
        kill_once(arguments_for(str(path), killed), killed, rng.uniform(0, 0.1)) for _ in range(2)
    ]
    assert outcomes[0].startswith("killed")
    assert celrec(*arguments_for(str(path), killed)).status == 0
    assert differences(killed, whole) == []
