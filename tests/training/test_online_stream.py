"""A learner of streams: exact bytes, predictions before labels, and states that go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from celrec.checkpoint import load_state, save_state
from celrec.core.online import OnlineRule
from celrec.data.stream.event import Event
from celrec.errors import ArgumentError, CheckpointError, DataError
from celrec.training.online import StreamLearner, StreamSettings
from celrec.training.stream_metrics import RecentEvents, SlotMeans
from tests.training.stream_making import TINY, parts_of, planted_events

ML_100K = Path(__file__).resolve().parents[3] / "shared" / "data" / "ml_100k.parquet"


def batches(events: list[Event], size: int = TINY.batch_size) -> Iterator[list[Event]]:
    for begin in range(0, len(events), size):
        yield events[begin : begin + size]


def learner_of(events: list[Event], chosen: StreamSettings = TINY) -> StreamLearner:
    learner = StreamLearner(chosen)
    for batch in batches(events, chosen.batch_size):
        learner.learn(batch)
    return learner


# --- learning ------------------------------------------------------------------------------------


def test_a_planted_taste_is_learned_in_few_bytes_with_ids_coming_and_going() -> None:
    events = planted_events(4000)
    learner = StreamLearner(TINY)
    logits = torch.cat([learner.learn(batch) for batch in batches(events)])
    labels = [event.label for event in events]
    figures = learner.figures()
    assert roc_auc_score(labels[2000:], logits[2000:]) > 0.75  # running means do not see it
    assert figures["auc"] > figures["means_auc"] + 0.1
    assert figures["clusters"]["user"] > 1
    assert figures["entities"] == {side: TINY.sizes()[side].capacity for side in ("user", "item")}
    assert learner.memory().used == learner.memory().tables
    assert len({event.user for event in events}) > learner.slots["user"].capacity


def test_learning_predicts_first_and_predicting_changes_nothing() -> None:
    events = planted_events(600)
    chosen = dataclasses.replace(TINY, admit_after=1, max_bytes=40_000)
    learner = learner_of(events, chosen)
    again = [event for event in events if learner.slots["user"].find([str(event.user)])[0] >= 0][:8]
    before = parts_of(learner.state_dict())
    predicted = learner.predict(again)
    assert parts_of(learner.state_dict()) == before
    unlike = [event._replace(label=1 - event.label) for event in again]
    assert torch.equal(learner.predict(unlike), predicted)
    assert torch.equal(learner.learn(again), predicted)
    assert not torch.equal(learner.predict(again), predicted)


def test_an_id_that_gets_a_slot_starts_as_a_newcomer() -> None:
    learner = learner_of(planted_events(400))
    twice = [Event("new", "i1", 1.0)]
    in_bucket = learner.predict(twice)
    before = learner.slots["user"].find(["new"])[0]
    learner.learn(twice)
    assert learner.slots["user"].find(["new"])[0] == before >= TINY.sizes()["user"].capacity
    after_one = learner.predict(twice)
    assert after_one > in_bucket
    users, items = learner.tables.values()
    user, item = users.newcomer(), items(torch.from_numpy(learner.slots["item"].find(["i1"])))[0]
    logit = learner.factors.model.offset + user[-2] + item[-1] + user[:-2] @ item[:-2]
    torch.testing.assert_close(learner.learn(twice)[0], logit.detach())
    assert learner.slots["user"].find(["new"])[0] < TINY.sizes()["user"].capacity


def test_seven_and_its_text_are_one_id() -> None:
    chosen = dataclasses.replace(TINY, max_bytes=20_000)
    events = planted_events(200)
    as_texts = [event._replace(user=str(event.user)) for event in events]
    states = [learner_of(some, chosen).state_dict() for some in (events, as_texts)]
    assert parts_of(states[0]) == parts_of(states[1])


def test_an_empty_batch_is_nothing() -> None:
    learner = learner_of(planted_events(24))
    before = parts_of(learner.state_dict())
    assert learner.learn([]).shape == (0,)
    assert parts_of(learner.state_dict()) == before


def test_texts_are_refused_where_ids_are_integers_and_nothing_changes() -> None:
    learner = StreamLearner(dataclasses.replace(TINY, ids="integer"))
    learner.learn([Event(1, 2, 1.0)])
    before = parts_of(learner.state_dict())
    with pytest.raises(DataError, match="id that is no integer; use ids='hashed'"):
        learner.learn([Event(1, 2, 1.0), Event(1, "a", 1.0)])
    assert parts_of(learner.state_dict()) == before


@pytest.mark.slow
def test_movielens_stays_above_a_floor() -> None:
    """Running means of users and items reach 0.797, a full table with biases 0.778."""
    if not ML_100K.is_file():
        pytest.skip(f"{ML_100K} is not at hand")
    frame = pl.read_parquet(ML_100K).filter(pl.col("rating") != 3)
    frame = frame.sort("timestamp", maintain_order=True)
    rows = frame.select("user", "item", pl.col("rating") > 3).iter_rows()
    events = [Event(user, item, float(label)) for user, item, label in rows]
    learner = StreamLearner(StreamSettings(max_bytes=500_000, ids="integer"))
    logits = torch.cat([learner.learn(batch) for batch in batches(events, 32)]).numpy()
    first = len(events) // 10
    labels = np.array([event.label for event in events])
    assert roc_auc_score(labels[first:], logits[first:]) > 0.8


# --- bytes ---------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    st.integers(1, 20),
    st.integers(1, 300),
    st.integers(1, 8),
    st.integers(250_000, 400_000),
    st.floats(0.1, 0.9),
)
def test_the_budget_is_filled_and_never_exceeded(
    width: int, rows: int, blend: int, max_bytes: int, user_share: float
) -> None:
    chosen = StreamSettings(
        width=width,
        rows=rows,
        blend=blend,
        max_bytes=max_bytes,
        user_share=user_share,
        ids="integer",
        rule=OnlineRule(split_after=3),
    )
    learner = StreamLearner(chosen)
    for batch in batches(planted_events(64), 32):
        learner.learn([event._replace(item=int(str(event.item)[1:])) for event in batch])
    state = learner.factors.optimizer.state_dict()["state"]
    kept = [*learner.factors.model.state_dict().values()]
    kept += [value for moments in state.values() for value in moments.values()]
    memory = learner.memory()
    assert memory.tables == sum(array.nbytes for array in kept)
    assert memory.used <= memory.tables <= max_bytes
    assert memory.tables > max_bytes - chosen.slot_bytes()
    assert memory.maps == sum(slots.nbytes for slots in learner.slots.values())


def test_bytes_in_use_count_what_is_there() -> None:
    chosen = dataclasses.replace(TINY, max_bytes=50_000, admit_after=1)
    learner = StreamLearner(chosen)
    before = learner.memory().used
    learner.learn([Event(1, 2, 1.0), Event(3, 2, 0.0)])
    assert learner.memory().used == before + 3 * chosen.slot_bytes()
    learner = learner_of(planted_events(800), chosen)
    memory, sizes = learner.memory(), chosen.sizes()
    spare = sum(sizes[side].capacity - learner.slots[side].num_admitted for side in sizes)
    idle = sum(table.max_clusters - table.num_clusters for table in learner.tables.values())
    # six numbers to a row, with two moments each
    assert memory.tables - memory.used == spare * chosen.slot_bytes() + idle * 6 * 4 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_bytes": 1000}, r"max_bytes is 1,000, but two tables of 6 rows of 6 numbers take "),
        ({"window": 7}, "window is 7, smaller than a batch of 8 events"),
        ({"ids": "text"}, "ids is 'text'; wanted 'integer' or 'hashed'"),
        ({"offset_dim": 7}, "offset_dim is 7; wanted an integer from 0 to 6"),
        ({"user_share": 1.0}, "user_share is 1; wanted a part, below 1"),
        ({"bucket_share": 0.0}, "bucket_share is 0; wanted a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"admit_after": 16}, "admit_after is 16; wanted an integer from 1 to 15"),
        ({"rows": 0}, "rows is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_check_themselves(change: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(TINY, **change)  # type: ignore[arg-type]


def test_the_smallest_budget_that_is_named_is_enough() -> None:
    with pytest.raises(ArgumentError) as caught:
        dataclasses.replace(TINY, max_bytes=1)
    named = str(caught.value).split("wanted at least ")[1].split(", fewer")[0]
    smallest = int(named.replace(",", ""))
    learner_of(planted_events(50), dataclasses.replace(TINY, max_bytes=smallest))
    with pytest.raises(ArgumentError):
        dataclasses.replace(TINY, max_bytes=smallest - 2 * TINY.slot_bytes())


def test_settings_survive_json_and_unknown_ones_are_named() -> None:
    assert StreamSettings.from_dict(TINY.as_dict()) == TINY
    with pytest.raises(ArgumentError, match="unknown setting 'widht'; did you mean 'width'"):
        StreamSettings.from_dict({"widht": 3})
    with pytest.raises(ArgumentError, match="unknown setting 'spred'; did you mean 'spread'"):
        StreamSettings.from_dict({"rule": {"spred": 3}})


# --- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["hashed", "integer"])
def test_a_learner_goes_on_from_any_batch_with_the_same_bits(tmp_path: Path, ids: str) -> None:
    events = planted_events(300)
    if ids == "integer":
        events = [event._replace(item=int(event.item[1:])) for event in events]
    tight = dataclasses.replace(TINY, ids=ids, max_bytes=2400)
    final = learner_of(events, tight)
    learner = StreamLearner(tight)
    for batch in batches(events):
        save_state(tmp_path / "state", learner.state_dict(), kind="test")
        learner = StreamLearner(tight)
        learner.load_state_dict(load_state(tmp_path / "state", kind="test"))
        learner.learn(batch)
    assert parts_of(learner.state_dict()) == parts_of(final.state_dict())
    assert learner.figures() == final.figures()
    for slots in final.slots.values():
        assert slots.num_admitted == slots.capacity  # so some were evicted


def test_a_state_of_other_settings_is_refused() -> None:
    state = learner_of(planted_events(40)).state_dict()
    other = StreamLearner(dataclasses.replace(TINY, learning_rate=0.1))
    with pytest.raises(CheckpointError, match=r"the checkpoint's learning_rate is 0.01, but 0.1"):
        other.load_state_dict(state)


@pytest.mark.parametrize("missing", ["factors", "slots", "recent", "means"])
def test_a_damaged_state_is_a_checkpoint_error(missing: str) -> None:
    state = learner_of(planted_events(40)).state_dict()
    state[missing] = {}
    with pytest.raises(CheckpointError):
        StreamLearner(TINY).load_state_dict(state)


def test_a_map_of_another_size_is_a_checkpoint_error() -> None:
    state = learner_of(planted_events(40)).state_dict()
    state["slots"]["user"]["arrays"]["seen"] = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="array 'seen' of a slot map has 3 bytes"):
        StreamLearner(TINY).load_state_dict(state)


# --- figures -------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.booleans(), st.floats(-5, 5, width=32)), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_figures_are_those_of_the_last_events(
    events: list[tuple[bool, float]], window: int, size: int
) -> None:
    recent = RecentEvents(window, ["model"])
    for begin in range(0, len(events), size):
        labels, logits = zip(*events[begin : begin + size], strict=True)
        recent.add(torch.tensor(labels).float(), model=torch.tensor(logits))
    labels, logits = zip(*events[-window:], strict=True)
    found = recent.figures("model")
    probability = 1 / (1 + np.exp(-np.array(logits, np.float64)))
    assert found["log_loss"] == pytest.approx(log_loss(labels, probability, labels=[0, 1]))
    if len(set(labels)) == 2:
        assert found["auc"] == pytest.approx(roc_auc_score(labels, logits))
    else:
        assert found["auc"] is None


def test_no_events_have_no_figures() -> None:
    assert RecentEvents(3, ["model"]).figures("model") == {"auc": None, "log_loss": None}


def test_means_count_likes_and_forget_slots() -> None:
    means = SlotMeans({"user": 3, "item": 2}, smoothing=2)
    users, items = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    means.learn({"user": users, "item": items}, torch.tensor([1.0, 1.0, 0.0]))

    def logit(p: float) -> float:
        return float(np.log(p / (1 - p)))

    mean = 3 / 5
    user, item = (2 + 2 * mean) / 4, (1 + 2 * mean) / 3
    wanted = logit(user) + logit(item) - logit(mean)
    asked = {"user": torch.tensor([0]), "item": torch.tensor([0])}
    assert means.predict(asked).item() == pytest.approx(wanted)
    means.forget("user", torch.tensor([0]))
    assert means.predict(asked).item() == pytest.approx(logit(item))
