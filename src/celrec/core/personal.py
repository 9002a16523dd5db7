"""Personal vectors: an entity's own offset from the blend of its clusters' rows.

Where memory allows, x_e = blend_e + o_e. A vector of its own must be learned from the few samples
of one entity; how far they may pull it decides whether it helps. Here nobody sets that. The vectors
of a table have a normal prior, fitted to all of them, and every entity has a normal posterior:

    x_e ~ N(m_e, P^-1)            q(x_e) = N(mu_e, S_e),   S_e = (P + F_e)^-1

F_e is the entity's empirical Fisher information, sum_j g_j g_j^T over its samples, with losses in
nats. Training looks up a draw from q, one per entity and batch, so that each vector is learned
against the uncertainty of all others, and takes natural-gradient steps

    mu_e  <-  mu_e - rate * S_e ( sum_j g_j + P (mu_e - m_e) )

After each pass the prior is set to the best given all posteriors (empirical Bayes):

    m_e = c + W f_e               P^-1 = mean_e [ (mu_e - m_e)(mu_e - m_e)^T + S_e ]

where f_e is the company that the entity keeps (company.py). An entity with much data goes its own
way; one with little stays near m_e, save in the directions in which the others' vectors differ
most. Prediction uses mu_e alone. In the paper (Chen et al. 2023,
section 3.4) one constant pulls every offset to its centre; docs/results/codes.md says
what either gives.

An offset is kept as D numbers of eight or four bits and one scale of sixteen.

Source of the steps: Khan and Rue, "The Bayesian learning rule", JMLR 24 (2023), section 4.1; the
prior's update is the EM step of a random-effects model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from celrec.core.company import Company, expected_vectors
from celrec.core.offsets import LARGEST_LEVEL
from celrec.core.recording import PerSampleLoss, PosteriorProbe, SampleLoss, SampleOf, attached
from celrec.core.statistics import SampleEntityPairs, sample_entity_pairs
from celrec.errors import ArgumentError, LossError, SampleError, check_count, check_number

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable

IsObserved = Callable[[Any], Tensor]
"""batch -> bool (B,): the samples that happened; others were drawn to stand for what did not."""


@dataclass(frozen=True)
class PersonalPlan:
    """Offsets of entities from their blends.

    entities : int64 (P,) ascending      offsets : float (P, D)
    bits : 8 or 4, of each number that is kept
    """

    entities: Tensor
    offsets: Tensor
    bits: int = 8


@dataclass(frozen=True, kw_only=True)
class PersonalRule:
    """How personal vectors are fitted.

    epochs : >= 1, passes over the samples
    warm_epochs : >= 0, passes before them without noise and with a prior that stays as it is, in
        which vectors leave the few directions that the rows span
    looseness : > 0, that prior's variance in every direction, in units of the largest variance of
        the blends in any
    rate : in (0, 1], share of a Newton step that the first epochs take
    last_rate : in (0, 1], the same of the last; it falls geometrically in the last third
    max_step : > 0, longest step, in root mean square standard deviations of the prior
    memory : in [0, 1], what the Fisher information keeps of the pass before
    acceleration : >= 1, largest power to which a change of the prior is raised: EM takes small
        steps where data say little
    bits : 8 or 4, of each number of an offset; a byte budget chooses by itself
    """

    epochs: int = 24
    warm_epochs: int = 10
    looseness: float = 0.3
    rate: float = 0.5
    last_rate: float = 0.02
    max_step: float = 0.5
    memory: float = 0.5
    acceleration: float = 3.0
    bits: int = 8

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs, at_least=1)
        check_count("warm_epochs", self.warm_epochs)
        check_number("looseness", self.looseness, above=0)
        check_number("rate", self.rate, above=0, at_most=1)
        check_number("last_rate", self.last_rate, above=0, at_most=1)
        check_number("max_step", self.max_step, above=0)
        check_number("memory", self.memory, at_least=0, at_most=1)
        check_number("acceleration", self.acceleration, at_least=1)
        if self.bits not in LARGEST_LEVEL:
            raise ArgumentError(f"bits is {self.bits!r}; wanted 8 or 4")

    @property
    def num_passes(self) -> int:
        """How many passes over the samples a fit makes."""
        return 1 + self.warm_epochs + 2 + self.epochs

    def rate_in(self, epoch: int) -> float:
        """The rate of an epoch, counted from 0.

        >>> rule = PersonalRule(epochs=13, rate=0.4, last_rate=0.1)
        >>> [round(rule.rate_in(epoch), 2) for epoch in (0, 8, 10, 12)]
        [0.4, 0.4, 0.2, 0.1]
        """
        share = epoch / max(1, self.epochs - 1)
        return self.rate * (self.last_rate / self.rate) ** max(0.0, 3 * share - 2)


class Spread:
    """The covariances S_e of P posteriors, in 2 P D numbers; without Fisher information at first.

    All share a basis B in which S_e = B diag(1 / (1 + h_e)) B^T. B makes the prior and the mean
    Fisher information diagonal together: B^T P B = 1. What is left out is how the correlations of
    single entities differ from that mean; a matrix for each took three times as long and served no
    better (docs/results/codes.md).
    """

    def __init__(self, num_entities: int, precision: Tensor) -> None:
        self.basis = torch.linalg.inv(_lower_root(precision)).mT
        self.information = precision.new_zeros(num_entities, precision.shape[0])  # h
        self.variance = torch.ones_like(self.information)  # 1 / (1 + h)
        self.observed = torch.zeros_like(self.information)
        self.mean_fisher = torch.zeros_like(precision)
        self.observed_mean = torch.zeros_like(precision)

    def noise(self, slots: Tensor, generator: torch.Generator) -> Tensor:
        """Draws from N(0, S_e), (L, D), for entities at positions `slots`, (L,)."""
        draws = _standard_normal(slots.numel(), self.information, generator)
        return draws * self.variance.index_select(0, slots).sqrt() @ self.basis.T

    def observe(self, slots: Tensor, gradients: Tensor) -> Tensor:
        """Count gradients, (L, D), each of one sample, into the next Fisher information.

        returns : B^T g, (L, D)
        """
        turned = gradients @ self.basis
        self.observed.index_add_(0, slots, turned.square())
        self.observed_mean.addmm_(gradients.T, gradients, alpha=1 / len(self.information))
        return turned

    def renew(self, precision: Tensor, memory: float) -> None:
        """Take over what was observed and a prior, (D, D).

        memory : share of the Fisher information that the old one keeps; 1 where none was observed
        """
        self.information.lerp_(self.observed, 1 - memory)
        self.observed.zero_()
        if memory < 1:
            self.mean_fisher.copy_(self.observed_mean)
            self.observed_mean.zero_()
        lower = _lower_root(precision).double()
        inverse = torch.linalg.inv(lower)
        directions = torch.linalg.eigh(inverse @ self.mean_fisher.double() @ inverse.T).eigenvectors
        basis = inverse.T @ directions
        # What is known, a diagonal in the old basis, has this diagonal in the new one.
        turn = torch.linalg.solve(self.basis.double(), basis)
        self.information = self.information @ turn.square().to(self.basis)
        self.variance = 1 / (1 + self.information)
        self.basis = basis.to(self.basis)

    def total(self) -> Tensor:
        """The sum of all S_e, (D, D)."""
        return self.basis * self.variance.sum(0) @ self.basis.T


class _Groups(NamedTuple):
    """L look-ups by entity.

    entities : (U,) ascending      of : int64 (L,), positions in it      times : int64 (U,)
    """

    entities: Tensor
    of: Tensor
    times: Tensor


class Posterior:
    """The posteriors of P entities of one table, and their prior.

    entities : int64 (P,) ascending      count : int64 (P,), samples of each, >= 1
    """

    def __init__(
        self,
        table: ClusteredTable,
        entities: Tensor,
        count: Tensor,
        rule: PersonalRule,
    ) -> None:
        self.table = table
        self.rule = rule
        self.entities = entities
        self.count = count
        self.slot_of = entities.new_full((table.num_embeddings,), -1)
        self.slot_of[entities] = torch.arange(entities.numel(), device=entities.device)
        dtype = torch.promote_types(table.weight.dtype, torch.float32)
        self.mean = table.look_up(entities).detach().to(dtype)  # (P, D)
        self.prior_mean = self.mean.mean(0).expand_as(self.mean)  # (P, D), m_e
        apart = self.mean - self.prior_mean
        widest = torch.linalg.eigvalsh(apart.T @ apart / len(apart))[-1]
        smallest = torch.finfo(dtype).eps * (1 + self.prior_mean.square().mean())
        variance = (rule.looseness * widest).clamp_min(smallest)
        self.precision = torch.eye(self.width).to(self.mean) / variance  # (D, D)
        self.spread = Spread(len(self.mean), self.precision)
        self.company = Company(len(self.mean), 0, self.mean)
        self.is_noisy = False
        self.is_moving = False
        self.rate = 0.0
        self._last_groups: tuple[Tensor, _Groups] | None = None

    @property
    def width(self) -> int:
        return self.mean.shape[1]

    def draw(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Vectors of entities, ids (L,): (L, D). One without a posterior has the table's own."""
        groups = self._grouped(ids)
        vectors = self.means_of(groups.entities)
        if self.is_noisy:
            slots, has_own = self._own(groups.entities)
            vectors[has_own] += self.spread.noise(slots, generator)
        return vectors.index_select(0, groups.of).to(self.table.weight.dtype)

    def learn(self, entities: Tensor, gradients: Tensor) -> None:
        """Take the gradients of a batch: observe them and, while moving, make a step.

        entities : int64 (L,), repeats allowed      gradients : (L, D), one per sample and entity
        """
        slots, has_own = self._own(entities)
        turned = self.spread.observe(slots, gradients[has_own].to(self.mean.dtype))
        if not self.is_moving:
            return
        # In the basis B of the spread: the prior's precision is 1 there, that of S_e diagonal.
        groups = self._grouped(entities[has_own])
        slots = self.slot_of[groups.entities]
        total = turned.new_zeros(slots.numel(), self.width)
        total.index_add_(0, groups.of, turned)
        mean = self.mean.index_select(0, slots)
        apart = mean - self.prior_mean.index_select(0, slots)
        basis = self.spread.basis
        share = (groups.times / self.count[slots]).unsqueeze(1)  # a pass adds up to one prior
        total.addcmul_(share, apart @ (self.precision @ basis))
        step = total.mul_(self.spread.variance.index_select(0, slots))
        length = step.square().mean(1, keepdim=True).sqrt()
        step *= self.rate * (self.rule.max_step / length.clamp_min(1e-12)).clamp_max(1)
        self.mean.index_copy_(0, slots, mean.addmm_(step, basis.T, alpha=-1))

    def expect_company(self, width: int) -> None:
        """Begin to observe company, of vectors of this width."""
        self.company = Company(len(self.mean), width, self.mean)

    def meet(self, entities: Tensor, company: Tensor) -> None:
        """Count what samples look up beside entities, (L,): vectors (L, Q)."""
        slots, has_own = self._own(entities)
        self.company.observe(slots, company[has_own].to(self.mean.dtype))

    def means_of(self, entities: Tensor) -> Tensor:
        """The expected vectors of entities, (L,): (L, D), detached."""
        slots, has_own = self._own(entities)
        if isinstance(has_own, slice):
            return self.mean.index_select(0, slots)
        means = self.table.look_up(entities).detach().to(self.mean.dtype)
        means[has_own] = self.mean[slots]
        return means

    def means_without(self, entities: Tensor, gradients: Tensor) -> Tensor:
        """The expected vectors of entities, (L,), had each not seen one of its samples: (L, D).

        gradients : (L, D), of the losses of these samples
        """
        slots, has_own = self._own(entities)
        means = self.means_of(entities)
        turned = gradients[has_own].to(means) @ self.spread.basis
        precision = 1 / self.spread.variance.index_select(0, slots)  # 1 + h, of which g^2 goes
        step = turned / (precision - turned.square()).clamp_min(1)
        means[has_own] += step @ self.spread.basis.T
        return means

    def _own(self, entities: Tensor) -> tuple[Tensor, Tensor | slice]:
        """Of entities, (L,), the positions of those with a posterior, and an index of them: a mask,
        (L,), or a slice where all have one.
        """
        slots = self.slot_of.index_select(0, entities)
        has_own = slots >= 0
        return (slots, slice(None)) if bool(has_own.all()) else (slots[has_own], has_own)

    def _grouped(self, entities: Tensor) -> _Groups:
        """Look-ups of entities, (L,), by entity; kept, for a batch draws and learns by the same."""
        if self._last_groups is None or not torch.equal(self._last_groups[0], entities):
            unique = entities.unique(return_inverse=True, return_counts=True)
            self._last_groups = entities.clone(), _Groups(*unique)
        return self._last_groups[1]

    def end_pass(self, *, memory: float, refit_prior: bool) -> None:
        """Take over the Fisher information of a pass, and set the prior anew."""
        self.spread.renew(self.precision, memory)
        self.prior_mean = self.mean.mean(0).expand_as(self.mean)
        if refit_prior:
            self.prior_mean = expected_vectors(self.mean, self.company.features())
            apart = (self.mean - self.prior_mean).double()
            uncertain = self.spread.total().double() / len(apart)
            variance = apart.T @ apart / len(apart) + uncertain
            power = self.rule.acceleration
            self.precision = _moved_prior(self.precision, variance, uncertain, power)
            self.spread.renew(self.precision, 1.0)


