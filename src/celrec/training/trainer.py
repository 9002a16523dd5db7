"""The offline trainer: one loop over epochs, in `Trainer.fit`.

An epoch is: optimizer steps over shuffled mini-batches; a round of cluster optimization, when the
schedule asks for one; validation; a line of history; a checkpoint. A run that was stopped at any
moment, by Ctrl-C or by SIGKILL, goes on from its last checkpoint and ends with the same bits as one
that was not, on the same machine with the same versions and thread count.

After the last epoch tables take the form that serves: entities get their final codes (encoding.py),
baselines finish (baselines/contract.py). That step is not saved in parts: a run that is stopped in
it repeats it, with the same bits.

The files of a run folder that are written here:

- `history.jsonl`: one line per epoch (`EpochReport.as_line`), the same in every repetition of a run
- `timing.jsonl`: seconds per epoch, which are not
- `last.safetensors`: everything that a resumed run needs
- `best.safetensors`: the model after its best epoch on validation; absent without validation
- `encoded.safetensors`: that model in the form that serves; absent where training ends in it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from celrec.baselines.contract import CompressedEmbedding
from celrec.checkpoint import load_model_state, load_optimizer_state, load_state, save_state
from celrec.core.cluster_optimizer import ClusterOptimizer, ClusterSchedule
from celrec.core.embedding import ClusteredTable
from celrec.core.encode import check_budget
from celrec.core.events import Event
from celrec.core.memory import memory_report
from celrec.core.reassign import ReassignRule
from celrec.core.split import SplitRule
from celrec.data.interactions import Interactions
from celrec.errors import (
    ArgumentError,
    CheckpointError,
    LossError,
    check_count,
    check_number,
    nearest_name,
)
from celrec.history import append_history, truncate_history
from celrec.losses import Objective, Task
from celrec.metrics import Metrics, check_labels, evaluate
from celrec.training.encoding import EncodingOptions
from celrec.training.evaluation import predict_ids
from celrec.training.look_up_penalty import LookUpPenalty
from celrec.training.progress import EpochReport, Progress, Silence

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "adagrad": partial(torch.optim.Adagrad, fused=True),
    "sgd": partial(torch.optim.SGD, fused=True),
    "rmsprop": torch.optim.RMSprop,
}

_BATCH_SIZE_OF_PASSES = 4096  # smaller ones only cost time: steps are natural-gradient ones
_BATCHES_BETWEEN_CHECKS = 64  # a check of the loss waits for the device
FIGURE_OF_TASK: dict[Task, tuple[str, int]] = {"binary": ("auc", 1), "rating": ("mse", -1)}
"""The validation figure that picks the best epoch, and the sign that makes more of it better."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a model is trained.

    epochs : >= 1
    batch_size : >= 1, samples per optimizer step
    optimizer : a key of OPTIMIZERS
    learning_rate : > 0; times `lr_drop` in (0, 1] from the share `lr_drop_from` in [0, 1] of all
        epochs on
    weight_decay : >= 0, the optimizer's own
    l2 : >= 0, times the mean squared length of the vectors that a batch looks up, for every table
    patience : >= 1 epochs without a better validation figure end the training; None: never
    round_batch_size : >= 1, samples per batch in a cluster round; no effect beyond rounding.
        Vectors that fit the processor's cache are looked up faster
    """

    epochs: int = 30
    batch_size: int = 4096
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    lr_drop: float = 0.2
    lr_drop_from: float = 0.75
    weight_decay: float = 0.01
    l2: float = 0.0
    patience: int | None = None
    round_batch_size: int = 8192

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs, at_least=1)
        check_count("batch_size", self.batch_size, at_least=1)
        if self.optimizer not in OPTIMIZERS:
            raise ArgumentError(
                f"optimizer is {self.optimizer!r}; {nearest_name(self.optimizer, OPTIMIZERS)}"
            )
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("lr_drop", self.lr_drop, above=0, at_most=1)
        check_number("lr_drop_from", self.lr_drop_from, at_least=0, at_most=1)
        check_number("weight_decay", self.weight_decay, at_least=0)
        check_number("l2", self.l2, at_least=0)
        if self.patience is not None:
            check_count("patience", self.patience, at_least=1)
        check_count("round_batch_size", self.round_batch_size, at_least=1)

    def learning_rate_in(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1.

        >>> [TrainingOptions(epochs=4).learning_rate_in(epoch) for epoch in (1, 3, 4)]
        [0.003, 0.003, 0.0006000000000000001]
        """
        is_dropped = epoch > int(self.epochs * self.lr_drop_from)
        return self.learning_rate * self.lr_drop if is_dropped else self.learning_rate


