"""Progressive evaluation: what is predicted before what is learned, and what is scored."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from celrec.errors import ArgumentError, DataError, DtypeError, LossError, MetricError
from celrec.training.progressive import EventBatch, progressive, times_seen


def stream(users: list[int], items: list[int], labels: list[int]) -> EventBatch:
    return EventBatch(
        torch.tensor(users, dtype=torch.int64),
        torch.tensor(items, dtype=torch.int64),
        torch.tensor(labels, dtype=torch.float32),
        torch.arange(len(users), dtype=torch.float64),
    )


def random_stream(num_events: int, seed: int = 0) -> EventBatch:
    rng = np.random.default_rng(seed)
    users, items, labels = rng.integers(0, (9, 5, 2), size=(num_events, 3)).T.tolist()
    return stream(users, items, labels)


class Diary:
    """Predicts how many events it has learned, and writes down what it is asked and told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int]] = []
        self.learned: list[EventBatch] = []
        self.asked: list[EventBatch] = []

    def predict(self, batch: EventBatch) -> Tensor:
        self.lines.append(("predict", len(batch)))
        self.asked.append(batch)
        return torch.full((len(batch),), float(sum(map(len, self.learned))))

    def learn(self, batch: EventBatch) -> None:
        self.lines.append(("learn", len(batch)))
        self.learned.append(batch)

    def table_bytes(self) -> int:
        return 12

    def state_bytes(self) -> int:
        return 34


