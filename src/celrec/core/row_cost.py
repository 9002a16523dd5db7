"""What the rows of a table cost in its description length.

A row is told as precisely as its samples determine it, against what rows of the table are like: a
normal prior around their mean, with one variance for all of them. To second order the price in nats
is that of the Bayesian evidence (MacKay, "Bayesian interpolation", Neural Computation 1992):

    R = min over s of  sum_k [ 1/2 sum_d log(1 + s lambda_kd)  +  |w_k - mean w|^2 / (2 s) ]

lambda_kd are the eigenvalues of the curvature of row k, the summed outer products of its samples'
gradients. A direction that no sample sees costs nothing: two rows of 32 numbers that meet only 5
rows of another table are worth 5 numbers. Where the data determine all D directions this is, up to
constants, the 1/2 D log n of each row that is usual (Schwarz, Annals of Statistics 1978).

Parts of a cluster are taken to have its curvature in proportion to their samples. Then splits and
merges change R by arithmetic on eigenvalues that are known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from celrec.core.statistics import ClusterFisher

_NUM_VARIANCES = 96  # tried; neighbours differ by about a tenth
_ROUNDING = 1e-10  # of squared lengths; sums of them are double precision


@dataclass(frozen=True)
class RowCost:
    """Prices rows under every variance that the prior might have.

    spectrum : float64 (K_max, D)   eigenvalues of the curvature of each row, per sample
    variances : float64 (S,)        ascending, > 0
    """

    spectrum: Tensor
    variances: Tensor

    @staticmethod
    def of(fisher: ClusterFisher, spreads: Tensor, num_rows: int) -> RowCost:
        """For tables of up to `num_rows` rows whose spreads may be any of `spreads`, (*).

        The best variance is the spread over the number of coordinates that data determine: more
        than none, and no more than all.
        """
        # A row that determines less than one coordinate in all costs next to nothing anyway.
        width = fisher.fisher.shape[-1]
        positive = spreads[spreads > 0]
        most, least = (positive.max(), positive.min()) if len(positive) else (1.0, 1.0)
        variances = torch.logspace(
            float(torch.as_tensor(least / (num_rows * width)).log2()),
            float(torch.as_tensor(most).log2()),
            _NUM_VARIANCES,
            base=2,
            dtype=torch.float64,
            device=fisher.fisher.device,
        )
        spectrum = torch.linalg.eigvalsh(fisher.fisher).clamp_min(0)
        return RowCost(spectrum / fisher.count.clamp_min(1).unsqueeze(1), variances)

    def precision(self, clusters: Tensor, samples: Tensor) -> Tensor:
        """The cost of telling a row as precisely as its samples determine it, float64 (M, S).

        clusters : int64 (M,)   whose curvature a row has      samples : (M,)
        """
        parts = [
            torch.log1p((some.unsqueeze(1) * spectrum).unsqueeze(1) * self.variances[:, None])
            for some, spectrum in zip(
                samples.double().split(64), self.spectrum[clusters].split(64), strict=True
            )
        ]
        sums = [0.5 * part.sum(2) for part in parts]
        return torch.cat(sums) if sums else self.variances.new_zeros(0, len(self.variances))

    def total(self, precision: Tensor, spread: Tensor) -> Tensor:
        """R of tables, float64 (*), in nats.

        precision : (*, S), summed over rows      spread : (*), sum_k |w_k - mean w|^2

        Rows that are equal cost nothing: the limit of no variance.
        """
        total = precision + spread.unsqueeze(-1) / (2 * self.variances)
        return total.amin(-1).where(spread > 0, 0)


def spread_of(rows: Tensor) -> Tensor:
    """sum_k |w_k - mean w|^2, float64 (), of rows (K, D)."""
    return _spread(len(rows), rows.sum(0), rows.square().sum())


def _spread(num_rows: int, sum_of_rows: Tensor, sum_of_squares: Tensor) -> Tensor:
    """The same from sums, (*); 0 where rounding alone sets rows apart."""
    spread = sum_of_squares - sum_of_rows.square().sum(-1) / num_rows
    return spread.where(spread > _ROUNDING * sum_of_squares, 0)


def split_row_costs(
    fisher: ClusterFisher,
    rows: Tensor,
    live: Tensor,
    clusters: Tensor,
    stay_rows: Tensor,
    move_rows: Tensor,
    moving_samples: Tensor,
) -> Tensor:
    """What each of M splits adds to R by itself, float64 (M,).

    rows : (K_max, D)      live : int64 (K,)
    clusters : int64 (M,)   that are divided
    stay_rows, move_rows : (M, D)   where training will take the two sides
    moving_samples : (M,)   of those that go, out of fisher.count
    """
    rows, stay_rows, move_rows = rows.double(), stay_rows.double(), move_rows.double()
    all_rows, all_squares = rows[live].sum(0), rows[live].square().sum()
    spread = _spread(len(live), all_rows, all_squares)
    spread_after = _spread(
        len(live) + 1,
        all_rows - rows[clusters] + stay_rows + move_rows,
        all_squares
        - rows[clusters].square().sum(1)
        + stay_rows.square().sum(1)
        + move_rows.square().sum(1),
    )
    cost = RowCost.of(fisher, torch.cat([spread_after, spread.unsqueeze(0)]), len(live) + 1)
    samples = fisher.count[clusters]
    precision = cost.precision(live, fisher.count[live]).sum(0)
    precision_after = (
        precision
        - cost.precision(clusters, samples)
        + cost.precision(clusters, samples - moving_samples)
        + cost.precision(clusters, moving_samples)
    )
    return cost.total(precision_after, spread_after) - cost.total(precision, spread)
