"""CEL-Lite: clustered embeddings that learn from a stream, in bounded memory.

`OnlineEmbedding` stands where `nn.Embedding` stands. An entity's vector is a blend of a few shared
rows, and an offset of its own in the last numbers of the vector, where models keep biases:

    x_e = sum_i q_i w_k(i) + o_e,    q_i proportional to prior_k(i) exp(l_i)

Its code is all that is kept of it: m clusters, their log-weights l, the offset, and a count.
`OnlineLearner` changes codes and rows after every batch, at a cost of O(B m D + K D), however many
entities there are and however long the stream has run. With g the gradient of an event's loss with
respect to x_e:

- *log-weights* collect, divided by a temperature, the loss that the event would have had in each
  cluster, to second order: s + s^2 / 2 with s = g . (w_k - blend). Tried are the entity's m clusters
  and a few explorers; the best m stay.
- *offsets* take natural gradient steps, o -= g / (precision + n_e f): n_e is the entity's count, f
  the mean of g^2 over the table's events. This is a Gaussian posterior (docs/design/online.md) whose
  precisions cost one number an entity.
- *rows* take the optimizer's step along the blends' gradients.
- *clusters* that have served enough are split along the main direction of their gradients, which
  Oja's rule follows ("A simplified neuron model as a principal component analyzer", 1982, eq. 3).
  Where no row is left, one that hardly serves is merged into its nearest and starts anew.

Counts and log-weights fade with every event of the entity, so that codes follow what drifts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from celrec.core.codes import code_dtype, pack, unpack
from celrec.core.memory import TableMemory
from celrec.core.optimizer_rows import copy_optimizer_rows
from celrec.core.recording import GradientProbe, LookUp, PerSampleLoss, SampleOf, attached
from celrec.errors import (
    ArgumentError,
    DtypeError,
    EntityIdError,
    LossError,
    check_count,
    check_number,
)

_LOWEST = -30.0  # of log-weights, below the entity's best: e^-30 is nothing
_MOST_COUNTED = 2048.0  # half precision has no odd numbers beyond
_OJA_RATE = 0.05
_CURVATURE_MEMORY = 2000  # events that the running mean of g^2 looks back on
_IDLE = 0.01  # a row that serves less than this share of the mean is given up


@dataclass(frozen=True, kw_only=True)
class OnlineRule:
    """How codes learn from a stream.

    temperature : > 0, divides evidence on clusters
    precision : > 0, of the prior of offsets: the larger, the slower they leave zero
    memory : in (0, 1], what an entity's log-weights and count keep at each of its events
    num_explorers : >= 0, clusters tried for an entity in each batch, beside its own
    split_after : >= 1, events that a cluster serves before it is split
    spread : > 0, how far the halves of a cluster start from it, in the units of vectors
    """

    temperature: float = 1.0
    precision: float = 3.0
    memory: float = 0.99
    num_explorers: int = 2
    split_after: int = 500
    spread: float = 0.1

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, above=0)
        check_number("precision", self.precision, above=0)
        check_number("memory", self.memory, above=0, at_most=1)
        check_count("num_explorers", self.num_explorers)
        check_count("split_after", self.split_after, at_least=1)
        check_number("spread", self.spread, above=0)


@dataclass
class _Codes:
    """What is kept of U entities, as numbers to compute with.

    clusters : int64 (U, m)     log_weights : (U, m), -inf where a place is empty
    offsets : (U, P)            counts : (U,), zero for one that was never met
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

    num_embeddings : N >= 2, entities that codes are kept of
    embedding_dim : D >= 1
    max_clusters : K_max >= 1, rows of each table
    blend_size : m in [1, 64], clusters of a code
    offset_dim : P in [0, D], last numbers of a vector that have an offset of the entity's own

    An entity takes m bytes for clusters (2 m from 257 rows on), 2 m for log-weights, 2 P for
    offsets and 2 for its count. One that was never met has the mean row, weighted by members.

    >>> table = OnlineEmbedding(1000, 8, max_clusters=4)
    >>> table(torch.tensor([[0, 999], [3, 3]])).shape
    torch.Size([2, 2, 8])
    """

    clusters: Tensor
    log_weights: Tensor
    offsets: Tensor
    counts: Tensor
    served: Tensor
    load: Tensor
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
    ) -> None:
        super().__init__()
        self.num_embeddings = check_count("num_embeddings", num_embeddings, at_least=2)
        self.embedding_dim = check_count("embedding_dim", embedding_dim, at_least=1)
        self.max_clusters = check_count("max_clusters", max_clusters, at_least=1)
        self.blend_size = check_count("blend_size", blend_size, at_least=1, at_most=64)
        offset_dim = min(embedding_dim, 10) if offset_dim is None else offset_dim
        self.offset_dim = check_count("offset_dim", offset_dim, at_most=embedding_dim)
        self.row_dim = embedding_dim  # probes ask for it
        self.probe: GradientProbe | None = None
        self.weight = nn.Parameter(torch.zeros(max_clusters, embedding_dim))
        n, m, k = num_embeddings, blend_size, max_clusters
        self.register_buffer("clusters", torch.zeros(n, m, dtype=code_dtype(k)))
        self.register_buffer("log_weights", torch.zeros(n, m, dtype=torch.float16))
        self.register_buffer("offsets", torch.zeros(n, self.offset_dim, dtype=torch.float16))
        self.register_buffer("counts", torch.zeros(n, dtype=torch.float16))
        self.register_buffer("served", torch.zeros(k))
        self.register_buffer("load", torch.zeros(k))
        self.register_buffer("relative", torch.zeros(k, dtype=torch.long))
        self.register_buffer("direction", torch.zeros(k, embedding_dim))
        self.register_buffer("curvature", torch.zeros(embedding_dim))
        self.register_buffer("num_events", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_live", torch.ones((), dtype=torch.long))
        self.reset_parameters()

    # --- what the table is -------------------------------------------------------------------

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the first row from N(0, 0.1^2). Codes are left alone."""
        self.draw(0.1, generator)

    @torch.no_grad()
    def draw(self, std: float, generator: torch.Generator | None = None) -> None:
        """Draw every row from N(0, std^2)."""
        nn.init.normal_(self.weight, std=std, generator=generator)

    @property
    def num_clusters(self) -> int:
        """K, rows in use."""
        return int(self.num_live)

    def prior(self) -> Tensor:
        """The share of each cluster among entities that were lately seen, (K,), none of them 0."""
        load = self.load[: self.num_clusters] + 1
        return load / load.sum()

    def memory(self) -> TableMemory:
        """The bytes that serving needs. The name is left empty.

        Of what only learning needs, `sleeping_bytes` holds rows without a cluster and the running
        statistics of clusters; log-weights and counts are part of codes.
        """
        row_bytes = 4 * self.embedding_dim
        statistics = (self.served, self.relative, self.direction, self.curvature)
        return TableMemory(
            name="",
            kind="online",
            num_entities=self.num_embeddings,
            width=self.embedding_dim,
            num_rows=self.num_clusters,
            table_bytes=self.num_clusters * row_bytes,
            code_bytes=_num_bytes(self.clusters, self.log_weights, self.counts, self.load),
            personal_bytes=_num_bytes(self.offsets),
            full_table_bytes=self.num_embeddings * row_bytes,
            sleeping_bytes=(self.max_clusters - self.num_clusters) * row_bytes
            + _num_bytes(*statistics),
        )

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
        codes = self._codes_of(ids)
        return self._widened(self._blends(codes), codes.offsets)

    def _codes_of(self, ids: Tensor) -> _Codes:
        return _Codes(
            unpack(self.clusters.index_select(0, ids)),
            self.log_weights.index_select(0, ids).float(),
            self.offsets.index_select(0, ids).float(),
            self.counts.index_select(0, ids).float(),
        )

    def _shares(self, codes: _Codes) -> Tensor:
        """q, (U, m); for new entities it means nothing."""
        return (codes.log_weights + self.prior().log()[codes.clusters]).softmax(1)

    def _blends(self, codes: _Codes) -> Tensor:
        """Vectors without offsets, (U, D)."""
        rows = self.weight[codes.clusters.flatten()].view(*codes.clusters.shape, -1)
        blends = torch.bmm(self._shares(codes).unsqueeze(1), rows).squeeze(1)
        newcomer = self.prior() @ self.weight[: self.num_clusters]
        return torch.where(codes.is_new.unsqueeze(1), newcomer, blends)

    def _widened(self, blends: Tensor, offsets: Tensor) -> Tensor:
        first = self.embedding_dim - self.offset_dim
        return torch.cat([blends[:, :first], blends[:, first:] + offsets], 1)

    # --- entities that come and go -----------------------------------------------------------

    @torch.no_grad()
    def forget(self, ids: Tensor, like: Tensor | None = None) -> None:
        """Make entities new, or copies of others.

        ids : int64 (L,), each once
        like : int64 (L,), whose codes they start with; counts are halved, for what was learned
            of somebody else is worth less
        """
        if like is None:
            self.counts[ids] = 0
            self.offsets[ids] = 0
            self.log_weights[ids] = 0
            return
        for part in (self.clusters, self.log_weights, self.offsets):
            part[ids] = part[like]
        self.counts[ids] = self.counts[like] / 2


