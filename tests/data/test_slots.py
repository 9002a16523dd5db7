"""A SlotMap agrees with a slow one, event by event, and stays within its bytes."""

from __future__ import annotations

import sys
import tracemalloc
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.data.slots import SlotMap
from celrec.errors import ArgumentError, CheckpointError, DataError, MissingExtraError
from tests.data.test_id_table import integer_of, with_sets

MASK = 2**64 - 1


def words_of(id_: int | str | bytes) -> tuple[int, int]:
    """The two words that decide an id's bucket, and the cell where its sightings are counted."""
    if not isinstance(id_, int):
        from xxhash import xxh3_128_digest

        digest = xxh3_128_digest(id_.encode() if isinstance(id_, str) else id_)
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    x = id_ + 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    low = x ^ x >> 31
    high = low * 0xD6E8FEB86659FD93 & MASK
    return low, high ^ high >> 32


class SlowSlotMap:
    """The rules of SlotMap, for one event at a time: ids as they are, in dicts."""

    def __init__(
        self,
        capacity: int,
        *,
        num_buckets: int,
        admit_after: int = 2,
        num_counters: int | None = None,
        max_batch: int = 1024,
        ids: str = "integer",
    ) -> None:
        self.capacity, self.num_buckets, self.admit_after = capacity, num_buckets, admit_after
        self.num_counters = num_counters or max(capacity, 1024)
        self.slot_of: dict[Any, int] = {}
        self.credit = [0] * capacity
        self.sightings: dict[int, tuple[int, int]] = {}
        self.recent: deque[int] = deque(maxlen=max_batch)
        self.victims: deque[int] = deque()
        self.hand = 0

    def bucket(self, id_: Any) -> int:
        return self.capacity + ((words_of(id_)[1] >> 32) * self.num_buckets >> 32)

    def find(self, id_: Any) -> int:
        return self.slot_of.get(id_, self.bucket(id_))

    def observe(self, id_: Any) -> tuple[int, bool]:
        """The slot that an event uses, and whether it was given it just now."""
        is_admitted = False
        if id_ in self.slot_of:
            slot = self.slot_of[id_]
            self.credit[slot] = min(self.credit[slot] + 1, 15)
        else:
            low, high = words_of(id_)
            cell, fingerprint = (high % 2**32) * self.num_counters >> 32, low % 2**12
            there, count = self.sightings.pop(cell, (fingerprint, 0))
            count = count + 1 if there == fingerprint else 1
            if count >= self.admit_after and self.vacate():
                is_admitted = True
                slot = self.slot_of[id_] = min(
                    set(range(self.capacity)) - set(self.slot_of.values())
                )
                self.credit[slot] = 0
            else:
                self.sightings[cell] = fingerprint, min(count, self.admit_after - 1)
        self.recent.append(self.slot_of.get(id_, -1))
        return self.find(id_), is_admitted

    def vacate(self) -> bool:
        if len(self.slot_of) < self.capacity:
            return True
        victim = self.next_victim()
        if victim < 0:
            self.choose_victims()
            victim = self.next_victim()
        if victim >= 0:
            del self.slot_of[next(id_ for id_, slot in self.slot_of.items() if slot == victim)]
        return victim >= 0

    def next_victim(self) -> int:
        while self.victims:
            slot = self.victims.popleft()
            if self.credit[slot] == 0:
                return slot
        return -1

    def choose_victims(self) -> None:
        length = max(1, min(256, self.capacity // 4))
        chosen: list[int] = []
        for _ in range(4):
            window = [(self.hand + i) % self.capacity for i in range(length)]
            self.hand = (self.hand + length) % self.capacity
            may_go = [slot for slot in window if slot not in self.recent]
            least = min((self.credit[slot] for slot in may_go), default=None)
            if may_go:
                chosen = [slot for slot in may_go if self.credit[slot] == least]
            for slot in window:
                self.credit[slot] = max(self.credit[slot] - 1, 0)
            if least == 0:
                break
            chosen = chosen[:1]
        for slot in chosen:
            self.credit[slot] = 0
        self.victims.extend(chosen)


def skewed(num: int, num_ids: int, seed: int) -> list[int]:
    """Few ids come often, most seldom, and what is frequent drifts."""
    rng = np.random.default_rng(seed)
    ids = (num_ids * rng.random(num) ** 3).astype(np.int64) + np.arange(num) // (num // 5 + 1)
    return (ids * 7919 - 5).tolist()


def cut(events: list[Any], max_batch: int, seed: int) -> list[list[Any]]:
    rng = np.random.default_rng(seed)
    batches = []
    while events:
        size = int(rng.integers(0, max_batch + 1))
        batches.append(events[:size])
        events = events[size:]
    return batches


def equal_states(one: SlotMap, other: SlotMap) -> bool:
    a, b = one.state(), other.state()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def check_against_slow(
    settings: dict[str, Any], batches: list[list[Any]], probes: list[Any]
) -> SlotMap:
    slots, slow = SlotMap(**settings), SlowSlotMap(**settings)
    for batch in batches:
        expected = [slow.observe(id_) for id_ in batch]
        admitted = [slot for slot, is_new in expected if is_new]
        seen = slots.observe(batch)
        assert seen.slots.tolist() == [slot for slot, _ in expected]
        assert seen.admitted_slots.tolist() == admitted
        assert len(set(seen.admitted_slots.tolist())) == len(admitted)
    assert slots.find(probes).tolist() == [slow.find(id_) for id_ in probes]
    assert slots.num_events == sum(map(len, batches))
    return slots


@given(
    st.lists(st.lists(st.integers(-4, 12), max_size=6), max_size=30),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3, 15]),
    st.sampled_from([6, 7, 40]),
    st.sampled_from([1, 3, 64]),
)
def test_a_batch_is_its_events_one_by_one(
    batches: list[list[int]], capacity: int, admit_after: int, max_batch: int, num_counters: int
) -> None:
    settings = {
        "capacity": capacity,
        "num_buckets": 3,
        "admit_after": admit_after,
        "max_batch": max_batch,
        "num_counters": num_counters,
    }
    slots = check_against_slow(settings, batches, list(range(-5, 14)))
    singly = SlotMap(**settings)
    for batch in batches:
        for id_ in batch:
            singly.observe([id_])
    assert equal_states(slots, singly)


