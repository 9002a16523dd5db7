"""A hash table from ids to slots: numpy arrays, searched and changed a batch at a time.

Two-choice buckets ("sets") of eight places. An id may stand in one of two sets; a place is one byte
of the id's hash (its tag, 0 where free) and the slot where the whole id is kept. A look-up reads
sixteen tags, then compares whole ids where a tag fits. Nothing is ever rehashed: an id leaves by
setting its tag to 0, and neither tombstones nor the time since the start slow a look-up down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PLACES = 8  # of a set: its tags are one 64-bit word
_FILL = 6  # ids for each set of eight places, when all slots are taken


@dataclass(frozen=True)
class HashedIds:
    """n ids with what their hashes say.

    key : uint64 (n, words)    the id itself
    low, high : uint64 (n,)    two hashes of 64 bits
    """

    key: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, key: np.ndarray) -> HashedIds:
        """key : uint64 (n, 1) any integers, or (n, 2) hashes of 128 bits"""
        if key.shape[1] == 2:
            return cls(key, key[:, 0], key[:, 1])
        # The finalizer of splitmix64 (Steele et al., OOPSLA 2014), then half a round more.
        mixed = key[:, 0] + np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        low = mixed ^ (mixed >> np.uint64(31))
        high = low * np.uint64(0xD6E8FEB86659FD93)
        high ^= high >> np.uint64(32)
        return cls(key, low, high)

    def take(self, which: np.ndarray | slice) -> HashedIds:
        return HashedIds(self.key[which], self.low[which], self.high[which])

    def __len__(self) -> int:
        return len(self.key)


def scaled(hashes: np.ndarray, n: int) -> np.ndarray:
    """Spread the upper halves of 64-bit hashes over 0..n-1, for n < 2^32; int64."""
    return (((hashes >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True)
class Found:
    """What a look-up of n ids saw.

    slot : int64 (n,)      slot of each id, -1 where it has none
    sets : int64 (n, 2)    the two sets of each id
    tags : uint8 (n, 16)   the tags of both sets
    """

    slot: np.ndarray
    sets: np.ndarray
    tags: np.ndarray


class IdTable:
    """The ids of slots 0..capacity-1, and where to find them.

    capacity : 1..2^31-1 slots
    words : 1 for integers, 2 for hashes of 128 bits

    Bytes for each slot: 8 words, and 5 x 8/6 for the places: 14.7 for integers, 22.7 for hashes.
    """

    def __init__(self, capacity: int, words: int) -> None:
        num_sets = self.num_sets_for(capacity)
        self.key = np.zeros((capacity, words), np.uint64)
        self.tag = np.zeros((num_sets, PLACES), np.uint8)
        self.slot_at = np.zeros((num_sets, PLACES), np.int32)

    @staticmethod
    def num_sets_for(capacity: int) -> int:
        return -(-capacity // _FILL)

    @classmethod
    def nbytes_for(cls, capacity: int, words: int) -> int:
        return 8 * words * capacity + 5 * PLACES * cls.num_sets_for(capacity)

    def find(self, ids: HashedIds) -> Found:
        sets, tag = self._sets_of(ids), _tag_of(ids)
        tags = self.tag.view(np.uint64)[:, 0][sets].view(np.uint8)  # (n, 16)
        hit = np.flatnonzero(tags == tag[:, None])
        of_id, place = hit >> 4, hit & 15
        slot = self.slot_at.ravel()[sets.ravel()[hit >> 3] * PLACES + (place & 7)]
        is_it = self.key[slot, 0] == ids.key[of_id, 0]
        if self.key.shape[1] == 2:
            is_it &= self.key[slot, 1] == ids.key[of_id, 1]
        slots = np.full(len(ids), -1, np.int64)
        slots[of_id[is_it]] = slot[is_it]
        return Found(slots, sets, tags)

    def places_of(self, slots: np.ndarray) -> np.ndarray:
        """Where the ids of slots stand, int64 (n,); a place p is in set p // 8."""
        sets = self._sets_of(HashedIds.of(self.key[slots]))
        here = (self.tag[sets] != 0) & (self.slot_at[sets] == slots[:, None, None])
        inside = here.reshape(len(slots), 2 * PLACES).argmax(1)
        return sets[np.arange(len(slots)), inside // PLACES] * PLACES + inside % PLACES

    def free(self, places: np.ndarray) -> None:
        """Forget the ids that stand at places."""
        self.tag.ravel()[places] = 0

    def put(self, ids: HashedIds, sets: np.ndarray, slots: np.ndarray) -> None:
        """Enter ids that are not here. No two may share a set, and each needs a free place.

        sets : int64 (n, 2)   of the ids, as `find` gave them
        slots : int64 (n,)    slots without an id

        An id goes to the emptier of its sets (the first of equals), at the first free place.
        """
        is_free = self.tag[sets] == 0  # (n, 2, 8)
        num_free = is_free.sum(2)
        choice = (num_free[:, 1] > num_free[:, 0]).astype(np.int64)
        row = np.arange(len(slots))
        place = sets[row, choice] * PLACES + is_free[row, choice].argmax(1)
        self.tag.ravel()[place] = _tag_of(ids)
        self.slot_at.ravel()[place] = slots
        self.key[slots] = ids.key

    def make_room(self, sets: np.ndarray) -> bool:
        """Move one id out of two full sets into its other set; False where none can move.

        sets : int64 (2,)
        """
        places = (sets[:, None] * PLACES + np.arange(PLACES)).ravel()
        both = self._sets_of(HashedIds.of(self.key[self.slot_at.ravel()[places]]))
        other = np.where(both[:, 0] == places // PLACES, both[:, 1], both[:, 0])
        is_free = self.tag[other] == 0  # (16, 8)
        movable = np.flatnonzero(is_free.any(1))
        if movable.size == 0:
            return False
        first = movable[0]
        old, new = places[first], other[first] * PLACES + is_free[first].argmax()
        for column in (self.tag.ravel(), self.slot_at.ravel()):
            column[new] = column[old]
        self.free(old)
        return True

    def _sets_of(self, ids: HashedIds) -> np.ndarray:
        """int64 (n, 2); the two differ where there are two sets or more."""
        n = len(self.tag)
        sets = np.empty((len(ids), 2), np.int64)
        sets[:, 0] = scaled(ids.low, n)
        other = sets[:, 0] + 1 + scaled(ids.low << np.uint64(32), n - 1)
        sets[:, 1] = np.where(other >= n, other - n, other)
        return sets


def _tag_of(ids: HashedIds) -> np.ndarray:
    """uint8 (n,), values 1..255"""
    return np.maximum(ids.high >> np.uint64(56), np.uint64(1)).astype(np.uint8)
