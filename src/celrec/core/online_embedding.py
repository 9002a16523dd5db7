"""The table of CEL-Lite: shared rows, and a code for every entity that a stream can change.

An entity's vector is a blend of a few rows and an offset of its own in the vector's last numbers:

    x_e = sum_i q_i w_k(i) + (0, o_e),    q_i proportional to prior_k(i) exp(l_i)

Its code is all that is kept of it: m clusters k(i), their log-weights l, the offset o, and a count
n of its events. Entities without events have the prior's mean row. With smoothing, the factors of
the sum (all numbers but biases) count n / (n + smoothing) times: hardly anything is known of who
was hardly met.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from celrec.core.codes import MAX_BLEND, code_dtype, pack, unpack
from celrec.core.embedding import ClusteredEmbedding
from celrec.core.memory import TableMemory
from celrec.core.personal import PersonalPlan
from celrec.core.recording import GradientProbe
from celrec.errors import ArgumentError, DtypeError, EntityIdError, check_count, check_number

_LARGEST_HALF = 65504.0


@dataclass
class OnlineCodes:
    """What is kept of U entities, as numbers to compute with.

    clusters : int64 (U, m)     log_weights : (U, m), -inf where a place is empty
    offsets : (U, P)            counts : (U,), 0 for one that was never met
    """

    clusters: Tensor
    log_weights: Tensor
    offsets: Tensor
    counts: Tensor

    @property
    def is_new(self) -> Tensor:
        return self.counts == 0


class OnlineEmbedding(nn.Module):
    """`torch.nn.Embedding` for streams: rows shared by clusters, and a small code for every entity.

    `OnlineLearner` changes it; a plain optimizer changes nothing but what gradients reach.

    num_embeddings : N >= 2, entities that codes are kept of
    embedding_dim : D >= 1
    max_clusters : K_max >= 1, rows
    blend_size : m in [1, 64], clusters of a code
    offset_dim : P in [0, D], last numbers of a vector in which an entity has an offset; by default
        10, or D if that is less
    num_biases : in [0, D], last numbers that are biases; by default 2 as in `BiasedMF`, or D if
        that is less
    smoothing : >= 0, events that the factors of newcomers, 0, count for against what is known of
        an entity; at 0 they are those of the mean row, for newcomers alone. At most one of two
        tables whose factors are multiplied should have it: where both are 0, neither learns

    An entity takes m bytes for clusters (2 m from 257 rows on), 2 m for log-weights, 2 P for
    offsets and 2 for its count: 34 by default.

    >>> table = OnlineEmbedding(1000, 16, max_clusters=4)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 16])
    """

    weight: nn.Parameter
    clusters: Tensor
    log_weights: Tensor
    offsets: Tensor
    counts: Tensor
    load: Tensor
    served: Tensor
    relative: Tensor
    direction: Tensor
    curvature: Tensor
    num_events: Tensor
    num_live: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_clusters: int,
        *,
        blend_size: int = 4,
        offset_dim: int | None = None,
        num_biases: int | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_embeddings = n = check_count("num_embeddings", num_embeddings, at_least=2)
        self.embedding_dim = d = check_count("embedding_dim", embedding_dim, at_least=1)
        self.max_clusters = k = check_count("max_clusters", max_clusters, at_least=1)
        self.blend_size = m = check_count("blend_size", blend_size, at_least=1, at_most=MAX_BLEND)
        offset_dim = min(d, 10) if offset_dim is None else offset_dim
        self.offset_dim = check_count("offset_dim", offset_dim, at_most=d)
        num_biases = min(d, 2) if num_biases is None else num_biases
        self.num_biases = check_count("num_biases", num_biases, at_most=d)
        self.smoothing = check_number("smoothing", smoothing, at_least=0)
        self.probe: GradientProbe | None = None
        self.weight = nn.Parameter(torch.empty(k, d))
        # Of entities.
        self.register_buffer("clusters", torch.zeros(n, m, dtype=code_dtype(k)))
        self.register_buffer("log_weights", torch.zeros(n, m, dtype=torch.float16))
        self.register_buffer("offsets", torch.zeros(n, self.offset_dim, dtype=torch.float16))
        self.register_buffer("counts", torch.zeros(n, dtype=torch.float16))
        # Of clusters, and of the table.
        self.register_buffer("load", torch.zeros(k))
        self.register_buffer("served", torch.zeros(k))
        self.register_buffer("relative", torch.zeros(k, dtype=torch.long))
        self.register_buffer("direction", torch.empty(k, d))
        self.register_buffer("curvature", torch.zeros(d))
        self.register_buffer("num_events", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_live", torch.ones((), dtype=torch.long))
        self.reset_parameters()

    @torch.no_grad()
    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        """Draw rows from N(0, std^2), and the directions in which clusters will be split first."""
        nn.init.normal_(self.weight, std=std, generator=generator)
        nn.init.normal_(self.direction, generator=generator)
        self.direction /= self.direction.norm(dim=1, keepdim=True)

    def reset_parameters(self) -> None:
        """Draw rows from N(0, 0.1^2): a stream's first rows have nobody to correct them."""
        self.draw(0.1)

    # --- what the table is -------------------------------------------------------------------

    @property
    def num_clusters(self) -> int:
        """K, rows in use: the first ones."""
        return int(self.num_live)

    @property
    def row_dim(self) -> int:
        return self.embedding_dim

    def prior(self) -> Tensor:
        """The share of each cluster among the events of late, (K,), none of them 0."""
        load = self.load[: self.num_clusters] + 1
        return load / load.sum()

    def newcomer(self) -> Tensor:
        """The vector of an entity without events, (D,): the mean row under the prior, smoothed."""
        return self.smoothed(self._mean_row().unsqueeze(0), self.counts.new_zeros(1))[0]

    def _mean_row(self) -> Tensor:
        return self.prior() @ self.weight[: self.num_clusters]

    def memory(self) -> TableMemory:
        """The bytes of the table. The name is left empty.

        Nothing is left out: log-weights and counts are part of codes, for a stream never stops
        learning. `sleeping_bytes` has rows not in use and what is kept of clusters.
        """
        row_bytes = 4 * self.embedding_dim
        return TableMemory(
            name="",
            kind="online",
            num_entities=self.num_embeddings,
            width=self.embedding_dim,
            num_rows=self.num_clusters,
            table_bytes=self.num_clusters * row_bytes,
            code_bytes=_num_bytes(self.clusters, self.log_weights, self.counts),
            personal_bytes=_num_bytes(self.offsets),
            full_table_bytes=self.num_embeddings * row_bytes,
            sleeping_bytes=(self.max_clusters - self.num_clusters) * row_bytes
            + _num_bytes(self.load, self.served, self.relative, self.direction, self.curvature),
        )

    def to_dense(self) -> Tensor:
        """The vector of every entity, (N, D), detached."""
        with torch.no_grad():
            return self.look_up(torch.arange(self.num_embeddings, device=self.weight.device))

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, max_clusters={self.max_clusters}, "
            f"num_clusters={self.num_clusters}, blend_size={self.blend_size}, "
            f"offset_dim={self.offset_dim}"
        )

    # --- looking up --------------------------------------------------------------------------

    def forward(self, input: Tensor) -> Tensor:
        """Vectors of entities: ids (*), integers -> (*, D).

        raises : EntityIdError, DtypeError
        """
        self.check_ids(input)
        if self.probe is not None:
            return self.probe.vectors(self, input)
        return self.look_up(input.reshape(-1)).view(*input.shape, self.embedding_dim)

    def check_ids(self, ids: Tensor) -> None:
        """raises : EntityIdError, DtypeError."""
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise DtypeError(f"ids have type {ids.dtype}; wanted integers")
        if ids.numel():
            low, high = (int(end) for end in torch.aminmax(ids))
            if low < 0 or high >= self.num_embeddings:
                raise EntityIdError(
                    f"id {low if low < 0 else high} is outside a table of {self.num_embeddings} "
                    "entities"
                )

    def look_up(self, ids: Tensor) -> Tensor:
        """The vectors of entities, ids (L,) -> (L, D)."""
        codes = self.codes_of(ids)
        return self.with_offsets(self.blends(codes, self.shares(codes)), codes.offsets)

    def codes_of(self, ids: Tensor) -> OnlineCodes:
        return OnlineCodes(
            unpack(self.clusters.index_select(0, ids)),
            self.log_weights.index_select(0, ids).float(),
            self.offsets.index_select(0, ids).float(),
            self.counts.index_select(0, ids).float(),
        )

    def shares(self, codes: OnlineCodes) -> Tensor:
        """q, (U, m); what it says of new entities means nothing."""
        return (codes.log_weights + self.prior().log()[codes.clusters]).softmax(1)

    def blends(self, codes: OnlineCodes, shares: Tensor) -> Tensor:
        """Vectors without offsets, (U, D)."""
        rows = self.weight.index_select(0, codes.clusters.flatten())
        rows = rows.view(*codes.clusters.shape, self.embedding_dim)
        blends = torch.bmm(shares.unsqueeze(1), rows).squeeze(1)
        blends = torch.where(codes.is_new.unsqueeze(1), self._mean_row(), blends)
        return self.smoothed(blends, codes.counts)

    def smoothed(self, vectors: Tensor, counts: Tensor) -> Tensor:
        """Vectors (U, D) of entities with these counts (U,), factors n / (n + smoothing) times."""
        if not self.smoothing:
            return vectors
        known = counts / (counts + self.smoothing)
        first = self.embedding_dim - self.num_biases
        return torch.cat([vectors[:, :first] * known.unsqueeze(1), vectors[:, first:]], 1)

    def with_offsets(self, blends: Tensor, offsets: Tensor) -> Tensor:
        first = self.embedding_dim - self.offset_dim
        return torch.cat([blends[:, :first], blends[:, first:] + offsets], 1)

    # --- changing codes ----------------------------------------------------------------------

    @torch.no_grad()
    def commit(self, entities: Tensor, codes: OnlineCodes) -> None:
        """Set the codes of entities, int64 (U,), each once."""
        self.clusters[entities] = pack(codes.clusters, self.clusters.dtype)
        self.log_weights[entities] = codes.log_weights.half()
        self.offsets[entities] = codes.offsets.clamp(-_LARGEST_HALF, _LARGEST_HALF).half()
        self.counts[entities] = codes.counts.half()

    @torch.no_grad()
    def forget(self, entities: Tensor) -> None:
        """Make entities new: they have the prior's mean row again.

        entities : int64 (U,)
        raises : EntityIdError
        """
        self.check_ids(entities)
        for part in (self.clusters, self.log_weights, self.offsets, self.counts):
            part[entities] = 0

    # --- to a table that learns in rounds, and back ------------------------------------------

    @classmethod
    @torch.no_grad()
    def from_clustered(
        cls,
        table: ClusteredEmbedding,
        counts: Tensor,
        *,
        max_clusters: int | None = None,
        offset_dim: int | None = None,
        num_biases: int | None = None,
        smoothing: float = 0.0,
    ) -> Self:
        """Go on learning, from a stream, what was trained in rounds.

        table : with hard or blended codes; of personal vectors the last P numbers are kept
        counts : (N,), >= 0, events that each entity was trained on; one without is new
        max_clusters : K_max, at least the clusters of the table; by default its own K_max
        offset_dim, num_biases, smoothing : as in `OnlineEmbedding`
        raises : ArgumentError for counts of another shape, too few rows, a padding entity, or
            additive codes
        """
        live = table.live_clusters()
        if table.padding_idx is not None or table.num_levels:
            raise ArgumentError(
                "the table has a padding entity or additive codes, which an OnlineEmbedding has "
                "not; start from a table without"
            )
        if counts.shape != (table.num_embeddings,) or bool((counts < 0).any()):
            raise ArgumentError(
                f"counts has shape {tuple(counts.shape)}; wanted {table.num_embeddings} numbers "
                "of at least 0, one for each entity"
            )
        max_clusters = table.max_clusters if max_clusters is None else max_clusters
        if max_clusters < len(live):
            raise ArgumentError(
                f"max_clusters is {max_clusters}, but the table has {len(live)} clusters"
            )
        made = cls(
            table.num_embeddings,
            table.embedding_dim,
            max_clusters,
            blend_size=table.blend_size,
            offset_dim=offset_dim,
            num_biases=num_biases,
            smoothing=smoothing,
        ).to(table.weight.device)
        everybody = torch.arange(table.num_embeddings, device=table.weight.device)
        clusters, shares = table.code_of(everybody)
        if shares is None:
            clusters, shares = clusters.view(-1, 1), torch.ones(len(everybody), 1)
        place = torch.zeros(table.max_clusters, dtype=torch.long)
        place[live] = torch.arange(len(live))
        clusters = place[clusters]
        made.num_live.fill_(len(live))
        first = table.embedding_dim - table.row_dim
        made.weight.zero_()
        made.weight[: len(live), first:] = table.weight[live]
        made.load.index_add_(0, clusters.flatten(), (shares * counts.unsqueeze(1)).flatten())
        log_weights = shares.log() - made.prior().log()[clusters]
        log_weights = log_weights - log_weights.amax(1, keepdim=True)
        blends = made.blends(
            OnlineCodes(clusters, log_weights, made.offsets.float(), counts.float()), shares
        )
        offsets = (table.to_dense() - blends)[:, made.embedding_dim - made.offset_dim :]
        offsets[counts == 0] = 0
        made.commit(everybody, OnlineCodes(clusters, log_weights, offsets, counts.float()))
        return made

    @torch.no_grad()
    def to_clustered(self) -> ClusteredEmbedding:
        """A table with blended codes and personal vectors, to train in rounds, freeze and serve.

        Weights are rounded to four bits; offsets, with what smoothing took, to eight. Entities
        without events get the clusters of largest prior.
        """
        everybody = torch.arange(self.num_embeddings, device=self.weight.device)
        codes = self.codes_of(everybody)
        shares = self.shares(codes)
        popular, clusters = self.prior().topk(min(self.blend_size, self.num_clusters))
        codes.clusters[codes.is_new] = clusters[:1]
        shares[codes.is_new] = 0
        width = len(clusters)
        codes.clusters[codes.is_new, :width] = clusters
        shares[codes.is_new, :width] = popular / popular.sum()
        table = ClusteredEmbedding.from_pretrained(
            self.weight[: self.num_clusters].clone(),
            codes.clusters,
            shares,
            freeze=False,
            max_clusters=max(2, self.max_clusters),
        )
        if self.offset_dim or self.smoothing:
            own = everybody if self.smoothing else (~codes.is_new).nonzero().flatten()
            table.commit_personal(PersonalPlan(own, self.look_up(own) - table(own).detach()))
        return table


def _num_bytes(*arrays: Tensor) -> int:
    return sum(array.nbytes for array in arrays)
