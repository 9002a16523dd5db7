"""Company: what an entity is looked up with says something about the entity.

Two users who watched the same films are alike, whatever either thought of them. So the prior of a
vector need not have one mean for all entities. With v_j the vectors that sample j looks up in the
other tables, end to end, and a bar for the mean over samples,

    f_e = 1 / sqrt(n_e) sum_j (v_j - v_bar)        mean of x_e  =  c + W f_e

c and W are fitted to all vectors of the table by least squares. They serve training alone and are
then forgotten. With few samples f_e is small; where company says nothing W is.

Source of f_e and its root: the implicit feedback of SVD++ (Koren, "Factorization meets the
neighborhood", KDD 2008, equation 15). There every item has a second vector for it; here the
vectors that exist serve. Of a prior with a regression for its mean: Agarwal and Chen,
"Regression-based latent factor models", KDD 2009.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RIDGE = 10.0  # entities' worth of company without influence


class Company:
    """Sums over the samples of each of P entities.

    width : Q, of v_j
    """

    def __init__(self, num_entities: int, width: int, like: Tensor) -> None:
        self.sums = like.new_zeros(num_entities, width)
        self.count = like.new_zeros(num_entities)

    def observe(self, slots: Tensor, vectors: Tensor) -> None:
        """Count samples: v_j, (L, Q), for entities at positions `slots`, (L,)."""
        self.sums.index_add_(0, slots, vectors)
        self.count.index_add_(0, slots, torch.ones_like(slots, dtype=self.count.dtype))

    def features(self) -> Tensor:
        """f_e, (P, Q); 0 for an entity that was not observed.

        >>> company = Company(2, 1, torch.empty(0))
        >>> company.observe(torch.tensor([0, 0, 0, 0, 1]), torch.tensor([3.0, 3, 3, 3, 8])[:, None])
        >>> company.features().flatten().tolist()
        [-2.0, 4.0]
        """
        count = self.count.unsqueeze(1)
        mean = self.sums.sum(0) / count.sum().clamp_min(1)
        return (self.sums - count * mean) / count.clamp_min(1).sqrt()


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
