"""Small streams, and what was learned from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from celrec.checkpoint import load_state, pack_state
from celrec.core.online import OnlineRule
from celrec.data.stream.event import Event
from celrec.experiments.stream import CHECKPOINT_FILE
from celrec.training.online import StreamSettings

# Of the ids below, far fewer have a slot than come: ids are admitted, evicted, and come again.
TINY = StreamSettings(
    width=4,
    rows=6,
    blend=2,
    batch_size=8,
    max_bytes=4000,
    window=40,
    rule=OnlineRule(split_after=20),
)


def planted_events(count: int, seed: int = 0, num_users: int = 150, num_items: int = 90) -> Any:
    """Events of skewed users and items: a user likes the items of its own half."""
    rng = np.random.default_rng(seed)
    users = np.minimum(rng.zipf(1.3, count), num_users) - 1
    items = np.minimum(rng.zipf(1.2, count), num_items) - 1
    is_liked = (users % 2 == items % 2) ^ (rng.random(count) < 0.1)
    return [
        Event(int(user), f"i{item}", float(liked), float(second))
        for second, (user, item, liked) in enumerate(zip(users, items, is_liked, strict=True))
    ]


def json_line(event: Event) -> bytes:
    fields = {"user": event.user, "item": event.item, "label": event.label}
    return json.dumps(fields | {"time": event.timestamp}).encode()


def write_lines(path: Path, lines: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def parts_of(state: Any) -> tuple[dict[str, bytes], Any]:
    """A learner's state as bytes and JSON: equal if and only if every bit is."""
    arrays, structure = pack_state(state)
    as_bytes = {
        name: array.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, array in arrays.items()
    }
    return as_bytes, structure


def learned(folder: Path) -> tuple[dict[str, bytes], Any]:
    """What a folder's checkpoint knows, without where it comes from."""
    return parts_of(load_state(folder / CHECKPOINT_FILE, kind="stream")["learner"])
