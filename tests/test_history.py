"""History survives kills, full disks and NaN."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.errors import CheckpointError
from celrec.history import append_history, read_history, truncate_history


def write(path, num_epochs):
    for epoch in range(1, num_epochs + 1):
        append_history(path, {"epoch": epoch, "loss": 1 / epoch, "events": [{"gain": 0.1}]})


def test_lines_come_back_in_order(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    write(path, 3)
    assert [line["epoch"] for line in read_history(path)] == [1, 2, 3]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back_bit_for_bit(tmp_path_factory, number):
    path = tmp_path_factory.mktemp("bits") / "history.jsonl"
    append_history(path, {"epoch": 1, "loss": number})
    assert read_history(path)[0]["loss"].hex() == number.hex()


def test_nan_and_infinity_become_null_and_the_file_stays_json(tmp_path):
    path = tmp_path / "history.jsonl"
    append_history(path, {"epoch": 1, "a": [float("nan"), {"b": float("-inf")}], "c": (1.5,)})
    strict = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert strict == {"epoch": 1, "a": [None, {"b": None}], "c": [1.5]}


@pytest.mark.parametrize("num_epochs", [0, 1, 4])
def test_truncation_keeps_exactly_the_checkpoints_epochs(tmp_path, num_epochs):
    path, short = tmp_path / "history.jsonl", tmp_path / "short.jsonl"
    write(path, 4)
    write(short, num_epochs)
    kept = truncate_history(path, num_epochs)
    assert [line["epoch"] for line in kept] == list(range(1, num_epochs + 1))
    assert path.read_bytes() == (short.read_bytes() if num_epochs else b"")


def test_truncating_a_missing_history_to_nothing_makes_no_file(tmp_path):
    assert truncate_history(tmp_path / "history.jsonl", 0) == []
    assert not (tmp_path / "history.jsonl").exists()


def test_a_line_cut_anywhere_by_a_kill_is_left_out_and_overwritten(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, 3)
    whole = path.read_bytes()
    start_of_last = whole[:-1].rindex(b"\n") + 1
    for end in range(start_of_last, len(whole)):
        path.write_bytes(whole[:end])
        assert [line["epoch"] for line in read_history(path)] == [1, 2]
        truncate_history(path, 2)
        append_history(path, json.loads(whole[start_of_last:]))
        assert path.read_bytes() == whole


def test_history_behind_its_checkpoint_is_refused(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, 2)
    with pytest.raises(CheckpointError, match=r"epochs \[1, 2\], but .* finished 3"):
        truncate_history(path, 3)


@pytest.mark.parametrize(
    "line", [b"not json", b"[1]", b'{"loss": 1}', b'{"epoch": "1"}', b"\xff\xfe", b"[" * 99_999]
)
def test_line_that_is_no_history_is_named(tmp_path, line):
    path = tmp_path / "history.jsonl"
    write(path, 1)
    with path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(CheckpointError, match=r"line 2 of .*history\.jsonl"):
        read_history(path)


def test_full_disk_leaves_the_lines_before_whole(tmp_path):
    """A file size limit stands in for a disk that fills in the middle of a line."""
    path = tmp_path / "history.jsonl"
    write(path, 2)
    before = path.read_bytes()
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from celrec.errors import CheckpointError\n"
        "from celrec.history import append_history\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 20},) * 2)\n"
        "try: append_history(Path(sys.argv[1]), {'epoch': 3, 'text': 'x' * 100})\n"
        "except CheckpointError as error: print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert "could not be extended" in found.stdout
    assert path.read_bytes() == before
