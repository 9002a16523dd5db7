"""Progressive evaluation: every event is predicted before it is learned, once, in order.

Also called test-then-train, or prequential (Gama et al., "On evaluating stream learning
algorithms", 2013). Whole batches are predicted before they are learned, by every method alike, and
labels may be revealed late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from celrec.errors import (
    ArgumentError,
    DataError,
    DtypeError,
    LossError,
    check_count,
    check_number,
)
from celrec.metrics import Metrics, check_labels, evaluate

SEEN_LIMITS = (5, 20)


@dataclass(frozen=True)
class EventBatch:
    """B events in a row; a whole stream is one of these, too.

    users, items : int64 (B,)    entity numbers, dense, from 0
    labels : float (B,)          0 or 1; NaN while they are to be predicted
    timestamps : float64 (B,)    seconds, never falling
    """

    users: Tensor
    items: Tensor
    labels: Tensor
    timestamps: Tensor

    def __len__(self) -> int:
        return len(self.users)

    def slice(self, begin: int, end: int) -> EventBatch:
        """The events in [begin, end); views, nothing is copied."""
        return EventBatch(
            self.users[begin:end],
            self.items[begin:end],
            self.labels[begin:end],
            self.timestamps[begin:end],
        )

    def batches(self, batch_size: int) -> Iterator[EventBatch]:
        """All events in order, in batches; the last may be smaller."""
        for begin in range(0, len(self), batch_size):
            yield self.slice(begin, begin + batch_size)

    def check(self) -> None:
        """Raise what is wrong with a stream.

        raises : ArgumentError for shapes, DtypeError for types, DataError for negative ids, labels
            other than 0 and 1, and timestamps that are not finite or fall
        """
        for name in ("users", "items"):
            if (dtype := getattr(self, name).dtype) != torch.int64:
                raise DtypeError(f"{name} have type {dtype}; wanted torch.int64")
        if not self.labels.is_floating_point() or self.timestamps.dtype != torch.float64:
            raise DtypeError(
                f"labels have type {self.labels.dtype} and timestamps {self.timestamps.dtype}; "
                "wanted floats, and torch.float64"
            )
        shapes = {
            name: tuple(getattr(self, name).shape)
            for name in ("users", "items", "labels", "timestamps")
        }
        if set(shapes.values()) != {(len(self),)}:
            raise ArgumentError(f"events have shapes {shapes}; wanted one shape (B,)")
        step = self.timestamps.diff(prepend=self.timestamps[:1])
        for name, is_bad, wanted in (
            ("users", self.users < 0, "at least 0"),
            ("items", self.items < 0, "at least 0"),
            ("labels", (self.labels != 0) & (self.labels != 1), "0 or 1"),
            ("timestamps", ~(step >= 0), "finite and never falling: sort the events"),
        ):
            if is_bad.any():
                event = int(is_bad.nonzero()[0])
                raise DataError(
                    f"{name}[{event}] is {getattr(self, name)[event].item()}; wanted {wanted}"
                )


class OnlineMethod(Protocol):
    """Anything that predicts events and learns from them."""

    def predict(self, batch: EventBatch) -> Tensor:
        """Logits (B,) of label 1. The batch's labels are NaN."""
        ...

    def learn(self, batch: EventBatch) -> None:
        """Learn events whose labels are known; each comes once, in order."""
        ...

    def table_bytes(self) -> int:
        """Rows of vectors alone, in use."""
        ...

    def state_bytes(self) -> int:
        """All that it keeps: weights, optimizer state, what it keeps of each entity.

        The map from raw ids is the same for every method and does not count.
        """
        ...


@dataclass(frozen=True)
class ProgressiveResult:
    """What a method was worth on a stream.

    num_events : n, of the whole stream
    first_scored : the event from which `overall` and `slices` count
    overall : {"num_events", "log_loss", "auc"}, pooled over all scored events
    slices : the same by "users_seen_under_5", "users_seen_under_20" and so for items: scored events
        whose user came fewer times in all earlier events of the stream, revealed or not. A metric
        that is undefined is None, with a "reason"
    windows : the same for each window of the whole stream, with "first_event"
    seconds : of predicting and learning all events
    table_bytes, state_bytes : as the method counts them, at the end
    logits : float64 (n,), of all events; not in `as_dict`
    """

    num_events: int
    first_scored: int
    overall: Metrics
    slices: dict[str, Metrics]
    windows: list[Metrics]
    seconds: float
    table_bytes: int
    state_bytes: int
    logits: np.ndarray = field(repr=False)

    @property
    def events_per_second(self) -> float:
        return self.num_events / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        names = [name for name in self.__dataclass_fields__ if name != "logits"]
        figures = {name: getattr(self, name) for name in names}
        return figures | {"events_per_second": self.events_per_second}


