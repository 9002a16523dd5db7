"""ClusterOptimizer: one round of cluster optimization over every clustered table of a model.

A round takes the tables one after the other. For each: statistics, splits, reassignment, and rows
without members are reclaimed. Rules decide on plans (split.py, reassign.py); this file runs the
passes they need and commits their plans, with the optimizer's state, and returns events.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from celrec.core.blend import (
    BlendRule,
    NearestBlend,
    checked_prior,
    members_with_data,
    plan_codes,
)
from celrec.core.codes import MAX_BLEND, cluster_sizes, unpack
from celrec.core.description_length import paying_splits, paying_splits_together
from celrec.core.embedding import ClusteredTable, codes_kept_on_error
from celrec.core.encode import BLEND_SIZE, Budget, commit_levels, commit_vectors, statistics_of
from celrec.core.events import (
    AdditiveEvent,
    CodeEvent,
    Event,
    MergeEvent,
    MoveEvent,
    MoveReason,
    PersonalEvent,
    ReclaimEvent,
    SkipEvent,
    SplitEvent,
)
from celrec.core.merge import (
    MergeCandidates,
    best_by_total_loss,
    estimated_candidates,
    merge_candidates,
    plan_merges,
)
from celrec.core.optimizer_rows import copy_optimizer_rows
from celrec.core.personal import IsObserved, PersonalFit, PersonalRule, Posterior
from celrec.core.reassign import ReassignPlan, ReassignRule, decide, proposal_losses
from celrec.core.recording import (
    PerSampleLoss,
    SampleLoss,
    SampleOf,
    SelectSamples,
    check_samples_are_separate,
    evaluation_mode,
    select_samples,
)
from celrec.core.split import ClusterSplit, GainSplit, SplitPlan, SplitRule, num_splits_now
from celrec.core.statistics import (
    ClusterFisher,
    EntityStatistics,
    StatisticsPass,
    bytes_per_entity,
    collect_cluster_fisher,
    collect_statistics,
)
from celrec.errors import ArgumentError, SampleError, check_count, check_number, nearest_name

_Known = tuple[StatisticsPass, Tensor]
"""Statistics of E entities and the vectors, (E, D), at which they were taken."""

_TOLERATED_RISE = 0.5
"""Of the loss, by the first steps of new clusters. A few per cent are usual and come back with the
moves that follow; losses that are not in nats rise several times over."""

_NO_ENTITIES = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True, kw_only=True)
class ClusterSchedule:
    """When clusters split and entities move.

    growth_rounds : >= 1, rounds over which K grows geometrically to K_max
    every : >= 1, a round after every so many epochs
    settle_epochs : >= 0, epochs at the end of training without a round
    """

    growth_rounds: int = 15
    every: int = 1
    settle_epochs: int = 2

    def __post_init__(self) -> None:
        check_count("growth_rounds", self.growth_rounds, at_least=1)
        check_count("every", self.every, at_least=1)
        check_count("settle_epochs", self.settle_epochs)

    def is_due(self, epoch: int, num_epochs: int) -> bool:
        """Whether a round follows an epoch.

        epoch : in [0, num_epochs)

        >>> [ClusterSchedule(every=2).is_due(epoch, 6) for epoch in range(6)]
        [False, True, False, True, False, False]
        """
        return (epoch + 1) % self.every == 0 and epoch < num_epochs - self.settle_epochs


class ClusterOptimizer:
    """Splits clusters and moves entities while a model trains.

    model : any module; its ClusteredEmbedding and ClusteredEmbeddingBag layers are its tables
    optimizer : the one that trains the rows, whose state follows splits; None if there is none
    per_sample_loss : batch -> (B,) losses in nats (negative log-likelihood). For squared error
        that is (z - y)^2 / (2 s^2), s^2 the current mean squared error on the training data
    schedule : see ClusterSchedule
    split_rule, reassign_rule, blend_rule : the decisions
    update_rule : in place of blend_rule, for the entities that `update_codes` is given
    select : takes some samples of a batch; needed only for batches that are not tensors, or
        tuples, lists, mappings or dataclasses of tensors whose first axis is the sample
    sample_of : for tables whose look-ups do not have the sample as their first axis: by table
        name, a function from the ids of a look-up, (*), to the sample of each, (*)
    max_statistics_bytes : tables whose statistics would take more are processed in blocks
    seed : decides which entities move together where single moves interact

    Source: Chen et al. 2023, Algorithm 1; rules as split.py and reassign.py say.

    >>> from celrec.core.embedding import ClusteredEmbedding
    >>> _ = torch.manual_seed(0)
    >>> table = ClusteredEmbedding(6, 2, max_clusters=2)
    >>> _ = torch.nn.init.constant_(table.weight, 0.1)
    >>> entity = torch.arange(6).repeat(20)
    >>> target = torch.where(entity < 3, 1.0, -1.0)
    >>> def per_sample_loss(batch):
    ...     ids, wanted = batch
    ...     return (table(ids).sum(1) - wanted).square()
    >>> clusters = ClusterOptimizer(table, None, per_sample_loss)
    >>> events = clusters.round([(entity, target)])
    >>> table.cluster_sizes().tolist()
    [3, 3]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        per_sample_loss: PerSampleLoss,
        schedule: ClusterSchedule | None = None,
        *,
        split_rule: SplitRule | None = None,
        reassign_rule: ReassignRule | None = None,
        blend_rule: BlendRule | None = None,
        update_rule: BlendRule | None = None,
        select: SelectSamples = select_samples,
        sample_of: Mapping[str, SampleOf] | None = None,
        max_statistics_bytes: int = 1 << 30,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.per_sample_loss = per_sample_loss
        self.schedule = schedule or ClusterSchedule()
        self.split_rule: SplitRule = split_rule or GainSplit()
        self.reassign_rule = reassign_rule or ReassignRule()
        self.blend_rule = blend_rule or BlendRule()
        self.update_rule: BlendRule = update_rule or NearestBlend()
        self.select = select
        self.sample_of = dict(sample_of or {})
        self.max_statistics_bytes = check_count(
            "max_statistics_bytes", max_statistics_bytes, at_least=1
        )
        self.num_rounds = 0
        self.generator = torch.Generator().manual_seed(seed)
        self._warned: set[str] = set()
        self.tables: dict[str, ClusteredTable] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, ClusteredTable)
        }
        if not self.tables:
            raise ArgumentError(
                f"{type(model).__name__} has no ClusteredEmbedding or ClusteredEmbeddingBag; give "
                "it one in place of an nn.Embedding"
            )
        unknown = set(self.sample_of) - set(self.tables)
        if unknown:
            raise ArgumentError(
                f"sample_of names {sorted(unknown)}; the tables are {sorted(self.tables)}"
            )

    def round(self, batches: Iterable[Any]) -> list[Event]:
        """Run one round of statistics, splits and reassignment over all tables.

        batches : can be iterated several times and gives the same samples each time, in any order
            (a list, a DataLoader); the model is in evaluation mode meanwhile
        returns : what changed
        raises : LossError, SampleError; tables already done keep their changes
        """
        events: list[Event] = []
        with self._samples(batches) as loss:
            for table in self.tables.values():
                table.harden()
            for name in self.tables:
                loss.look_at(name, self.sample_of.get(name))
                events += _TableRound(self, name, loss).run()
        self.num_rounds += 1
        return events

    def blend(self, batches: Iterable[Any], m: int = 4) -> list[Event]:
        """Give every entity a code of m clusters, the posterior given its own samples.

        The tables are coded one after the other, each against the blends of those before it. Rows
        stay as they are. A later round starts from each entity's heaviest cluster.

        batches : as for `round`
        m : in [1, 64]; a table with fewer clusters mixes those it has. With 1 every entity keeps
            its cluster, as a hard code
        raises : ArgumentError, LossError, SampleError; tables already done keep their codes
        """
        check_count("m", m, at_least=1, at_most=MAX_BLEND)
        events: list[Event] = []
        with self._samples(batches) as loss:
            for name, table in self.tables.items():
                loss.look_at(name, self.sample_of.get(name))
                table.harden()
                loss.rows_have_changed()
                found = collect_statistics(table, loss, _NO_ENTITIES)
                table.prior_sizes = members_with_data(table, found.count)
                entities = torch.arange(table.num_embeddings, device=found.count.device)
                if m > 1:
                    events.append(self._code(name, loss, found, entities, m, self.blend_rule))
        return events

    def personalize(
        self,
        batches: Iterable[Any],
        *,
        rule: PersonalRule | None = None,
        is_observed: IsObserved | None = None,
        after_pass: Callable[[float], None] | None = None,
    ) -> list[Event]:
        """Give every entity with data a vector of its own; see personal.py.

        All tables are fitted together, and with them, through the optimizer, every other parameter
        of the model. Rows follow the vectors.

        batches : as for `round`; best in a new order each time
        rule : see PersonalRule
        is_observed : batch -> bool (B,), the samples that happened; None: all. Others, such as
            drawn negatives, train vectors but do not tell what company an entity keeps
        after_pass : told the mean loss of each pass, in nats: the place to set the noise variance
            of a squared error anew
        raises : LossError, SampleError; codes and vectors are then as before, other parameters may
            have been trained
        """
        with codes_kept_on_error(self.tables.values()):
            return self._personalize(batches, None, rule or PersonalRule(), is_observed, after_pass)

    def encode(
        self,
        batches: Iterable[Any],
        bytes_per_entity: float,
        *,
        rule: PersonalRule | None = None,
        is_observed: IsObserved | None = None,
        after_pass: Callable[[float], None] | None = None,
    ) -> list[Event]:
        """Make the most of a byte budget: additive codes, or personal vectors; see encode.py.

        bytes_per_entity : total bytes, rows included, over the entities of all tables
        batches, rule, is_observed, after_pass : as for `personalize`
        raises : ArgumentError if rows and hard codes take more; LossError, SampleError; codes and
            vectors are then as before, other parameters may have been trained
        """
        check_number("bytes_per_entity", bytes_per_entity, above=0)
        with codes_kept_on_error(self.tables.values()):
            return self._encode(
                batches, bytes_per_entity, rule or PersonalRule(), is_observed, after_pass
            )

    def _encode(
        self,
        batches: Iterable[Any],
        bytes_per_entity: float,
        rule: PersonalRule,
        is_observed: IsObserved | None,
        after_pass: Callable[[float], None] | None,
    ) -> list[Event]:
        for table in self.tables.values():
            table.harden()
        budget = Budget.of(self.tables, bytes_per_entity)
        if budget.bits is not None:
            events = self.blend(batches, budget.blend_size)
            rule = replace(rule, bits=budget.bits)
            return events + self._personalize(batches, None, rule, is_observed, after_pass)
        self.blend(batches, BLEND_SIZE)  # where the fit begins; nothing of it stays
        return self._personalize(batches, budget, rule, is_observed, after_pass)

    def _personalize(
        self,
        batches: Iterable[Any],
        levels: Budget | None,
        rule: PersonalRule,
        is_observed: IsObserved | None,
        after_pass: Callable[[float], None] | None,
    ) -> list[Event]:
        """Fit personal vectors; keep them, or additive codes of them where `levels` says which."""
        with self._samples(batches) as loss:
            for table in self.tables.values():
                table.drop_personal()
            found = statistics_of(self.tables, loss, self.sample_of)
            posteriors = {}
            for name, table in self.tables.items():
                seen = found[name].statistics.entities
                if seen.numel():
                    posteriors[name] = Posterior(table, seen, found[name].count[seen], rule)
                elif levels is not None:
                    table.harden()
                    if levels.is_packed:
                        table.pack_codes()
            if not posteriors:
                return []
            rows = {id(table.weight) for table in self.tables.values()}
            PersonalFit(
                posteriors,
                self.per_sample_loss,
                rule=rule,
                sample_of=self.sample_of,
                generator=self.generator,
                is_observed=is_observed,
                optimizer=self.optimizer,
                parameters=[
                    parameter
                    for parameter in self.model.parameters()
                    if parameter.requires_grad and id(parameter) not in rows
                ],
            ).run(batches, after_pass or (lambda mean_loss: None))
            events: list[Event] = []
            for name, posterior in posteriors.items():
                if levels is None:
                    plan = commit_vectors(posterior, found[name].count)
                    events.append(PersonalEvent(name, self.num_rounds, plan.entities))
                else:
                    commit_levels(posterior, found[name].count, levels, self.generator)
                    event = AdditiveEvent(
                        name, self.num_rounds, levels.num_levels, levels.level_bits
                    )
                    events.append(event)
        return events

    def update_codes(
        self,
        table: str,
        entities: Tensor,
        batches: Iterable[Any],
        *,
        prior: Tensor | None = None,
    ) -> CodeEvent:
        """Compute codes anew from the prior and exactly the samples given; rows stay as they are.

        For entities that are new, or have new samples, after training; `update_rule` makes their
        codes. An entity without a sample gets the prior's code. Nothing is accumulated: give all
        samples of an entity. With `update_rule = blend_rule`, rows and other tables as they were,
        the samples that an entity trained on give it the code that `blend` gave.

        table : its name in the model
        entities : int (E,)   whose codes to compute, each once
        batches : as for `round`; samples of other entities of the table do no harm
        prior : float (E, K_max) >= 0, the probability of every cluster for every entity, such as
            `FirstCodes` predicts from side features; None: cluster popularity
        raises : ArgumentError, EntityIdError, LossError, SampleError; codes are then as before
        """
        if table not in self.tables:
            raise ArgumentError(f"table is {table!r}; {nearest_name(table, self.tables)}")
        chosen = self.tables[table]
        ids, order = entities.to(chosen.weight.device).sort()
        chosen.check_ids(ids)
        if ids.numel() != ids.unique().numel():
            raise ArgumentError("entities names some entity twice; give each once")
        if prior is not None:
            prior = checked_prior(chosen, prior.to(chosen.weight.device), ids.numel())[order]
        with self._samples(batches) as loss:
            loss.look_at(table, self.sample_of.get(table))
            found = collect_statistics(chosen, loss, _NO_ENTITIES)
            rule, blend_size = self.update_rule, chosen.blend_size
            return self._code(table, loss, found, ids.long(), blend_size, rule, prior)

    def _code(
        self,
        name: str,
        loss: SampleLoss,
        found: StatisticsPass,
        entities: Tensor,
        blend_size: int,
        rule: BlendRule,
        prior: Tensor | None = None,
    ) -> CodeEvent:
        table = self.tables[name]
        plan = plan_codes(
            table,
            loss,
            found,
            entities,
            blend_size,
            rule=rule,
            reassign_rule=self.reassign_rule,
            max_bytes=self.max_statistics_bytes,
            prior=prior,
        )
        table.commit_codes(plan)
        loss.rows_have_changed()
        num_without_data = int((found.count[entities] == 0).sum())
        return CodeEvent(
            name, self.num_rounds, plan.entities, plan.clusters.shape[1], num_without_data
        )

    @contextmanager
    def _samples(self, batches: Iterable[Any]) -> Iterator[SampleLoss]:
        """The losses of batches, checked, with the model in evaluation mode."""
        if iter(batches) is batches:
            raise SampleError(
                f"batches is a {type(batches).__name__}, which can be read only once; a round "
                "passes over the samples several times: give a list or a DataLoader"
            )
        with evaluation_mode(self.model):
            check_samples_are_separate(self.per_sample_loss, batches, self.select)
            yield SampleLoss(self.per_sample_loss, batches)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model and the optimizer."""
        return {"num_rounds": self.num_rounds, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another run's ClusterOptimizer."""
        self.num_rounds = int(state["num_rounds"])
        self.generator.set_state(state["generator"])

    def carry_optimizer_state(self, table_name: str, pairs: list[tuple[int, int]]) -> None:
        """Copy the optimizer's state from each split cluster's row to its new row."""
        if self.optimizer is None:
            return
        others = copy_optimizer_rows(self.optimizer, self.tables[table_name].weight, pairs)
        if others:
            self.warn_once(
                f"{type(self.optimizer).__name__} keeps {', '.join(others)} for table "
                f"{table_name!r} in a shape that is not one line per row; a split leaves it as it "
                "is. Optimizers with state per element (Adam, Adagrad, SGD, ...) follow exactly"
            )

    def warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=5)

    def num_splits(self, table: ClusteredTable) -> int:
        """How many splits the schedule wants of a table in this round."""
        num_clusters = table.num_clusters
        if num_clusters >= table.max_clusters:
            return 0
        if table.is_auto:
            return min(num_clusters, table.max_clusters - num_clusters)
        rounds_left = max(1, self.schedule.growth_rounds - self.num_rounds)
        return num_splits_now(num_clusters, table.max_clusters, rounds_left)


