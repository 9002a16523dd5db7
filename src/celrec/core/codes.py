"""Codes: what an entity stores instead of a vector, packed into as few bytes as possible.

A code is the id of a cluster. Up to 256 clusters an id takes one byte, up to 65,536 two, then four.
Two-byte ids are the bits of an unsigned number kept in `torch.int16`, because torch has no gather
for `torch.uint16`; `unpack` undoes it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK_16 = 0xFFFF


def code_dtype(max_clusters: int) -> torch.dtype:
    """Choose the smallest type that holds every id in [0, max_clusters).

    max_clusters : K_max in [1, 2**31]

    >>> [code_dtype(k) for k in (256, 257, 65_537)]
    [torch.uint8, torch.int16, torch.int32]
    """
    if max_clusters <= 1 << 8:
        return torch.uint8
    return torch.int16 if max_clusters <= 1 << 16 else torch.int32


def pack(cluster_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn cluster ids into codes.

    cluster_ids : integers of any shape, in the range that `dtype` was chosen for
    returns : codes of the same shape and of type `dtype`

    >>> unpack(pack(torch.tensor([0, 40_000, 65_535]), torch.int16)).tolist()
    [0, 40000, 65535]
    """
    return cluster_ids.to(dtype)  # int64 to int16 keeps the low 16 bits, which is what we want


def unpack(codes: Tensor) -> Tensor:
    """Turn codes into cluster ids, int64 of the same shape."""
    ids = codes.long()
    return ids & _MASK_16 if codes.dtype == torch.int16 else ids


def cluster_sizes(cluster_ids: Tensor, num_clusters: int) -> Tensor:
    """Count the members of every cluster.

    cluster_ids : int (N,)  cluster of each entity, values in [0, num_clusters)
    returns : int64 (num_clusters,)  sums to N; an unused cluster counts 0

    >>> cluster_sizes(torch.tensor([0, 2, 2]), num_clusters=4).tolist()
    [1, 0, 2, 0]
    """
    return torch.bincount(cluster_ids, minlength=num_clusters)
