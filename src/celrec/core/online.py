"""CEL-Lite: clustered embeddings that learn from a stream, in bounded memory.

`OnlineLearner` changes codes and rows of each `OnlineEmbedding` after a batch. An event costs
O(m D), and a batch O(K D) beside, however many entities there are and however long the stream has
run. With g the gradient of an event's loss, in nats, with respect to its entity's vector:

- *log-weights* collect, divided by a temperature, the loss that the event would have had in each
  cluster, to second order: s + s^2 / 2 with s = g . (w_k - blend). Tried are the entity's m
  clusters and a few explorers; the best m stay.
- *offsets* take natural gradient steps, o -= g / (precision + n f): n is the entity's count, f the
  mean of g^2 over the table's events. That follows the mean of a Gaussian posterior whose variance
  needs no number of its own (docs/design/online.md).
- *rows* take the optimizer's step along the blends' gradients.
- *clusters* that have served enough are split along the main direction of their gradients, which
  Oja's rule follows ("A simplified neuron model as a principal component analyzer", J. Math.
  Biology 1982, eq. 3). Where no row is left, one that hardly serves is given up for it.

Counts and log-weights fade with every event of the entity, so codes follow what drifts.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from celrec.core.online_embedding import OnlineCodes, OnlineEmbedding
from celrec.core.optimizer_rows import copy_optimizer_rows
from celrec.core.recording import GradientProbe, LookUp, PerSampleLoss, SampleOf, attached
from celrec.errors import ArgumentError, LossError, check_count, check_number

_LOWEST = -30.0  # of log-weights, below the entity's best: e^-30 is nothing
_MOST_COUNTED = 2048.0  # half precision has no odd numbers beyond
_OJA_RATE = 0.05
_CURVATURE_MEMORY = 2000  # events that the running mean of g^2 looks back on
_IDLE = 0.01  # a row that serves less than this share of the mean is given up


@dataclass(frozen=True, kw_only=True)
class OnlineRule:
    """How codes learn from a stream.

    temperature : > 0, divides the evidence on clusters
    precision : > 0, of the prior of offsets: the larger, the slower they leave zero
    bias_precision : > 0, the same for biases
    memory : in (0, 1], what log-weights and the count of an entity keep at each of its events
    num_explorers : >= 0, clusters tried for an entity in each batch, beside its own
    split_after : >= 1, events that a cluster serves before it is split
    spread : > 0, how far the halves of a cluster start from it, in the units of vectors
    """

    temperature: float = 1.0
    precision: float = 3.0
    bias_precision: float = 1.0
    memory: float = 0.99
    num_explorers: int = 2
    split_after: int = 500
    spread: float = 0.1

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, above=0)
        check_number("precision", self.precision, above=0)
        check_number("bias_precision", self.bias_precision, above=0)
        check_number("memory", self.memory, above=0, at_most=1)
        check_count("num_explorers", self.num_explorers)
        check_count("split_after", self.split_after, at_least=1)
        check_number("spread", self.spread, above=0)

    def precisions(self, table: OnlineEmbedding) -> Tensor:
        """Of the prior of offsets, (P,)."""
        precision = torch.full_like(table.curvature[: table.offset_dim], self.precision)
        precision[max(0, table.offset_dim - table.num_biases) :] = self.bias_precision
        return precision


class OnlineLearner:
    """Learns a model that has `OnlineEmbedding` layers, from one batch after the other.

    model : any module; its other parameters learn through the optimizer, too
    optimizer : over the model's parameters; rows and all else take its step, on the mean loss
    per_sample_loss : batch -> losses in nats, (B,)
    rule : of all tables, or by the name of a table; tables without one have `OnlineRule()`
    sample_of : by the name of a table, for look-ups whose first axis is not the sample
    seed : of the explorers. They depend on it and on the number of the event, on nothing else

    To predict, call the model: before `learn`, or days before it where labels come late.

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
        rule: OnlineRule | Mapping[str, OnlineRule] | None = None,
        *,
        sample_of: Mapping[str, SampleOf] | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.per_sample_loss = per_sample_loss
        self.sample_of = dict(sample_of or {})
        self.seed = seed
        self.num_events = 0
        self.num_splits = 0
        self.num_given_up = 0
        self.tables = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, OnlineEmbedding)
        }
        if not self.tables:
            raise ArgumentError(
                "the model has no OnlineEmbedding; give its layers one where it has nn.Embedding"
            )
        named = {} if rule is None or isinstance(rule, OnlineRule) else dict(rule)
        for argument, names in (("sample_of", self.sample_of), ("rule", named)):
            if unknown := set(names) - set(self.tables):
                raise ArgumentError(
                    f"{argument} names {sorted(unknown)}, but the tables are {sorted(self.tables)}"
                )
        default = rule if isinstance(rule, OnlineRule) else OnlineRule()
        self.rules = {name: named.get(name, default) for name in self.tables}

    def learn(self, batch: Any) -> None:
        """Learn from a batch of events; their order within it does not matter.

        raises : LossError if a loss is not finite, or not one for each sample: then nothing has
            been learned
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
                f"a loss is {losses[~torch.isfinite(losses)][0].item()} after {self.num_events} "
                "events; lower the learning rate, or check the labels"
            )
        losses.mean().backward()
        changes = [
            _Change.of(table, look_ups, len(losses), self.rules[name], self)
            for name, table in self.tables.items()
            if (look_ups := probes[name].take())
        ]
        for change in changes:
            change.table.weight.grad = change.row_gradient
        self.optimizer.step()
        self.num_events += len(losses)
        for change in changes:
            change.commit()
            self._split(change.table, change.rule)

    @torch.no_grad()
    def _split(self, table: OnlineEmbedding, rule: OnlineRule) -> None:
        """Split the cluster that has served most since it was split, if that is enough."""
        live = table.num_clusters
        parent = int(table.served[:live].argmax())
        if table.served[parent] < rule.split_after or table.max_clusters == 1:
            return
        if live < table.max_clusters:
            child = live
            table.num_live += 1
        else:
            child = int(table.load.argmin())
            if child == parent or table.load[child] > _IDLE * table.load.mean():
                table.served[parent] = 0  # ask again when it has served as much once more
                return
            self.num_given_up += 1
        step = rule.spread * table.direction[parent]
        table.weight[child] = table.weight[parent] + step
        table.weight[parent] -= step
        copy_optimizer_rows(self.optimizer, table.weight, [(parent, child)])
        table.load[parent] /= 2
        for part in (table.load, table.direction):
            part[child] = part[parent]
        table.served[[parent, child]] = 0
        table.relative[[parent, child]] = table.relative.new_tensor([child, parent])
        self.num_splits += 1

    def state_dict(self) -> dict[str, int]:
        """What the model's and the optimizer's have not: how much has happened."""
        return {name: getattr(self, name) for name in _COUNTS}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        for name in _COUNTS:
            setattr(self, name, int(state[name]))


_COUNTS = ("num_events", "num_splits", "num_given_up")


@dataclass
class _Change:
    """What a batch changes in a table, computed before anything is changed.

    entities : int64 (U,), each once, and their codes afterwards
    row_gradient : (K_max, D), of the mean loss
    oja : (K_max, D), what is added to directions
    served, load : (K_max,), events of each cluster: of the heaviest of a code, and by log-weights
    """

    table: OnlineEmbedding
    rule: OnlineRule
    entities: Tensor
    codes: OnlineCodes
    row_gradient: Tensor
    oja: Tensor
    served: Tensor
    load: Tensor
    load_memory: float
    curvature: Tensor
    num_events: int

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        table: OnlineEmbedding,
        look_ups: list[LookUp],
        num_samples: int,
        rule: OnlineRule,
        owner: OnlineLearner,
    ) -> Self:
        live = table.num_clusters
        ids, gradient = _per_event(look_ups, num_samples, table)
        entities, place, num_seen = ids.unique(return_inverse=True, return_counts=True)
        old = table.codes_of(entities)
        shares = table.shares(old)
        blends, prior = table.blends(old, shares), table.prior()
        total = _sums(gradient, place, len(entities))  # (U, D)

        of_blends = table.smoothed(total, old.counts)
        weighed = shares.masked_fill(old.is_new.unsqueeze(1), 0)
        weighed = weighed.unsqueeze(2) * of_blends.unsqueeze(1)
        rows = torch.zeros_like(table.weight)
        rows.index_add_(0, old.clusters.flatten(), weighed.flatten(0, 1))
        rows[:live] += prior.unsqueeze(1) * of_blends[old.is_new].sum(0)

        held = _started(old, prior)
        faded = rule.memory**num_seen
        explorers = _explorers(held, table, rule.num_explorers, owner)
        candidates = torch.cat([held.clusters, explorers], 1)
        distance = table.weight.index_select(0, candidates.flatten())
        distance = distance.view(*candidates.shape, table.embedding_dim) - blends.unsqueeze(1)
        # s of every event and candidate, (L, m + e)
        s = torch.bmm(distance[place], gradient.unsqueeze(2)).squeeze(2)
        evidence = _sums(-(s + s.square() / 2) / rule.temperature, place, len(entities))
        clusters, log_weights = _best(held, faded, candidates, evidence, prior)

        counts = (old.counts * faded + num_seen).clamp(max=_MOST_COUNTED)
        num_events = int(table.num_events) + len(ids)
        rate = min(1.0, len(ids) / min(num_events + 10, _CURVATURE_MEMORY))
        curvature = table.curvature
        if len(ids):
            curvature = torch.lerp(curvature, gradient.square().mean(0), rate)
        last = slice(table.embedding_dim - table.offset_dim, None)
        precision = rule.precisions(table) + counts.unsqueeze(1) * curvature[last]
        offsets = old.offsets - total[:, last] / precision

        top = clusters[:, 0][place]
        projection = (gradient * table.direction[top]).sum(1, keepdim=True)
        return cls(
            table=table,
            rule=rule,
            entities=entities,
            codes=OnlineCodes(clusters, log_weights, offsets, counts),
            row_gradient=rows / num_samples,
            oja=torch.zeros_like(table.direction).index_add_(0, top, projection * gradient),
            served=torch.bincount(top, minlength=table.max_clusters),
            load=torch.zeros_like(table.load).index_add_(
                0, clusters.flatten(), log_weights.softmax(1).flatten()
            ),
            load_memory=1 - len(ids) / (len(ids) + rule.split_after * table.max_clusters),
            curvature=curvature,
            num_events=num_events,
        )

    @torch.no_grad()
    def commit(self) -> None:
        table = self.table
        table.commit(self.entities, self.codes)
        table.curvature.copy_(self.curvature)
        table.num_events.fill_(self.num_events)
        table.served += self.served
        table.load.mul_(self.load_memory).add_(self.load)
        table.direction.add_(self.oja, alpha=_OJA_RATE)
        table.direction /= table.direction.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _per_event(
    look_ups: list[LookUp], num_samples: int, table: OnlineEmbedding
) -> tuple[Tensor, Tensor]:
    """Ids (L,), and gradients (L, D) of each sample's own loss.

    A sample's look-ups of one entity are one event, however often it asks.
    """
    ids, samples, gradients = [], [], []
    for look_up in look_ups:
        look_up.check_samples(num_samples)
        if look_up.vectors.grad is None:
            continue
        ids.append(look_up.ids.long())
        samples.append(look_up.samples)
        # The loss was a mean.
        gradients.append(look_up.vectors.grad.reshape(-1, table.embedding_dim) * num_samples)
    if not ids:
        return table.relative.new_zeros(0), table.weight.new_zeros(0, table.embedding_dim)
    if len(ids) == 1 and look_ups[0].is_one_per_sample:
        return ids[0], gradients[0]
    pairs = torch.cat(samples) * table.num_embeddings + torch.cat(ids)
    pairs, place = pairs.unique(return_inverse=True)
    return pairs % table.num_embeddings, _sums(torch.cat(gradients), place, len(pairs))


def _started(codes: OnlineCodes, prior: Tensor) -> OnlineCodes:
    """The same, but with new entities in the clusters of largest prior."""
    num_held = min(codes.clusters.shape[1], len(prior))
    clusters, log_weights = codes.clusters.clone(), codes.log_weights.clone()
    clusters[codes.is_new, :num_held] = prior.topk(num_held).indices
    log_weights[codes.is_new, :num_held] = 0
    log_weights[codes.is_new, num_held:] = -torch.inf
    return OnlineCodes(clusters, log_weights, codes.offsets, codes.counts)


def _explorers(
    held: OnlineCodes, table: OnlineEmbedding, num_explorers: int, owner: OnlineLearner
) -> Tensor:
    """Clusters to try, int64 (U, e): the relative of the heaviest one, and any others."""
    num_entities = len(held.clusters)
    relative = table.relative[held.clusters[:, :1]]
    keys = torch.arange(num_entities * num_explorers, device=relative.device)
    keys += (owner.num_events + 1) * 0x9E3779B9 + owner.seed * 0x85EBCA6B
    drawn = (_mixed(keys) % table.num_clusters).view(num_entities, num_explorers)
    return torch.cat([relative, drawn[:, 1:]], 1)[:, :num_explorers]


def _mixed(keys: Tensor) -> Tensor:
    """Numbers without a pattern, int64 >= 0.

    The finalizer of splitmix64 (Steele et al., OOPSLA 2014), whose constants are negative here.
    """
    keys = (keys ^ (keys >> 30)) * -0x40A7B892E31B1A47
    keys = (keys ^ (keys >> 27)) * -0x6B2FB644ECCEEE15
    return (keys ^ (keys >> 31)) & 0x7FFFFFFFFFFFFFFF


def _best(
    held: OnlineCodes, faded: Tensor, candidates: Tensor, evidence: Tensor, prior: Tensor
) -> tuple[Tensor, Tensor]:
    """The m best of candidates, heaviest first, and their log-weights, the largest of them 0.

    candidates, evidence : (U, m + e), of which the first m are held already
    faded : (U,), what log-weights keep

    Explorers start with what the worst place holds, so that they take it only if this batch speaks
    for them; where places are empty, with the mean.
    """
    m = held.clusters.shape[1]
    is_held = ~held.log_weights.isneginf()
    kept = torch.where(is_held, held.log_weights * faded.unsqueeze(1), held.log_weights)
    is_full = is_held.all(1, keepdim=True)
    starts = torch.where(is_full, kept.amin(1, keepdim=True), _masked_mean(kept, is_held))
    scores = torch.cat([kept, starts.expand(-1, candidates.shape[1] - m)], 1) + evidence
    scores = scores - _masked_mean(evidence[:, :m], is_held)
    scores = scores.masked_fill(_is_repeated(candidates, scores), -torch.inf)
    best = (scores + prior.log()[candidates]).topk(m, dim=1).indices
    clusters, log_weights = candidates.gather(1, best), scores.gather(1, best)
    log_weights = log_weights - log_weights.amax(1, keepdim=True)
    is_empty = log_weights.isneginf()
    return clusters, torch.where(is_empty, log_weights, log_weights.clamp(min=_LOWEST))


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
