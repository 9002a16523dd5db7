"""Splits: which clusters to divide, and how. Pure functions from statistics to a plan.

Gradient principal component analysis (GPCA; Chen et al. 2023, section 3.2): the members of a
cluster are told apart along the main direction in which their gradients disagree. `GainSplit` cuts
where a second-order model of the loss gains most; `PaperSplit` holds the paper's own choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from celrec.core.statistics import EntityStatistics
from celrec.errors import ArgumentError, check_count, check_number


@dataclass(frozen=True)
class ClusterSplit:
    """One cluster to divide.

    cluster : whose row stays with the members that stay
    moved : int64 (M,)   entities that go to the new cluster, the smaller side
    stay_row, move_row : (D,)   where the two rows start
    gain : expected fall of the loss, in nats, by the second-order model
    priority : splits are committed in falling order of it
    num_staying : members with data that stay
    cost : what the gain must exceed, in nats; 0 where nothing asks for it
    """

    cluster: int
    moved: Tensor
    stay_row: Tensor
    move_row: Tensor
    gain: float
    priority: float
    num_staying: int
    cost: float = 0.0


@dataclass(frozen=True)
class SplitPlan:
    """Splits of different clusters, to be committed together."""

    splits: tuple[ClusterSplit, ...]

    def largest(self, num_splits: int) -> SplitPlan:
        """The plan with the `num_splits` splits of highest priority."""
        ranked = sorted(self.splits, key=lambda split: (-split.priority, split.cluster))
        return SplitPlan(tuple(ranked[:num_splits]))


class SplitRule(Protocol):
    """Proposes at most one split for each cluster."""

    def plan(self, statistics: EntityStatistics, clusters: Tensor, rows: Tensor) -> SplitPlan:
        """Propose splits.

        statistics : of E entities, all members with data of every cluster among them
        clusters : int64 (E,)   their clusters
        rows : (K_max, D)       the table
        """
        ...


@dataclass(frozen=True, kw_only=True)
class GainSplit:
    """Cut each cluster where the second-order gain is largest.

    Per-entity directions d_e = g_e / (h_e + damping + mean h), centred, weighted by sqrt(n_e); the
    members are sorted along the first principal component and cut where

        1/2 [ G_L^2/(H_L+damping) + G_R^2/(H_R+damping) - G^2/(H+damping) ],  summed over D,

    is largest, as in gradient-boosted trees (Chen & Guestrin, "XGBoost", KDD 2016, eq. 7). A child
    starts at the parent's row plus `eta` times its own Newton step -G_c/(H_c+damping). Steps that
    know the correlations of the table's gradients lower the loss more at once and end lower in
    validation AUC on ML-1M, at any eta: it is the overshoot that sets the children apart.

    eta : in [0, 1]; 0 starts both children as copies of the parent. Of a table with
        max_clusters="auto", children start where their gain was measured, whatever `eta`
    damping : > 0, samples' worth of curvature that hold a row in place
    max_step : >= 0, a child starts no further from its parent than this share of the parent's
        length: squared gradients understate the curvature where the loss is not in nats
    """

    eta: float = 0.1
    damping: float = 5.0
    max_step: float = 0.5

    def __post_init__(self) -> None:
        check_number("eta", self.eta, at_least=0, at_most=1)
        check_number("damping", self.damping, above=0)
        check_number("max_step", self.max_step, at_least=0)

    def plan(self, statistics: EntityStatistics, clusters: Tensor, rows: Tensor) -> SplitPlan:
        splits = (
            self._split(cluster, members, rows[cluster])
            for cluster, members in members_by_cluster(statistics, clusters)
        )
        return SplitPlan(tuple(split for split in splits if split is not None))

    def _split(self, cluster: int, members: EntityStatistics, row: Tensor) -> ClusterSplit | None:
        if members.entities.numel() < 2:
            return None
        gradient, curvature = members.gradient, members.curvature  # (M, D)
        centre = gradient.sum(0) / (curvature.sum(0) + self.damping)
        direction = gradient / (curvature + (self.damping + curvature.mean())) - centre
        component = first_principal_component(direction * members.count.sqrt().unsqueeze(1))
        order = (direction @ component).argsort(stable=True)

        left_g = gradient[order].cumsum(0)  # (M, D); line i: the first i + 1 members go left
        left_h = curvature[order].cumsum(0)
        all_g, all_h = left_g[-1], left_h[-1]
        gains = (
            0.5
            * (
                (left_g.square() / (left_h + self.damping)).sum(1)
                + ((all_g - left_g).square() / (all_h - left_h + self.damping)).sum(1)
                - (all_g.square() / (all_h + self.damping)).sum()
            )[:-1]
        )
        cut = int(gains.argmax())
        gain = float(gains[cut])
        if not gain > 0:  # no member disagrees with another
            return None
        left_step = -left_g[cut] / (left_h[cut] + self.damping)
        right_step = -(all_g - left_g[cut]) / (all_h - left_h[cut] + self.damping)
        return _smaller_side_moves(
            cluster,
            members.entities[order],
            num_left=cut + 1,
            left_row=row + self._shortened(left_step, row),
            right_row=row + self._shortened(right_step, row),
            gain=gain,
            priority=gain,
        )

    def _shortened(self, step: Tensor, row: Tensor) -> Tensor:
        step = self.eta * step
        longest = self.max_step * row.norm()
        return step * (longest / step.norm().clamp_min(torch.finfo(step.dtype).tiny)).clamp_max(1)


@dataclass(frozen=True, kw_only=True)
class PaperSplit:
    """The paper's own rule (Chen et al. 2023, section 3.2 and Algorithm 1).

    Clusters are split in the order of their number of interactions; members are projected on the
    first principal component of their centred gradients and cut at zero or at the median; both
    children start as copies of the parent.

    cut : "zero" (members on either side of the mean gradient) or "median" (halves)
    """

    cut: Literal["zero", "median"] = "zero"

    def __post_init__(self) -> None:
        if self.cut not in ("zero", "median"):
            raise ArgumentError(f"cut is {self.cut!r}; wanted 'zero' or 'median'")

    def plan(self, statistics: EntityStatistics, clusters: Tensor, rows: Tensor) -> SplitPlan:
        splits = []
        for cluster, members in members_by_cluster(statistics, clusters):
            num_members = members.entities.numel()
            centred = members.gradient - members.gradient.mean(0)
            if num_members < 2 or not bool(centred.any()):
                continue
            projection = centred @ first_principal_component(centred)
            order = projection.argsort(stable=True)
            num_left = num_members // 2 if self.cut == "median" else int((projection < 0).sum())
            if not 0 < num_left < num_members:
                continue
            splits.append(
                _smaller_side_moves(
                    cluster,
                    members.entities[order],
                    num_left=num_left,
                    left_row=rows[cluster],
                    right_row=rows[cluster],
                    gain=0.0,
                    priority=float(members.count.sum()),
                )
            )
        return SplitPlan(tuple(splits))


def num_splits_now(num_clusters: int, max_clusters: int, rounds_left: int) -> int:
    """Geometric growth: how many splits take K to K_max in the rounds left, this one included.

    >>> [num_splits_now(1, 64, rounds_left=3), num_splits_now(4, 64, rounds_left=2)]
    [3, 12]
    """
    check_count("rounds_left", rounds_left, at_least=1)
    grown = num_clusters * (max_clusters / num_clusters) ** (1 / rounds_left)
    return min(max_clusters, max(num_clusters + 1, round(grown))) - num_clusters


def first_principal_component(centred: Tensor) -> Tensor:
    """The unit vector (D,) along which the lines of (M, D) vary most; its largest entry is > 0."""
    exact = centred.double()  # in single precision, squares of tiny numbers keep LAPACK from an end
    component = torch.linalg.eigh(exact.T @ exact).eigenvectors[:, -1]
    return (component * component[component.abs().argmax()].sign()).to(centred)


def members_by_cluster(
    statistics: EntityStatistics, clusters: Tensor
) -> Iterator[tuple[int, EntityStatistics]]:
    """Each cluster with the statistics of its members, in ascending order of both."""
    order = clusters.argsort(stable=True)
    present, sizes = clusters.unique(return_counts=True)
    for cluster, index in zip(present.tolist(), order.split(sizes.tolist()), strict=True):
        yield cluster, statistics.select(index)


def _smaller_side_moves(
    cluster: int,
    ordered: Tensor,
    *,
    num_left: int,
    left_row: Tensor,
    right_row: Tensor,
    gain: float,
    priority: float,
) -> ClusterSplit:
    left, right = ordered[:num_left], ordered[num_left:]
    moves_left = left.numel() <= right.numel()
    return ClusterSplit(
        cluster=cluster,
        moved=left if moves_left else right,
        stay_row=right_row if moves_left else left_row,
        move_row=left_row if moves_left else right_row,
        gain=gain,
        priority=priority,
        num_staying=max(left.numel(), right.numel()),
    )
