"""Settings for the examples on these pages."""

import torch

torch.set_num_threads(1)  # the same sums in the same order, on any machine