class PersonalFit:
    """Fits the posteriors of several tables together, through a loss per sample.

    posteriors : by table name
    function : batch -> losses in nats (B,); it must not mix samples
    parameters, optimizer : what else learns meanwhile, by the mean loss, where the optimizer holds
        it; None: nothing
    sample_of : as in ClusterOptimizer
    is_observed : batch -> bool (B,), the samples that happened; others, such as drawn negatives,
        are no company; None: all happened
    """

    def __init__(
        self,
        posteriors: Mapping[str, Posterior],
        function: PerSampleLoss,
        *,
        rule: PersonalRule,
        sample_of: Mapping[str, SampleOf],
        generator: torch.Generator,
        is_observed: IsObserved | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        parameters: Sequence[Tensor] = (),
    ) -> None:
        self.posteriors = dict(posteriors)
        self.function = function
        self.rule = rule
        self.sample_of = sample_of
        self.generator = generator
        self.is_observed = is_observed
        self.optimizer = optimizer
        groups = [] if optimizer is None else optimizer.param_groups
        held = {id(parameter) for group in groups for parameter in group["params"]}
        self.parameters = [parameter for parameter in parameters if id(parameter) in held]
        # By table, those that every sample looks up with the same ids: itself, and others that hold
        # the same entities once more, as a model with two tables of users has them. No company.
        self.twins = {name: set(posteriors) for name in posteriors}

    def run(self, batches: Iterable[Any], after_pass: Callable[[float], None]) -> None:
        """Make all passes.

        batches : the samples, re-iterable; any order, best a new one each time
        after_pass : told the mean loss of each pass, in nats
        """
        rule = self.rule
        if self.optimizer is not None:
            self.optimizer.zero_grad()  # what training left there must not move rows
        self._pass(batches, after_pass, rate=0.0, is_noisy=False)
        for _ in range(rule.warm_epochs):
            self._pass(batches, after_pass, rate=rule.rate, is_noisy=False, memory=rule.memory)
        for _ in range(2):  # a fit without noise understates the information
            self._pass(batches, after_pass, rate=0.0, is_noisy=True)
        for epoch in range(rule.epochs):
            self._pass(
                batches,
                after_pass,
                rate=rule.rate_in(epoch),
                is_noisy=True,
                memory=rule.memory,
                refit_prior=epoch > 0,
            )

    @torch.no_grad()
    def _pass(
        self,
        batches: Iterable[Any],
        after_pass: Callable[[float], None],
        *,
        rate: float,
        is_noisy: bool,
        memory: float = 0.0,
        refit_prior: bool = False,
    ) -> None:
        probes = {}
        loss = SampleLoss(self.function, batches, ", ".join(self.posteriors))
        with ExitStack() as stack:
            for name, posterior in self.posteriors.items():
                posterior.rate, posterior.is_moving = rate, rate > 0
                posterior.is_noisy = is_noisy
                if refit_prior:
                    posterior.expect_company(
                        sum(self.posteriors[other].width for other in self._company_of(name))
                    )
                probes[name] = PosteriorProbe(posterior, self.generator, self.sample_of.get(name))
                stack.enter_context(attached(posterior.table, probes[name]))
            samples = stack.enter_context(loss.new_pass())
            for batch in samples:
                num_samples, pairs = self._learn(batch, samples, probes, trains_others=rate > 0)
                if refit_prior:
                    self._meet(pairs, num_samples, self._observed(batch, num_samples))
                elif rate == 0:
                    self._tell_twins(pairs)
        for name, posterior in self.posteriors.items():
            try:
                posterior.end_pass(memory=memory, refit_prior=refit_prior)
                is_sound = bool(posterior.mean.isfinite().all())
            except torch.linalg.LinAlgError:  # NaN, or numbers too far apart, in a covariance
                is_sound = False
            if not is_sound:
                raise LossError(
                    f"the personal vectors of table {name!r} or their covariances became NaN or "
                    "infinite; is per_sample_loss in nats, and its gradient finite? Lower "
                    f"PersonalRule.rate ({self.rule.rate:g}) or looseness ({self.rule.looseness:g})"
                )
        after_pass(float(samples.total) / max(1, samples.num_samples))

    def _learn(
        self,
        batch: Any,
        samples: Any,
        probes: Mapping[str, PosteriorProbe],
        *,
        trains_others: bool,
    ) -> tuple[int, dict[str, SampleEntityPairs]]:
        """Learn from a batch; returns how many samples it has, and what they look up."""
        with torch.enable_grad():
            losses = samples.losses(batch)
            look_ups = {name: probe.take() for name, probe in probes.items()}
            vectors = [one.vectors for some in look_ups.values() for one in some]
            others = self.parameters if trains_others else []
            gradients = torch.autograd.grad(losses.sum(), [*vectors, *others], allow_unused=True)
        start, pairs = 0, {}
        for name, some in look_ups.items():
            if some:
                posterior = self.posteriors[name]
                of_table = gradients[start : start + len(some)]
                pairs[name] = sample_entity_pairs(posterior.table, some, of_table, len(losses))
                posterior.learn(pairs[name].entities, pairs[name].gradients)
                start += len(some)
        if others:
            assert self.optimizer is not None
            for parameter, gradient in zip(others, gradients[start:], strict=True):
                parameter.grad = None if gradient is None else gradient / len(losses)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return len(losses), pairs

    def _company_of(self, name: str) -> list[str]:
        return [other for other in self.posteriors if other not in self.twins[name]]

    def _tell_twins(self, pairs: Mapping[str, SampleEntityPairs]) -> None:
        """Take tables apart that a batch looks up with different ids."""
        for name, of_name in pairs.items():
            for other, of_other in pairs.items():
                if not torch.equal(of_name.entities, of_other.entities):
                    self.twins[name].discard(other)

    def _observed(self, batch: Any, num_samples: int) -> Tensor | None:
        """Which samples of a batch are company, bool (B,); None for all."""
        if self.is_observed is None:
            return None
        observed = self.is_observed(batch)
        if observed.dtype != torch.bool or observed.shape != (num_samples,):
            raise SampleError(
                f"is_observed gave {observed.dtype} of shape {tuple(observed.shape)}; wanted "
                f"torch.bool of shape ({num_samples},), one for each sample"
            )
        return observed

    def _meet(
        self, pairs: Mapping[str, SampleEntityPairs], num_samples: int, observed: Tensor | None
    ) -> None:
        """Tell each entity of a batch what its samples look up in the other tables.

        That is, vectors as they would be without that sample. Else an entity's own labels, which
        moved these vectors, would be counted twice: by the prior, and by its posterior.
        """
        looked_up = {}
        for name, posterior in self.posteriors.items():
            looked_up[name] = posterior.mean.new_zeros(num_samples, posterior.width)
            if name in pairs:
                one = pairs[name]
                vectors = posterior.means_without(one.entities, one.gradients)
                looked_up[name].index_add_(0, one.samples, vectors)
        for name, one in pairs.items():
            others = [looked_up[other] for other in self._company_of(name)]
            if others:
                entities, samples = one.entities, one.samples
                if observed is not None:
                    counts = observed[samples]
                    entities, samples = entities[counts], samples[counts]
                company = torch.cat(others, 1).index_select(0, samples)
                self.posteriors[name].meet(entities, company)


