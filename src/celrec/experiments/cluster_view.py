"""What a person asks about the clusters of a finished run: tree, sizes, typical members."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from torch import Tensor

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

    A member of a cluster is one whose code weighs it heaviest.

    typical : which members to name: those with most training interactions, or, among the more
        popular half, those whose vectors are closest to the cluster's row; where all have the row
        itself, those whose own data would move them least from it
    num_members : how many, at most
    returns : per table "table", "entity", "num_entities", "num_clusters", "blend" (m, clusters in a
        code), "personal" (entities with a vector of their own), "levels" (of additive codes) and
        "clusters"; each cluster has
        "cluster", "parent" (None for the root), "born_at" (0 for the root, then in the order of
        splits), "size" (its members), "weight" (in all codes; sums to the entities), "train_count"
        and "members". In the order of birth
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
                "blend": table.blend_size,
                "personal": table.num_personal,
                "levels": table.num_levels,
                "clusters": clusters,
            }
        )
    return views


def cluster_weights(table: ClusteredEmbedding) -> Tensor:
    """The weight of every row in all codes together, float64 (K_max,); of hard codes, its members.

    >>> codes, weights = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[3.0, 1.0], [1.0, 0.0]])
    >>> table = ClusteredEmbedding.from_pretrained(torch.eye(2), codes, weights)
    >>> cluster_weights(table).tolist()
    [0.75, 1.25]
    """
    clusters, weights = table.code_of(torch.arange(table.num_embeddings))  # (N, m)
    if weights is None:
        weights = torch.ones(clusters.shape)
    return torch.bincount(
        clusters.flatten(), weights.double().flatten(), minlength=table.max_clusters
    )


@torch.no_grad()
def _distances(table: ClusteredEmbedding) -> Tensor:
    """How far the vector of every entity is from its cluster's row, (N,); 0 for hard codes."""
    vectors = table.look_up(torch.arange(table.num_embeddings))
    return (vectors - table.weight[table.cluster_ids()]).norm(dim=1)


def _clusters(
    table: ClusteredEmbedding, frame: pl.DataFrame, typical: Typical, num_members: int
) -> list[dict[str, Any]]:
    frame = frame.with_columns(pl.Series("distance", _distances(table).numpy()))
    sizes, weights = table.cluster_sizes().tolist(), cluster_weights(table).tolist()
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
                "weight": weights[cluster],
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
        ranked = popular.sort(["distance", "step", "raw_id"])
    else:
        ranked = members.sort(["train_count", "raw_id"], descending=[True, False])
    return ranked.head(num_members).select("raw_id", "title", "train_count").to_dicts()
