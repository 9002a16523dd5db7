"""Recording look-ups: how a round sees into any model through a loss per sample.

While a probe is attached to a table, the table hands every look-up to it. `GradientProbe` answers
with fresh vectors whose gradients can be taken; `ProposalProbe` answers as if entities were in
other clusters. The model itself is never changed and never knows.

`SampleLoss` holds the caller's loss and batches, and checks what they promise: one finite loss per
sample, samples that do not influence each other, and the same samples in every pass of a round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from celrec.core.codes import unpack
from celrec.errors import ArgumentError, LossError, SampleError

if TYPE_CHECKING:
    from celrec.core.embedding import ClusteredTable
    from celrec.core.personal import Posterior

PerSampleLoss = Callable[[Any], Tensor]
"""batch -> losses in nats, (B,)."""

SelectSamples = Callable[[Any, Tensor], Any]
"""batch, int64 (M,) positions -> the batch of those samples, repeats allowed."""

SampleOf = Callable[[Tensor], Tensor]
"""ids of a look-up, (*) -> the sample of each, int (*), in [0, B)."""

_TOTAL_TOLERANCE = 1e-4  # relative; float32 sums in another order differ by about 1e-6
_MIXING_TOLERANCE = 1e-3  # of a loss; kernels for other batch sizes differ by about 1e-6


@dataclass
class LookUp:
    """One look-up of a table inside a loss.

    ids : int (L,)       vectors : (*, D), what was answered
    first_axis : length of the first axis of the ids as they were given
    given_samples : int64 (L,), the sample of each id; None where the first axis is the sample
    """

    ids: Tensor
    vectors: Tensor
    first_axis: int
    given_samples: Tensor | None

    @property
    def is_one_per_sample(self) -> bool:
        """Whether the look-up has exactly one id for each sample, in order."""
        return self.given_samples is None and self.ids.numel() == self.first_axis

    @property
    def samples(self) -> Tensor:
        if self.given_samples is not None:
            return self.given_samples
        samples = torch.arange(self.first_axis, device=self.ids.device)
        per_sample = self.ids.numel() // max(1, self.first_axis)
        return samples if per_sample == 1 else samples.repeat_interleave(per_sample)

    def check_samples(self, num_samples: int) -> None:
        if self.given_samples is None and self.first_axis != num_samples:
            raise SampleError(
                f"a look-up has a first axis of {self.first_axis}, but the batch has "
                f"{num_samples} samples; the first axis must be the sample: pass sample_of= to "
                "say which sample each look-up belongs to"
            )
        if self.given_samples is not None and self.given_samples.numel():
            low, high = int(self.given_samples.min()), int(self.given_samples.max())
            if low < 0 or high >= num_samples:
                raise SampleError(
                    f"look-ups belong to samples {low} to {high}, but the batch has {num_samples}; "
                    "check sample_of= (or the offsets of a bag)"
                )


class _Probe:
    def __init__(self, sample_of: SampleOf | None = None) -> None:
        self.sample_of = sample_of
        self.look_ups: list[LookUp] = []

    def take(self) -> list[LookUp]:
        """The look-ups since the last call."""
        taken, self.look_ups = self.look_ups, []
        return taken

    def _record(self, ids: Tensor, vectors: Tensor, bag_of: Tensor | None) -> None:
        samples = bag_of
        if self.sample_of is not None:
            samples = self.sample_of(ids).reshape(-1)
            if samples.numel() != ids.numel():
                raise SampleError(
                    f"sample_of gave {samples.numel()} samples for {ids.numel()} look-ups; wanted "
                    "one for each"
                )
        self.look_ups.append(
            LookUp(
                ids=ids.reshape(-1),
                vectors=vectors,
                first_axis=ids.shape[0] if ids.dim() else 1,
                given_samples=None if samples is None else samples.long(),
            )
        )


class Table(Protocol):
    """What a probe needs of a table."""

    probe: Any

    @property
    def row_dim(self) -> int: ...

    def look_up(self, ids: Tensor) -> Tensor: ...


class GradientProbe(_Probe):
    """Answers with the table's own vectors, as leaves whose gradients can be taken."""

    def vectors(self, table: Table, ids: Tensor, bag_of: Tensor | None = None) -> Tensor:
        vectors = table.look_up(ids.reshape(-1)).detach().view(*ids.shape, table.row_dim)
        vectors.requires_grad_(torch.is_grad_enabled())
        self._record(ids, vectors, bag_of)
        return vectors