@pytest.mark.parametrize("admit_after", [1, 2])
@pytest.mark.parametrize("max_batch", [1, 64])
@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 20, 150])
def test_a_long_stream_goes_as_it_does_event_by_event(
    capacity: int, max_batch: int, admit_after: int
) -> None:
    events = skewed(2500, 6 * capacity + 3, seed=capacity)
    settings = {
        "capacity": capacity,
        "num_buckets": 4,
        "max_batch": max_batch,
        "admit_after": admit_after,
    }
    slots = check_against_slow(settings, cut(events, max_batch, seed=1), events[:500])
    assert slots.num_admitted == capacity


def test_texts_and_bytes_go_the_same_way() -> None:
    pytest.importorskip("xxhash")
    events = [f"usér {id_}" for id_ in skewed(4000, 150, seed=0)]
    settings = {"capacity": 30, "num_buckets": 4, "max_batch": 16, "ids": "hashed"}
    slots = check_against_slow(settings, cut(events, 16, seed=2), events[:300])
    assert slots.find([x.encode() for x in events]).tolist() == slots.find(events).tolist()
    assert slots.find(np.array(events)).tolist() == slots.find(events).tolist()


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1, max_size=50))
def test_integers_are_told_apart_exactly(ids: list[int]) -> None:
    near = [id_ ^ 1 << bit for id_ in ids[:5] for bit in range(63)]
    ids = list(dict.fromkeys(ids + near))
    slots = SlotMap(len(ids), num_buckets=1)
    assert slots.admit(ids).tolist() == list(range(len(ids)))
    assert slots.find(ids[::-1]).tolist() == list(range(len(ids)))[::-1]


@pytest.mark.parametrize("capacity", [1, 2, 10, 80])
def test_a_slot_stands_for_one_id_of_a_batch_and_stays_its_for_max_batch_events(
    capacity: int,
) -> None:
    max_batch = 8
    slots = SlotMap(capacity, num_buckets=2, max_batch=max_batch, admit_after=1)
    last_seen: dict[int, tuple[int, int]] = {}  # event number, slot
    number = num_taken = 0
    owner: dict[int, int] = {}
    for batch in cut(skewed(5000, 5 * capacity + 20, seed=3), max_batch, seed=4):
        owner_now: dict[int, int] = {}
        for id_, slot in zip(batch, slots.observe(batch).slots.tolist(), strict=True):
            at, before = last_seen.get(id_, (-max_batch - 1, -1))
            if before in range(capacity) and number - at <= max_batch:
                assert slot == before
            if slot < capacity:
                assert owner_now.setdefault(slot, id_) == id_
                num_taken += owner.get(slot, id_) != id_
                owner[slot] = id_
            last_seen[id_] = number, slot
            number += 1
    assert num_taken > 10  # or nothing was put to the test