class Known(Diary):
    """Predicts given logits, in order."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def predict(self, batch: EventBatch) -> Tensor:
        super().predict(batch)
        begin = sum(map(len, self.asked)) - len(batch)
        return self.logits[begin : begin + len(batch)]


def test_every_batch_is_predicted_before_it_is_learned() -> None:
    diary = Diary()
    found = progressive(diary, stream([0] * 5, [0] * 5, [1, 0, 1, 0, 1]), batch_size=2, after=0)
    assert diary.lines == [
        *(("predict", 2), ("learn", 2), ("predict", 2), ("learn", 2), ("predict", 1), ("learn", 1))
    ]
    assert found.logits.tolist() == [0, 0, 2, 2, 4]
    assert (found.table_bytes, found.state_bytes) == (12, 34)


@pytest.mark.parametrize(
    ("delay", "known"),
    [(0, [0, 2, 4, 6]), (1, [0, 0, 2, 4]), (2, [0, 0, 2, 4]), (3, [0, 0, 0, 2]), (99, [0] * 4)],
)
def test_a_label_is_learned_when_so_many_later_events_were_predicted(
    delay: int, known: list[int]
) -> None:
    diary = Diary()
    events = random_stream(8)
    found = progressive(diary, events, batch_size=2, delay=delay, after=0)
    assert found.logits[::2].tolist() == known
    learned = torch.cat([batch.labels for batch in diary.learned])
    assert torch.equal(learned, events.labels)  # in the end all of them, in order


def test_the_labels_of_a_batch_are_hidden_while_it_is_predicted() -> None:
    diary = Diary()
    events = random_stream(10)
    progressive(diary, events, batch_size=4, after=0)
    assert all(batch.labels.isnan().all() for batch in diary.asked)
    for name in ("users", "items", "timestamps"):
        assert torch.equal(
            torch.cat([getattr(b, name) for b in diary.asked]), getattr(events, name)
        )


def test_a_method_that_peeks_is_found_out() -> None:
    class Peeks(Diary):
        def predict(self, batch: EventBatch) -> Tensor:
            return batch.labels

    with pytest.raises(LossError, match=r"event 0 is nan.*until it has been predicted"):
        progressive(Peeks(), random_stream(20), batch_size=4)


def test_remembering_labels_helps_with_later_batches_alone() -> None:
    """Each pair comes twice: within a batch its label cannot be known, in the next it is."""

    class Remembers(Diary):
        def __init__(self) -> None:
            super().__init__()
            self.label_of: dict[int, float] = {}

        def predict(self, batch: EventBatch) -> Tensor:
            return torch.tensor([self.label_of.get(user, 0.5) for user in batch.users.tolist()])

        def learn(self, batch: EventBatch) -> None:
            self.label_of |= dict(zip(batch.users.tolist(), batch.labels.tolist(), strict=True))

    labels = [1, 0, 0, 1]
    within = stream([0, 1, 2, 3] * 2, [0] * 8, labels * 2)
    assert progressive(Remembers(), within, batch_size=8, after=0).overall["auc"] == 0.5
    assert progressive(Remembers(), within, batch_size=4, after=0.5).overall["auc"] == 1.0
    late = progressive(Remembers(), within, batch_size=4, delay=1, after=0.5)
    assert late.overall["auc"] == 0.5


def test_figures_of_a_stream_worked_out_by_hand() -> None:
    #           scored from here v
    users = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    items = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    labels = [1, 1, 1, 1, 0, 1, 0, 1, 0, 1]
    logits = [9, 9, 9, 9, 0, 1, 2, 3, 1, 0]
    found = progressive(
        Known([float(z) for z in logits]),
        stream(users, items, labels),
        batch_size=3,
        window=4,
        after=0.4,
    )
    assert found.first_scored == 4
    # of 3 x 3 pairs: 1 is above 0, as good as 1; 3 above all; 0 as good as 0
    assert found.overall["auc"] == pytest.approx((1 + 0.5 + 3 + 0.5) / 9)
    nats = [math.log1p(math.exp(z if y == 0 else -z)) for z, y in zip(logits, labels, strict=True)]
    assert found.overall["log_loss"] == pytest.approx(sum(nats[4:]) / 6)
    assert found.overall["num_events"] == 6
    # user 0 had come 3, 4, 5, 6, 7 times before its scored events, user 1 once
    assert found.slices["users_seen_under_5"]["num_events"] == 3
    assert found.slices["users_seen_under_5"]["auc"] == 1.0  # 0 | 1, 3
    assert found.slices["users_seen_under_20"] == found.overall
    assert found.slices["items_seen_under_5"] == found.overall
    firsts = [(one["first_event"], one["num_events"]) for one in found.windows]
    assert firsts == [(0, 4), (4, 4), (8, 2)]
    assert [one["auc"] for one in found.windows] == [None, (1 + 0 + 2) / 4, 0.0]
    assert "every label is 1" in found.windows[0]["reason"]


def test_what_scikit_learn_says_of_the_scored_events_is_reported() -> None:
    events = random_stream(500)
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1))
    found = progressive(Known(logits.tolist()), events, batch_size=32, after=0.25)
    label, scored = events.labels[125:].numpy(), logits[125:].double()
    assert found.overall["auc"] == roc_auc_score(label, scored)
    assert found.overall["log_loss"] == pytest.approx(log_loss(label, scored.sigmoid()))
    assert sum(one["num_events"] for one in found.windows) == 500
    assert found.as_dict()["events_per_second"] == 500 / found.seconds
    assert "logits" not in found.as_dict()


@given(ids=st.lists(st.integers(0, 5)))
def test_times_seen_counts_earlier_events(ids: list[int]) -> None:
    found = times_seen(torch.tensor(ids, dtype=torch.int64))
    assert found.tolist() == [ids[:event].count(entity) for event, entity in enumerate(ids)]


def test_what_cannot_be_scored_is_refused_before_the_first_event() -> None:
    diary = Diary()
    with pytest.raises(MetricError, match="every label is 1"):
        progressive(diary, stream([0] * 4, [0] * 4, [0, 1, 1, 1]), batch_size=2, after=0.5)
    with pytest.raises(MetricError, match="no events"):
        progressive(diary, random_stream(0), batch_size=2)
    for wrong in ({"batch_size": 0}, {"delay": -1}, {"window": 0}, {"after": 1.0}):
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            progressive(diary, random_stream(9), **({"batch_size": 2} | wrong))  # type: ignore[arg-type]
    assert not diary.lines


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"users": torch.zeros(3, dtype=torch.int32)}, DtypeError, "users have type torch.int32"),
        ({"labels": torch.tensor([0, 1, 1])}, DtypeError, "labels have type torch.int64"),
        ({"timestamps": torch.zeros(3)}, DtypeError, "timestamps torch.float32"),
        ({"items": torch.zeros(2, dtype=torch.int64)}, ArgumentError, r"'items': \(2,\)"),
        ({"items": torch.tensor([0, -1, 0])}, DataError, r"items\[1\] is -1; wanted at least 0"),
        ({"labels": torch.tensor([0.0, 1.0, 4.0])}, DataError, r"labels\[2\] is 4.0; wanted 0 or"),
        ({"labels": torch.tensor([0.0, torch.nan, 1.0])}, DataError, r"labels\[1\] is nan"),
        (
            {"timestamps": torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)},
            DataError,
            r"timestamps\[2\] is 1.0; .* sort",
        ),
        (
            {"timestamps": torch.tensor([torch.nan, 3.0, 4.0], dtype=torch.float64)},
            DataError,
            r"timestamps\[0\] is nan",
        ),
    ],
)
def test_a_stream_that_is_none_is_refused(
    wrong: dict[str, Tensor], error: type[Exception], says: str
) -> None:
    events = replace(stream([0, 1, 2], [0, 0, 0], [0, 1, 1]), **wrong)
    with pytest.raises(error, match=says):
        progressive(Diary(), events, batch_size=2, after=0)


def test_a_prediction_of_the_wrong_shape_is_named() -> None:
    class Flat(Diary):
        def predict(self, batch: EventBatch) -> Tensor:
            return torch.zeros(len(batch), 1)

    with pytest.raises(LossError, match=r"events 0 to 3 has shape \(4, 1\); wanted .*\(4,\)"):
        progressive(Flat(), random_stream(20), batch_size=4)
