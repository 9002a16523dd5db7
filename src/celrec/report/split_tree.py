"""The split tree of a table, replayed from the history of its run.

A run's history tells which cluster was divided when, and which one lost its last member. Replayed
up to the epoch whose model was kept, that gives for every live cluster the epoch of its birth and
the cluster that it was split from: the tree that the table itself keeps, with epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Band:
    """A cluster between two of its splits.

    leaves : the live clusters that it became, in the order of `SplitTree.leaves`
    start, end : epochs, start < end; it was born, or last divided, after epoch `start`
    """

    leaves: tuple[int, ...]
    start: float
    end: float


@dataclass(frozen=True)
class SplitTree:
    """Which live cluster came from which.

    born_after[cluster] : the epoch after which it was split off; 0 for the root. In the order of
        births
    parent_of[cluster] : the cluster that it was split from; the root has none
    """

    born_after: Mapping[int, int]
    parent_of: Mapping[int, int]

    def leaves(self) -> list[int]:
        """The live clusters, so ordered that all that came from one cluster are neighbours.

        >>> SplitTree({0: 0, 1: 1, 2: 2, 3: 2}, {1: 0, 2: 0, 3: 1}).leaves()
        [0, 2, 1, 3]
        """
        order: list[int] = []
        for cluster in self.born_after:
            parent = self.parent_of.get(cluster)
            order.insert(order.index(parent) + 1 if parent is not None else 0, cluster)
        return order

    def bands(self, end: float) -> list[Band]:
        """Every cluster of every time.

        end : the epoch to draw to, after the last birth

        >>> for band in SplitTree({0: 0, 1: 1, 2: 3}, {1: 0, 2: 1}).bands(4):
        ...     print(band.leaves, band.start, band.end)
        (0, 1, 2) 0 1
        (0,) 1 4
        (1, 2) 1 3
        (1,) 3 4
        (2,) 3 4
        """
        leaves = self.leaves()
        num_leaves = dict.fromkeys(self.born_after, 1)  # of the tree below a cluster
        for cluster in reversed(self.born_after):
            if cluster in self.parent_of:
                num_leaves[self.parent_of[cluster]] += num_leaves[cluster]
        bands = []
        for cluster, start in self.born_after.items():
            first, count = leaves.index(cluster), num_leaves[cluster]
            children = [child for child, parent in self.parent_of.items() if parent == cluster]
            for child in sorted(children, key=list(self.born_after).index):
                split = self.born_after[child]
                if split > start:
                    bands.append(Band(tuple(leaves[first : first + count]), start, split))
                start, count = split, count - num_leaves[child]
            bands.append(Band((cluster,), start, end))
        return bands


def replay_splits(history: Sequence[Mapping[str, Any]], table: str, epoch: int) -> SplitTree:
    """Follow the splits of a table.

    history : lines of history.jsonl
    epoch : the last one to follow, counted from 1
    """
    born_after: dict[int, int] = {0: 0}
    parent_of: dict[int, int] = {}
    births = [0]  # clusters in the order of births; a heir takes the place of the one reclaimed
    for event, line_epoch in _events(history, table, epoch):
        if event["kind"] == "split":
            new = event["new_cluster"]
            born_after[new], parent_of[new] = line_epoch, event["cluster"]
            births.append(new)
        elif event["kind"] == "reclaim":
            gone, heir = event["cluster"], event["heir"]
            if heir >= 0:
                births.remove(heir)
                births[births.index(gone)] = heir
                born_after[heir] = born_after[gone]
                parent_of |= {child: heir for child, p in parent_of.items() if p == gone}
                if gone in parent_of:
                    parent_of[heir] = parent_of[gone]
                else:
                    del parent_of[heir]
            else:
                births.remove(gone)
            born_after.pop(gone)
            parent_of.pop(gone, None)
    return SplitTree({cluster: born_after[cluster] for cluster in births}, parent_of)


def _events(
    history: Sequence[Mapping[str, Any]], table: str, epoch: int
) -> Iterable[tuple[Mapping[str, Any], int]]:
    for line in history:
        if line["epoch"] <= epoch:
            for event in line.get("events", ()):
                if event["table"] == table:
                    yield event, line["epoch"]