@dataclass(frozen=True)
class FitResult:
    """What a run came to.

    num_epochs : epochs run, resumed ones included
    best_epoch : the epoch whose model was kept, counted from 1; None without validation
    history : the lines of history.jsonl
    encoding : seconds and events of the last step, ready for JSON; None where there is none
    """

    num_epochs: int
    best_epoch: int | None
    history: list[dict[str, Any]]
    encoding: dict[str, Any] | None = None


@dataclass
class _State:
    """How far a run is; saved with every checkpoint."""

    epoch: int = 0
    best_epoch: int | None = None
    best_figure: float | None = None


class Trainer:
    """Trains one model, in one run; leaves it in evaluation mode.

    model : (user ids (B,), item ids (B,)) -> predictions (B,). If it has `set_offset`, it is given
        the best constant prediction first; if it has `project_`, that follows every step
    objective : what to minimise, see losses.py
    clusters, split_rule, reassign_rule : of the ClusterOptimizer; without clustered tables there
        is none
    encoding : what entities store in the end; None: hard codes
    seed : of the order of samples and of the rounds. The model's own start is the caller's
    run_dir : where the run is kept, and resumed from if it has a checkpoint; made if missing. None
        keeps nothing
    progress : told about every step; see progress.py
    device : where the model and all samples are put

    >>> import tempfile
    >>> from celrec.losses import BinaryCrossEntropy
    >>> from celrec.models.gmf import GMF
    >>> from celrec.data.vocabulary import Vocabulary
    >>> ids = np.arange(400) % 20
    >>> taste = Interactions(
    ...     user=ids, item=ids // 4, label=ids % 2,
    ...     users=Vocabulary.from_values(range(20)), items=Vocabulary.from_values(range(5)),
    ... )
    >>> model = GMF(nn.Embedding(20, 4), nn.Embedding(5, 4))
    >>> options = TrainingOptions(epochs=2, batch_size=100)
    >>> with tempfile.TemporaryDirectory() as run_dir:
    ...     result = Trainer(model, BinaryCrossEntropy(), options, run_dir=run_dir).fit(taste)
    >>> result.num_epochs, result.best_epoch, sorted(result.history[0])[:3]
    (2, None, ['clusters', 'epoch', 'events'])
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        options: TrainingOptions | None = None,
        *,
        clusters: ClusterSchedule | None = None,
        split_rule: SplitRule | None = None,
        reassign_rule: ReassignRule | None = None,
        encoding: EncodingOptions | None = None,
        seed: int = 0,
        run_dir: Path | str | None = None,
        progress: Progress | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model.to(device)
        self.objective = objective
        self.options = options or TrainingOptions()
        self.seed = check_count("seed", seed)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.progress: Progress = progress or Silence()
        self.device = torch.device(device)
        self.optimizer = OPTIMIZERS[self.options.optimizer](
            model.parameters(),
            lr=self.options.learning_rate,
            weight_decay=self.options.weight_decay,
        )
        self.tables = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, ClusteredTable)
        }
        self.baselines = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, CompressedEmbedding)
        }
        self.encoding = encoding or EncodingOptions(blend=1)
        self.clusters: ClusterOptimizer | None = None
        if self.tables:
            self.clusters = ClusterOptimizer(
                model,
                self.optimizer,
                self._per_sample_loss,
                clusters,
                split_rule=split_rule,
                reassign_rule=reassign_rule,
                blend_rule=self.encoding.blend_rule,
                seed=seed,
            )
        if hasattr(model, "project_") and self.encoding.is_personal:
            raise ArgumentError(
                f"{type(model).__name__} confines its rows, and personal vectors would leave them; "
                "use blends alone (personal off, no bytes_per_entity)"
            )
        self.history: list[dict[str, Any]] = []
        self._state = _State()
        self._best_model: dict[str, Tensor] = {}

    def fit(self, train: Interactions, validation: Interactions | None = None) -> FitResult:
        """Train to the end, from the run folder's checkpoint if there is one.

        train : what the model learns from
        validation : picks the best epoch, whose model is kept; without it the last one is
        raises : LossError for a NaN or infinite loss; MetricError for labels of one class;
            CheckpointError for a folder of another run, or one that cannot be written;
            KeyboardInterrupt, after which the run folder can be resumed
        """
        options = self.options
        self._check(train, validation)
        samples = _Samples.of(train, self.device)
        held_out = None if validation is None else _Samples.of(validation, self.device)
        identity = self._identity(train, validation)
        self._start(samples, identity)
        self.progress.start(
            num_epochs=options.epochs,
            num_finished=self._state.epoch,
            num_batches=-(-len(train) // options.batch_size),
            task=self.objective.task,
        )
        try:
            while not self._is_complete():
                epoch = self._state.epoch + 1
                began = perf_counter()
                train_loss = self._take_steps(samples, epoch)
                self._change_baselines(epoch)
                trained = perf_counter()
                events = self._run_round(samples, epoch)
                clustered = perf_counter()
                figures = None if held_out is None else self._validate(held_out)
                evaluated = perf_counter()
                report = self._report(epoch, train_loss, figures, events)
                timing = {
                    "epoch": epoch,
                    "train_seconds": trained - began,
                    "round_seconds": clustered - trained,
                    "evaluation_seconds": evaluated - clustered,
                }
                self._keep(report, timing, identity)
                self.progress.on_epoch(report)
            self._take_best_model()
            encoding = self._encode(samples)
        finally:
            self.progress.stop()
        self.model.eval()
        return FitResult(self._state.epoch, self._state.best_epoch, self.history, encoding)

    # --- the steps of an epoch, in order -----------------------------------------------------

    def _take_steps(self, samples: _Samples, epoch: int) -> float:
        """One pass of optimizer steps over shuffled batches; returns the mean training loss."""
        model, optimizer, options = self.model, self.optimizer, self.options
        project = getattr(model, "project_", None)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate_in(epoch)
        batches = samples.shuffled(self.seed, epoch).batches(options.batch_size)
        losses = torch.empty(len(batches), device=self.device)
        model.train()
        with LookUpPenalty(model, options.l2) as penalty:
            for number, (user, item, label) in enumerate(batches):
                prediction = model(user, item)
                if prediction.shape != label.shape:
                    raise LossError(
                        f"{type(model).__name__} predicts shape {tuple(prediction.shape)} for a "
                        f"batch of {len(label)}; wanted ({len(label)},)"
                    )
                loss = self.objective.training_loss(prediction, label)
                losses[number] = loss.detach()
                optimizer.zero_grad()
                extra = sum(table.extra_loss() for table in self.baselines.values())
                (loss + penalty.take() + extra).backward()
                optimizer.step()
                if project is not None:
                    project()
                if (number + 1) % _BATCHES_BETWEEN_CHECKS == 0:
                    self._check_losses(losses[: number + 1], epoch)
                self.progress.on_batch(epoch, number + 1)
        self._check_losses(losses, epoch)
        sizes = torch.tensor([len(label) for _, _, label in batches], device=self.device)
        return float((losses.double() * sizes).sum() / sizes.sum())

    def _change_baselines(self, epoch: int) -> None:
        """Let baselines change between epochs; moments of replaced parameters start anew."""
        for table in self.baselines.values():
            if table.after_epoch(epoch, self.options.epochs):
                for parameter in table.parameters():
                    self.optimizer.state.pop(parameter, None)

    def _run_round(self, samples: _Samples, epoch: int) -> list[Event]:
        """Let clusters split and entities move, if the schedule asks for it now."""
        clusters, options = self.clusters, self.options
        if clusters is None or not clusters.schedule.is_due(epoch - 1, options.epochs):
            return []
        if self.objective.needs_calibration:
            prediction = predict_ids(self.model, samples.user, samples.item)
            self.objective.calibrate(prediction, samples.label)
        return clusters.round(samples.batches(options.round_batch_size))

    def _encode(self, samples: _Samples) -> dict[str, Any] | None:
        """Give tables the form that serves; from the run folder, if that was done."""
        is_coding = self.clusters is not None and self.encoding.is_needed
        if not is_coding and all(table.is_finished for table in self.baselines.values()):
            return None
        file = None if self.run_dir is None else self.run_dir / "encoded.safetensors"
        if file is not None and file.exists():
            saved = load_state(file, kind="encoded")
            load_model_state(self.model, saved["model"])
            return dict(saved["encoding"])
        began = perf_counter()
        events = self._make_codes(samples) if is_coding else []
        for table in self.baselines.values():
            table.finish()
        encoding = {
            "seconds": perf_counter() - began,
            "events": [event.summary() for event in events],
        }
        if file is not None:
            saved = {
                "epoch": self._state.best_epoch or self._state.epoch,
                "model": self.model.state_dict(),
                "encoding": encoding,
            }
            save_state(file, saved, kind="encoded")
        return encoding

    def _make_codes(self, samples: _Samples) -> list[Event]:
        """Give entities of clustered tables their final codes."""
        clusters, options = self.clusters, self.encoding
        assert clusters is not None
        if self.objective.needs_calibration:
            prediction = predict_ids(self.model, samples.user, samples.item)
            self.objective.calibrate(prediction, samples.label)
        passes = _Passes(samples, self.seed, self.options)
        is_observed = _has_positive_label if samples.has_drawn_negatives else None
        rule, num_done = options.personal_rule, 0
        num_passes = rule.num_passes if options.is_personal else 1
        self.progress.on_encoding(num_done, num_passes)

        def after_pass(mean_nats: float) -> None:
            nonlocal num_done
            num_done += 1
            self.objective.recalibrate(mean_nats)
            self.progress.on_encoding(num_done, num_passes)

        if options.bytes_per_entity is not None:
            return clusters.encode(
                passes,
                options.bytes_per_entity,
                rule=rule,
                is_observed=is_observed,
                after_pass=after_pass,
            )
        events = clusters.blend(samples.batches(self.options.round_batch_size), options.blend)
        if options.personal:
            events += clusters.personalize(
                passes, rule=rule, is_observed=is_observed, after_pass=after_pass
            )
        return events

    def _per_sample_loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        user, item, label = batch
        return self.objective.nats(self.model(user, item), label)

    def _validate(self, held_out: _Samples) -> Metrics:
        prediction = predict_ids(self.model, held_out.user, held_out.item)
        return evaluate(
            prediction.double().cpu().numpy(),
            held_out.label.cpu().numpy(),
            task=self.objective.task,
        )

    def _report(
        self, epoch: int, train_loss: float, figures: Metrics | None, events: list[Event]
    ) -> EpochReport:
        memory = memory_report(self.model)
        return EpochReport(
            epoch=epoch,
            learning_rate=self.options.learning_rate_in(epoch),
            train_loss=train_loss,
            validation=figures,
            clusters={name: table.num_clusters for name, table in self.tables.items()},
            table_bytes=memory.table_bytes,
            total_bytes=memory.total_bytes,
            events=tuple(events),
        )

    def _keep(self, report: EpochReport, timing: dict[str, Any], identity: dict[str, Any]) -> None:
        """Record a finished epoch: history, then the checkpoint, then the best model.

        A kill after the history leaves it ahead of the checkpoint: it is cut back on resuming. A
        kill after the checkpoint leaves the best model behind it: it is written again from there.
        """
        state = self._state
        state.epoch = report.epoch
        if report.validation is not None:
            name, sign = FIGURE_OF_TASK[self.objective.task]
            figure = report.validation[name]
            if state.best_figure is None or sign * figure > sign * state.best_figure:
                state.best_epoch, state.best_figure = report.epoch, figure
        line = report.as_line()
        self.history.append(line)
        if self.run_dir is not None:
            append_history(self.run_dir / "history.jsonl", line)
            append_history(self.run_dir / "timing.jsonl", timing)
            save_state(self.run_dir / "last.safetensors", self._saved(identity), kind="training")
        if state.best_epoch == report.epoch:
            self._keep_best_model()

    # --- start, checkpoint and end of a run --------------------------------------------------

    def _check(self, train: Interactions, validation: Interactions | None) -> None:
        check_labels(train.label, task=self.objective.task)
        if validation is not None:
            check_labels(validation.label, task=self.objective.task)
        elif self.options.patience is not None:
            raise ArgumentError(
                f"patience is {self.options.patience}, but there are no validation data to watch; "
                "give some, or set patience to None"
            )
        if self.clusters is not None and self.encoding.bytes_per_entity is not None:
            check_budget(self.clusters.tables, self.encoding.bytes_per_entity)

    def _identity(self, train: Interactions, validation: Interactions | None) -> dict[str, Any]:
        """What must be the same for a checkpoint to be of this run."""
        clusters = self.clusters
        return {
            "model": type(self.model).__name__,
            "objective": type(self.objective).__name__,
            "seed": self.seed,
            **dataclasses.asdict(self.options),
            "clusters": None if clusters is None else _described(clusters.schedule),
            "split_rule": None if clusters is None else _described(clusters.split_rule),
            "reassign_rule": None if clusters is None else _described(clusters.reassign_rule),
            "encoding": None if clusters is None else _described(self.encoding),
            "train": train.fingerprint(),
            "validation": None if validation is None else validation.fingerprint(),
        }

    def _start(self, samples: _Samples, identity: dict[str, Any]) -> None:
        """Resume from the run folder, or begin."""
        if self.run_dir is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            last = self.run_dir / "last.safetensors"
            if last.exists():
                self._restore(load_state(last, kind="training"), identity)
            self.history = truncate_history(self.run_dir / "history.jsonl", self._state.epoch)
            truncate_history(self.run_dir / "timing.jsonl", self._state.epoch)
        if self._state.epoch == 0:
            set_offset = getattr(self.model, "set_offset", None)
            if set_offset is not None:
                set_offset(self.objective.best_constant(samples.label))
        elif self._state.best_epoch == self._state.epoch:
            self._keep_best_model()  # the kill may have come just before it was written

    def _saved(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        is_cuda = self.device.type == "cuda"
        return {
            "identity": identity,
            "state": dataclasses.asdict(self._state),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "clusters": None if self.clusters is None else self.clusters.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if is_cuda else None,
        }

    def _restore(self, saved: dict[str, Any], identity: dict[str, Any]) -> None:
        """Take over what `_saved` kept."""
        try:
            for name in identity:
                if saved["identity"][name] != identity[name]:
                    raise CheckpointError(
                        f"{self.run_dir} holds another run: its {name} is "
                        f"{saved['identity'][name]!r}, this run's is {identity[name]!r}; use the "
                        "same settings and data to resume, or another folder to start again"
                    )
            load_model_state(self.model, saved["model"])
            load_optimizer_state(self.optimizer, saved["optimizer"])
            self.objective.load_state_dict(saved["objective"])
            if self.clusters is not None:
                self.clusters.load_state_dict(saved["clusters"])
            torch.set_rng_state(saved["random"])
            if saved["random_cuda"] is not None:
                torch.cuda.set_rng_state(saved["random_cuda"], self.device)
            self._state = _State(**saved["state"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint in {self.run_dir} is not of this trainer: {error!r}; start again "
                "in an empty folder"
            ) from error

    def _is_complete(self) -> bool:
        state, patience = self._state, self.options.patience
        is_stopped = (
            patience is not None
            and state.best_epoch is not None
            and state.epoch - state.best_epoch >= patience
        )
        return is_stopped or state.epoch >= self.options.epochs

    def _keep_best_model(self) -> None:
        model = self.model.state_dict()
        if self.run_dir is None:
            self._best_model = {name: value.clone() for name, value in model.items()}
        else:
            best = {"epoch": self._state.best_epoch, "model": model}
            save_state(self.run_dir / "best.safetensors", best, kind="best")

    def _take_best_model(self) -> None:
        if self._state.best_epoch is None or self._state.best_epoch == self._state.epoch:
            return
        if self.run_dir is None:
            self.model.load_state_dict(self._best_model)
        else:
            load_trained(self.model, self.run_dir)

    def _check_losses(self, losses: Tensor, epoch: int) -> None:
        bad = (~torch.isfinite(losses)).nonzero().flatten()
        if bad.numel():
            batch = int(bad[0])
            unusable = [
                name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()
            ]
            raise LossError(
                f"the training loss is {float(losses[batch])} in epoch {epoch}, batch {batch + 1}; "
                f"parameters with NaN or infinity by now: {', '.join(unusable) or 'none'}. Lower "
                f"the learning rate ({self.options.learning_rate_in(epoch):g}), or check the "
                "labels and the model's starting values"
            )


def _described(options: object) -> str:
    """The settings of a rule, the same in every process."""
    return repr(options) if dataclasses.is_dataclass(options) else type(options).__qualname__


def load_trained(model: nn.Module, run_dir: Path | str) -> int:
    """Give a model the parameters that a run ended with: of its best epoch, else of its last.

    model : built as the run built it
    returns : the epoch, counted from 1
    raises : CheckpointError if the run has no checkpoint, or one of another model
    """
    folder = Path(run_dir)
    try:
        for kind in ("encoded", "best"):
            file = folder / f"{kind}.safetensors"
            if file.exists():
                saved = load_state(file, kind=kind)
                epoch = int(saved["epoch"])
                break
        else:
            saved = load_state(folder / "last.safetensors", kind="training")
            epoch = int(saved["state"]["epoch"])
        load_model_state(model, saved["model"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint in {run_dir} is damaged: {error!r}") from error
    return epoch


_Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Samples:
    """Interactions as tensors on the training device.

    user, item : int64 (n,)      label : float32 (n,)
    has_drawn_negatives : whether samples with label 0 never happened
    """

    user: Tensor
    item: Tensor
    label: Tensor
    has_drawn_negatives: bool

    @staticmethod
    def of(interactions: Interactions, device: torch.device) -> _Samples:
        return _Samples(
            torch.tensor(interactions.user, device=device),
            torch.tensor(interactions.item, device=device),
            torch.tensor(interactions.label, device=device),
            interactions.has_drawn_negatives,
        )

    def shuffled(self, seed: int, epoch: int) -> _Samples:
        """The samples in the order of an epoch, which depends on seed and epoch alone."""
        (mixed,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed >> 1))  # it takes 63 bits
        order = torch.randperm(len(self.label), generator=generator).to(self.label.device)
        return replace(self, user=self.user[order], item=self.item[order], label=self.label[order])

    def batches(self, batch_size: int) -> list[_Batch]:
        """The samples in batches; these are views and copy nothing."""
        parts = (part.split(batch_size) for part in (self.user, self.item, self.label))
        return list(zip(*parts, strict=True))


def _has_positive_label(batch: _Batch) -> Tensor:
    _, _, label = batch
    return label > 0


class _Passes:
    """The samples in batches, in another order each time, as the epochs after the last would be."""

    def __init__(self, samples: _Samples, seed: int, options: TrainingOptions) -> None:
        self.samples = samples
        self.seed = seed
        self.batch_size = max(options.batch_size, _BATCH_SIZE_OF_PASSES)
        self.epoch = options.epochs

    def __iter__(self) -> Iterator[_Batch]:
        self.epoch += 1
        return iter(self.samples.shuffled(self.seed, self.epoch).batches(self.batch_size))
