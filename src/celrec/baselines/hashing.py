"""Hashes of entity ids: fixed, spread evenly, and independent for different seeds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: multiples of it spread evenly (Knuth 6.4)


def hashed(keys: Tensor, num_values: int, multiplier: int) -> Tensor:
    """Spread keys over values in [0, num_values), by one multiplication.

    keys : int64, any shape      multiplier : from `multiplier_of`
    """
    return ((keys * multiplier) >> 32) % num_values  # the high bits depend on all low ones


def multiplier_of(seed: int) -> int:
    """An odd multiplier, so that no two ids collide before the values are chosen; as an int64."""
    return _signed_64(_GOLDEN * (2 * seed + 1))


def random_multipliers(count: int, seed: int) -> list[int]:
    """Odd multipliers of independent hashes."""
    drawn = np.random.default_rng(seed).integers(0, 1 << 63, size=count, dtype=np.int64)
    return [_signed_64(2 * int(number) + 1) for number in drawn]


def mixed(keys: Tensor, multiplier: int) -> Tensor:
    """63 well-mixed bits of every key, int64 >= 0, where one multiplication is too regular.

    Source: the finaliser of splitmix64 (Steele et al., OOPSLA 2014), with shifts made logical.
    """
    keys = keys * multiplier
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        keys = (keys ^ _shifted(keys, 30)) * _signed_64(factor)
    return (keys ^ _shifted(keys, 31)) & torch.iinfo(torch.int64).max


def _shifted(keys: Tensor, places: int) -> Tensor:
    """A logical shift to the right: zeros come in, not the sign."""
    return (keys >> places) & ((1 << (64 - places)) - 1)


def _signed_64(number: int) -> int:
    """The low 64 bits, as the int64 that has them."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >= 1 << 63 else number
