"""Company: what an entity is looked up with says something about the entity.

Two users who watched the same films are alike, whatever either thought of them. So the prior of a
vector need not have one mean for all entities. With v_j the vectors that sample j looks up in the
other tables, end to end, an entity has a company of its own, around which its samples lie:

    v_j ~ N(v_bar + f_e, S_w)       f_e ~ N(0, S_b)       mean of x_e  =  c + W f_e

Samples that did not happen, negatives drawn for data that hold positives only, are no company.

The v_j are the means of posteriors, as they would be without sample j: what e itself has told them
is no news of e. f_e is guessed. A few samples are mostly chance, and the guess stays near 0 then:

    f_e = S_b (S_b + S_w / n_e)^-1 (mean of the v_j - v_bar)

S_w and S_b, how company differs within entities and between them, come from an analysis of
variance. c and W are fitted to all vectors of the table by least squares. All this serves training
alone and is then forgotten.

Sources. Of the guess, the best linear prediction of a random effect: Robinson, "That BLUP is a good
thing", Statistical Science 6 (1991), section 2; of its variances: Searle, Casella and McCulloch,
"Variance components" (1992), section 3.6. That company tells: the implicit feedback of SVD++
(Koren, "Factorization meets the neighborhood", KDD 2008, equation 15), which divides a sum of
vectors by the root of n_e. Of a prior with a regression for its mean: Agarwal and Chen,
"Regression-based latent factor models", KDD 2009.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RIDGE = 10.0  # entities' worth of company without influence
_EPSILON = 1e-6  # of the variance of all samples, for directions without any
_ROUNDING = 1e-12  # of the squares of all samples, below which no variance can be told


class Company:
    """Sums over the samples of each of P entities.

    width : Q, of v_j
    """

    def __init__(self, num_entities: int, width: int, like: Tensor) -> None:
        # In double, for vectors may differ by little of their length: sums of v_j and of v_j v_j^T.
        self.sums = like.new_zeros(num_entities, width, dtype=torch.float64)
        self.products = like.new_zeros(width, width, dtype=torch.float64)
        self.count = like.new_zeros(num_entities, dtype=torch.float64)
        self.dtype = like.dtype

    def observe(self, slots: Tensor, vectors: Tensor) -> None:
        """Count samples: v_j, (L, Q), for entities at positions `slots`, (L,)."""
        vectors = vectors.double()
        self.sums.index_add_(0, slots, vectors)
        self.count.index_add_(0, slots, torch.ones_like(slots, dtype=self.count.dtype))
        self.products.addmm_(vectors.T, vectors)

    def features(self) -> Tensor:
        """f_e, (P, Q), in coordinates in which S_w is 1 and S_b diagonal; 0 where nothing was
        observed, and where nothing can be told: no entity has two samples, or all v_j are equal.

        raises : torch.linalg.LinAlgError where a v_j is not finite

        >>> company = Company(2, 1, torch.empty(0))
        >>> company.observe(torch.tensor([0, 0, 1, 1]), torch.tensor([2.0, 4, 7, 9])[:, None])
        >>> company.features().flatten().tolist()  # 0.92 of 2.5 / sqrt(2), either way
        [-1.626..., 1.626...]
        """
        sums, count = self.sums, self.count.unsqueeze(1)
        num_samples, num_seen = count.sum(), (count > 0).sum()
        mean = sums.sum(0) / num_samples.clamp_min(1)
        apart = sums / count.clamp_min(1) - mean * (count > 0)  # (P, Q)
        between = apart.T @ (apart * count)
        total = self.products - num_samples * mean.outer(mean)
        within = (total - between) / (num_samples - num_seen).clamp_min(1)
        size = self.products.diagonal().mean()
        if num_samples <= num_seen or num_seen < 2 or total.diagonal().mean() <= _ROUNDING * size:
            return torch.zeros_like(self.sums, dtype=self.dtype)
        within.diagonal().add_(
            (_EPSILON * total.diagonal().mean() + _ROUNDING * size) / num_samples
        )
        samples_each = (num_samples - count.square().sum() / num_samples) / (num_seen - 1)
        between = (between / (num_seen - 1) - within) / samples_each
        inverse = torch.linalg.inv(torch.linalg.cholesky(within))
        variance, directions = torch.linalg.eigh(inverse @ between @ inverse.T)  # of S_b
        variance = variance.clamp_min(0)
        trust = variance / (variance + 1 / count.clamp_min(1))
        return (trust * (apart @ inverse.T @ directions)).to(self.dtype)


def expected_vectors(vectors: Tensor, features: Tensor) -> Tensor:
    """What company says of vectors: c + W f_e by least squares, (P, D).

    vectors : float (P, D)      features : float (P, Q)
    """
    mean = vectors.mean(0)
    if features.shape[1] == 0:
        return mean.expand_as(vectors)
    apart = (features - features.mean(0)).double()  # (P, Q)
    square = apart.T @ apart
    ridge = _RIDGE * square.diagonal().mean() / len(apart)
    square.diagonal().add_(ridge + torch.finfo(vectors.dtype).tiny)
    solved = torch.linalg.solve(square, apart.T @ (vectors - mean).double())
    return mean + (apart @ solved).to(vectors)