def test_ids_seen_often_outlive_a_flood_of_ids_seen_twice() -> None:
    slots = SlotMap(100, num_buckets=10, max_batch=10)
    often = list(range(50))
    for _ in range(5):
        for start in range(0, 50, 10):
            slots.observe(often[start : start + 10])
    own = slots.find(often).tolist()
    assert max(own) < 100
    for k in range(3000):
        slots.observe([often[k % 50], often[(k + 25) % 50], 10**6 + k, 10**6 + k])
    assert slots.find(often).tolist() == own


def test_an_evicted_id_uses_its_bucket_and_earns_a_slot_anew() -> None:
    slots = SlotMap(1, num_buckets=1, max_batch=1)
    one_by_one = [slots.observe([id_]) for id_ in (7, 7, 8, 8, 7, 7, 7)]
    assert [int(x.slots[0]) for x in one_by_one] == [1, 0, 1, 0, 1, 0, 0]
    assert [x.admitted_slots.tolist() for x in one_by_one] == [[], [0], [], [0], [], [0], []]


def test_two_ids_that_meet_in_a_cell_forget_each_other() -> None:
    slots = SlotMap(4, num_buckets=1, num_counters=1)
    assert (slots.observe([1, 2, 1, 2, 1, 2]).slots == 4).all()
    assert slots.observe([2]).slots.tolist() == [0]


@pytest.mark.parametrize("ids", ["integer", "hashed"])
def test_memory_never_grows(ids: Any) -> None:
    slots = SlotMap(500, num_buckets=10, ids=ids)
    rng = np.random.default_rng(0)
    arrays, nbytes = slots.state(), slots.nbytes
    assert nbytes == SlotMap.nbytes_for(500, ids=ids)

    def observe(num: int) -> None:
        for _ in range(num):
            some: Any = np.repeat(rng.integers(-(2**63), 2**63 - 1, 500), 2)
            slots.observe(some if ids == "integer" else [str(x) for x in some])

    observe(3)
    tracemalloc.start()
    try:
        observe(3)
        before = tracemalloc.get_traced_memory()[0]
        observe(30)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 100_000  # 15,000 new ids
    assert slots.nbytes == nbytes
    for name, array in slots.state().items():
        assert name == "cursor" or array is arrays[name]


@given(
    st.integers(0, 10**7),
    st.sampled_from(["integer", "hashed"]),
    st.sampled_from([None, 1, 5000]),
    st.integers(1, 5000),
    st.sampled_from([0, 6, 128]),
)
def test_the_capacity_for_a_budget_is_the_largest_that_fits(
    spare: int, ids: Any, num_counters: int | None, max_batch: int, bytes_per_slot: int
) -> None:
    options: dict[str, Any] = {"ids": ids, "num_counters": num_counters, "max_batch": max_batch}

    def cost(capacity: int) -> int:
        return SlotMap.nbytes_for(capacity, **options) + bytes_per_slot * capacity

    budget = cost(1) + spare
    capacity = SlotMap.capacity_for(budget, bytes_per_slot=bytes_per_slot, **options)
    assert cost(capacity) <= budget < cost(capacity + 1)
    if ids == "integer":
        made = SlotMap(capacity, num_buckets=7, **options)
        assert made.nbytes == SlotMap.nbytes_for(capacity, **options)
    with pytest.raises(ArgumentError, match=rf"one slot takes {cost(1)}"):
        SlotMap.capacity_for(cost(1) - 1, bytes_per_slot=bytes_per_slot, **options)


def test_a_budget_beyond_all_slots_gets_them_all() -> None:
    assert SlotMap.capacity_for(10**12) == 2**31 - 1


@given(st.integers(1, 12), st.integers(0, 200), st.sampled_from([1, 2, 4]))
def test_a_map_saved_anywhere_goes_on_as_if_it_had_not_been(
    capacity: int, saved_after: int, admit_after: int
) -> None:
    batches = cut(skewed(600, 4 * capacity + 2, seed=capacity), 5, seed=6)
    slots = SlotMap(capacity, num_buckets=3, admit_after=admit_after, max_batch=5)
    for batch in batches[:saved_after]:
        slots.observe(batch)
    again = SlotMap.from_state(slots.settings(), slots.state())
    assert equal_states(slots, again)
    for batch in batches[saved_after:]:
        for ours, its in zip(slots.observe(batch), again.observe(batch), strict=True):
            assert ours.tolist() == its.tolist()
    assert equal_states(slots, again)
    assert again.settings() == slots.settings()


