"""What a person asks about the clusters of a finished run: tree, sizes, typical members."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import polars as pl

from celrec.core.embedding import ClusteredEmbedding
from celrec.errors import CheckpointError, ConfigError
from celrec.experiments.build import table_of_entity
from celrec.experiments.run import SavedRun

Typical = Literal["popular", "closest"]


def view_clusters(
    run_dir: Path,
    entities: tuple[str, ...] = ("user", "item"),
    *,
    typical: Typical = "popular",
    num_members: int = 3,
) -> list[dict[str, Any]]:
    """Describe the clusters of each table.

    typical : which members to name: those with most training interactions, or, among the more
        popular half, those whose own data would move them least from the cluster's row
    num_members : how many, at most
    returns : per table "table", "entity", "num_entities", "num_clusters" and "clusters"; each
        cluster has "cluster", "parent" (None for the root), "born_at" (0 for the root, then in the
        order of splits), "size", "train_count" and "members". In the order of birth
    raises : CheckpointError, ConfigError
    """
    if typical not in ("popular", "closest"):
        raise ConfigError(f"typical is {typical!r}; wanted 'popular' or 'closest'")
    run = SavedRun.open(run_dir)
    if run.metrics is None:
        raise CheckpointError(
            f"{run_dir} is not finished; finish it with: celrec train --resume {run_dir}"
        )
    model = run.model()
    views = []
    for entity in entities:
        name, table = table_of_entity(model, entity)
        if not isinstance(table, ClusteredEmbedding):
            raise ConfigError(
                f"{run_dir} has no clusters: its embedding is {run.config.embedding.kind}; choose "
                "a run with clustered tables"
            )
        frame = pl.read_parquet(run_dir / f"{entity}s.parquet")
        clusters = _clusters(table, frame, typical, num_members)
        views.append(
            {
                "table": name,
                "entity": entity,
                "num_entities": table.num_embeddings,
                "num_clusters": table.num_clusters,
                "clusters": clusters,
            }
        )
    return views


def _clusters(
    table: ClusteredEmbedding, frame: pl.DataFrame, typical: Typical, num_members: int
) -> list[dict[str, Any]]:
    sizes = table.cluster_sizes().tolist()
    parents, births = table.parent_of.tolist(), table.born_at.tolist()
    found = []
    for cluster in sorted(table.live_clusters().tolist(), key=lambda cluster: births[cluster]):
        members = frame.filter(pl.col("cluster") == cluster)
        found.append(
            {
                "cluster": cluster,
                "parent": parents[cluster] if parents[cluster] >= 0 else None,
                "born_at": births[cluster],
                "size": sizes[cluster],
                "train_count": int(members["train_count"].sum()),
                "members": _typical_members(members, typical, num_members),
            }
        )
    return found


def _typical_members(
    members: pl.DataFrame, typical: Typical, num_members: int
) -> list[dict[str, Any]]:
    if typical == "closest":
        popular = members.filter(pl.col("train_count") >= pl.col("train_count").median())
        ranked = popular.sort(["step", "raw_id"])
    else:
        ranked = members.sort(["train_count", "raw_id"], descending=[True, False])
    return ranked.head(num_members).select("raw_id", "title", "train_count").to_dicts()