class ProposalProbe(_Probe):
    """Answers as if the entities were in other clusters, or the rows elsewhere.

    cluster_of : packed (N,)   set before each call of the loss
    rows : (K_max, D)   in place of the table's own; None for those
    """

    cluster_of: Tensor
    rows: Tensor | None = None

    def vectors(self, table: ClusteredTable, ids: Tensor, bag_of: Tensor | None = None) -> Tensor:
        clusters = unpack(self.cluster_of.index_select(0, ids.reshape(-1)))
        rows = table.weight.detach() if self.rows is None else self.rows
        vectors = rows.index_select(0, clusters).view(*ids.shape, table.row_dim)
        self._record(ids, vectors, bag_of)
        return vectors


class PosteriorProbe(_Probe):
    """Answers with draws from posteriors, as leaves whose gradients can be taken."""

    def __init__(
        self,
        posterior: Posterior,
        generator: torch.Generator,
        sample_of: SampleOf | None = None,
    ) -> None:
        super().__init__(sample_of)
        self.posterior = posterior
        self.generator = generator

    def vectors(self, table: ClusteredTable, ids: Tensor, bag_of: Tensor | None = None) -> Tensor:
        flat = self.posterior.draw(ids.reshape(-1), self.generator)
        vectors = flat.view(*ids.shape, table.row_dim)
        vectors.requires_grad_(torch.is_grad_enabled())
        self._record(ids, vectors, bag_of)
        return vectors


@contextmanager
def attached(table: Table, probe: GradientProbe | ProposalProbe | PosteriorProbe) -> Iterator[None]:
    """Hand the table's look-ups to a probe for the length of a block."""
    table.probe = probe
    try:
        yield
    finally:
        table.probe = None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the length of a block, and each module back after it."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training


@dataclass
class SampleLoss:
    """A loss per sample over the same re-iterable batches, for the length of a round.

    function : batch -> losses in nats (B,)
    batches : iterated once per pass
    table_name, sample_of : the table that the round is at
    expected : what the next pass must find; None before the first
    """

    function: PerSampleLoss
    batches: Iterable[Any]
    table_name: str = ""
    sample_of: SampleOf | None = None
    expected: Totals | None = None

    def look_at(self, table_name: str, sample_of: SampleOf | None) -> None:
        """Go on to another table."""
        self.table_name = table_name
        self.sample_of = sample_of
        if self.expected is not None:
            self.expected = replace(self.expected, id_sum=None)

    def rows_have_changed(self) -> None:
        """Expect another total loss of the same samples."""
        if self.expected is not None:
            self.expected = replace(self.expected, loss=None)

    def total_has_changed(self, change: float) -> None:
        """Expect a total loss that differs by `change` nats."""
        if self.expected is not None and self.expected.loss is not None:
            self.expected = replace(self.expected, loss=self.expected.loss + change)

    @contextmanager
    def new_pass(self) -> Iterator[SamplePass]:
        """One pass over the batches; at its end its totals are held against the last pass."""
        samples = SamplePass(self)
        yield samples
        samples.compare()


@dataclass(frozen=True)
class Totals:
    """What the next pass must find.

    num_samples : how many samples
    loss : their total, in nats; None where rows have changed since the last pass
    id_sum : the sum of the entities that they look up; None where that is not known
    """

    num_samples: int
    loss: float | None
    id_sum: int | None = None


