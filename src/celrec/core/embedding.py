"""ClusteredEmbedding and ClusteredEmbeddingBag: embedding tables whose entities share rows.

Both follow their namesakes in `torch.nn`, with one argument more: `max_clusters`. A table of N
entities and width D holds `weight` (K_max, D) and one small code per entity. It starts as a
single cluster; `ClusterOptimizer` splits clusters and moves entities while the model trains.

Rows may be narrower than vectors: `row_dim` R <= D numbers, before which a look-up puts zeros.
`weight` and all else that is kept is R wide; in the rest of this package's core, D is that width.
Where bytes are few, a few numbers with fine codes serve better than many with coarse ones
(docs/design/row-width.md).

The parameter never changes its identity: K_max rows are allocated once, and a split wakes a
sleeping row. Optimizers, `torch.compile` and checkpoints stay valid.

A code starts as the id of one cluster. `ClusterOptimizer.blend` makes it a small mixture: `codes`
(N, m) hold m clusters of every entity, the first of them its own, and `code_weights` their weights
(codes.py). A look-up of a mixture is one fused weighted gather. Some entities may have an offset of
their own on top of it (personal.py): `personal_levels` and `personal_scale` hold the offsets, and
`personal_of` the line of every entity, the last of which is nobody's and zero. Or all entities
have additive codes (additive.py): `level_rows` (L, R, D) hold the rows of L levels, `level_codes`
everyone's choices among them. Where that saves bytes, clusters are kept in as many bits as they
need: `packed_codes` then holds them, and `codes` has no lines.

The split tree is kept in two small arrays. `born_at[k]` numbers the splits (-1: the row sleeps) and
`parent_of[k]` is the cluster that k was split from (-1: the root), so that cutting the tree at any
number gives the coarser clustering of that moment.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from celrec.core.additive import nearest_choices
from celrec.core.codes import (
    LARGEST_WEIGHT,
    MAX_BLEND,
    bits_for,
    cluster_sizes,
    code_dtype,
    pack,
    pack_bits,
    pack_weights,
    packed_bytes,
    quantize,
    take_bits,
    take_lines,
    unpack,
    unpack_weights,
    weighed,
)
from celrec.core.memory import TableMemory
from celrec.core.mixing import nearest_blend
from celrec.core.offsets import are_offsets, offsets_of, quantize_offsets
from celrec.core.vector_clusters import cluster_vectors
from celrec.errors import ArgumentError, DtypeError, EntityIdError, check_count

if TYPE_CHECKING:
    from celrec.core.additive import AdditivePlan
    from celrec.core.blend import CodePlan
    from celrec.core.merge import MergePlan
    from celrec.core.personal import PersonalPlan
    from celrec.core.reassign import ReassignPlan
    from celrec.core.split import SplitPlan

AUTO_CAPACITY = 256
"""Rows allocated for `max_clusters="auto"`: as many as codes of one byte can name."""


class LookUpProbe(Protocol):
    """Stands in for the rows of a table while a round looks at the model (see statistics.py)."""

    def vectors(self, table: ClusteredTable, ids: Tensor, bag_of: Tensor | None = None) -> Tensor:
        """Answer a look-up.

        ids : int (*)       what the model looks up
        bag_of : int (L,)   the bag of each of the L ids, where a bag with offsets asks
        returns : (*, D)
        """
        ...


class ClusteredTable(nn.Module):
    """What both kinds of embedding share: rows, codes, the split tree and their commits."""

    weight: nn.Parameter
    codes: Tensor
    code_weights: Tensor
    prior_sizes: Tensor
    personal_levels: Tensor
    personal_scale: Tensor
    personal_of: Tensor
    packed_codes: Tensor
    level_rows: Tensor
    level_codes: Tensor
    born_at: Tensor
    parent_of: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_clusters: int | Literal["auto"],
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        row_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = check_count("num_embeddings", num_embeddings, at_least=2)
        self.embedding_dim = check_count("embedding_dim", embedding_dim, at_least=1)
        self.row_dim = embedding_dim
        if row_dim is not None:
            self.row_dim = check_count("row_dim", row_dim, at_least=1, at_most=embedding_dim)
        self.padding_idx = _normal_padding_idx(padding_idx, self.num_embeddings)
        self.is_auto = max_clusters == "auto"
        self.max_clusters = _check_max_clusters(max_clusters, self.num_clustered_entities)
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        self.weight = nn.Parameter(
            torch.empty(self.max_clusters, self.row_dim, device=device, dtype=dtype)
        )
        codes = torch.zeros(num_embeddings, 1, dtype=code_dtype(self.max_clusters), device=device)
        self.register_buffer("codes", codes)
        self.register_buffer("code_weights", pack_weights(codes))
        self.register_buffer(
            "prior_sizes", torch.zeros(self.max_clusters, dtype=torch.long, device=device)
        )
        no_lines = torch.zeros(0, self.row_dim, dtype=torch.int8, device=device)
        self.register_buffer("personal_levels", no_lines)
        self.register_buffer("personal_scale", torch.zeros(0, dtype=torch.int16, device=device))
        self.register_buffer("personal_of", torch.zeros(0, dtype=torch.uint8, device=device))
        no_bytes = torch.zeros(0, dtype=torch.uint8, device=device)
        self.register_buffer("packed_codes", no_bytes)
        self.register_buffer("level_rows", self.weight.detach().new_zeros(0, 1, self.row_dim))
        self.register_buffer("level_codes", no_bytes.clone())
        self.register_buffer("born_at", torch.full((self.max_clusters,), -1, device=device))
        self.register_buffer("parent_of", torch.full((self.max_clusters,), -1, device=device))
        self.born_at[0] = 0
        self.probe: LookUpProbe | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every row from N(0, 1), as `torch.nn.Embedding` does. Codes are left alone."""
        nn.init.normal_(self.weight)

    # --- what the table is -------------------------------------------------------------------

    @property
    def num_clusters(self) -> int:
        """K, the number of live clusters."""
        return int((self.born_at >= 0).sum())

    @property
    def blend_size(self) -> int:
        """m, the number of clusters in a code; 1 for hard codes."""
        return self.codes.shape[1]

    @property
    def num_personal(self) -> int:
        """P, the number of entities with a vector of their own."""
        lines = self.personal_scale.numel()
        return lines - 1 if self.personal_of.numel() else lines

    @property
    def num_levels(self) -> int:
        """L, the levels of additive codes; 0 where there are none."""
        return self.level_rows.shape[0]

    @property
    def is_packed(self) -> bool:
        """Whether codes are kept in as few bits as the clusters need."""
        return self.packed_codes.numel() > 0

    @property
    def cluster_of(self) -> Tensor:
        """The cluster of every entity, (N,) as `pack` gives it: of a blend the heaviest.

        A view of `codes`, unless these are packed in bits.
        """
        if not self.is_packed:
            return self.codes[:, 0]
        entities = torch.arange(self.num_embeddings, device=self.codes.device)
        clusters = take_bits(self.packed_codes, entities, bits_for(self.max_clusters))
        return pack(clusters, self.codes.dtype)

    @property
    def num_clustered_entities(self) -> int:
        """N, less one if there is a padding entity, which has no cluster."""
        return self.num_embeddings - (self.padding_idx is not None)

    def live_clusters(self) -> Tensor:
        """The ids of the live clusters, int64 (K,), ascending."""
        return (self.born_at >= 0).nonzero().flatten()

    def cluster_ids(self) -> Tensor:
        """The cluster of every entity, int64 (N,); -1 for the padding entity."""
        ids = unpack(self.cluster_of)
        if self.padding_idx is not None:
            ids[self.padding_idx] = -1
        return ids

    def cluster_sizes(self) -> Tensor:
        """The number of members of every row, int64 (K_max,); sleeping rows have none."""
        sizes = cluster_sizes(unpack(self.cluster_of), self.max_clusters)
        if self.padding_idx is not None:
            sizes[unpack(self.cluster_of[self.padding_idx])] -= 1
        return sizes

    def to_dense(self) -> Tensor:
        """The vector of every entity, (N, D), detached; zeros for the padding entity."""
        dense = self.look_up(torch.arange(self.num_embeddings, device=self.weight.device)).detach()
        if self.padding_idx is not None:
            dense[self.padding_idx] = 0
        return self._widened(dense)

    def memory(self) -> TableMemory:
        """The bytes that serving needs: live rows and codes. The name is left empty."""
        size = self.weight.element_size()
        clusters = self.num_clusters
        num_rows = clusters + self.num_levels * self.level_rows.shape[1]
        return TableMemory(
            name="",
            kind="clustered",
            num_entities=self.num_embeddings,
            width=self.embedding_dim,
            num_rows=num_rows,
            table_bytes=num_rows * self.row_dim * size,
            code_bytes=_num_bytes(
                self.codes,
                self.code_weights,
                self.personal_of,
                self.packed_codes,
                self.level_codes,
            ),
            personal_bytes=_num_bytes(self.personal_levels, self.personal_scale),
            full_table_bytes=self.num_embeddings * self.embedding_dim * size,
            sleeping_bytes=(self.max_clusters - clusters) * self.row_dim * size,
        )

    def extra_repr(self) -> str:
        max_clusters = "'auto'" if self.is_auto else self.max_clusters
        text = f"{self.num_embeddings}, {self.embedding_dim}, max_clusters={max_clusters}"
        if self.row_dim < self.embedding_dim:
            text += f", row_dim={self.row_dim}"
        text += f", num_clusters={self.num_clusters}"
        if self.blend_size > 1:
            text += f", blend_size={self.blend_size}"
        if self.num_personal:
            text += f", num_personal={self.num_personal}"
        if self.num_levels:
            text += f", num_levels={self.num_levels}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        if self.max_norm is not None:
            text += f", max_norm={self.max_norm}"
        if self.norm_type != 2.0:
            text += f", norm_type={self.norm_type}"
        if self.scale_grad_by_freq:
            text += ", scale_grad_by_freq=True"
        return text + (", sparse=True" if self.sparse else "")

    # --- making one from what exists ---------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        rows: Tensor,
        cluster_of: Tensor,
        weights: Tensor | None = None,
        *,
        freeze: bool = True,
        max_clusters: int | Literal["auto"] | None = None,
        padding_idx: int | None = None,
        embedding_dim: int | None = None,
        **options: Any,
    ) -> Self:
        """Make a table from given rows and the cluster of every entity.

        rows : float (K, R)      row of every cluster; all of them are live
        cluster_of : int (N,)    values in [0, K); the padding entity's value is ignored. Or (N, m)
            for blends
        weights : float (N, m) >= 0, of blends; rounded to sixteenths of the largest of each
        freeze : whether the rows are excluded from training, as in `nn.Embedding`
        max_clusters : K_max >= K; by default K: the table then has no room to split
        embedding_dim : D >= R, the width of vectors; by default R
        raises : ArgumentError, DtypeError

        >>> table = ClusteredEmbedding.from_pretrained(torch.eye(2), torch.tensor([0, 1, 1]))
        >>> table(torch.tensor([2])).tolist()
        [[0.0, 1.0]]
        """
        if rows.dim() != 2 or not rows.is_floating_point() or rows.shape[0] < 1:
            raise ArgumentError(
                f"rows has shape {tuple(rows.shape)} and type {rows.dtype}; wanted floats of "
                "shape (clusters, width) with at least one cluster"
            )
        _check_id_dtype("cluster_of", cluster_of)
        if cluster_of.dim() == 1:
            cluster_of = cluster_of.unsqueeze(1)
        if cluster_of.dim() != 2 or not 1 <= cluster_of.shape[1] <= MAX_BLEND:
            raise ArgumentError(
                f"cluster_of has shape {tuple(cluster_of.shape)}; wanted one cluster per entity, "
                f"(N,), or m of them, (N, m) with m at most {MAX_BLEND}"
            )
        levels = _levels_from(weights, cluster_of)
        num_clusters = rows.shape[0]
        table = cls(
            cluster_of.shape[0],
            rows.shape[1] if embedding_dim is None else embedding_dim,
            max(2, num_clusters) if max_clusters is None else max_clusters,
            padding_idx=padding_idx,
            row_dim=rows.shape[1],
            device=rows.device,
            dtype=rows.dtype,
            **options,
        )
        if num_clusters > table.max_clusters:
            raise ArgumentError(
                f"rows has {num_clusters} clusters, but max_clusters is {table.max_clusters}; "
                "raise max_clusters or give fewer rows"
            )
        clusters = cluster_of.to(rows.device).long().clone()
        if table.padding_idx is not None:
            clusters[table.padding_idx] = 0
        outside = ((clusters < 0) | (clusters >= num_clusters)).nonzero()
        if outside.numel():
            entity, place = outside[0].tolist()
            raise ArgumentError(
                f"entity {entity} is in cluster {int(clusters[entity, place])}, but there are only "
                f"{num_clusters} rows; were rows and cluster_of saved at the same moment?"
            )
        with torch.no_grad():
            table.weight[:num_clusters] = rows
            table.codes = pack(clusters, table.codes.dtype)
            table.code_weights = pack_weights(levels.to(rows.device))
            table.prior_sizes = table.cluster_sizes()
            table.born_at[:num_clusters] = torch.arange(num_clusters, device=rows.device)
            table.parent_of[1:num_clusters] = 0
        table.weight.requires_grad = not freeze
        return table

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        max_clusters: int | Literal["auto"],
        *,
        freeze: bool = False,
        **options: Any,
    ) -> Self:
        """Make a table that stands in for a dense one, sharing at most `max_clusters` rows.

        Splits the entities top-down along the main direction in which their vectors differ, and
        moves each to its nearest row (vector_clusters.py). With at most `max_clusters` distinct
        vectors nothing is lost.

        weight : float (N, D)    the dense table
        max_clusters : K_max in [2, N], or "auto", which starts with as many as there is room for
        freeze : whether the rows are excluded from training

        >>> dense = torch.tensor([[0.0, 1.0], [5.0, 5.0], [0.0, 1.0]])
        >>> torch.equal(ClusteredEmbedding.from_dense(dense, max_clusters=2).to_dense(), dense)
        True
        """
        if weight.dim() != 2 or not weight.is_floating_point():
            raise ArgumentError(
                f"weight has shape {tuple(weight.shape)} and type {weight.dtype}; wanted floats "
                "of shape (N, D), the weight of a dense embedding"
            )
        padding_idx = _normal_padding_idx(options.get("padding_idx"), weight.shape[0])
        num_entities = weight.shape[0] - (padding_idx is not None)
        capacity = _check_max_clusters(max_clusters, num_entities)
        dense = weight.detach()
        if padding_idx is None:
            rows, clusters = cluster_vectors(dense, capacity)
        else:
            keep = torch.arange(weight.shape[0], device=dense.device) != padding_idx
            rows, kept_clusters = cluster_vectors(dense[keep], capacity)
            clusters = torch.zeros(weight.shape[0], dtype=torch.long, device=dense.device)
            clusters[keep] = kept_clusters
        return cls.from_pretrained(
            rows, clusters, freeze=freeze, max_clusters=max_clusters, **options
        )

    # --- looking up --------------------------------------------------------------------------

    def look_up(self, ids: Tensor) -> Tensor:
        """What is kept of the vectors of entities, ids (L,): their last R numbers, (L, R).

        The padding entity's are not yet zero here.

        raises : DtypeError, EntityIdError
        """
        rows, weights = self.code_of(ids)
        self.renormalize(rows)
        if weights is not None:
            vectors = F.embedding_bag(
                rows,
                self.weight,
                per_sample_weights=weights.to(self.weight.dtype),
                mode="sum",
                sparse=self.sparse,
            )
        elif self.sparse:
            vectors = F.embedding(rows.squeeze(1), self.weight, sparse=True)
        else:
            vectors = self.weight.index_select(0, rows.squeeze(1))
        if self.num_levels:
            vectors = vectors + self._sums(ids)
        return vectors if self.personal_scale.numel() == 0 else vectors + self._offsets(ids)

    def _widened(self, vectors: Tensor) -> Tensor:
        """Zeros before what is kept of vectors: (*, R) to (*, D)."""
        missing = self.embedding_dim - self.row_dim
        return F.pad(vectors, (missing, 0)) if missing else vectors

    def _sums(self, ids: Tensor) -> Tensor:
        """What the levels of additive codes add to clusters' rows for entities, (L,): (L, R)."""
        num_levels, num_rows, width = self.level_rows.shape
        level = torch.arange(num_levels, device=ids.device)
        places = ids.long().unsqueeze(1) * num_levels + level  # (L, levels)
        choices = take_bits(self.level_codes, places, bits_for(num_rows))
        rows = self.level_rows.view(-1, width)
        return F.embedding_bag(choices + num_rows * level, rows, mode="sum")

    def _offsets(self, ids: Tensor) -> Tensor:
        """What entities, (L,), have of their own, (L, R)."""
        lines = unpack(self.personal_of.index_select(0, ids)) if self.personal_of.numel() else ids
        return offsets_of(
            self.personal_levels.index_select(0, lines),
            self.personal_scale.index_select(0, lines),
            self.row_dim,
            self.weight.dtype,
        )

    def code_of(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """The clusters of entities, int64 (L, m), and their weights, float32 (L, m).

        ids : int (L,)
        returns : weights sum to 1 in every line; None for hard codes, whose one weight is 1
        raises : DtypeError, EntityIdError
        """
        _check_id_dtype("ids", ids)
        if torch.compiler.is_compiling():
            return self._take_codes(ids)
        try:
            return self._take_codes(ids)
        except (IndexError, RuntimeError) as error:
            self._check_range(ids)
            raise error

    def _take_codes(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.is_packed:
            bits = bits_for(self.max_clusters)
            return take_bits(self.packed_codes, ids.long(), bits).unsqueeze(1), None
        clusters = unpack(take_lines(self.codes, ids))
        if self.blend_size == 1:
            return clusters, None
        return clusters, unpack_weights(take_lines(self.code_weights, ids), self.blend_size)

    def check_ids(self, ids: Tensor) -> None:
        """Raise DtypeError or EntityIdError unless `ids`, (L,), are entities of this table."""
        _check_id_dtype("ids", ids)
        self._check_range(ids)

    def _check_range(self, ids: Tensor) -> None:
        outside = ((ids < 0) | (ids >= self.num_embeddings)).nonzero().flatten()
        if outside.numel():
            raise EntityIdError(
                f"id {int(ids[outside[0]])} at position {int(outside[0])} of the look-up is "
                f"outside [0, {self.num_embeddings}), the entities of this table; was the table "
                "made for another vocabulary?"
            )

    def renormalize(self, row_ids: Tensor) -> None:
        """Shorten looked-up rows to `max_norm`, in place, as `nn.Embedding` does."""
        if self.max_norm is not None:
            with torch.no_grad():
                torch.embedding_renorm_(
                    self.weight, row_ids.reshape(-1), self.max_norm, self.norm_type
                )

    # --- changing clusters -------------------------------------------------------------------

    @torch.no_grad()
    def commit_split(self, plan: SplitPlan) -> list[tuple[int, int]]:
        """Wake one row for every split of the plan; returns (cluster, new cluster) pairs.

        The members that the plan names move to the new cluster; both rows get their start.
        """
        sleeping = (self.born_at < 0).nonzero().flatten()
        assert len(plan.splits) <= sleeping.numel(), "a plan must fit the sleeping rows"
        pairs = []
        for split, new in zip(plan.splits, sleeping.tolist(), strict=False):
            self.weight[split.cluster] = split.stay_row.to(self.weight.dtype)
            self.weight[new] = split.move_row.to(self.weight.dtype)
            self.cluster_of[split.moved] = pack(torch.tensor(new), self.cluster_of.dtype)
            self.born_at[new] = self.born_at.max() + 1
            self.parent_of[new] = split.cluster
            pairs.append((split.cluster, new))
        return pairs

    @torch.no_grad()
    def commit_moves(self, plan: ReassignPlan) -> None:
        """Move entities to the clusters that the plan names."""
        self.cluster_of[plan.entities] = pack(plan.to_cluster, self.cluster_of.dtype)

    @torch.no_grad()
    def add_entities(self, count: int) -> range:
        """Take in new entities, in place; they get the code of the prior.

        That is the blend nearest to the mean row, weighted by members that have data.
        `ClusterOptimizer.update_codes` makes better codes of their first samples, `FirstCodes` of
        side features. `weight` stays the same parameter, and the entities that were there keep
        their ids and vectors, bit for bit. Save the new `num_embeddings` with the table: a state
        dict loads only into a table of as many entities.

        count : >= 1
        returns : the new ids, N to N + count - 1
        raises : ArgumentError

        >>> table = ClusteredEmbedding.from_pretrained(torch.eye(2), torch.tensor([0, 1, 1, 1]))
        >>> table.add_entities(2)
        range(4, 6)
        >>> table(torch.tensor([5])).tolist()
        [[0.0, 1.0]]
        """
        check_count("count", count, at_least=1)
        first = self.num_embeddings
        was_packed = self.is_packed
        self.unpack_codes()
        live = self.live_clusters()
        share = (self.prior_sizes[live] + 1).double()
        rows = self.weight[live].double()
        target = share / share.sum() @ rows
        positions, weights = nearest_blend(rows, target, min(self.blend_size, live.numel()))
        code, levels = weighed(live[positions], weights)
        missing = self.blend_size - code.numel()  # of a blend of more clusters than are live
        code = torch.cat([code, code[:1].expand(missing)])
        levels = torch.cat([levels, levels.new_zeros(missing)])
        new_codes = pack(code, self.codes.dtype).expand(count, -1)
        self.codes = torch.cat([self.codes, new_codes])
        new_weights = pack_weights(levels.unsqueeze(0)).expand(count, -1)
        self.code_weights = torch.cat([self.code_weights, new_weights])
        self._add_lines_for(count)
        if self.num_levels:
            mixed = (levels / levels.sum()).to(rows) @ self.weight[code].to(rows)
            choices = nearest_choices(target - mixed, self.level_rows.to(rows))
            self._set_level_codes(torch.cat([self._level_choices(), choices.expand(count, -1)]))
        self.num_embeddings = first + count
        if was_packed:
            self.pack_codes()
        return range(first, first + count)

    def _add_lines_for(self, count: int) -> None:
        """Let new entities have no personal vector, where others have one."""
        if not self.num_personal:
            return
        if self.personal_of.numel():
            nobody = self.personal_scale.numel() - 1
            old = self.personal_of
        else:  # until now every line was its entity's
            nobody = self.num_embeddings
            lines = torch.arange(nobody, device=self.codes.device)
            old = pack(lines, code_dtype(nobody + 1))
            self._set_lines(self.personal_levels, self.personal_scale)
        new = pack(torch.full((count,), nobody, device=old.device), old.dtype)
        self.personal_of = torch.cat([old, new])

    @torch.no_grad()
    def commit_codes(self, plan: CodePlan) -> None:
        """Give entities the codes that the plan names.

        Where the plan's codes have another size than the table's, every other entity keeps its own
        cluster alone.
        """
        blend_size = plan.clusters.shape[1]
        was_packed = self.is_packed
        self.unpack_codes()
        if blend_size != self.blend_size:
            self._resize_codes(blend_size)
        self.codes[plan.entities] = pack(plan.clusters, self.codes.dtype)
        self.code_weights[plan.entities] = pack_weights(plan.levels)
        if was_packed and blend_size == 1:
            self.pack_codes()

    @torch.no_grad()
    def commit_personal(self, plan: PersonalPlan) -> None:
        """Give the plan's entities offsets from their blends, and no others."""
        if not len(plan.entities):
            self.drop_personal()
            return
        levels, scale = quantize_offsets(plan.offsets, plan.bits)
        lines = torch.arange(len(plan.entities), device=levels.device)
        if len(plan.entities) == self.num_embeddings:
            self.personal_of = lines[:0].to(torch.uint8)  # every line is its entity's
            self.personal_levels, self.personal_scale = levels, scale
            return
        nobody = len(plan.entities)
        line_of = lines.new_full((self.num_embeddings,), nobody)
        line_of[plan.entities] = lines
        self.personal_of = pack(line_of, code_dtype(nobody + 1))
        self._set_lines(levels, scale)

    def _set_lines(self, levels: Tensor, scale: Tensor) -> None:
        """Keep packed offsets, and nobody's behind them: its scale is zero."""
        self.personal_levels = torch.cat([levels, torch.zeros_like(levels[:1])])
        self.personal_scale = torch.cat([scale, scale.new_zeros(1)])

    def drop_personal(self) -> None:
        """Leave every entity to its code."""
        for name in ("personal_of", "personal_levels", "personal_scale"):
            part = getattr(self, name)
            setattr(self, name, part.new_empty(0, *part.shape[1:]))  # a slice would keep it all

    @torch.no_grad()
    def commit_additive(self, plan: AdditivePlan, *, is_packed: bool) -> None:
        """Give every entity the plan's code, and clusters the plan's rows.

        is_packed : whether clusters are kept in as few bits as they need
        """
        self.harden()
        self.codes = pack(plan.clusters.unsqueeze(1), self.codes.dtype)
        self.weight.copy_(plan.rows)
        self.level_rows = plan.level_rows.to(self.weight.dtype).contiguous()
        self._set_level_codes(plan.choices)
        self.reclaim_empty()
        if is_packed:
            self.pack_codes()

    def _set_level_codes(self, choices: Tensor) -> None:
        bits = bits_for(self.level_rows.shape[1])
        self.level_codes = (
            pack_bits(choices.flatten(), bits) if choices.numel() else self.level_codes.new_empty(0)
        )

    def _level_choices(self) -> Tensor:
        """Everyone's row of each level, int64 (N, L)."""
        num_levels, num_rows, _ = self.level_rows.shape
        places = torch.arange(self.num_embeddings * num_levels, device=self.codes.device)
        return take_bits(self.level_codes, places, bits_for(num_rows)).view(-1, num_levels)

    def drop_levels(self) -> None:
        """Leave every entity to the row of its cluster."""
        self.level_rows = self.level_rows.new_empty(0, *self.level_rows.shape[1:])
        self.level_codes = self.level_codes.new_empty(0)

    def pack_codes(self) -> None:
        """Keep hard codes in as few bits as the clusters need; a look-up takes a little longer."""
        assert self.blend_size == 1, "a blend has ids of whole bytes"
        if not self.is_packed:
            bits = bits_for(self.max_clusters)
            self.packed_codes = pack_bits(unpack(self.cluster_of), bits)
            self.codes = self.codes.new_empty(0, 1)
            self.code_weights = self.code_weights.new_empty(0, 0)

    def unpack_codes(self) -> None:
        """Keep codes in whole bytes again."""
        if self.is_packed:
            self.codes = self.cluster_of.unsqueeze(1)
            self.code_weights = self.code_weights.new_empty(self.num_embeddings, 0)
            self.packed_codes = self.packed_codes.new_empty(0)

    @torch.no_grad()
    def commit_merges(self, plan: MergePlan) -> list[tuple[int, int]]:
        """Send the members of dissolved clusters to the plan's, and put the rows to sleep.

        Members that the plan does not name, having no data, follow most of the others. Returns
        (cluster, heir) pairs as `reclaim_empty` does.
        """
        for merge in plan.merges:
            rest = merge.to_cluster.mode().values
            self.cluster_of[
                self.cluster_of == pack(rest.new_tensor(merge.cluster), self.codes.dtype)
            ] = pack(rest, self.codes.dtype)
            self.cluster_of[merge.entities] = pack(merge.to_cluster, self.codes.dtype)
        return self.reclaim_empty()

    def harden(self) -> None:
        """Leave every entity in its own cluster alone: hard codes, no levels, nothing personal."""
        self.drop_personal()
        self.drop_levels()
        self.unpack_codes()
        if self.blend_size > 1:
            self._resize_codes(1)

    def _resize_codes(self, blend_size: int) -> None:
        """Codes of another size, with all weight on each entity's own cluster."""
        self.codes = self.codes[:, :1].repeat(1, blend_size)
        levels = torch.zeros_like(self.codes, dtype=torch.uint8)
        levels[:, 0] = LARGEST_WEIGHT
        self.code_weights = pack_weights(levels)

    @torch.no_grad()
    def reclaim_empty(self) -> list[tuple[int, int]]:
        """Put rows without members to sleep; returns (cluster, heir) pairs, heir -1 if none.

        The last cluster split from an empty one inherits its place in the split tree.
        """
        is_empty = (self.born_at >= 0) & (self.cluster_sizes() == 0)
        pairs = []
        for cluster in is_empty.nonzero().flatten().tolist():
            children = (self.parent_of == cluster).nonzero().flatten()
            heir = -1
            if children.numel():
                heir = int(children[self.born_at[children].argmax()])
                self.parent_of[children] = heir
                self.parent_of[heir] = self.parent_of[cluster]
                self.born_at[heir] = self.born_at[cluster]
            self.born_at[cluster] = self.parent_of[cluster] = -1
            pairs.append((cluster, heir))
        return pairs

    @torch.no_grad()
    def at_level(self, num_clusters: int) -> Self:
        """Make a table of fewer clusters: the split tree cut at that number of births.

        A row becomes the mean of the live rows that the tree puts under it, weighted by members.
        Codes become hard ones; this table stays as it is. Rows that `from_pretrained` was given
        are all children of the first.

        num_clusters : in [1, K]
        raises : ArgumentError

        >>> rows, clusters = torch.tensor([[0.0], [4.0], [6.0]]), torch.tensor([0, 0, 0, 1, 2])
        >>> table = ClusteredEmbedding.from_pretrained(rows, clusters)
        >>> table.at_level(1).to_dense().flatten().tolist()
        [2.0, 2.0, 2.0, 2.0, 2.0]
        """
        check_count("num_clusters", num_clusters, at_least=1, at_most=self.num_clusters)
        by_birth = self.live_clusters()[self.born_at[self.live_clusters()].argsort()]
        kept, gone = by_birth[:num_clusters], by_birth[num_clusters:]
        node_of = torch.arange(self.max_clusters, device=by_birth.device)
        for cluster in gone.tolist():  # a parent is born before its children
            node_of[cluster] = node_of[self.parent_of[cluster]]
        sizes = self.cluster_sizes().to(self.weight.dtype)
        total = torch.zeros_like(sizes).index_add_(0, node_of, sizes)
        mean = torch.zeros_like(self.weight).index_add_(0, node_of, self.weight * sizes[:, None])
        table = copy.deepcopy(self)
        table.harden()
        table.weight[kept] = mean[kept] / total[kept, None]
        table.codes = pack(node_of[unpack(self.cluster_of)].unsqueeze(1), self.codes.dtype)
        table.prior_sizes = torch.zeros_like(self.prior_sizes).index_add_(
            0, node_of, self.prior_sizes
        )
        table.born_at[gone] = table.parent_of[gone] = -1
        return table

    def make_room_for(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Take the sizes of codes and personal vectors that a state dict has, before it is loaded.

        state : may hold anything; what does not fit is left for loading to name
        """
        levels, scale, line_of = (
            state.get(f"{prefix}personal_{part}") for part in ("levels", "scale", "of")
        )
        if (
            isinstance(levels, Tensor)
            and isinstance(scale, Tensor)
            and isinstance(line_of, Tensor)
            and are_offsets(levels, scale, self.row_dim)
            and line_of.numel() in (0, self.num_embeddings)
            and line_of.dtype in (torch.uint8, torch.int16, torch.int32)
        ):
            self.personal_levels = torch.zeros_like(levels, device=self.codes.device)
            self.personal_scale = torch.zeros_like(scale, device=self.codes.device)
            self.personal_of = torch.zeros_like(line_of, device=self.codes.device)
        rows, choices, packed = (
            state.get(f"{prefix}{part}") for part in ("level_rows", "level_codes", "packed_codes")
        )
        if (
            isinstance(rows, Tensor)
            and isinstance(choices, Tensor)
            and rows.dim() == 3
            and rows.shape[2] == self.row_dim
            and choices.numel() == self._level_bytes(rows)
        ):
            self.level_rows = self.level_rows.new_zeros(rows.shape)
            self.level_codes = self.level_codes.new_zeros(choices.shape)
        codes = state.get(f"{prefix}codes")
        if not isinstance(codes, Tensor) or codes.dim() != 2:
            return
        self.unpack_codes()
        if codes.shape[1] != self.blend_size and 1 <= codes.shape[1] <= MAX_BLEND:
            self._resize_codes(codes.shape[1])
        size = packed_bytes(self.num_embeddings, bits_for(self.max_clusters))
        is_packed = isinstance(packed, Tensor) and packed.numel() == size
        if is_packed and codes.shape == (0, 1):
            self.pack_codes()

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.make_room_for(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        error_msgs: list[str] = args[-1] if args else kwargs["error_msgs"]
        if error_msgs:
            return
        lines = self.personal_scale.numel()
        if self.personal_of.numel():
            is_personal_whole = int(unpack(self.personal_of).max()) < lines
        else:
            is_personal_whole = lines in (0, self.num_embeddings)
        if not is_personal_whole:
            error_msgs.append(
                f"{prefix}personal_of points at vectors that {prefix}personal_levels lacks: "
                "the two were not saved at the same moment"
            )
        is_live = self.born_at >= 0
        clusters = unpack(self.cluster_of if self.is_packed else self.codes)
        if int(clusters.max()) >= self.max_clusters or not bool(is_live[clusters].all()):
            error_msgs.append(
                f"{prefix}codes points at a cluster that {prefix}born_at says is asleep: "
                "the two were not saved at the same moment"
            )

    def _level_bytes(self, rows: Tensor) -> int:
        """What everyone's choices among `level_rows` take."""
        num_levels, num_rows, _ = rows.shape
        if not num_levels:
            return 0
        return packed_bytes(self.num_embeddings * num_levels, bits_for(num_rows))


@contextmanager
def codes_kept_on_error(tables: Iterable[ClusteredTable]) -> Iterator[None]:
    """Put back the codes and personal vectors that a block has replaced, if it fails.

    Not what it has changed in place: rows, and codes of the same size.
    """
    before = {table: dict(table.named_buffers(recurse=False)) for table in tables}
    try:
        yield
    except BaseException:
        for table, buffers in before.items():
            for name, buffer in buffers.items():
                setattr(table, name, buffer)
        raise


class ClusteredEmbedding(ClusteredTable):
    """`torch.nn.Embedding` whose entities share the rows of clusters.

    num_embeddings : N >= 2          number of entities
    embedding_dim : D >= 1           width of a vector
    max_clusters : K_max in [2, N]   rows allocated (the padding entity does not count in N). Or
        "auto": rounds split and merge clusters as long as the data pay for them, up to 256
    padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, device, dtype :
        as in `nn.Embedding`; each equals an `nn.Embedding` whose rows are tied by cluster. The
        padding entity has no cluster, returns zeros and gets no gradient.
    row_dim : R in [1, D]            numbers in a row; zeros stand before them. None: D
    raises : ArgumentError for sizes out of range

    Source: Chen et al., "Clustered Embedding Learning for Recommender Systems", WWW 2023,
    section 3.

    >>> users = ClusteredEmbedding(1000, 8, max_clusters=16)
    >>> users(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    >>> users
    ClusteredEmbedding(1000, 8, max_clusters=16, num_clusters=1)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Look up vectors: ids int32 or int64 of any shape (*) give floats of shape (*, D)."""
        if self.probe is not None:
            vectors = self.probe.vectors(self, input)
        else:
            flat = input.reshape(-1)
            vectors = self.look_up(flat)
            if self.scale_grad_by_freq and vectors.requires_grad:
                vectors.register_hook(_DivideByFrequency(flat))
            vectors = vectors.view(*input.shape, self.row_dim)
        if self.padding_idx is not None:
            vectors = vectors.masked_fill((input == self.padding_idx).unsqueeze(-1), 0.0)
        return self._widened(vectors)


class ClusteredEmbeddingBag(ClusteredTable):
    """`torch.nn.EmbeddingBag` whose entities share the rows of clusters.

    mode : "sum", "mean" or "max"
    include_last_offset : as in `nn.EmbeddingBag`
    other arguments : as in `ClusteredEmbedding`. Padding entries count in no bag.
    raises : ArgumentError; `scale_grad_by_freq` is refused, for a pooled row has no one frequency

    >>> genres = ClusteredEmbeddingBag(20, 4, max_clusters=5, mode="mean")
    >>> genres(torch.tensor([[1, 2, 3], [4, 5, 6]])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_clusters: int | Literal["auto"],
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        row_dim: int | None = None,
    ) -> None:
        if mode not in ("sum", "mean", "max"):
            raise ArgumentError(f"mode is {mode!r}; wanted 'sum', 'mean' or 'max'")
        if scale_grad_by_freq:
            raise ArgumentError(
                "scale_grad_by_freq is True; ClusteredEmbeddingBag pools rows before their "
                "gradients are known and cannot scale them per entity: use ClusteredEmbedding"
            )
        super().__init__(
            num_embeddings,
            embedding_dim,
            max_clusters,
            padding_idx,
            max_norm,
            norm_type,
            sparse=sparse,
            device=device,
            dtype=dtype,
            row_dim=row_dim,
        )
        self.mode = mode
        self.include_last_offset = include_last_offset

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Pool the vectors of bags: (B, L), or (L,) with offsets (B,), gives floats (B, D)."""
        _check_id_dtype("input", input)
        flat = input.reshape(-1)
        is_plain = self.blend_size == 1 and not self.num_personal and not self.num_levels
        is_pooling_rows = self.probe is None and is_plain
        if is_pooling_rows:
            row_ids = self.code_of(flat)[0].squeeze(1)
            self.renormalize(row_ids)
            rows: Tensor = self.weight
        else:  # every look-up has a vector of its own: it is probed, or mixed from several rows
            row_ids = torch.arange(flat.shape[0], device=flat.device)
            if self.probe is None:
                rows = self.look_up(flat)
            else:
                bag_of = _bag_of(input, offsets, self.include_last_offset)
                rows = self.probe.vectors(self, input, bag_of).reshape(-1, self.row_dim)
        if self.padding_idx is None:
            padding_row = None
        else:  # a row that pooling leaves out; copies K x R floats
            padding_row = rows.shape[0]
            rows = torch.cat([rows, rows.new_zeros(1, self.row_dim)])
            row_ids = row_ids.masked_fill(flat == self.padding_idx, padding_row)
        pooled = F.embedding_bag(
            row_ids.view_as(input),
            rows,
            offsets,
            mode=self.mode,
            sparse=self.sparse and is_pooling_rows and padding_row is None,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding_row,
        )
        return self._widened(pooled)


class _DivideByFrequency:
    """A gradient hook: divides the gradient of a look-up by how often the batch looks its id up."""

    def __init__(self, flat_ids: Tensor) -> None:
        _, inverse, counts = flat_ids.unique(return_inverse=True, return_counts=True)
        self.frequency = counts[inverse].unsqueeze(-1)  # (L, 1)

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient / self.frequency


def _bag_of(input: Tensor, offsets: Tensor | None, include_last_offset: bool) -> Tensor | None:
    """The bag of every id, (L,), where offsets say so; None where the first axis does."""
    if offsets is None:
        return None
    starts = offsets[:-1] if include_last_offset else offsets
    positions = torch.arange(input.shape[0], device=input.device)
    return torch.searchsorted(starts.to(positions.dtype), positions, right=True) - 1


def _num_bytes(*arrays: Tensor) -> int:
    return sum(array.numel() * array.element_size() for array in arrays)


def _levels_from(weights: Tensor | None, cluster_of: Tensor) -> Tensor:
    """The weights of blends as integers, uint8 (N, m)."""
    if weights is None and cluster_of.shape[1] == 1:
        weights = torch.ones(cluster_of.shape)
    if weights is None or weights.shape != cluster_of.shape:
        found = "None" if weights is None else f"of shape {tuple(weights.shape)}"
        raise ArgumentError(
            f"weights is {found}, for codes of shape {tuple(cluster_of.shape)}; wanted one weight "
            "for each cluster of each entity"
        )
    is_bad = ~(weights >= 0).all(1) | ~weights.isfinite().all(1) | (weights.sum(1) <= 0)
    if bool(is_bad.any()):
        entity = int(is_bad.nonzero()[0])
        raise ArgumentError(
            f"entity {entity} has weights {weights[entity].tolist()}; wanted finite numbers of at "
            "least 0, with one above"
        )
    return quantize(weights)


def _check_id_dtype(name: str, ids: Tensor) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        raise DtypeError(f"{name} has type {ids.dtype}; wanted torch.int64 or torch.int32")


def _check_max_clusters(max_clusters: int | Literal["auto"], num_entities: int) -> int:
    """Check a number of rows; of "auto" it is the capacity."""
    if max_clusters == "auto":
        max_clusters = max(2, min(num_entities, AUTO_CAPACITY))
    if isinstance(max_clusters, str):
        raise ArgumentError(f"max_clusters is {max_clusters!r}; wanted an integer or 'auto'")
    if max_clusters == 1:
        raise ArgumentError(
            "max_clusters is 1: every entity would share one vector and nothing could be learned "
            "of any; wanted 2 or more"
        )
    if isinstance(max_clusters, int) and max_clusters > num_entities:
        raise ArgumentError(
            f"max_clusters is {max_clusters}, more than the {num_entities} entities that can have "
            f"a cluster; wanted 2 to {num_entities} (or torch.nn.Embedding, if each is to have "
            "its own vector)"
        )
    return check_count("max_clusters", max_clusters, at_least=2)


def _normal_padding_idx(padding_idx: int | None, num_embeddings: int) -> int | None:
    """Count a negative padding_idx from the end, as torch does."""
    if padding_idx is None:
        return None
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise ArgumentError(
            f"padding_idx is {padding_idx}; wanted an entity, in "
            f"[{-num_embeddings}, {num_embeddings})"
        )
    return padding_idx % num_embeddings
