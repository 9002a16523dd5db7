"""Dead letters: nothing of a bad record is lost, and the file goes back to its checkpoint."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest

from celrec.data.stream.dead_letters import DeadLetters
from celrec.data.stream.event import Event, LongRecord, TextFields
from celrec.errors import BadEventError, CheckpointError

BAD = BadEventError("not JSON", "found a brace")


def letters_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (b'{"user": "\xc3\xa9"', '{"user": "é"'),
        (b"\xff\x00", {"base64": base64.b64encode(b"\xff\x00").decode()}),
        ("text", "text"),
        (None, None),
        ({"user": math.nan, "item": [1, "a"]}, {"user": {"repr": "nan"}, "item": [1, "a"]}),
        (TextFields({b"user": b"1", b"\xff": b"2"}), {"user": "1", "\\xff": "2"}),
        (LongRecord(b"abc", 10**7), {"head": "abc", "num_bytes": 10**7}),
        (
            Event(1, "a", math.inf),
            {"user": 1, "item": "a", "label": {"repr": "inf"}, "timestamp": None},
        ),
        ({1: 2}, {"repr": "{1: 2}"}),
        ([10**5000, 2**64], [{"repr": hex(10**5000)}, 2**64]),
    ],
)
def test_payloads_are_kept_whole(tmp_path: Path, payload: Any, shown: Any) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    letters.append(BAD, {"offset": 3}, payload)
    letters.close()
    assert letters_in(letters.path) == [
        {
            "reason": "not JSON",
            "detail": "found a brace",
            "position": {"offset": 3},
            "payload": shown,
        }
    ]


def test_resuming_cuts_the_file_to_the_saved_length_and_counts_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    with DeadLetters(path) as letters:
        letters.append(BAD, 1, b"{")
        letters.append(BadEventError("user is null", "found None"), 2, b"{}")
        saved = letters.flush()
        assert saved == path.stat().st_size
        kept = path.read_bytes()
        letters.append(BAD, 3, b"{")
    with path.open("ab") as file:
        file.write(b'{"reason": "cut by a ki')

    with DeadLetters(path) as again:
        again.resume(saved)
        assert path.read_bytes() == kept
        assert again.counts == {"not JSON": 1, "user is null": 1}
        again.append(BAD, 3, b"{")
        assert again.flush() == path.stat().st_size
        assert again.counts["not JSON"] == 2
        again.resume(0)
        assert path.read_bytes() == b""
        assert not again.counts


def test_a_file_behind_its_checkpoint_is_an_error(tmp_path: Path) -> None:
    with (
        DeadLetters(tmp_path / "dead.jsonl") as letters,
        pytest.raises(CheckpointError, match=r"has 0 bytes, but the checkpoint .* knows 10"),
    ):
        letters.resume(10)


def test_a_file_that_holds_something_else_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    path.write_text('{"reason": "not JSON"}\n[]\n')
    with (
        DeadLetters(path) as letters,
        pytest.raises(CheckpointError, match=r"line 2 of .* is no dead letter"),
    ):
        letters.resume(path.stat().st_size)


def test_a_file_that_cannot_grow_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be extended"):
        DeadLetters(tmp_path / "no folder" / "dead.jsonl")
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip(f"{full} is not at hand")
    letters = DeadLetters(full)
    with pytest.raises(CheckpointError, match="No space left on device; free some space"):
        letters.append(BAD, 1, b"{")
    assert letters.length == 0
    letters.close()