def test_a_restored_map_shares_no_array() -> None:
    slots = SlotMap(3, num_buckets=1)
    slots.observe([1, 1])
    again = SlotMap.from_state(slots.settings(), slots.state())
    slots.observe([2, 2, 3, 3])
    assert again.find([1, 2, 3]).tolist() == [0, 3, 3]
    assert (again.num_admitted, again.num_events, again.num_slots) == (1, 2, 4)


def test_a_state_that_is_none_of_such_a_map_is_refused() -> None:
    slots = SlotMap(3, num_buckets=1)
    settings, state = slots.settings(), slots.state()
    with pytest.raises(CheckpointError, match=r"has the arrays .*wanted .*seen"):
        SlotMap.from_state(settings, {k: v for k, v in state.items() if k != "seen"})
    with pytest.raises(CheckpointError, match=r"'key' .*\(3, 1\); wanted uint64 \(4, 1\)"):
        SlotMap.from_state({**settings, "capacity": 4}, state)
    with pytest.raises(CheckpointError, match="'seen' of a slot map is int64"):
        SlotMap.from_state(settings, {**state, "seen": state["seen"].astype(np.int64)})
    with pytest.raises(CheckpointError, match="num_admitted of a slot map is 4; wanted 0 to 3"):
        SlotMap.from_state(settings, {**state, "cursor": np.array([4, 0, 0, 0, 0])})


@pytest.mark.parametrize("ids", ["integer", "hashed"])
def test_ids_admitted_in_bulk_get_slots_in_order(ids: Any) -> None:
    num = 100_000
    numbers = np.random.default_rng(0).permutation(num) * 977 - 10**6
    some: Any = numbers if ids == "integer" else [f"item {x}" for x in numbers]
    slots = SlotMap(num, num_buckets=5, ids=ids)
    assert slots.admit(some[:10]).tolist() == list(range(10))
    assert slots.admit(some).tolist() == list(range(num))
    assert slots.admit(some[::-1]).tolist() == list(range(num))[::-1]
    assert slots.num_admitted == num
    assert slots.find(some[77:99]).tolist() == list(range(77, 99))
    others: Any = numbers[:1000] + 1 if ids == "integer" else [f"item{x}" for x in range(1000)]
    assert set(slots.find(others).tolist()) == set(range(num, num + 5))


def test_admitting_more_ids_than_slots_are_free_changes_nothing() -> None:
    slots = SlotMap(3, num_buckets=1)
    assert slots.admit([5, 6, 5]).tolist() == [0, 1, 0]
    before = {name: array.copy() for name, array in slots.state().items()}
    with pytest.raises(ArgumentError, match="2 ids need a slot, but 1 of 3 are free"):
        slots.admit([7, 5, 8, 7])
    assert all(np.array_equal(array, before[name]) for name, array in slots.state().items())
    assert slots.admit([7, 5, 7, 6]).tolist() == [2, 0, 2, 1]


def test_ids_admitted_in_bulk_are_the_first_to_go_unless_they_come() -> None:
    slots = SlotMap(8, num_buckets=1, max_batch=4, admit_after=1)
    slots.admit(range(8))
    for _ in range(3):
        slots.observe([0, 1, 2, 3])
    slots.observe([10, 11])
    slots.observe([12, 13])
    assert slots.find([0, 1, 2, 3]).tolist() == [0, 1, 2, 3]
    assert sorted(slots.find([10, 11, 12, 13]).tolist()) == [4, 5, 6, 7]


def test_sightings_before_a_bulk_admission_are_spent() -> None:
    slots = SlotMap(1, num_buckets=1, max_batch=1)
    slots.observe([7])
    slots.admit([7])
    for id_ in (8, 8):
        slots.observe([id_])
    assert slots.observe([7]).slots.tolist() == [1]


def test_ids_that_somebody_chose_to_collide_stay_in_buckets_and_hurt_no_other() -> None:
    slots = SlotMap(6000, num_buckets=3, admit_after=1, max_batch=64)
    chosen = [integer_of(with_sets(2, 5, slots._table.num_sets, i)) for i in range(40)]
    slots.admit([1, 2, 3])
    used = slots.observe(chosen).slots
    num_own = np.count_nonzero(used < 6000)
    assert num_own <= 2 * 8
    assert slots.find([1, 2, 3]).tolist() == [0, 1, 2]
    assert slots.find(chosen).tolist() == used.tolist()
    others = slots.observe(list(range(100, 120))).slots
    assert others.tolist() == list(range(3 + num_own, 23 + num_own))  # no slot was lost

    slots = SlotMap(6000, num_buckets=3)
    admitted = slots.admit(chosen)
    assert admitted.tolist() == slots.find(chosen).tolist()
    own = admitted[admitted < 6000]
    assert len(own) == len(set(own.tolist())) == 2 * 8
    assert slots.admit(range(20)).tolist() == list(range(40, 60))


