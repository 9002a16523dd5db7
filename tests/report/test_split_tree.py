"""The tree replayed from a history is the tree that the table keeps."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from celrec.core.embedding import ClusteredEmbedding
from celrec.core.split import ClusterSplit, SplitPlan
from celrec.report.split_tree import SplitTree, replay_splits

NUM_ENTITIES, MAX_CLUSTERS = 12, 5


@st.composite
def lives_of_a_table(draw: st.DrawFn) -> tuple[ClusteredEmbedding, list[dict[str, Any]]]:
    """A table after random splits and moves, and the history of them."""
    table = ClusteredEmbedding(NUM_ENTITIES, 1, MAX_CLUSTERS)
    history = []
    for epoch in range(1, draw(st.integers(1, 8)) + 1):
        events: list[dict[str, Any]] = [
            {"kind": "split", "table": "another", "cluster": 0, "new_cluster": 4}
        ]
        divisible = (table.cluster_sizes() >= 2).nonzero().flatten().tolist()
        if table.num_clusters < MAX_CLUSTERS and divisible:
            cluster = draw(st.sampled_from(divisible))
            members = (table.cluster_ids() == cluster).nonzero().flatten()
            moved = members[: draw(st.integers(1, len(members) - 1))]
            row = torch.zeros(1)
            split = ClusterSplit(cluster, moved, row, row, 1.0, 1.0, len(members) - len(moved))
            pairs = table.commit_split(SplitPlan((split,)))
            events += [
                {"kind": "split", "table": "items", "cluster": old, "new_cluster": new}
                for old, new in pairs
            ]
        if draw(st.booleans()):  # one cluster loses all its members
            live = table.live_clusters().tolist()
            emptied, refuge = draw(st.sampled_from(live)), draw(st.sampled_from(live))
            table.cluster_of[table.cluster_of == emptied] = refuge
        events += [
            {"kind": "reclaim", "table": "items", "cluster": cluster, "heir": heir}
            for cluster, heir in table.reclaim_empty()
        ]
        history.append({"epoch": epoch, "events": events})
    return table, history


@given(lives_of_a_table())
def test_the_replayed_tree_is_the_one_that_the_table_keeps(
    life: tuple[ClusteredEmbedding, list[dict[str, Any]]],
) -> None:
    table, history = life
    tree = replay_splits(history, "items", len(history))
    live = table.live_clusters().tolist()
    births, parents = table.born_at.tolist(), table.parent_of.tolist()
    assert list(tree.born_after) == sorted(live, key=lambda cluster: births[cluster])
    assert tree.parent_of == {c: parents[c] for c in live if parents[c] >= 0}
    epochs = list(tree.born_after.values())
    assert epochs == sorted(epochs)


@given(lives_of_a_table())
def test_at_any_time_the_bands_hold_every_cluster_once_and_in_order(
    life: tuple[ClusteredEmbedding, list[dict[str, Any]]],
) -> None:
    _, history = life
    tree = replay_splits(history, "items", len(history))
    end = len(history) + 1
    bands = tree.bands(end)
    assert all(band.start < band.end for band in bands)
    for epoch in range(end):
        present = [band.leaves for band in bands if band.start <= epoch < band.end]
        together = [leaf for leaves in sorted(present, key=order_in(tree)) for leaf in leaves]
        assert together == tree.leaves()


def order_in(tree: SplitTree) -> Any:
    leaves = tree.leaves()
    return lambda band: leaves.index(band[0])


def test_epochs_after_the_kept_one_are_not_followed() -> None:
    history = [
        {"epoch": 1, "events": [{"kind": "split", "table": "t", "cluster": 0, "new_cluster": 1}]},
        {"epoch": 2, "events": [{"kind": "reclaim", "table": "t", "cluster": 1, "heir": -1}]},
        {"epoch": 3, "events": [{"kind": "skip", "table": "t"}]},
    ]
    assert replay_splits(history, "t", 1).born_after == {0: 0, 1: 1}
    assert replay_splits(history, "t", 3).born_after == {0: 0}