def _standard_normal(num_draws: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """(num_draws, D) drawn on the generator's device, so that all devices draw the same."""
    return torch.randn(num_draws, like.shape[-1], generator=generator).to(like)


def _lower_root(matrix: Tensor) -> Tensor:
    return torch.linalg.cholesky(matrix.double()).to(matrix)


def _moved_prior(precision: Tensor, variance: Tensor, uncertain: Tensor, power: float) -> Tensor:
    """The precision that best fits, overshot: each change of a variance is raised to a power.

    variance : (D, D), what fits best      uncertain : (D, D), the mean S_e, a part of it
    power : the largest. In a direction in which a share s of the present variance is uncertain, EM
        leaves about s^2 of the way to its end, and 1 / (1 - s^2) takes all of it; more would swing
    A step changes no variance by more than a factor of five.
    """
    root = torch.linalg.cholesky(torch.linalg.inv(precision.double()))  # of the present variance
    inverse = torch.linalg.inv(root)
    change, directions = torch.linalg.eigh(inverse @ variance.double() @ inverse.T)
    share = ((inverse @ uncertain.double() @ inverse.T @ directions) * directions).sum(0)
    powers = (1 / (1 - share.square()).clamp_min(1 / power)).clamp_min(1)
    factor = change.clamp(0.1, 10).pow(powers).clamp(0.2, 5)
    basis = root @ directions
    moved = torch.linalg.inv(basis * factor @ basis.T)
    return (0.5 * (moved + moved.T)).to(precision)
