"""The hash table agrees with a dict, whatever ids come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from celrec.data.id_table import PLACES, Hashes, IdTable, scaled

MASK = 2**64 - 1


def hashes_of(ids: list[tuple[int, int]]) -> Hashes:
    return Hashes.of_words(np.array(ids, np.uint64).reshape(-1, 2))


def put(table: IdTable, low: int, high: int, slot: int) -> bool:
    place = table.place_for(low)
    if place >= 0:
        table.put(low, high, slot, place)
    return place >= 0


def with_sets(first: int, second: int, num_sets: int, which: int) -> int:
    """The low word number `which` of ids that may stand in these two sets."""
    upper = -(-(first << 32) // num_sets)
    lower = -(-((second - first - 1) % num_sets << 32) // (num_sets - 1))
    return (upper + which) << 32 | lower


def integer_of(low: int) -> int:
    """Undo the mix of integers: splitmix64's finalizer, backwards, as a signed integer."""

    def unshift(x: int, by: int) -> int:
        y = x
        for _ in range(64 // by):
            y = x ^ (y >> by)
        return y

    x = unshift(low, 31)
    x = x * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    x = unshift(x, 27)
    x = x * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    x = unshift(x, 30) - 0x9E3779B97F4A7C15 & MASK
    return x - 2**64 if x >= 2**63 else x


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_the_mix_of_integers_can_be_undone_so_no_two_are_taken_for_one(ids: list[int]) -> None:
    hashes = Hashes.of_words(np.array(ids, np.int64).view(np.uint64)[:, None])
    assert [integer_of(low) for low in hashes.low.tolist()] == ids


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**31 - 1))
def test_one_number_is_spread_as_an_array_is(bits: int, n: int) -> None:
    assert 0 <= scaled(bits, n) < n
    assert scaled(np.array([bits], np.uint64), n).tolist() == [scaled(bits, n)]


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("capacity", [1, 2, 3, 6, 7, 12, 13, 100, 1000])
def test_the_table_is_a_dict_of_at_most_so_many_ids(capacity: int, words: int) -> None:
    rng = np.random.default_rng(capacity)
    some = rng.integers(0, 2**64, (3 * capacity, 2), np.uint64)
    hashes = Hashes.of_words(some[:, :words])
    ids = list(zip(hashes.low.tolist(), hashes.high.tolist(), strict=True))
    table = IdTable(capacity, words)
    slot_of: dict[tuple[int, int], int] = {}
    unused = list(range(capacity))
    for step in range(10 * capacity):
        if unused and (len(unused) == capacity or rng.random() < 0.8):
            new = ids[rng.integers(len(ids))]
            if new not in slot_of:
                slot_of[new] = unused.pop()
                assert put(table, *new, slot_of[new])
        else:
            gone = list(slot_of)[rng.integers(len(slot_of))]
            unused.append(slot_of.pop(gone))
            table.remove(unused[-1])
        if step % 10 == 0:
            assert table.find(hashes).tolist() == [slot_of.get(id_, -1) for id_ in ids]
    assert table.find(hashes).tolist() == [slot_of.get(id_, -1) for id_ in ids]
    assert np.count_nonzero(table.tag) == len(slot_of)  # nothing is left behind


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("capacity", [1, 5, 40, 3000, 100_000])
def test_as_many_ids_as_slots_can_be_put_at_once(capacity: int, words: int) -> None:
    rng = np.random.default_rng(0)
    hashes = Hashes.of_words(rng.integers(0, 2**64, (2 * capacity, words), np.uint64))
    table = IdTable(capacity, words)
    slots = rng.permutation(capacity)
    table.put_many(Hashes(*(word[:capacity] for word in hashes)), slots)
    assert table.find(hashes).tolist() == slots.tolist() + [-1] * capacity
    arrays = (table.key, table.tag, table.slot_at)
    assert IdTable.nbytes_for(capacity, words) == sum(array.nbytes for array in arrays)


def test_half_of_a_hash_is_not_enough_to_be_found() -> None:
    table = IdTable(10, 2)
    assert put(table, 5, 7 << 56, 3)
    same_tag = 7 << 56 | 1
    assert table.find(hashes_of([(5, 7 << 56), (5, same_tag), (6, 7 << 56)])).tolist() == [
        3,
        -1,
        -1,
    ]


def test_an_id_moves_to_its_other_set_where_both_sets_of_a_newcomer_are_full() -> None:
    table = IdTable(30, 2)
    n = table.num_sets
    ids = [(with_sets(1, 3, n, 0), 77)]  # the only one that can move
    ids += [(with_sets(0, 1, n, i), i) for i in range(2 * PLACES - 1)]
    for slot, id_ in enumerate(ids):
        assert put(table, *id_, slot)
    tags = table.tag.reshape(-1, PLACES)
    assert tags[:2].all()
    assert not tags[2:].any()
    newcomer = (with_sets(0, 1, n, 50), 99)
    assert put(table, *newcomer, 20)
    assert np.flatnonzero(tags[2:].any(1)).tolist() == [3 - 2]
    assert table.find(hashes_of([*ids, newcomer])).tolist() == [*range(len(ids)), 20]
    table.remove(0)
    assert not tags[2:].any()
    assert table.find(hashes_of(ids)).tolist() == [-1, *range(1, len(ids))]


def test_ids_chosen_to_share_two_sets_are_turned_away_and_hurt_no_other() -> None:
    table = IdTable(60, 2)
    n = table.num_sets
    chosen = [(with_sets(0, 1, n, i), i) for i in range(2 * PLACES + 3)]
    assert [put(table, *id_, slot) for slot, id_ in enumerate(chosen)] == [True] * 16 + [False] * 3
    other = (with_sets(0, 2, n, 99), 5)
    assert put(table, *other, 40)
    assert table.find(hashes_of([*chosen, other])).tolist() == [*range(16), -1, -1, -1, 40]
    table.remove(3)
    assert put(table, *chosen[-1], 3)

    bulk = IdTable(60, 2)
    bulk.put_many(hashes_of(chosen), np.arange(len(chosen)))
    assert np.sort(bulk.find(hashes_of(chosen))).tolist() == [-1, -1, -1, *range(16)]


def test_removing_a_slot_without_an_id_changes_nothing() -> None:
    table = IdTable(4, 1)
    assert put(table, 5, 6, 1)
    for slot in (0, 2, 3):
        table.remove(slot)
    assert table.find(Hashes(np.array([5], np.uint64), np.array([6], np.uint64))).tolist() == [1]
