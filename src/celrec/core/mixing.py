"""Mixes of a few rows that are near given vectors: how D numbers become a code of m ids.

Source: Frank and Wolfe's algorithm over the simplex of weights, with exact line search; after m
different rows only these are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MIX_STEPS = 200  # the distance falls like 1 / steps; four bits see no more
_MIX_STEPS_OF_MANY = 50


def nearest_blend(rows: Tensor, target: Tensor, blend_size: int) -> tuple[Tensor, Tensor]:
    """A mix of a few rows that is near a vector, found greedily.

    rows : float (K, D)      target : (D,)
    blend_size : m in [1, K]
    returns : int64 (m,) positions, the heaviest first, and their weights, (m,), which sum to 1

    >>> rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 9.0]])
    >>> nearest_blend(rows, torch.tensor([0.25, 0.0]), blend_size=2)
    (tensor([0, 1]), tensor([0.7500, 0.2500]))
    """
    lines = rows.double().unsqueeze(0), target.double().unsqueeze(0)  # differences of products
    positions, weights = nearest_blends(*lines, blend_size, num_steps=_MIX_STEPS)
    return positions[0], weights[0].to(rows.dtype)


def nearest_blends(
    rows: Tensor, targets: Tensor, blend_size: int, *, num_steps: int = _MIX_STEPS_OF_MANY
) -> tuple[Tensor, Tensor]:
    """The same for many vectors at once.

    rows : double (1, C, D), candidates that all vectors share, or (E, C, D), their own
    targets : (E, D)
    blend_size : m in [1, C]
    returns : int64 (E, m) positions in [0, C), the heaviest first, and their weights, (E, m)
    cost : the products of all candidates, (E, C, C) or (1, C, C), then some E x C numbers a step
    """
    products = rows @ rows.mT  # (E or 1, C, C)
    wanted = (rows @ targets.unsqueeze(-1)).squeeze(-1)  # (E, C)
    squares = products.diagonal(dim1=1, dim2=2)  # (E or 1, C)
    each = torch.arange(len(targets), device=rows.device)
    line = each if len(rows) > 1 else torch.zeros_like(each)  # of `products`
    nearest = (squares - 2 * wanted).argmin(1)
    weights = torch.zeros_like(wanted)
    weights[each, nearest] = 1
    mixed = products[line, nearest]  # (E, C), products of every candidate and the mix
    for _ in range(num_steps):
        square = (weights * mixed).sum(1, keepdim=True)  # of the mix
        along = wanted - mixed - ((weights * wanted).sum(1, keepdim=True) - square)
        length = squares - 2 * mixed + square  # squared, from the mix to every candidate
        share = (along / length.clamp_min(torch.finfo(rows.dtype).tiny)).clamp(0, 1)
        fall = 2 * share * along - share.square() * length  # of the squared distance
        is_full = (weights > 0).sum(1, keepdim=True) >= blend_size
        fall.masked_fill_(is_full & (weights == 0), 0)
        best = fall.argmax(1)
        step = share[each, best] * (fall[each, best] > 0)
        if not bool(step.any()):
            break
        weights *= 1 - step.unsqueeze(1)
        weights[each, best] += step
        mixed = torch.lerp(mixed, products[line, best], step.unsqueeze(1))
    heaviest = weights.topk(blend_size, 1)
    positions = heaviest.indices.where(heaviest.values > 0, heaviest.indices[:, :1])
    return positions, heaviest.values
