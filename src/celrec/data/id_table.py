"""A hash table from ids to slots, in numpy arrays of fixed size.

Two-choice buckets ("sets") of eight places. An id may stand in one of two sets; a place is one byte
of the id's hash (its tag, 0 where free) and the slot where the whole id is kept. A look-up reads
sixteen tags, then compares whole ids where a tag fits. Nothing is ever rehashed: an id leaves by
setting its tag to 0, and neither tombstones nor the time since the start slow a look-up down.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np

PLACES = 8  # of a set: its tags are one 64-bit word
_FILL = 6  # ids for each set of eight places, when all slots are taken

Bits = TypeVar("Bits", int, np.ndarray)  # numbers of 64 bits: one, or uint64 (n,)


class Hashes(NamedTuple):
    """n ids, each as two words of 64 bits.

    low, high : uint64 (n,)
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of_words(cls, words: np.ndarray) -> Hashes:
        """words : uint64 (n, 1) any integers, or (n, 2) hashes of 128 bits"""
        if words.shape[1] == 2:
            return cls(words[:, 0], words[:, 1])
        # The finalizer of splitmix64 (Steele et al., OOPSLA 2014), which is one-to-one: an integer
        # is told apart by `low` alone. Then half a round more.
        low = words[:, 0] + np.uint64(0x9E3779B97F4A7C15)
        low ^= low >> 30
        low *= 0xBF58476D1CE4E5B9
        low ^= low >> 27
        low *= 0x94D049BB133111EB
        low ^= low >> 31
        high = low * 0xD6E8FEB86659FD93
        high ^= high >> 32
        return cls(low, high)


def scaled(bits: Bits, n: int) -> Bits:
    """Spread numbers of 32 bits over 0..n-1, for n < 2^31."""
    return (bits * n) >> 32


class IdTable:
    """The ids of slots 0..capacity-1, and where to find them.

    capacity : 1..2^31-1 slots
    words : 1 for integers (all that counts is in `low`), 2 for hashes of 128 bits

    Bytes for each slot: 8 words, and 5 x 8/6 for the places: 14.7 for integers, 22.7 for hashes.
    """

    def __init__(self, capacity: int, words: int) -> None:
        self.num_sets = self._num_sets_for(capacity)
        self.key = np.zeros((capacity, words), np.uint64)
        self.tag = np.zeros(self.num_sets * PLACES, np.uint8)
        self.slot_at = np.zeros(self.num_sets * PLACES, np.int32)

    @staticmethod
    def _num_sets_for(capacity: int) -> int:
        return -(-capacity // _FILL)

    @classmethod
    def nbytes_for(cls, capacity: int, words: int) -> int:
        return 8 * words * capacity + 5 * PLACES * cls._num_sets_for(capacity)

    def find(self, ids: Hashes) -> np.ndarray:
        """int64 (n,), the slot of each id, -1 where it has none"""
        sets = self._set_pairs(ids)
        tags = self.tag.view(np.uint64)[sets].view(np.uint8)  # (n, 16)
        hit = np.flatnonzero(tags == _tag_of(ids.high).astype(np.uint8)[:, None])
        of_id = hit >> 4
        slot = self.slot_at[sets.ravel()[hit >> 3] * PLACES + (hit & 7)]
        is_it = self.key[slot, 0] == ids.low[of_id]
        if self.key.shape[1] == 2:
            is_it &= self.key[slot, 1] == ids.high[of_id]
        slots = np.full(len(ids.low), -1, np.int64)
        slots[of_id[is_it]] = slot[is_it]
        return slots

    def place_for(self, low: int) -> int:
        """A free place for an id, in the emptier of its sets.

        Where both sets are full, another id moves to its other set.
        returns : -1 where none can move; in a table of many slots, this takes ids that somebody
            chose to that end
        """
        first, second = self._sets_of(low)
        place, num_free = self._free_place(first)
        other_place, other_num_free = self._free_place(second)
        if other_num_free > num_free:
            return other_place
        if num_free:
            return place
        for s in (first, second):
            for old in range(s * PLACES, (s + 1) * PLACES):
                one, two = self._sets_of(int(self.key[self.slot_at[old], 0]))
                new, num_free = self._free_place(two if one == s else one)
                if num_free:
                    self.tag[new], self.slot_at[new] = self.tag[old], self.slot_at[old]
                    self.tag[old] = 0
                    return old
        return -1

    def put(self, low: int, high: int, slot: int, place: int) -> None:
        """Enter an id that is not here, at a place that `place_for` gave."""
        self.tag[place], self.slot_at[place] = _tag_of(high), slot
        self.key[slot] = (low, high)[: self.key.shape[1]]

    def put_many(self, ids: Hashes, slots: np.ndarray) -> None:
        """Enter n different ids that are not here; those that find no place are left out."""
        # At once all that share no set with another and have a free place; then one by one.
        sets = self._set_pairs(ids)
        is_free = self.tag.reshape(-1, PLACES)[sets] == 0  # (n, 2, 8)
        num_free = is_free.sum(2)
        _, which, times = np.unique(sets, return_inverse=True, return_counts=True)
        alone = (times[which].reshape(-1, 2) == 1).all(1) & (num_free > 0).any(1)
        row = np.flatnonzero(alone)
        choice = (num_free[row, 1] > num_free[row, 0]).astype(np.int64)
        place = sets[row, choice] * PLACES + is_free[row, choice].argmax(1)
        self.tag[place], self.slot_at[place] = _tag_of(ids.high[row]), slots[row]
        self.key[slots[row]] = np.stack(ids, 1)[row, : self.key.shape[1]]
        rest = np.flatnonzero(~alone)
        for low, high, slot in zip(*(x[rest].tolist() for x in (*ids, slots)), strict=True):
            place = self.place_for(low)
            if place >= 0:
                self.put(low, high, slot, place)

    def remove(self, slot: int) -> None:
        """Forget the id of a slot, if it has one."""
        for s in self._sets_of(int(self.key[slot, 0])):
            first = s * PLACES
            for place, at in enumerate(self.slot_at[first : first + PLACES].tolist(), first):
                if at == slot:  # free places name slots too
                    self.tag[place] = 0

    def _set_pairs(self, ids: Hashes) -> np.ndarray:
        """int64 (n, 2)"""
        return np.stack(self._sets_of(ids.low), 1).astype(np.int64)

    def _sets_of(self, low: Bits) -> tuple[Bits, Bits]:
        """The two sets of an id; they differ where there are two sets or more."""
        first = scaled(low >> 32, self.num_sets)
        step = scaled(low & 0xFFFFFFFF, self.num_sets - 1) + 1
        return first, (first + step) % self.num_sets

    def _free_place(self, s: int) -> tuple[int, int]:
        """The first free place of a set (if there is one), and how many it has."""
        tags = self.tag[s * PLACES : (s + 1) * PLACES].tobytes()
        return s * PLACES + tags.find(0), tags.count(0)


def _tag_of(high: Bits) -> Bits:
    """An odd number in 1..255."""
    return high >> 56 | 1