class _TableRound:
    """One table's part of a round."""

    def __init__(self, owner: ClusterOptimizer, name: str, loss: SampleLoss) -> None:
        self.owner = owner
        self.name = name
        self.loss = loss
        self.table = owner.tables[name]
        self.rule = owner.reassign_rule
        self.entities_at_a_time = max(
            1, owner.max_statistics_bytes // bytes_per_entity(self.table.row_dim)
        )
        self.events: list[Event] = []
        self.loss_before = 0.0
        self.pairs: list[tuple[int, int]] = []  # of the splits of this round
        self.parent_rows = self.table.weight.detach()[:0]  # before them

    def run(self) -> list[Event]:
        table = self.table
        table.renormalize(table.live_clusters())
        fits = table.num_embeddings <= self.entities_at_a_time
        found = collect_statistics(table, self.loss, None if fits else _NO_ENTITIES)
        if not bool(found.count.any()):
            self._skip()
            return self.events
        seen = found.count.nonzero().flatten()
        fisher = collect_cluster_fisher(table, self.loss) if table.is_auto else None
        if fisher is not None and table.num_clusters > 1 and self._merge(seen, found, fisher, fits):
            found = collect_statistics(table, self.loss, None if fits else _NO_ENTITIES)
            fisher = collect_cluster_fisher(table, self.loss)
        # Where the statistics were taken: splits below change rows, not what was measured.
        known = (found, self._vectors(seen)) if fits else None

        self.loss_before = found.total_loss
        num_splits = self.owner.num_splits(table)
        if num_splits:
            self._split(num_splits, seen, found, fisher, fits)
        if table.num_clusters > 1:
            if found.is_interacting:
                self._reassign_in_halves(seen, known)
            else:
                self._reassign(seen, known)
            self._settle_unseen(found.count == 0)
        table.prior_sizes = members_with_data(table, found.count)
        self._report_reclaimed(table.reclaim_empty())
        return self.events

    # --- merges ------------------------------------------------------------------------------

    def _merge(
        self, seen: Tensor, found: StatisticsPass, fisher: ClusterFisher, fits: bool
    ) -> bool:
        """Dissolve the clusters that no longer pay; returns whether there was one."""
        table, loss = self.table, self.loss
        penalties = self._penalties(table.live_clusters(), seen)
        parts: list[MergeCandidates] = []
        blocks = [found.statistics] if fits else self._statistics_of_whole_clusters(seen)
        for statistics in blocks:
            if found.is_interacting:
                part = estimated_candidates(table, statistics, fisher, self.rule, penalties)
            else:
                part = merge_candidates(table, loss, statistics, fisher, self.rule, penalties)
            parts.append(part)
        plan = plan_merges(MergeCandidates.joined(parts), fisher, table.weight.detach())
        if found.is_interacting:
            plan = best_by_total_loss(table, loss, plan)
        if not plan.merges:
            return False
        reclaimed = table.commit_merges(plan)
        loss.total_has_changed(sum(merge.loss_change for merge in plan.merges))
        for merge in plan.merges:
            self.events.append(
                MergeEvent(
                    self.name,
                    self.owner.num_rounds,
                    merge.cluster,
                    merge.entities,
                    merge.to_cluster,
                    merge.change,
                )
            )
        self._report_reclaimed(reclaimed)
        return True

    # --- splits ------------------------------------------------------------------------------

    def _split(
        self,
        num_splits: int,
        seen: Tensor,
        found: StatisticsPass,
        fisher: ClusterFisher | None,
        fits: bool,
    ) -> None:
        rows = self.table.weight.detach()
        splits: list[ClusterSplit] = []
        blocks = [found.statistics] if fits else self._statistics_of_whole_clusters(seen)
        for statistics in blocks:
            clusters = self._clusters(statistics.entities)
            plan = self.owner.split_rule.plan(statistics, clusters, rows)
            if fisher is not None:
                keep_paying = paying_splits_together if found.is_interacting else paying_splits
                plan = keep_paying(self.table, self.loss, statistics, fisher, plan)
            splits += plan.splits
        plan = SplitPlan(tuple(splits)).largest(num_splits)
        if not plan.splits:
            return
        self.parent_rows = rows[[split.cluster for split in plan.splits]].clone()
        self.pairs = pairs = self.table.commit_split(plan)
        self.table.renormalize(self.table.live_clusters())
        self.owner.carry_optimizer_state(self.name, pairs)
        self.loss.rows_have_changed()
        for split, (cluster, new_cluster) in zip(plan.splits, pairs, strict=True):
            self.events.append(
                SplitEvent(
                    self.name,
                    self.owner.num_rounds,
                    cluster,
                    new_cluster,
                    split.gain,
                    split.moved,
                    split.num_staying,
                    split.cost,
                )
            )

    def _take_back_starts(self, loss_now: float) -> bool:
        """Start the children as copies of their parents after all, if their steps raised the loss.

        loss_now : the total loss after this round's splits, in nats
        """
        if not self.pairs or loss_now <= self.loss_before + _TOLERATED_RISE * abs(self.loss_before):
            return False
        for row, pair in zip(self.parent_rows, self.pairs, strict=True):
            self.table.weight.data[list(pair)] = row
        self.loss.rows_have_changed()
        self.owner.warn_once(
            f"the first steps of new clusters of table {self.name!r} raised the loss from "
            f"{self.loss_before:.6g} to {loss_now:.6g} and were taken back; is per_sample_loss in "
            "nats? Squared errors must be divided by twice the mean squared error"
        )
        return True

    def _statistics_of_whole_clusters(self, seen: Tensor) -> Iterator[EntityStatistics]:
        """Statistics in blocks that hold all members of their clusters.

        Of a cluster larger than a block a random part is taken: its other members stay, and the
        reassignment that follows offers them the new cluster.
        """
        clusters = self._clusters(seen)
        order = clusters.argsort(stable=True)
        _, sizes = clusters.unique(return_counts=True)
        block: list[Tensor] = []
        room = self.entities_at_a_time
        for members in seen[order].split(sizes.tolist()):
            if members.numel() > self.entities_at_a_time:
                chosen = torch.randperm(members.numel(), generator=self.owner.generator)
                members = members[chosen[: self.entities_at_a_time].to(members.device)]
            if members.numel() > room:
                yield self._collect(torch.cat(block)).statistics
                block, room = [], self.entities_at_a_time
            block.append(members)
            room -= members.numel()
        if block:
            yield self._collect(torch.cat(block)).statistics

    # --- reassignment ------------------------------------------------------------------------

    def _reassign(self, seen: Tensor, known: _Known | None) -> None:
        """Move every entity to the best of its proposals, by true losses."""
        live = self.table.live_clusters()
        penalties = self._penalties(live, seen)
        plans = []
        loss_now = 0.0
        for found, vectors in self._known_blocks(seen, known):
            entities = found.statistics.entities
            present = self._clusters(entities)
            proposals = self._propose(self.rule, found, vectors, present, live, penalties)
            losses = proposal_losses(self.table, self.loss, entities, proposals)
            loss_now += float(losses[:, 0].sum())
            priors = penalties[torch.cat([present.unsqueeze(1), proposals.clamp_min(0)], 1)]
            plans.append(decide(entities, present, proposals, losses, priors))
        if self._take_back_starts(loss_now):
            return  # the losses that the plans rest on are of rows that are gone
        plan = ReassignPlan.joined(plans)
        self.table.commit_moves(plan)
        self.loss.total_has_changed(plan.loss_change)
        self._report_moves(plan)

    def _reassign_in_halves(self, seen: Tensor, known: _Known | None) -> None:
        """Move entities where single moves interact: some sample looks several of them up.

        All moves that the second-order estimate favours are tried in two random halves; a half
        that raises the true objective is rolled back.
        """
        live = self.table.live_clusters()
        penalties = self._penalties(live, seen)
        rule = replace(self.rule, num_proposals=1)
        entities, targets = [], []
        for found, vectors in self._known_blocks(seen, known):
            present = self._clusters(found.statistics.entities)
            proposals = self._propose(
                rule, found, vectors, present, live, penalties, only_better=True
            )
            moves = (proposals[:, 0] >= 0).nonzero().flatten()
            entities.append(found.statistics.entities[moves])
            targets.append(proposals[moves, 0])
        entity, target = torch.cat(entities), torch.cat(targets)
        order = torch.randperm(entity.numel(), generator=self.owner.generator).to(entity.device)
        before = objective = self._objective(seen, penalties)
        prior = float(penalties[self._clusters(seen)].sum())
        if self._take_back_starts(objective - prior):
            return
        kept = []
        for half in order.tensor_split(2):
            plan = ReassignPlan(entity[half], self._clusters(entity[half]), target[half])
            if not half.numel():
                continue
            self.table.commit_moves(plan)
            self.loss.rows_have_changed()
            tried = self._objective(seen, penalties)
            if tried <= objective:
                objective = tried
                kept.append(plan)
            else:
                self.table.commit_moves(plan.reversed())
                self.loss.rows_have_changed()
        if kept:
            plan = ReassignPlan.joined(kept)
            self._report_moves(replace(plan, objective_before=before, objective_after=objective))

    def _propose(
        self,
        rule: ReassignRule,
        found: StatisticsPass,
        vectors: Tensor,
        present: Tensor,
        live: Tensor,
        penalties: Tensor,
        *,
        only_better: bool = False,
    ) -> Tensor:
        """Proposals as cluster ids, (E, C); -1 for none."""
        position_of = torch.empty(self.table.max_clusters, dtype=torch.long, device=live.device)
        position_of[live] = torch.arange(live.numel(), device=live.device)
        rows = self.table.weight.detach()[live]
        positions = rule.propose(
            found.statistics,
            vectors,
            position_of[present],
            rows,
            penalties[live],
            only_better=only_better,
        )
        # A move between equal rows, such as children that start as copies, changes no vector: the
        # prior alone would undo the split.
        row_group = rows.unique(dim=0, return_inverse=True)[1]
        is_same = row_group[positions] == row_group[position_of[present]].unsqueeze(1)
        positions = positions.masked_fill(is_same, -1)
        return live[positions.clamp_min(0)].masked_fill(positions < 0, -1)

    def _penalties(self, live: Tensor, seen: Tensor) -> Tensor:
        """-log prior of every row, (K_max,), in nats; inf for rows that sleep."""
        sizes = cluster_sizes(self._clusters(seen), self.table.max_clusters)
        penalties = torch.full(
            (self.table.max_clusters,), torch.inf, dtype=torch.float64, device=live.device
        )
        penalties[live] = self.rule.penalties(sizes[live])
        return penalties

    def _objective(self, seen: Tensor, penalties: Tensor) -> float:
        """The sum of loss - log prior, by one pass over the samples."""
        with torch.no_grad(), self.loss.new_pass() as samples:
            for batch in samples:
                samples.losses(batch)
        return float(samples.total) + float(penalties[self._clusters(seen)].sum())

    def _settle_unseen(self, is_unseen: Tensor) -> None:
        """Put entities without data into the largest live cluster."""
        table = self.table
        if table.padding_idx is not None:
            is_unseen = is_unseen.clone()
            is_unseen[table.padding_idx] = False
        clusters = table.cluster_ids()
        sizes = cluster_sizes(clusters[~is_unseen].clamp_min(0), table.max_clusters)
        if table.padding_idx is not None:
            sizes[0] -= 1
        largest = sizes.argmax()
        entities = (is_unseen & (clusters != largest)).nonzero().flatten()
        if entities.numel():
            plan = ReassignPlan(
                entities, clusters[entities], largest.expand(entities.numel()).clone()
            )
            table.commit_moves(plan)
            self._report_moves(plan, reason="no data")

    # --- shared ------------------------------------------------------------------------------

    def _clusters(self, entities: Tensor) -> Tensor:
        return unpack(self.table.cluster_of[entities])

    def _vectors(self, entities: Tensor) -> Tensor:
        return self.table.weight.detach()[self._clusters(entities)]

    def _collect(self, entities: Tensor) -> StatisticsPass:
        return collect_statistics(self.table, self.loss, entities.sort().values)

    def _known_blocks(self, seen: Tensor, known: _Known | None) -> Iterator[_Known]:
        """Statistics of all entities with data, and the vectors at which they were taken."""
        if known is not None:
            yield known
            return
        for entities in seen.split(self.entities_at_a_time):
            yield self._collect(entities), self._vectors(entities)

    def _report_moves(self, plan: ReassignPlan, reason: MoveReason = "data") -> None:
        self.events.append(
            MoveEvent(
                self.name,
                self.owner.num_rounds,
                reason,
                plan.entities,
                plan.from_cluster,
                plan.to_cluster,
                plan.objective_before,
                plan.objective_after,
            )
        )

    def _report_reclaimed(self, pairs: list[tuple[int, int]]) -> None:
        for cluster, heir in pairs:
            self.events.append(ReclaimEvent(self.name, self.owner.num_rounds, cluster, heir))

    def _skip(self) -> None:
        reason = (
            f"table {self.name!r} is never looked up by per_sample_loss; its clusters stay as they "
            "are. Give the loss batches that use it, or leave it out of the model"
        )
        self.events.append(SkipEvent(self.name, self.owner.num_rounds, reason))
        self.owner.warn_once(reason)
