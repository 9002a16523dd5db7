"""Twenty million events that drift, with new ids all the time, in a fixed number of bytes.

    python -m benchmarks.online.soak --out FOLDER [--events 20000000] [--max-bytes 4000000]

Users and items are of two hidden kinds, and biases of their own; like goes with like. Every 250,000
events a tenth of the items changes its kind. A user is new with every tenth event and stays for
some thousands; an item is new with every thousandth. So far more ids pass by than have room.
`StreamLearner` learns in batches of 256, ids included. Written to soak.json, a line for each
million: events a second, resident memory, AUC against what these hidden odds allow.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.jobs import current_commit
from celrec.data.stream.event import Event
from celrec.training.online import StreamLearner, StreamSettings

BATCH = 256
LIVE_USERS, LIVE_ITEMS = 20_000, 2_000
DRIFT_EVERY = 250_000
PART = 1_000_000


def hidden(ids: np.ndarray, salt: int) -> np.ndarray:
    """Numbers from 0 to 1 that belong to ids."""
    mixed = (ids.astype(np.uint64) + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def logits_of(users: np.ndarray, items: np.ndarray, time_: np.ndarray) -> np.ndarray:
    # An item's kind changes at a tenth of the steps of drift, another tenth for each step.
    changes = (time_ // DRIFT_EVERY + 10 * hidden(items, 4)) // 10
    item_kind = hidden(items + 7919 * changes.astype(np.int64), 1) < 0.5
    agree = (hidden(users, 2) < 0.5) == item_kind
    return 2.0 * agree - 1.0 + 2 * hidden(users, 3) - 1 + 2 * hidden(items, 5) - 1


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def run(num_events: int, max_bytes: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    settings = StreamSettings(ids="integer", batch_size=BATCH, max_bytes=max_bytes, rows=32)
    learner = StreamLearner(settings)
    rng = np.random.default_rng(0)
    parts = []
    for first in range(0, num_events, PART):
        spent = 0.0
        predicted, known, labels_of_part = [], [], []
        for start in range(first, min(first + PART, num_events), BATCH):
            now = np.arange(start, start + BATCH)
            users = now // 10 + LIVE_USERS - (LIVE_USERS * rng.random(BATCH) ** 2).astype(np.int64)
            items = (
                now // 1000 + LIVE_ITEMS - (LIVE_ITEMS * rng.random(BATCH) ** 2).astype(np.int64)
            )
            logits = logits_of(users, items, now)
            labels = (rng.random(BATCH) < 1 / (1 + np.exp(-logits))).astype(float)
            batch = [
                Event(*event)
                for event in zip(users.tolist(), items.tolist(), labels.tolist(), strict=True)
            ]
            started = time.perf_counter()
            found = learner.learn(batch)
            spent += time.perf_counter() - started
            predicted.append(found.numpy())
            known.append(logits)
            labels_of_part.append(labels)
        truth = np.concatenate(labels_of_part)
        parts.append(
            {
                "events": learner.num_events,
                "auc": roc_auc_score(truth, np.concatenate(predicted)),
                "possible_auc": roc_auc_score(truth, np.concatenate(known)),
                "events_per_second": len(truth) / spent,
                "resident_bytes": resident_bytes(),
                "table_bytes": learner.memory().tables,
                "map_bytes": learner.memory().maps,
                "users_so_far": int(now[-1] // 10 + LIVE_USERS),
                "entities": learner.figures()["entities"],
                "clusters": learner.figures()["clusters"],
            }
        )
        print(parts[-1], flush=True)
    return {"commit": current_commit(), "max_bytes": max_bytes, "parts": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/online"))
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--max-bytes", type=int, default=4_000_000)
    options = parser.parse_args()
    found = run(options.events, options.max_bytes)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