class OnlineLearner:
    """Learns a model whose embeddings are `OnlineEmbedding`s from one batch after the other.

    model : any module; its other parameters learn through the optimizer, too
    optimizer : over the model's parameters, dense; rows and everything else take its step
    per_sample_loss : batch -> losses in nats, (B,)
    sample_of : by the name of a table, for look-ups whose first axis is not the sample
    seed : of the clusters that explorers try

    >>> table = OnlineEmbedding(100, 4, max_clusters=8)
    >>> optimizer = torch.optim.Adam(table.parameters(), lr=0.01)
    >>> learner = OnlineLearner(table, optimizer, lambda ids: table(ids).square().sum(1))
    >>> learner.learn(torch.tensor([3, 14, 15]))
    >>> learner.num_events
    3
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        per_sample_loss: PerSampleLoss,
        rule: OnlineRule | None = None,
        *,
        sample_of: Mapping[str, SampleOf] | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.per_sample_loss = per_sample_loss
        self.rule = OnlineRule() if rule is None else rule
        self.sample_of = dict(sample_of or {})
        self.seed = seed
        self.num_events = 0
        self.num_splits = 0
        self.num_merges = 0
        self.tables = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, OnlineEmbedding)
        }
        if not self.tables:
            raise ArgumentError(
                "the model has no OnlineEmbedding; give its layers one where it has nn.Embedding"
            )
        if unknown := set(self.sample_of) - set(self.tables):
            raise ArgumentError(
                f"sample_of names {sorted(unknown)}, but the tables are {sorted(self.tables)}"
            )

    def learn(self, batch: Any) -> None:
        """Learn from a batch of events; their order within it does not matter.

        raises : LossError if a loss is not finite: then nothing has been learned
        """
        probes = {name: GradientProbe(self.sample_of.get(name)) for name in self.tables}
        self.optimizer.zero_grad()
        with ExitStack() as stack:
            for name, table in self.tables.items():
                stack.enter_context(attached(table, probes[name]))
            losses = self.per_sample_loss(batch)
        if losses.dim() != 1:
            raise LossError(
                f"per_sample_loss gave a tensor of shape {tuple(losses.shape)}; wanted one loss "
                "for each sample, (B,)"
            )
        if not torch.isfinite(losses).all():
            raise LossError(
                f"a loss is {float(losses[~torch.isfinite(losses)][0])} after {self.num_events} "
                "events; lower the learning rate, or check the labels"
            )
        losses.mean().backward()
        changes = [
            _Change.of(table, probes[name].take(), len(losses), self)
            for name, table in self.tables.items()
        ]
        for change in changes:
            change.table.weight.grad = change.row_gradient / len(losses)
        self.optimizer.step()
        self.num_events += len(losses)
        for change in changes:
            change.commit()
            self._split(change.table)

    @torch.no_grad()
    def _split(self, table: OnlineEmbedding) -> None:
        """Split the cluster that has served most since it was split, if that is enough."""
        live = table.num_clusters
        served = table.served[:live]
        parent = int(served.argmax())
        if served[parent] < self.rule.split_after or table.max_clusters == 1:
            return
        if live < table.max_clusters:
            child = live
            table.num_live += 1
        else:
            child = int(table.load.argmin())
            if child == parent or table.load[child] > _IDLE * table.load.mean():
                table.served[parent] = 0  # ask again when it has served as much once more
                return
            self.num_merges += 1
        step = self.rule.spread * table.direction[parent]
        table.weight[child] = table.weight[parent] + step
        table.weight[parent] -= step
        copy_optimizer_rows(self.optimizer, table.weight, [(parent, child)])
        table.load[parent] /= 2
        for part in (table.load, table.direction):
            part[child] = part[parent]
        table.served[[parent, child]] = 0
        table.relative[[parent, child]] = torch.tensor([child, parent])
        self.num_splits += 1

    def state_dict(self) -> dict[str, Any]:
        """What is not in the model's and the optimizer's: counts of events, splits and merges."""
        return {
            "num_events": self.num_events,
            "num_splits": self.num_splits,
            "num_merges": self.num_merges,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_events = state["num_events"]
        self.num_splits = state["num_splits"]
        self.num_merges = state["num_merges"]


@dataclass
class _Change:
    """What a batch changes in a table, computed before anything is changed."""

    table: OnlineEmbedding
    entities: Tensor
    codes: _Codes
    old: _Codes
    row_gradient: Tensor
    direction: Tensor
    served: Tensor
    curvature: Tensor
    num_events: int
    memory_of_load: float

    @classmethod
    @torch.no_grad()
    def of(
        cls, table: OnlineEmbedding, look_ups: list[LookUp], num_samples: int, owner: OnlineLearner
    ) -> Self:
        ids, gradient = _per_event(look_ups, num_samples, table)
        gradient = gradient * num_samples  # of each event's own loss
        rule, live = owner.rule, table.num_clusters
        entities, place, num_seen = ids.unique(return_inverse=True, return_counts=True)
        old = table._codes_of(entities)
        shares, blends, prior = table._shares(old), table._blends(old), table.prior()
        total = _sums(gradient, place, len(entities))  # (U, D)

        row_gradient = torch.zeros_like(table.weight)
        is_new = old.is_new
        weighed = torch.where(is_new.unsqueeze(1), 0, shares)
        row_gradient.index_add_(
            0, old.clusters.flatten(), (weighed.unsqueeze(2) * total.unsqueeze(1)).flatten(0, 1)
        )
        row_gradient[:live] += prior.unsqueeze(1) * total[is_new].sum(0)

        held = _started(old, prior, table.blend_size)
        faded = rule.memory**num_seen
        weights = held.log_weights * faded.unsqueeze(1)
        weights = torch.where(held.log_weights.isneginf(), held.log_weights, weights)
        explorers = _explorers(held, table, owner)
        candidates = torch.cat([held.clusters, explorers], 1)
        distance = table.weight[candidates.flatten()].view(*candidates.shape, -1)
        distance = distance - blends.unsqueeze(1)  # (U, m + e, D)
        s = torch.bmm(distance[place], gradient.unsqueeze(2)).squeeze(2)  # (L, m + e)
        evidence = _sums(-(s + s.square() / 2) / rule.temperature, place, len(entities))
        is_held = ~weights.isneginf()
        mean_weight = _masked_mean(weights, is_held)
        mean_evidence = _masked_mean(evidence[:, : table.blend_size], is_held)
        starts = mean_weight.expand(-1, explorers.shape[1]).clone()
        starts[:, :1] = weights[:, :1]  # of the best one's relative
        scores = torch.cat([weights, starts], 1)
        scores = scores + evidence - mean_evidence
        is_twice = _is_repeated(candidates, scores)
        scores = scores.masked_fill(is_twice, -torch.inf)
        ranked = scores + prior.log()[candidates]
        best = ranked.topk(table.blend_size, dim=1).indices
        clusters, weights = candidates.gather(1, best), scores.gather(1, best)
        weights = weights - weights.amax(1, keepdim=True)
        weights = torch.where(weights.isneginf(), weights, weights.clamp(min=_LOWEST))

        counts = (old.counts * faded + num_seen).clamp(max=_MOST_COUNTED)
        num_events = int(table.num_events) + len(ids)
        rate = len(ids) / min(num_events + 10, _CURVATURE_MEMORY)
        curvature = torch.lerp(table.curvature, gradient.square().mean(0), min(1.0, rate))
        last = slice(table.embedding_dim - table.offset_dim, None)
        precision = rule.precision + counts.unsqueeze(1) * curvature[last]
        offsets = old.offsets - total[:, last] / precision

        top = clusters[:, 0][place]
        projection = (gradient * table.direction[top]).sum(1, keepdim=True)
        growth = torch.zeros_like(table.direction).index_add_(0, top, projection * gradient)
        return cls(
            table=table,
            entities=entities,
            codes=_Codes(clusters, weights, offsets, counts),
            old=old,
            row_gradient=row_gradient,
            direction=growth,
            served=_tally(top, table.max_clusters),
            curvature=curvature,
            num_events=num_events,
            memory_of_load=1 - len(ids) / (len(ids) + rule.split_after * table.max_clusters),
        )

    @torch.no_grad()
    def commit(self) -> None:
        table, new = self.table, self.codes
        table.clusters[self.entities] = pack(new.clusters, table.clusters.dtype)
        table.log_weights[self.entities] = new.log_weights.half()
        table.offsets[self.entities] = new.offsets.half()
        table.counts[self.entities] = new.counts.half()
        table.curvature.copy_(self.curvature)
        table.num_events.fill_(self.num_events)
        shares = new.log_weights.softmax(1).flatten()
        self.load = torch.zeros_like(table.load).index_add_(0, new.clusters.flatten(), shares)
        table.served += self.served
        table.load.mul_(self.memory_of_load).add_(self.load)
        table.direction += _OJA_RATE * self.direction
        table.direction /= table.direction.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _per_event(
    look_ups: list[LookUp], num_samples: int, table: OnlineEmbedding
) -> tuple[Tensor, Tensor]:
    """Ids (L,) and gradients (L, D): a sample's for an entity is one event, however often it asks."""
    ids, samples, gradients = [], [], []
    for look_up in look_ups:
        look_up.check_samples(num_samples)
        if look_up.vectors.grad is None:
            continue
        ids.append(look_up.ids.long())
        samples.append(look_up.samples)
        gradients.append(look_up.vectors.grad.reshape(-1, table.embedding_dim))
    if not ids:
        device = table.weight.device
        return torch.zeros(0, dtype=torch.long, device=device), table.weight.new_zeros(
            0, table.embedding_dim
        )
    if len(look_ups) == 1 and look_ups[0].is_one_per_sample:
        return ids[0], gradients[0]
    pairs = torch.cat(samples) * table.num_embeddings + torch.cat(ids)
    pairs, place = pairs.unique(return_inverse=True)
    return pairs % table.num_embeddings, _sums(torch.cat(gradients), place, len(pairs))


