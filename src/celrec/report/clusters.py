"""The clusters of one table, as the page shows them: order, colours, sizes, members."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from celrec.report.read import Run
from celrec.report.split_tree import SplitTree
from celrec.report.style import hex_colour


@dataclass(frozen=True, eq=False)
class Clusters:
    """The clusters of one table, as the page shows them.

    entity : "user" or "item"
    frame : a line per entity, with a cluster
    order : live clusters, those of a common past beside each other. One that no code weighs
        heaviest has no members
    tree : None where the history does not tell
    """

    entity: str
    frame: pl.DataFrame
    order: tuple[int, ...]
    tree: SplitTree | None

    @property
    def sizes(self) -> dict[int, int]:
        counts = dict(self.frame.group_by("cluster").len().iter_rows())
        return {cluster: counts.get(cluster, 0) for cluster in sorted(self.order)}

    @property
    def shares(self) -> dict[int, float]:
        """The share of training interactions that each cluster's members have."""
        total = max(1, int(self.frame["train_count"].sum()))
        counts = dict(self.frame.group_by("cluster").agg(pl.col("train_count").sum()).iter_rows())
        return {cluster: counts.get(cluster, 0) / total for cluster in self.order}

    def colours(self) -> dict[int, str]:
        """Round the colour wheel, so that clusters of a common past have similar colours."""
        colours = {}
        for position, cluster in enumerate(self.order):
            hue = (0.6 + 0.92 * position / len(self.order)) % 1
            lightness, saturation = ((0.44, 0.58), (0.58, 0.52))[position % 2]
            colours[cluster] = hex_colour(colorsys.hls_to_rgb(hue, lightness, saturation))
        return colours

    def members(self, clusters: Sequence[int], count: int) -> list[str]:
        """The members that most training interactions are with, by title where there is one."""
        chosen = self.frame.filter(pl.col("cluster").is_in(clusters))
        chosen = chosen.sort(["train_count", "raw_id"], descending=[True, False]).head(count)
        return [name_of(self.entity, line) for line in chosen.iter_rows(named=True)]


def clusters_of(run: Run, entity: str, tree: SplitTree | None) -> Clusters | None:
    """The clusters of a run's users or items; None where there are none.

    tree : as replayed; dropped where it lacks a cluster that an entity has
    """
    frame = run.users if entity == "user" else run.items
    if frame is None:
        return None
    frame = frame.drop_nulls("cluster")
    if frame.is_empty():
        return None
    live = sorted(set(frame["cluster"]))
    if tree is None or not set(live) <= set(tree.born_after):
        return Clusters(entity, frame, tuple(live), None)
    return Clusters(entity, frame, tuple(tree.leaves()), tree)


def name_of(entity: str, line: Mapping[str, object]) -> str:
    """What to call an entity: its title, else its raw id."""
    return str(line["title"]) if line["title"] else f"{entity} {line['raw_id']}"
