"""Events: what a round changed. History, reports and servers follow these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

MoveReason = Literal["data", "no data"]


@dataclass(frozen=True)
class SplitEvent:
    """A cluster was divided: `entities` (M,) went to the row `new_cluster`.

    gain : expected fall of the loss, in nats; 0 where the rule does not estimate it
    num_staying : members with data that stayed
    """

    kind: ClassVar[str] = "split"
    table: str
    round: int
    cluster: int
    new_cluster: int
    gain: float
    entities: Tensor = field(repr=False)
    num_staying: int

    def summary(self) -> dict[str, Any]:
        """The event without its arrays, ready for JSON."""
        return {
            "kind": self.kind,
            "table": self.table,
            "round": self.round,
            "cluster": self.cluster,
            "new_cluster": self.new_cluster,
            "gain": self.gain,
            "num_moved": self.entities.numel(),
            "num_staying": self.num_staying,
        }


@dataclass(frozen=True)
class MoveEvent:
    """Entities (M,) moved between clusters.

    reason : "data" where their own samples decided; "no data" where entities without samples went
        to the largest cluster
    objective_before, objective_after : sum of loss - log prior over all entities with data, in
        nats; 0 for entities without
    """

    kind: ClassVar[str] = "move"
    table: str
    round: int
    reason: MoveReason
    entities: Tensor = field(repr=False)
    from_cluster: Tensor = field(repr=False)
    to_cluster: Tensor = field(repr=False)
    objective_before: float
    objective_after: float

    def summary(self) -> dict[str, Any]:
        """The event without its arrays, ready for JSON."""
        return {
            "kind": self.kind,
            "table": self.table,
            "round": self.round,
            "reason": self.reason,
            "num_moved": self.entities.numel(),
            "objective_before": self.objective_before,
            "objective_after": self.objective_after,
        }


@dataclass(frozen=True)
class ReclaimEvent:
    """A cluster lost its last member; its row sleeps and can be used again.

    heir : the cluster that takes its place in the split tree; -1 if none
    """

    kind: ClassVar[str] = "reclaim"
    table: str
    round: int
    cluster: int
    heir: int

    def summary(self) -> dict[str, Any]:
        """The event, ready for JSON."""
        return {
            "kind": self.kind,
            "table": self.table,
            "round": self.round,
            "cluster": self.cluster,
            "heir": self.heir,
        }


@dataclass(frozen=True)
class SkipEvent:
    """A table had no round, for the reason given."""

    kind: ClassVar[str] = "skip"
    table: str
    round: int
    reason: str

    def summary(self) -> dict[str, Any]:
        """The event, ready for JSON."""
        return {
            "kind": self.kind,
            "table": self.table,
            "round": self.round,
            "reason": self.reason,
        }


Event = SplitEvent | MoveEvent | ReclaimEvent | SkipEvent