def _started(codes: _Codes, prior: Tensor, blend_size: int) -> _Codes:
    """The same, but with new entities in the clusters that have most members."""
    num_held = min(blend_size, len(prior))
    popular = prior.topk(num_held).indices
    clusters, weights = codes.clusters.clone(), codes.log_weights.clone()
    clusters[codes.is_new, :num_held] = popular
    weights[codes.is_new, :num_held] = 0
    weights[codes.is_new, num_held:] = -torch.inf
    return _Codes(clusters, weights, codes.offsets, codes.counts)


def _explorers(held: _Codes, table: OnlineEmbedding, owner: OnlineLearner) -> Tensor:
    """Clusters to try, int64 (U, e): the relative of the best one, and any others.

    What is drawn depends on the seed, the number of the event, and nothing else.
    """
    live = table.num_clusters
    num_explorers = owner.rule.num_explorers
    relative = table.relative[held.clusters[:, :1]]
    lines = torch.arange(len(held.clusters) * num_explorers, device=relative.device)
    drawn = _mixed(lines + (owner.num_events + 1) * 0x9E3779B9 + owner.seed * 0x85EBCA6B) % live
    drawn = drawn.view(len(held.clusters), num_explorers)
    return torch.cat([relative, drawn[:, 1:]], 1)[:, :num_explorers]