class SamplePass:
    """One pass: iterate over it, and take the losses of each batch from it."""

    def __init__(self, owner: SampleLoss) -> None:
        self.owner = owner
        self.num_samples = 0
        self.total = torch.zeros((), dtype=torch.float64)
        self.id_sum: int | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.owner.batches)

    def losses(self, batch: Any) -> Tensor:
        """The losses (B,) of a batch, counted into the totals of this pass."""
        losses = self.proposed_losses(batch)
        self.num_samples += losses.numel()
        self.total += losses.detach().sum(dtype=torch.float64).cpu()
        return losses

    def count_entities(self, ids: Tensor) -> None:
        """Take the entities that a batch looks up, each once per sample, into the totals."""
        self.id_sum = int(ids.sum()) + (self.id_sum or 0)

    def proposed_losses(self, batch: Any) -> Tensor:
        """The losses (B,) of a batch as they might be, checked but not counted."""
        losses = self.owner.function(batch)
        name = self.owner.table_name
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            found = f"a {type(losses).__name__}"
            if isinstance(losses, Tensor):
                found = f"a tensor of shape {tuple(losses.shape)}"
            raise LossError(
                f"per_sample_loss gave {found} in the round of table {name!r}; wanted a tensor of "
                "shape (B,), one loss per sample (reduction='none')"
            )
        if not bool(torch.isfinite(losses).all()):
            position = int((~torch.isfinite(losses)).nonzero()[0])
            raise LossError(
                f"per_sample_loss is {losses[position].item()} for sample {position} of a batch "
                f"in the round of table {name!r}; check the labels, the learning rate and the "
                "rows of that table for NaN or overflow"
            )
        return losses

    def compare(self) -> None:
        total, last = float(self.total), self.owner.expected
        if last is not None:
            is_other = last.num_samples != self.num_samples
            if last.id_sum is not None and self.id_sum is not None:
                is_other |= last.id_sum != self.id_sum
            if last.loss is not None:
                is_other |= abs(total - last.loss) > _TOTAL_TOLERANCE * max(1.0, abs(last.loss))
            if is_other:
                loss = "" if last.loss is None else f" with a total loss of {last.loss:.6g}"
                raise SampleError(
                    f"two passes over {type(self.owner.batches).__name__!r} saw different samples "
                    f"({last.num_samples}{loss}, then {self.num_samples} with {total:.6g}); a "
                    "round needs the same samples in every pass: use a loader without random "
                    "sampling, dropped remainders or augmentation, and a loss without dropout"
                )
        id_sum = self.id_sum
        if id_sum is None and last is not None:
            id_sum = last.id_sum
        self.owner.expected = Totals(self.num_samples, total, id_sum)


def check_samples_are_separate(
    function: PerSampleLoss, batches: Iterable[Any], select: SelectSamples
) -> None:
    """Compare the losses of a batch with those of its two halves.

    raises : LossError if a sample's loss depends on the other samples of its batch
    """
    for batch in batches:
        with torch.no_grad():
            whole = function(batch)
            if not isinstance(whole, Tensor) or whole.dim() != 1 or whole.numel() < 2:
                return  # a pass says what is wrong with it
            middle = whole.numel() // 2
            positions = torch.arange(whole.numel(), device=whole.device)
            halves = torch.cat(
                [function(select(batch, part)) for part in positions.tensor_split([middle])]
            )
        scale = whole.abs().mean() + 1e-6
        if halves.shape != whole.shape or bool(
            ((halves - whole).abs() > _MIXING_TOLERANCE * scale).any()
        ):
            raise LossError(
                "the loss of a sample changes when its batch is cut in two: the loss mixes "
                "samples (batch normalization in training mode, in-batch negatives, a mean over "
                "the batch?); wanted losses that depend on their own sample alone. If the batch "
                "has a layout of its own, pass select= to say how to take samples from it"
            )
        return


def select_samples(batch: Any, positions: Tensor) -> Any:
    """Take some samples of a batch of tensors.

    batch : a tensor or array whose first axis is the sample, or a tuple, list, mapping or dataclass
        of such; numbers, strings and None are kept as they are
    positions : int64 (M,)   repeats allowed

    >>> select_samples({"id": torch.tensor([5, 6, 7])}, torch.tensor([2, 0, 0]))
    {'id': tensor([7, 5, 5])}
    """
    if isinstance(batch, Tensor):
        if batch.dim() == 0:
            return batch
        return batch.index_select(0, positions.to(batch.device))
    if isinstance(batch, Mapping):
        return {key: select_samples(value, positions) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(select_samples(value, positions) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(select_samples(value, positions) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(
            batch,
            **{
                f.name: select_samples(getattr(batch, f.name), positions)
                for f in dataclasses.fields(batch)
                if f.init
            },
        )
    if hasattr(batch, "__array__"):
        return batch[positions.cpu().numpy()]
    if batch is None or isinstance(batch, str | bytes | int | float | bool):
        return batch
    raise ArgumentError(
        f"a batch has a part of type {type(batch).__name__}, of which samples cannot be taken; "
        "pass select=, a function (batch, positions) -> batch"
    )
