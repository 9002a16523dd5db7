"""How well a stream is predicted, in bounded memory: the last events, and means to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from celrec.errors import check_count


class RecentEvents:
    """The labels of the last events, and what was predicted of them.

    window : W >= 1 events
    names : of those who predict

    >>> recent = RecentEvents(3, ["model"])
    >>> recent.add(torch.tensor([1.0, 0.0]), model=torch.tensor([0.3, -0.2]))
    >>> recent.figures("model")
    {'auc': 1.0, 'log_loss': 0.576...}
    """

    def __init__(self, window: int, names: list[str]) -> None:
        self.window = check_count("window", window, at_least=1)
        self.num_events = 0
        self._labels = torch.zeros(window, dtype=torch.bool)
        self._logits = {name: torch.zeros(window) for name in names}

    def add(self, labels: Tensor, **logits: Tensor) -> None:
        """Take the next events; the oldest make room.

        labels : (B,), 0 or 1         logits : (B,) each, by name
        """
        # Of a batch larger than the window, only the end would stay.
        first = max(0, len(labels) - self.window)
        at = torch.arange(self.num_events + first, self.num_events + len(labels)) % self.window
        self._labels[at] = labels[first:].bool()
        for name, kept in self._logits.items():
            kept[at] = logits[name][first:].float()
        self.num_events += len(labels)

    def figures(self, name: str) -> dict[str, float | None]:
        """AUC and log loss (nats) over the window; None where there is none."""
        num_kept = min(self.num_events, self.window)
        if num_kept == 0:
            return {"auc": None, "log_loss": None}
        labels = self._labels[:num_kept].numpy()
        logits = self._logits[name][:num_kept].double().numpy()
        log_loss = float(np.logaddexp(0, np.where(labels, -logits, logits)).mean())
        has_both = 0 < labels.sum() < num_kept
        return {
            "auc": float(roc_auc_score(labels, logits)) if has_both else None,
            "log_loss": log_loss,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays. They never grow."""
        return self._labels.nbytes + sum(kept.nbytes for kept in self._logits.values())

    def state_dict(self) -> dict[str, Any]:
        return {"num_events": self.num_events, "labels": self._labels, "logits": self._logits}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._labels.copy_(state["labels"])
        for name, kept in self._logits.items():
            kept.copy_(state["logits"][name])
        self.num_events = state["num_events"]


class SlotMeans:
    """The prediction that a learned one has to beat: how much each slot was liked so far.

    The logit of the mean label, and how far the mean of each of an event's slots is from it. A mean
    is pulled to the mean of all events, as by so many more events like them.

    sizes : slots, by side
    smoothing : > 0, in events

    >>> means = SlotMeans({"user": 2}, smoothing=1)
    >>> means.learn({"user": torch.tensor([0, 1])}, torch.tensor([1.0, 0.0]))
    >>> means.predict({"user": torch.tensor([0, 1])}).tolist()
    [1.098..., -1.098...]
    """

    def __init__(self, sizes: Mapping[str, int], smoothing: float = 5.0) -> None:
        self.smoothing = smoothing
        self.num_events = self.num_likes = 0
        # events and likes of every slot
        self._counts = {
            side: torch.zeros(size, 2, dtype=torch.int32) for side, size in sizes.items()
        }

    def predict(self, slots: Mapping[str, Tensor]) -> Tensor:
        """Logits, float64 (B,), of slots (B,) by side."""
        mean = torch.tensor((self.num_likes + 1) / (self.num_events + 2), dtype=torch.float64)
        logits = mean.logit()
        for side, counts in self._counts.items():
            num_events, num_likes = counts[slots[side]].double().unbind(1)
            own = (num_likes + self.smoothing * mean) / (num_events + self.smoothing)
            logits = logits + own.logit() - mean.logit()
        return logits

    def learn(self, slots: Mapping[str, Tensor], labels: Tensor) -> None:
        """Count events with their labels, 0 or 1."""
        likes = labels.int()
        new = torch.stack([torch.ones_like(likes), likes], 1)  # (B, 2)
        for side, counts in self._counts.items():
            counts.index_add_(0, slots[side], new)
        self.num_events += len(likes)
        self.num_likes += int(likes.sum())

    def forget(self, side: str, slots: Tensor) -> None:
        """Start slots anew; they have been given to somebody else."""
        self._counts[side][slots] = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays. They never grow."""
        return sum(counts.nbytes for counts in self._counts.values())

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_events": self.num_events,
            "num_likes": self.num_likes,
            "counts": self._counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for side, counts in self._counts.items():
            counts.copy_(state["counts"][side])
        self.num_events, self.num_likes = state["num_events"], state["num_likes"]