def _mixed(numbers: Tensor) -> Tensor:
    """Numbers without a pattern, int64 >= 0 (the finalizer of SplitMix64)."""
    numbers = (numbers ^ (numbers >> 30)) * -0x40A7B892E31B1A47
    numbers = (numbers ^ (numbers >> 27)) * -0x6B2FB644ECCEEE15
    return (numbers ^ (numbers >> 31)) & 0x7FFFFFFFFFFFFFFF


def _is_repeated(candidates: Tensor, scores: Tensor) -> Tensor:
    """Whether a candidate stands further left already, with a score: bool (U, C)."""
    same = candidates.unsqueeze(2) == candidates.unsqueeze(1)  # (U, C, C)
    same = same & ~scores.isneginf().unsqueeze(1)
    return same.tril(-1).any(2)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Of each line, (U, 1)."""
    total = values.masked_fill(~mask, 0).sum(1, keepdim=True)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def _sums(values: Tensor, place: Tensor, size: int) -> Tensor:
    return values.new_zeros(size, *values.shape[1:]).index_add_(0, place, values)


def _tally(ids: Tensor, size: int) -> Tensor:
    return torch.bincount(ids, minlength=size)


def _num_bytes(*arrays: Tensor) -> int:
    return sum(array.numel() * array.element_size() for array in arrays)
