"""Carries an optimizer's state to the rows that splits wake.

An optimizer keeps its state per parameter; where a state's first dimension is K_max it is a state
per row, and the new row's is set to a copy of its parent's. That holds for every optimizer of
`torch.optim` that makes sense on embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def copy_optimizer_rows(
    optimizer: torch.optim.Optimizer, parameter: Tensor, pairs: list[tuple[int, int]]
) -> list[str]:
    """Copy the optimizer state of rows.

    parameter : (K_max, D), the rows
    pairs : (from row, to row)
    returns : names of states that belong to no row: other shapes, which are left alone. Single
        numbers, such as step counts, are shared by all rows and are not named.
    """
    others = []
    sources = torch.tensor([source for source, _ in pairs], device=parameter.device)
    targets = torch.tensor([target for _, target in pairs], device=parameter.device)
    for name, state in optimizer.state.get(parameter, {}).items():
        if not isinstance(state, Tensor) or state.numel() == 1:
            continue
        if state.shape[0] == parameter.shape[0]:
            state[targets.to(state.device)] = state[sources.to(state.device)]
        else:
            others.append(name)
    return others