@pytest.mark.parametrize("empty", [[], (), np.array([], np.int64), np.array([])])
def test_a_batch_may_be_empty(empty: Any) -> None:
    slots = SlotMap(2, num_buckets=1)
    assert [x.tolist() for x in slots.observe(empty)] == [[], []]
    assert slots.find(empty).tolist() == []
    assert slots.admit(empty).tolist() == []


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, ">i8", object])
def test_integers_of_any_width_are_the_same_ids(dtype: Any) -> None:
    slots = SlotMap(9, num_buckets=1)
    slots.admit([3, 1, 4, 100])
    assert slots.find(np.array([100, 4, 4, 3], dtype)).tolist() == [3, 2, 2, 0]
    assert slots.find(np.array([100, 0, 3, 0], dtype)[::2]).tolist() == [3, 0]
    assert slots.find(iter([1, 3])).tolist() == [1, 0]


WRONG_INTEGERS = [
    ([1, "a"], "id 'a' at position 1 is str"),
    ([1, 2.0], r"id 2\.0 at position 1 is float"),
    ([None], "id None at position 0 is NoneType"),
    ([True, False], "id True at position 0 is bool"),
    ([1, 2**64], "id 18446744073709551616 at position 1"),
    ([-1, 2**63], "id 9223372036854775808 at position 1"),
    ([-(2**63) - 1], "id -9223372036854775809 at position 0"),
    (np.array([5, 2**63], np.uint64), "id 9223372036854775808 at position 1 is beyond 64 bits"),
    (np.array([[1, 2]]), r"id array\(\[1, 2\]\) at position 0 is ndarray"),
    (np.array([1.0, 2.0]), r"id .*1\.0.* at position 0"),
    ([[1], [2, 3]], r"id \[1\] at position 0 is list"),
    ("123", "the single str '123'"),
    (b"123", "the single bytes b'123'"),
]


@pytest.mark.parametrize(("ids", "message"), WRONG_INTEGERS)
@pytest.mark.parametrize("method", ["observe", "find", "admit"])
def test_an_id_that_is_no_integer_is_named(ids: Any, message: str, method: str) -> None:
    slots = SlotMap(4, num_buckets=1)
    slots.observe([1, 1, 2])
    before = {name: array.copy() for name, array in slots.state().items()}
    with pytest.raises(DataError, match=message):
        getattr(slots, method)(ids)
    assert all(np.array_equal(array, before[name]) for name, array in slots.state().items())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", 5], "id 5 at position 1 is int; this map holds texts or bytes.*ids='integer'"),
        (["a", None], "id None at position 1 is NoneType"),
        (np.array([1, 2]), r"id .*1.* at position 0 is int64"),
        ("abc", "the single str 'abc'"),
    ],
)
def test_an_id_that_is_no_text_is_named(ids: Any, message: str) -> None:
    pytest.importorskip("xxhash")
    with pytest.raises(DataError, match=message):
        SlotMap(4, num_buckets=1, ids="hashed").observe(ids)


def test_any_text_is_an_id() -> None:
    pytest.importorskip("xxhash")
    texts = ["", "a", "A", "\ud800", "\x00", "ü", "u\u0308", "a" * 10**5]
    slots = SlotMap(20, num_buckets=1, ids="hashed")
    assert slots.admit(texts).tolist() == list(range(len(texts)))


def test_a_batch_that_is_too_large_is_refused() -> None:
    slots = SlotMap(4, num_buckets=1, max_batch=2)
    with pytest.raises(ArgumentError, match="has 3 events; wanted at most max_batch = 2"):
        slots.observe([1, 1, 1])
    assert slots.num_events == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0}, "capacity is 0"),
        ({"capacity": 2**31}, "capacity is 2147483648"),
        ({"num_buckets": 0}, "num_buckets is 0"),
        ({"ids": "text"}, "ids is 'text'; wanted 'integer' or 'hashed'"),
        ({"admit_after": 16}, "admit_after is 16"),
        ({"num_counters": 0}, "num_counters is 0"),
        ({"max_batch": 0}, "max_batch is 0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SlotMap(**{"capacity": 4, "num_buckets": 1, **settings})


def test_hashed_ids_name_the_extra_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(MissingExtraError, match=r"celrec\[stream\]"):
        SlotMap(4, num_buckets=1, ids="hashed")
    assert SlotMap(4, num_buckets=1).find([1]).tolist() == [4]
