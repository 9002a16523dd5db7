"""Events: what a round changed. History, reports and servers follow these."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

MoveReason = Literal["data", "no data"]


@dataclass(frozen=True)
class _Event:
    """What all events have: a kind, the name of the table, and the number of the round."""

    kind: ClassVar[str]
    table: str
    round: int

    def summary(self) -> dict[str, Any]:
        """The event ready for JSON; in place of its arrays, how many entities moved."""
        values: dict[str, Any] = {"kind": self.kind}
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if not isinstance(value, Tensor):
                values[option.name] = value
            elif option.name == "entities":
                values["num_moved"] = value.numel()
        return values


@dataclass(frozen=True)
class SplitEvent(_Event):
    """A cluster was divided: `entities` (M,) went to the row `new_cluster`.

    gain : expected fall of the loss, in nats; 0 where the rule does not estimate it. Of a table
        with `max_clusters="auto"`, measured: see description_length.py
    num_staying : members with data that stayed
    cost : what the gain had to exceed, in nats; 0 for a fixed count
    """

    kind: ClassVar[str] = "split"
    cluster: int
    new_cluster: int
    gain: float
    entities: Tensor = field(repr=False)
    num_staying: int
    cost: float = 0.0


@dataclass(frozen=True)
class MoveEvent(_Event):
    """Entities (M,) moved between clusters.

    reason : "data" where their own samples decided; "no data" where entities without samples went
        to the largest cluster
    objective_before, objective_after : sum of loss - log prior over all entities with data, in
        nats; 0 for entities without
    """

    kind: ClassVar[str] = "move"
    reason: MoveReason
    entities: Tensor = field(repr=False)
    from_cluster: Tensor = field(repr=False)
    to_cluster: Tensor = field(repr=False)
    objective_before: float
    objective_after: float


@dataclass(frozen=True)
class ReclaimEvent(_Event):
    """A cluster lost its last member; its row sleeps and can be used again.

    heir : the cluster that takes its place in the split tree; -1 if none
    """

    kind: ClassVar[str] = "reclaim"
    cluster: int
    heir: int


@dataclass(frozen=True)
class MergeEvent(_Event):
    """A cluster no longer paid and was dissolved: `entities` (M,) went to `to_cluster` (M,).

    A ReclaimEvent of its row follows.

    change : of the description length, in nats; below 0
    """

    kind: ClassVar[str] = "merge"
    cluster: int
    entities: Tensor = field(repr=False)
    to_cluster: Tensor = field(repr=False)
    change: float


@dataclass(frozen=True)
class CodeEvent(_Event):
    """Entities (E,) got new codes of `blend_size` clusters.

    num_without_data : entities whose code is the prior's
    """

    kind: ClassVar[str] = "code"
    entities: Tensor = field(repr=False)
    blend_size: int
    num_without_data: int


@dataclass(frozen=True)
class PersonalEvent(_Event):
    """Entities (P,) got vectors of their own, as offsets from their blends; no others have any."""

    kind: ClassVar[str] = "personal"
    entities: Tensor = field(repr=False)


@dataclass(frozen=True)
class AdditiveEvent(_Event):
    """All entities got additive codes: the row of their cluster and one of each level.

    Without levels: the row that is nearest to what was fitted for them.
    """

    kind: ClassVar[str] = "additive"
    num_levels: int
    bits: int


@dataclass(frozen=True)
class SkipEvent(_Event):
    """A table had no round, for the reason given."""

    kind: ClassVar[str] = "skip"
    reason: str


Event = (
    SplitEvent
    | MoveEvent
    | MergeEvent
    | ReclaimEvent
    | CodeEvent
    | PersonalEvent
    | AdditiveEvent
    | SkipEvent
)
