"""Settings shared by all tests."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)  # the same sums in the same order, on any machine
settings.register_profile("gate", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("gate")
