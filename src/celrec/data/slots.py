"""From unbounded raw ids to the slots of an embedding table, in bounded memory.

A `SlotMap` serves one kind of entity. An id that has been seen often enough owns a slot; all others
share hash buckets. When every slot is taken, a newcomer takes the slot of an id that was seen least
recently and least often. A batch costs the same however many ids there are and however long the map
has run, and observing a batch has the very result of observing its events one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from celrec.data.id_table import Bits, Hashes, IdTable, scaled
from celrec.errors import ArgumentError, CheckpointError, DataError, MissingExtraError, check_count

_WORDS = {"integer": 1, "hashed": 2}
_MAX_SEEN = 15  # sightings that an id is credited with
_MAX_WINDOW = 256  # slots that the hand passes at once
_MAX_WINDOWS = 4  # such passes for one new id
_MAX_CHUNK = 2**16  # ids that are admitted at once
_CURSOR = ("num_admitted", "num_events", "hand", "num_victims", "next_victim")


class Observed(NamedTuple):
    """What `SlotMap.observe` says of n events.

    slots : int64 (n,)            the slot each event uses
    admitted_slots : int64 (k,)   slots given to an id in this batch, in order, no two equal. Some
        were unused, others taken from an evicted id: what the caller keeps for any of them starts
        anew.
    """

    slots: np.ndarray
    admitted_slots: np.ndarray


class SlotMap:
    """A bounded map from raw ids to slots.

    capacity : 1..2^31-1, ids that can own a slot: slots 0..capacity-1. They are given in order, and
        no id loses its slot before all are taken.
    num_buckets : >= 1, slots capacity..capacity+num_buckets-1, shared by all other ids
    ids : "integer", any integers of 64 bits, told apart exactly; or "hashed", texts and bytes (a
        text is its UTF-8 bytes), told apart by 128-bit hashes (xxh3): two of 10^8 ids have the same
        hash with odds of 1.5e-23, if nobody chooses ids to that end. Needs the extra `stream`.
    admit_after : 1..15, the sighting at which an id gets a slot
    num_counters : >= 1, cells that count sightings before that; by default `capacity`, at least
        1024. Two ids that meet in a cell forget each other, unless 12 more bits of their hashes are
        equal (1 in 4096): then their sightings add up. So counts age with the traffic.
    max_batch : >= 1, the most events of a batch. An id keeps its slot for as many events after it
        was seen, whatever happens; so one slot never stands for two ids of a batch.

    Eviction is GCLOCK (Smith, TODS 1978): a sighting raises a slot's counter, up to 15, a hand goes
    round and lowers it, and gives up slots at 0. The hand passes up to 256 slots at once and queues
    what it finds; where four passes find none at 0, it takes one of the lowest, so no event waits
    for a long round. An evicted id uses its bucket again and must earn a slot anew.

    Bytes for each slot, all arrays counted: 17.7 for integers, 25.7 for hashed ids (8 or 16 the id,
    6.7 its place in the hash table, 1 counter, 2 for ids not admitted). See `nbytes`.

    >>> users = SlotMap(2, num_buckets=1)
    >>> users.observe([70, -5, 70])
    Observed(slots=array([2, 2, 0]), admitted_slots=array([0]))
    >>> users.find([70, -5])
    array([0, 2])
    """

    def __init__(
        self,
        capacity: int,
        *,
        num_buckets: int,
        ids: Literal["integer", "hashed"] = "integer",
        admit_after: int = 2,
        num_counters: int | None = None,
        max_batch: int = 1024,
    ) -> None:
        if ids not in _WORDS:
            raise ArgumentError(f"ids is {ids!r}; wanted 'integer' or 'hashed'")
        self.ids = ids
        self.capacity = check_count("capacity", capacity, at_least=1, at_most=2**31 - 1)
        self.num_buckets = check_count("num_buckets", num_buckets, at_least=1, at_most=2**31 - 1)
        self.admit_after = check_count("admit_after", admit_after, at_least=1, at_most=15)
        self.num_counters = _num_counters(self.capacity, num_counters)
        self.max_batch = check_count("max_batch", max_batch, at_least=1, at_most=2**20)
        self._xxh3 = _xxh3() if ids == "hashed" else None
        self._table = IdTable(self.capacity, _WORDS[ids])
        self._seen = np.zeros(self.capacity, np.uint8)
        self._pending = np.zeros(self.num_counters, np.uint16)  # fingerprint << 4 | sightings
        self._recent = np.full(self.max_batch, -1, np.int32)  # slots of the last events, a ring
        self._victims = np.zeros(_window(self.capacity), np.int32)
        self._num_admitted = self._num_events = 0
        self._hand = self._num_victims = self._next_victim = 0

    @property
    def num_slots(self) -> int:
        """Slots of admitted ids and of buckets: the rows that a table needs."""
        return self.capacity + self.num_buckets

    @property
    def num_admitted(self) -> int:
        """Slots that are in use: 0..num_admitted-1."""
        return self._num_admitted

    @property
    def num_events(self) -> int:
        """Events observed so far."""
        return self._num_events

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays. They never grow."""
        return sum(array.nbytes for array in self.state().values())

    @staticmethod
    def nbytes_for(
        capacity: int,
        *,
        ids: Literal["integer", "hashed"] = "integer",
        num_counters: int | None = None,
        max_batch: int = 1024,
    ) -> int:
        """What `nbytes` of such a map will be.

        >>> SlotMap.nbytes_for(10**8)
        1766671840
        """
        return (
            IdTable.nbytes_for(capacity, _WORDS[ids])
            + capacity
            + 2 * _num_counters(capacity, num_counters)
            + 4 * max_batch
            + 4 * _window(capacity)
            + 8 * len(_CURSOR)
        )

    @classmethod
    def capacity_for(
        cls,
        num_bytes: int,
        *,
        ids: Literal["integer", "hashed"] = "integer",
        num_counters: int | None = None,
        max_batch: int = 1024,
        bytes_per_slot: int = 0,
    ) -> int:
        """The largest capacity whose map, with what a caller keeps for each slot, fits a budget.

        num_bytes : the budget
        bytes_per_slot : >= 0, what the caller keeps beside the map for each of these slots
        raises : ArgumentError where not even one slot fits

        >>> capacity = SlotMap.capacity_for(10**6)
        >>> SlotMap.nbytes_for(capacity) <= 10**6 < SlotMap.nbytes_for(capacity + 1)
        True
        """

        def cost(capacity: int) -> int:
            own = cls.nbytes_for(capacity, ids=ids, num_counters=num_counters, max_batch=max_batch)
            return own + bytes_per_slot * capacity

        if cost(1) > num_bytes:
            raise ArgumentError(
                f"num_bytes is {num_bytes}, but a map of one slot takes {cost(1)}; give more, or "
                "lower num_counters or max_batch"
            )
        fits, beyond = 1, 2**31
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            fits, beyond = (middle, beyond) if cost(middle) <= num_bytes else (fits, middle)
        return fits

    def find(self, ids: Iterable[Any] | np.ndarray) -> np.ndarray:
        """The slot of each id, or that of its bucket; nothing changes.

        ids : any number n of integers, or of texts and bytes
        returns : int64 (n,), values in [0, num_slots)
        raises : DataError naming an id of the wrong kind
        """
        hashes = Hashes.of_words(self._words(ids))
        slots = self._table.find(hashes)
        return np.where(slots >= 0, slots, self._bucket_slots(hashes))

    def observe(self, ids: Iterable[Any] | np.ndarray) -> Observed:
        """See a batch of events, in order: count, admit, evict.

        ids : n <= max_batch ids, repeats allowed
        raises : DataError naming an id of the wrong kind; ArgumentError where n is too large. The
            map is then as before.

        An id may use its bucket's slot early in a batch and its own later.
        """
        hashes = Hashes.of_words(self._words(ids))
        num = len(hashes.low)
        if num > self.max_batch:
            raise ArgumentError(
                f"the batch has {num} events; wanted at most max_batch = {self.max_batch}. Cut it, "
                "or make the map with a larger max_batch"
            )
        found = self._table.find(hashes)
        buckets = self._bucket_slots(hashes)
        events = zip(*(x.tolist() for x in (found, *hashes, buckets)), strict=True)
        seen, recent = self._seen.data, self._recent.data
        slots = []
        slot_of: dict[tuple[int, int], int] = {}  # ids admitted in this batch
        admitted: dict[int, None] = {}  # their slots, in order
        for number, (slot, low, high, bucket) in enumerate(events, self._num_events):
            if slot < 0 or slot in admitted:  # in the latter case it was taken from this id
                slot = slot_of.get((low, high), -1)
            if slot >= 0:
                if seen[slot] < _MAX_SEEN:
                    seen[slot] += 1
            else:
                slot = self._see_unadmitted(low, high)
                if slot >= 0:
                    slot_of[low, high] = slot
                    admitted[slot] = None
            recent[number % self.max_batch] = slot
            slots.append(slot if slot >= 0 else bucket)
        self._num_events += num
        return Observed(np.array(slots, np.int64), np.array(list(admitted), np.int64))

    def admit(self, ids: Iterable[Any] | np.ndarray) -> np.ndarray:
        """Give each id a slot at once, as for the entities of a model trained before.

        ids : any number n; ids that own a slot keep it
        returns : int64 (n,), their slots
        raises : DataError naming an id of the wrong kind; ArgumentError where free slots do not
            suffice. The map is then as before.

        New ids get slots in order. No sighting is counted, so those that never come are the first
        to be evicted. Should an id find no place in the hash table, which takes ids that somebody
        chose to that end, it stays in its bucket.
        """
        words = self._words(ids)
        num_free = self.capacity - self._num_admitted
        if len(words) > num_free:
            is_new = self._table.find(Hashes.of_words(words)) < 0
            num_new = len(np.unique(words[is_new], axis=0))
            if num_new > num_free:
                raise ArgumentError(
                    f"{num_new} ids need a slot, but {num_free} of {self.capacity} are free; make "
                    "the map with a larger capacity"
                )
        slots = np.empty(len(words), np.int64)
        chunk = min(max(self._table.num_sets // 64, 64), _MAX_CHUNK)  # few meet in a set
        for start in range(0, len(words), chunk):
            some = Hashes.of_words(words[start : start + chunk])
            missing = np.flatnonzero(self._table.find(some) < 0)
            first = np.unique(some.low[missing], return_index=True)[1]
            new = Hashes(*(word[missing[np.sort(first)]] for word in some))
            before = self._num_admitted
            self._num_admitted += len(new.low)
            self._table.put_many(new, np.arange(before, self._num_admitted))
            cell, fingerprint = self._cell(*new)
            self._pending[cell[self._pending[cell] >> 4 == fingerprint]] = 0
            own = self._table.find(some)
            slots[start : start + chunk] = np.where(own >= 0, own, self._bucket_slots(some))
        return slots

    def settings(self) -> dict[str, Any]:
        """The arguments that make an empty map like this one."""
        return {
            "capacity": self.capacity,
            "num_buckets": self.num_buckets,
            "ids": self.ids,
            "admit_after": self.admit_after,
            "num_counters": self.num_counters,
            "max_batch": self.max_batch,
        }

    def state(self) -> dict[str, np.ndarray]:
        """All arrays, by name. They are the map's own, not copies: save them before going on."""
        return {
            "key": self._table.key,
            "tag": self._table.tag,
            "slot_at": self._table.slot_at,
            "seen": self._seen,
            "pending": self._pending,
            "recent": self._recent,
            "victims": self._victims,
            "cursor": np.array([getattr(self, f"_{name}") for name in _CURSOR], np.int64),
        }

    @classmethod
    def from_state(cls, settings: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> SlotMap:
        """The map that had these `settings()` and this `state()`; arrays are copied.

        raises : CheckpointError where an array is missing, or is not that of such a map
        """
        slots = cls(**settings)
        own = slots.state()
        if set(state) != set(own):
            raise CheckpointError(
                f"the state of a slot map has the arrays {sorted(state)}; wanted {sorted(own)}"
            )
        for name, array in own.items():
            saved = np.asarray(state[name])
            if saved.shape != array.shape or saved.dtype != array.dtype:
                raise CheckpointError(
                    f"array {name!r} of a slot map is {saved.dtype} {saved.shape}; wanted "
                    f"{array.dtype} {array.shape}. Does the state belong to these settings?"
                )
            array[...] = saved
        limits = (slots.capacity, 2**63 - 1, slots.capacity - 1, *[len(slots._victims)] * 2)
        for name, value, limit in zip(_CURSOR, own["cursor"].tolist(), limits, strict=True):
            if not 0 <= value <= limit:
                raise CheckpointError(
                    f"{name} of a slot map is {value}; wanted 0 to {limit}. The state is damaged"
                )
            setattr(slots, f"_{name}", value)
        return slots

    def _see_unadmitted(self, low: int, high: int) -> int:
        """Count a sighting of an id without a slot; return the slot that it earns, else -1."""
        cell, fingerprint = self._cell(low, high)
        stored = int(self._pending[cell])
        count = (stored & 15 if stored >> 4 == fingerprint else 0) + 1
        if count >= self.admit_after:
            place = self._table.place_for(low)
            slot = self._vacate_slot() if place >= 0 else -1
            if slot >= 0:
                self._table.put(low, high, slot, place)
                self._seen[slot] = 0
                self._pending[cell] = 0
                return slot
            count = self.admit_after - 1  # it tries again
        self._pending[cell] = fingerprint << 4 | count
        return -1

    def _vacate_slot(self) -> int:
        """A slot for a new id: the first unused one, or a victim's; -1 if all must stay."""
        if self._num_admitted < self.capacity:
            self._num_admitted += 1
            return self._num_admitted - 1
        slot = self._dequeue_victim()
        if slot < 0:
            self._choose_victims()
            slot = self._dequeue_victim()
        if slot >= 0:
            self._table.remove(slot)
        return slot

    def _dequeue_victim(self) -> int:
        """The next victim that was not seen since it was chosen; -1 if none is left."""
        while self._next_victim < self._num_victims:
            slot = int(self._victims[self._next_victim])
            self._next_victim += 1
            if self._seen[slot] == 0:
                return slot
        return -1

    def _choose_victims(self) -> None:
        """Pass the hand over slots until it finds some at 0, and queue them.

        Where four windows have none, one of the last that was seen least. Slots of recent events
        stay. This pays off: a window without zeros costs as many sightings as it has slots.
        """
        victims = np.empty(0, np.int64)
        for _ in range(_MAX_WINDOWS):
            window = (self._hand + np.arange(len(self._victims))) % self.capacity
            self._hand = int((self._hand + len(window)) % self.capacity)
            may_go = np.ones(len(window), bool)
            distance = (self._recent - window[0]) % self.capacity
            may_go[distance[(self._recent >= 0) & (distance < len(window))]] = False
            seen = self._seen[window]
            self._seen[window] = np.maximum(seen, 1) - 1
            if may_go.any():
                least = seen[may_go].min()
                victims = window[may_go & (seen == least)]
                if least == 0:
                    break
                victims = victims[:1]
        self._seen[victims] = 0
        self._victims[: len(victims)] = victims
        self._num_victims, self._next_victim = len(victims), 0

    def _bucket_slots(self, ids: Hashes) -> np.ndarray:
        return scaled(ids.high >> 32, self.num_buckets).astype(np.int64) + self.capacity

    def _cell(self, low: Bits, high: Bits) -> tuple[Bits, Bits]:
        """The cell that counts an id's sightings, and the id's fingerprint there, 12 bits."""
        return scaled(high & 0xFFFFFFFF, self.num_counters), low & 0xFFF

    def _words(self, ids: Iterable[Any] | np.ndarray) -> np.ndarray:
        """uint64 (n, 1) or (n, 2), the ids as they go into the hash table"""
        if isinstance(ids, (str, bytes)):
            raise DataError(f"ids is the single {type(ids).__name__} {ids!r}; pass a list of ids")
        if self._xxh3 is None:
            return _integers(ids).view(np.uint64)[:, None]
        ids = list(ids)
        try:
            encoded = [
                x if isinstance(x, bytes) else x.encode("utf-8", "surrogatepass") for x in ids
            ]
        except AttributeError:
            raise _wrong_kind(ids, (str, bytes), "texts or bytes", "integer") from None
        digests = b"".join(map(self._xxh3, encoded))
        return np.frombuffer(digests, "<u8").astype(np.uint64).reshape(-1, 2)


def _num_counters(capacity: int, num_counters: int | None) -> int:
    if num_counters is None:
        return max(capacity, 1024)
    return check_count("num_counters", num_counters, at_least=1, at_most=2**31 - 1)


def _window(capacity: int) -> int:
    """How many slots the hand passes at once: at most a quarter of a round."""
    return max(1, min(_MAX_WINDOW, capacity // 4))


def _integers(ids: Iterable[Any] | np.ndarray) -> np.ndarray:
    """int64 (n,), contiguous"""
    if not isinstance(ids, np.ndarray) or ids.dtype == object:
        ids = list(ids)
    if len(ids) == 0:
        return np.empty(0, np.int64)
    try:
        array = np.asarray(ids)
    except (OverflowError, ValueError):
        array = np.empty(0, object)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise _wrong_kind(list(ids), (int, np.integer), "integers of 64 bits", "hashed")
    if array.dtype == np.uint64 and array.size and array.max() >= 2**63:
        at = int((array >= 2**63).argmax())
        raise DataError(
            f"id {array[at]} at position {at} is beyond 64 bits with a sign; pass its text to a "
            "map with ids='hashed', or view the array as int64"
        )
    return np.ascontiguousarray(array, np.int64)


def _wrong_kind(ids: list[Any], kinds: tuple[type, ...], wanted: str, other: str) -> DataError:
    at, value = next(
        (at, x)
        for at, x in enumerate(ids)
        if not isinstance(x, kinds)
        or isinstance(x, bool)
        or (isinstance(x, int) and not -(2**63) <= x < 2**63)
    )
    return DataError(
        f"id {value!r} at position {at} is {type(value).__name__}; this map holds {wanted}. Drop "
        f"the event, or make a map with ids={other!r}"
    )


def _xxh3() -> Any:
    try:
        from xxhash import xxh3_128_digest
    except ImportError:
        raise MissingExtraError(
            "ids='hashed' needs xxhash; install it with: pip install 'celrec[stream]'"
        ) from None
    return xxh3_128_digest
