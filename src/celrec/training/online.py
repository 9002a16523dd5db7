"""Learning from a stream of events with raw ids, in a fixed number of bytes.

`StreamLearner` puts the parts together: maps from ids to slots (data/slots.py), biased matrix
factorization over two online tables (core/online.py), and figures over the last events. Every event
is predicted before it is learned. What it is after some events depends on these events and on the
settings alone, so it can be saved after any batch and goes on with the same bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from celrec.core.online import OnlineRule
from celrec.core.online_embedding import OnlineEmbedding
from celrec.data.slots import SlotMap
from celrec.data.stream.event import Event
from celrec.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    check_count,
    check_number,
    nearest_name,
)
from celrec.models.biased_mf import BiasedMF
from celrec.training.online_factors import OnlineFactors, row_bytes_of, table_bytes
from celrec.training.stream_metrics import RecentEvents, SlotMeans

SIDES = ("user", "item")

_MODEL_BYTES = 4  # the offset of BiasedMF
_MOST_SLOTS = 2**31 - 1


@dataclass(frozen=True)
class SideSize:
    """How many ids one side can hold.

    capacity : ids that have a slot of their own
    num_buckets : slots that all others share
    """

    capacity: int
    num_buckets: int

    @property
    def num_slots(self) -> int:
        return self.capacity + self.num_buckets


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What decides how a stream is learned.

    width : >= 1 factors of a vector
    rows : >= 1, of each table
    blend : 1..64 clusters of a code
    offset_dim : last numbers of a vector, biases first, that have an offset of the entity's own;
        None: 10, or all if they are fewer
    user_smoothing : >= 0, events that factors of 0 count for against what is known of a user
    learning_rate : > 0, of AdamW on the rows
    batch_size : >= 1 events that are predicted, and then learned, together
    max_bytes : of both tables with all that is learned by them: rows, their optimizer's state,
        codes, statistics. It is never exceeded. Maps of ids are apart.
    user_share : in (0, 1), part of these bytes that users get
    bucket_share : in (0, 1), part of the slots that ids without one of their own share
    admit_after : 1..15, the sighting at which an id gets its own slot
    ids : "hashed": texts and integers, 7 and "7" being the same; needs the extra `stream`.
        "integer": integers alone, in fewer bytes
    window : >= batch_size events that running figures look back on
    rule : how codes learn
    seed : of the first row, and of explorers
    """

    width: int = 32
    rows: int = 32
    blend: int = 4
    offset_dim: int | None = None
    user_smoothing: float = 2.0
    learning_rate: float = 0.01
    batch_size: int = 32
    max_bytes: int = 10_000_000
    user_share: float = 0.5
    bucket_share: float = 0.1
    admit_after: int = 2
    ids: Literal["integer", "hashed"] = "hashed"
    window: int = 5000
    rule: OnlineRule = field(default_factory=OnlineRule)
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("width", self.width, at_least=1)
        check_count("rows", self.rows, at_least=1)
        check_count("blend", self.blend, at_least=1, at_most=64)
        if self.offset_dim is not None:
            check_count("offset_dim", self.offset_dim, at_most=self.vector_width)
        check_number("user_smoothing", self.user_smoothing, at_least=0)
        check_number("learning_rate", self.learning_rate, above=0)
        check_count("batch_size", self.batch_size, at_least=1, at_most=2**20)
        check_count("max_bytes", self.max_bytes, at_least=1)
        for name in ("user_share", "bucket_share"):
            if check_number(name, getattr(self, name), above=0, at_most=1) == 1:
                raise ArgumentError(f"{name} is 1; wanted a part, below 1")
        check_count("admit_after", self.admit_after, at_least=1, at_most=15)
        if self.ids not in ("integer", "hashed"):
            raise ArgumentError(f"ids is {self.ids!r}; wanted 'integer' or 'hashed'")
        if check_count("window", self.window, at_least=1) < self.batch_size:
            raise ArgumentError(
                f"window is {self.window}, smaller than a batch of {self.batch_size} events; make "
                "it larger"
            )
        check_count("seed", self.seed)
        self.sizes()

    @property
    def vector_width(self) -> int:
        """D, with the columns of biases."""
        return BiasedMF.layer_widths(self.width)["user_embedding"]

    def table(self, num_slots: int, smoothing: float = 0.0) -> OnlineEmbedding:
        """A new table for so many entities."""
        offset_dim = min(self.vector_width, 10) if self.offset_dim is None else self.offset_dim
        return OnlineEmbedding(
            num_slots,
            self.vector_width,
            self.rows,
            blend_size=self.blend,
            offset_dim=offset_dim,
            smoothing=smoothing,
        )

    def slot_bytes(self) -> int:
        """Bytes that a table keeps of one entity."""
        with torch.device("meta"):  # shapes alone
            return table_bytes(self.table(3)) - table_bytes(self.table(2))

    def sizes(self) -> dict[str, SideSize]:
        """How many slots `max_bytes` pay for.

        raises : ArgumentError where they do not pay for two on each side
        """
        each = self.slot_bytes()
        with torch.device("meta"):
            two_tables = 2 * (table_bytes(self.table(2)) - 2 * each)
        without_slots = two_tables + _MODEL_BYTES
        for_slots = self.max_bytes - without_slots
        num_users = int(for_slots * self.user_share) // each
        num_items = (for_slots - num_users * each) // each
        if min(num_users, num_items) < 2:
            rarer = min(self.user_share, 1 - self.user_share)
            wanted = without_slots + math.ceil(2 * each / rarer)
            raise ArgumentError(
                f"max_bytes is {self.max_bytes:,}, but two tables of {self.rows} rows of "
                f"{self.vector_width} numbers take {without_slots:,} before the first "
                f"user and item, and {each} for each of these; wanted at least {wanted:,}, fewer "
                "rows, or a smaller width"
            )
        return {"user": self._size(num_users), "item": self._size(num_items)}

    def _size(self, num_slots: int) -> SideSize:
        num_slots = min(num_slots, _MOST_SLOTS)
        num_buckets = max(1, int(num_slots * self.bucket_share))
        return SideSize(num_slots - num_buckets, num_buckets)

    def tables(self) -> dict[str, OnlineEmbedding]:
        """Both tables, without anything learned."""
        sizes = self.sizes()
        return {
            "user": self.table(sizes["user"].num_slots, self.user_smoothing),
            "item": self.table(sizes["item"].num_slots),
        }

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StreamSettings:
        """The settings that had this `as_dict`.

        raises : ArgumentError naming what is unknown or wrong
        """
        known = {part.name for part in dataclasses.fields(cls)}
        rules = {part.name for part in dataclasses.fields(OnlineRule)}
        rule = dict(values.get("rule", {}))
        for given, names in ((values, known), (rule, rules)):
            for name in given:
                if name not in names:
                    raise ArgumentError(f"unknown setting {name!r}; {nearest_name(name, names)}")
        return cls(**{**values, "rule": OnlineRule(**rule)})