def progressive(
    method: OnlineMethod,
    events: EventBatch,
    *,
    batch_size: int,
    delay: int = 0,
    window: int | None = None,
    after: float = 0.1,
) -> ProgressiveResult:
    """Let a method predict and then learn a stream, and score what it predicted.

    events : the whole stream, in order
    batch_size : >= 1        of prediction and of learning
    delay : >= 0, in events  a batch is learned when so many events after it have been predicted;
        0 reveals it at once. What is still hidden at the end of the stream is learned then
    window : >= 1 events; None for a twentieth of the stream
    after : in [0, 1)        this part of the stream, rounded down, is learned but not scored
    raises : as `EventBatch.check`; MetricError, before the first event, if the scored events are
        none or of one class; LossError for a prediction of the wrong shape, NaN or infinite

    >>> from celrec.baselines.online.running_means import RunningMeans
    >>> ids = torch.arange(400)
    >>> events = EventBatch(ids % 7, ids % 11, (ids % 11 < 5).float(), ids.double())
    >>> means = RunningMeans(7, 11, user_smoothing=1, item_smoothing=1)
    >>> found = progressive(means, events, batch_size=4)
    >>> found.overall
    {'num_events': 360, 'log_loss': 0.03..., 'auc': 1.0}
    """
    check_count("batch_size", batch_size, at_least=1)
    check_count("delay", delay)
    if not 0 <= check_number("after", after) < 1:
        raise ArgumentError(f"after is {after:g}; wanted a part of the stream in [0, 1)")
    events.check()
    num_events = len(events)
    first_scored = int(after * num_events)
    labels = events.labels.numpy()
    check_labels(labels[first_scored:], task="binary")
    if window is None:
        window = max(1, num_events // 20)
    check_count("window", window, at_least=1)

    logits = torch.empty(num_events, dtype=torch.float64)
    unknown = torch.full((batch_size,), torch.nan)
    hidden: deque[tuple[int, EventBatch]] = deque()  # with the number of the event after it
    begin = 0
    start = perf_counter()
    for batch in events.batches(batch_size):
        end = begin + len(batch)
        asked = EventBatch(batch.users, batch.items, unknown[: len(batch)], batch.timestamps)
        logits[begin:end] = _checked(method.predict(asked), begin, end)
        hidden.append((end, batch))
        while hidden and end - hidden[0][0] >= delay:
            method.learn(hidden.popleft()[1])
        begin = end
    for _, batch in hidden:
        method.learn(batch)
    seconds = perf_counter() - start

    scored = evaluate(
        logits[first_scored:].numpy(),
        labels[first_scored:],
        task="binary",
        slices={
            f"{name}_seen_under_{limit}": np.flatnonzero(times_seen(ids)[first_scored:] < limit)
            for name, ids in (("users", events.users), ("items", events.items))
            for limit in SEEN_LIMITS
        },
    )
    firsts = range(0, num_events, window)
    whole = evaluate(
        logits.numpy(),
        labels,
        task="binary",
        slices={str(e): np.arange(e, min(e + window, num_events)) for e in firsts},
    )
    overall = ("num_events", "log_loss", "auc")
    return ProgressiveResult(
        num_events=num_events,
        first_scored=first_scored,
        overall={name: scored[name] for name in overall},
        slices={name: value for name, value in scored.items() if name not in overall},
        windows=[{"first_event": e, **whole[str(e)]} for e in firsts],
        seconds=seconds,
        table_bytes=method.table_bytes(),
        state_bytes=method.state_bytes(),
        logits=logits.numpy(),
    )


def times_seen(ids: Tensor) -> np.ndarray:
    """How often each event's entity came before: int64 (n,) -> int64 (n,).

    >>> times_seen(torch.tensor([7, 7, 3, 7])).tolist()
    [0, 1, 0, 2]
    """
    order = ids.argsort(stable=True)
    _, lengths = ids[order].unique_consecutive(return_counts=True)
    first = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)  # of each run of one entity
    found = torch.empty_like(ids)
    found[order] = torch.arange(len(ids)) - first
    return found.numpy()


def _checked(logits: Tensor, begin: int, end: int) -> Tensor:
    if logits.shape != (end - begin,):
        raise LossError(
            f"the prediction for events {begin} to {end - 1} has shape {tuple(logits.shape)}; "
            f"wanted one logit for each, ({end - begin},)"
        )
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).nonzero()[0])
        raise LossError(
            f"the prediction for event {begin + bad} is {logits[bad].item()}; lower the learning "
            "rate. (The labels of a batch are NaN until it has been predicted.)"
        )
    return logits.detach()
