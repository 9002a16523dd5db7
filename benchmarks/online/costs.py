"""What an event costs CEL-Lite: with 10^5 to 10^8 entities, and with 16 to 1024 rows.

    python -m benchmarks.online.costs --out FOLDER [--most-entities 100000000] [--events 1000000]

Each size runs in a process of its own, on one thread. Ids are arbitrary integers of 64 bits, all of
them admitted in bulk first, which is timed apart; then events are mapped to slots, predicted and
learned in batches of 256. A user's rank is N u^4, u uniform: a hundredth of the users has a third
of the events. There are N users, and N / 100 items. D = 32 and two biases, m = 4, offsets of 10
numbers. Beside it a full table of the same users and items with biases and SparseAdam, ids mapped
already, as far as memory goes. Written to costs.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.jobs import current_commit
from celrec.baselines.online.tables import FullTable
from celrec.core.online_embedding import OnlineEmbedding
from celrec.data.slots import SlotMap
from celrec.training.online_factors import OnlineFactors
from celrec.training.progressive import EventBatch

WIDTH, BATCH = 32, 256
ROWS = 256
MOST_FULL = 10**7  # entities of a full table: 4 GB
SIZES = (10**5, 10**6, 10**7, 10**8)
ROW_COUNTS = (16, 64, 256, 1024)
CHUNK = 1_000_000
WARM_UP = 50_000  # events before the clock starts


def events(num_users: int, num_items: int, count: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Ranks of users and items, and labels, in batches."""
    rng = np.random.default_rng(0)
    for _ in range(count // BATCH):
        users = (num_users * rng.random(BATCH) ** 4).astype(np.int64)
        items = (num_items * rng.random(BATCH) ** 4).astype(np.int64)
        liked = (users % 3 == items % 3) ^ (rng.random(BATCH) < 0.2)
        yield users, items, liked.astype(np.float32)


def raw_ids(ranks: np.ndarray) -> np.ndarray:
    """Integers without a pattern, another for each rank."""
    return ranks * np.int64(0x5851F42D4C957F2D)  # odd, so no two are alike modulo 2^64


def ours(num_users: int, num_items: int, rows: int, count: int) -> dict[str, Any]:
    maps, tables = [], []
    seconds_to_admit = 0.0
    for size in (num_users, num_items):
        slots = SlotMap(size, num_buckets=1024, max_batch=BATCH)
        table = OnlineEmbedding(slots.num_slots, WIDTH + 2, rows)
        started = time.perf_counter()
        for first in range(0, size, CHUNK):
            some = slots.admit(raw_ids(np.arange(first, min(first + CHUNK, size))))
            table.forget(torch.from_numpy(some))  # writes, so that all memory is resident
        seconds_to_admit += time.perf_counter() - started
        maps.append(slots)
        tables.append(table)
    factors = OnlineFactors(*tables)

    def learn(users: np.ndarray, items: np.ndarray, labels: np.ndarray) -> None:
        slots = [
            torch.from_numpy(m.observe(raw_ids(ranks)).slots)
            for m, ranks in zip(maps, (users, items), strict=True)
        ]
        factors.predict(*slots)
        factors.learn(*slots, torch.from_numpy(labels))

    return timed(learn, num_users, num_items, count) | {
        "seconds_to_admit": seconds_to_admit,
        "bytes": factors.nbytes,
        "map_bytes": sum(m.nbytes for m in maps),
    }


def full(num_users: int, num_items: int, count: int) -> dict[str, Any]:
    table = FullTable(
        num_users, num_items, width=WIDTH, optimizer=partial(torch.optim.SparseAdam, lr=0.01)
    )

    def learn(users: np.ndarray, items: np.ndarray, labels: np.ndarray) -> None:
        columns = [torch.from_numpy(column) for column in (users, items, labels)]
        batch = EventBatch(*columns, torch.zeros(len(users), dtype=torch.float64))
        table.predict(batch)
        table.learn(batch)

    return timed(learn, num_users, num_items, count) | {"bytes": table.state_bytes()}


def timed(learn: Callable[..., None], num_users: int, num_items: int, count: int) -> dict[str, Any]:
    spent, learned = 0.0, 0
    for number, batch in enumerate(events(num_users, num_items, WARM_UP + count)):
        started = time.perf_counter()
        learn(*batch)
        if number * BATCH >= WARM_UP:
            spent += time.perf_counter() - started
            learned += BATCH
    return {
        "events_per_second": learned / spent,
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def one(method: str, size: int, rows: int, count: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    num_items = max(size // 100, 1000)
    run = full if method == "full" else partial(ours, rows=rows)
    found = run(size, num_items, count=count)
    about = {"commit": current_commit(), "method": method, "users": size, "rows": rows}
    return {**about, "entities": size + num_items, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/online"))
    parser.add_argument("--most-entities", type=int, default=max(SIZES))
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        method, size, rows = options.only
        print(json.dumps(one(method, int(size), int(rows), options.events)))
        return
    wanted = [("ours", size, ROWS) for size in SIZES if size <= options.most_entities]
    wanted += [("ours", 10**6, rows) for rows in ROW_COUNTS if rows != ROWS]
    wanted += [("full", size, 0) for size in SIZES if size <= min(MOST_FULL, options.most_entities)]
    found = []
    for case in wanted:
        command = [sys.executable, "-m", "benchmarks.online.costs", "--only", *map(str, case)]
        command += ["--events", str(options.events)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout))
        print(found[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "costs.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