@dataclass(frozen=True)
class StreamMemory:
    """Where a learner's bytes are.

    budget : what `max_bytes` allows
    tables : what the tables take, with all that is learned by them: constant, at most the budget
    used : of these, what clusters and ids in use need
    maps : from ids to slots, apart from the budget
    figures : of the last events, and of running means: to look at, apart from the budget
    """

    budget: int
    tables: int
    used: int
    maps: int
    figures: int


class StreamLearner:
    """Predicts events and learns from them, one batch after the other.

    >>> learner = StreamLearner(StreamSettings(width=4, rows=4, ids="integer"))
    >>> events = [Event(user, item, float(user < 3)) for user in range(6) for item in range(4)]
    >>> for _ in range(20):
    ...     _ = learner.learn(events)
    >>> like, dislike = learner.predict([Event(0, 1, 0.0), Event(5, 1, 0.0)]).tolist()
    >>> like > 0 > dislike
    True
    """

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        sizes = settings.sizes()
        self.slots = {
            side: SlotMap(
                sizes[side].capacity,
                num_buckets=sizes[side].num_buckets,
                ids=settings.ids,
                admit_after=settings.admit_after,
                max_batch=settings.batch_size,
            )
            for side in SIDES
        }
        self.tables = settings.tables()
        self.factors = OnlineFactors(
            self.tables["user"],
            self.tables["item"],
            learning_rate=settings.learning_rate,
            rule=settings.rule,
            seed=settings.seed,
        )
        self._recent = RecentEvents(settings.window, ["model", "means"])
        self._means = SlotMeans({side: sizes[side].num_slots for side in SIDES})
        self._time: float | None = None

    @property
    def num_events(self) -> int:
        """Events learned so far."""
        return self._recent.num_events

    @property
    def num_windows(self) -> int:
        """Windows finished so far."""
        return self.num_events // self.settings.window

    @torch.no_grad()
    def predict(self, events: Sequence[Event]) -> Tensor:
        """Logits (B,) of label 1; nothing changes, and labels are not looked at.

        raises : DataError for ids that are no integers, where the settings want these
        """
        ids = self._ids(events)
        users, items = (torch.from_numpy(self.slots[side].find(ids[side])) for side in SIDES)
        return self.factors.predict(users, items)

    def learn(self, events: Sequence[Event]) -> Tensor:
        """Predict a batch, then learn it.

        events : at most `batch_size`
        returns : logits (B,), from before anything of the batch was learned
        raises : DataError for ids that are no integers, where the settings want these: nothing has
            changed then; LossError for a loss that is not finite: go back to a checkpoint
        """
        ids = self._ids(events)
        if not events:
            return torch.zeros(0)
        labels = torch.tensor([event.label for event in events])
        slots = {side: self._observe(side, ids[side]) for side in SIDES}
        logits = self.factors.predict(slots["user"], slots["item"])
        self._recent.add(labels, model=logits, means=self._means.predict(slots))
        self._means.learn(slots, labels)
        self.factors.learn(slots["user"], slots["item"], labels)
        self._time = events[-1].timestamp
        return logits

    def _ids(self, events: Sequence[Event]) -> dict[str, list[str] | np.ndarray]:
        if self.settings.ids == "hashed":
            return {
                "user": [str(event.user) for event in events],
                "item": [str(event.item) for event in events],
            }
        for event in events:
            if type(event.user) is not int or type(event.item) is not int:
                raise DataError(f"{event} has an id that is no integer; use ids='hashed'")
        return {
            "user": np.array([event.user for event in events], np.int64),
            "item": np.array([event.item for event in events], np.int64),
        }

    def _observe(self, side: str, ids: list[str] | np.ndarray) -> Tensor:
        """The slots of a batch's ids; those that are new to their slot start as newcomers."""
        observed = self.slots[side].observe(ids)
        if len(observed.admitted_slots):
            admitted = torch.from_numpy(observed.admitted_slots)
            self.tables[side].forget(admitted)
            self._means.forget(side, admitted)
        return torch.from_numpy(observed.slots)

    # --- what it looks like ------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """How it is doing, ready for JSON.

        returns : "num_events"; "auc" and "log_loss" over the last window, "means_auc" and
            "means_log_loss" of running means of users and items; "clusters" and "entities" (ids
            with a slot of their own) by side; "used_bytes"; "time", the last event's
        """
        means = self._recent.figures("means")
        return {
            "num_events": self.num_events,
            **self._recent.figures("model"),
            **{f"means_{name}": value for name, value in means.items()},
            "clusters": {side: table.num_clusters for side, table in self.tables.items()},
            "entities": {side: slots.num_admitted for side, slots in self.slots.items()},
            "used_bytes": self.memory().used,
            "time": self._time,
        }

    def memory(self) -> StreamMemory:
        """Count every byte."""
        tables = used = self.factors.nbytes
        row_bytes = row_bytes_of(self.tables["user"])
        slot_bytes = self.settings.slot_bytes()
        for side, table in self.tables.items():
            slots = self.slots[side]
            used -= (slots.capacity - slots.num_admitted) * slot_bytes
            used -= (table.max_clusters - table.num_clusters) * row_bytes
        return StreamMemory(
            budget=self.settings.max_bytes,
            tables=tables,
            used=used,
            maps=sum(slots.nbytes for slots in self.slots.values()),
            figures=self._recent.nbytes + self._means.nbytes,
        )

    # --- saving ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that goes on needs; for `checkpoint.save_state`.

        Arrays are the learner's own, not copies: save them before learning on.
        """
        return {
            "settings": self.settings.as_dict(),
            "factors": self.factors.state_dict(),
            "slots": {side: _saved_slots(slots) for side, slots in self.slots.items()},
            "recent": self._recent.state_dict(),
            "means": self._means.state_dict(),
            "time": self._time,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state_dict`.

        raises : CheckpointError if it is of other settings, or damaged
        """
        try:
            _check_settings(state["settings"], self.settings.as_dict())
            self.factors.load_state_dict(state["factors"])
            self.slots = {
                side: _loaded_slots(slots, state["slots"][side])
                for side, slots in self.slots.items()
            }
            self._recent.load_state_dict(state["recent"])
            self._means.load_state_dict(state["means"])
            self._time = state["time"]
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"the state of a stream's learner is damaged: {error!r}; restore it from a copy, "
                "or start again in an empty folder"
            ) from error


def _check_settings(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name in {**saved, **own}:
        if saved.get(name) != own.get(name):
            raise CheckpointError(
                f"the checkpoint's {name} is {saved.get(name)!r}, but {own.get(name)!r} is asked "
                "for; go on with the settings it was made with, or start again in another folder"
            )


def _saved_slots(slots: SlotMap) -> dict[str, Any]:
    # Not every torch knows the unsigned types, so arrays are saved as bytes.
    state = slots.state()
    return {
        "settings": slots.settings(),
        "arrays": {
            name: torch.from_numpy(array.reshape(-1).view(np.uint8))
            for name, array in state.items()
        },
    }


def _loaded_slots(slots: SlotMap, saved: Mapping[str, Any]) -> SlotMap:
    arrays = {}
    for name, own in slots.state().items():
        array = saved["arrays"][name].numpy()
        if array.nbytes != own.nbytes:
            raise CheckpointError(
                f"array {name!r} of a slot map has {array.nbytes:,} bytes; wanted {own.nbytes:,}"
            )
        arrays[name] = array.view(own.dtype).reshape(own.shape)
    if saved["settings"] != slots.settings():
        raise CheckpointError(
            f"a slot map has settings {saved['settings']}; wanted {slots.settings()}"
        )
    return SlotMap.from_state(slots.settings(), arrays)
