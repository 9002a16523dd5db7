"""From unbounded raw ids to the slots of an embedding table, in bounded memory.

A `SlotMap` serves one kind of entity. An id that has been seen often enough owns a slot; all others
share hash buckets. When every slot is taken, a newcomer takes the slot of an id that was seen least
recently and least often. A batch costs the same however many ids there are and however long the map
has run, and observing a batch has the very result of observing its events one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from celrec.data.id_table import PLACES, Found, HashedIds, IdTable, scaled
from celrec.errors import ArgumentError, CheckpointError, DataError, MissingExtraError, check_count

_WORDS = {"integer": 1, "hashed": 2}
_MAX_SEEN = 15  # sightings that an id is credited with
_MAX_WINDOW = 256  # slots that the hand passes at once
_CURSOR = ("num_admitted", "num_events", "hand", "num_victims", "next_victim")


class Observed(NamedTuple):
    """What `SlotMap.observe` says of n events.

    slots : int64 (n,)            the slot each event uses
    admitted_slots : int64 (k,)   slots given to an id in this batch, in order, no two equal
    admitted_from : int64 (k,)    the bucket's slot that each of these ids used before
    """

    slots: np.ndarray
    admitted_slots: np.ndarray
    admitted_from: np.ndarray


@dataclass(frozen=True)
class _Admissions:
    """Which events get a slot, and how far the events go that this was decided for.

    end : events 0..end-1 can be carried out together
    events, slots : int64 (k,)   event numbers below end, and the slot each is given
    freed : int64 (<= k,)        places of ids that give up the last of these slots
    next_victim : where the queue of victims stands afterwards
    """

    end: int
    events: np.ndarray
    slots: np.ndarray
    freed: np.ndarray
    next_victim: int


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
    round and lowers it, and gives up slots at 0. The hand passes up to 256 slots at once and keeps
    what it finds in a queue; where none is at 0 it takes the lowest. An evicted id uses its bucket
    again and must earn a slot anew.

    Bytes for each slot, all arrays counted: 17.7 for integers, 25.7 for hashed ids (8 or 16 the id,
    6.7 its place in the hash table, 1 counter, 2 for ids not admitted). See `nbytes`.

    >>> users = SlotMap(2, num_buckets=1)
    >>> users.observe([70, -5, 70])
    Observed(slots=array([2, 2, 0]), admitted_slots=array([0]), admitted_from=array([2]))
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
        """Ids that own a slot now: those of slots 0..num_admitted-1."""
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

        >>> SlotMap.nbytes_for(10**8) / 10**8
        17.66...
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
                f"num_bytes is {num_bytes}, but a map of one slot takes {cost(1)} bytes; give more, "
                "or lower num_counters or max_batch"
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
        hashed = self._hashed(ids)
        slot = self._table.find(hashed).slot
        return np.where(slot >= 0, slot, self._bucket_slots(hashed))

    def observe(self, ids: Iterable[Any] | np.ndarray) -> Observed:
        """See a batch of events, in order: count, admit, evict.

        ids : n <= max_batch ids, repeats allowed
        raises : DataError naming an id of the wrong kind; ArgumentError where n is too large. The
            map is then as before.

        An id may use its bucket's slot early in a batch and its own later.
        """
        hashed = self._hashed(ids)
        n = len(hashed)
        if n > self.max_batch:
            raise ArgumentError(
                f"the batch has {n} events; wanted at most max_batch = {self.max_batch}. Cut it, or "
                "make the map with a larger max_batch"
            )
        slots = self._bucket_slots(hashed)
        admitted, origin = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        done = 0
        while done < n:
            rest = hashed.take(slice(done, None))
            found, admissions = self._observe_some(rest)
            admitted.append(admissions.slots)
            origin.append(slots[done:][admissions.events])
            used = found[: admissions.end]
            np.copyto(slots[done : done + admissions.end], used, where=used >= 0)
            done += admissions.end
        return Observed(slots, np.concatenate(admitted), np.concatenate(origin))

    def admit(self, ids: Iterable[Any] | np.ndarray) -> np.ndarray:
        """Give each id a slot at once, as for the entities of a model trained before.

        ids : any number n; ids that own a slot keep it
        returns : int64 (n,), their slots
        raises : ArgumentError where free slots do not suffice, before anything changes

        No sighting is counted, so ids that never come are the first to be evicted.
        """
        hashed = self._hashed(ids)
        num_free = self.capacity - self._num_admitted
        if len(hashed) > num_free:
            is_new = self._table.find(hashed).slot < 0
            num_new = len(np.unique(hashed.key[is_new], axis=0))
            if num_new > num_free:
                raise ArgumentError(
                    f"{num_new} ids need a slot, but {num_free} of {self.capacity} are free; make "
                    "the map with a larger capacity"
                )
        # About as many as go in before two meet in a set.
        step = max(16, int(len(self._table.tag) ** 0.5))
        slots = np.empty(len(hashed), np.int64)
        done = 0
        while done < len(hashed):
            some = hashed.take(slice(done, done + step))
            found = self._table.find(some)
            missing = np.flatnonzero(found.slot < 0)
            admissions = self._plan(missing, found, len(some))
            if admissions is None:
                raise ArgumentError(
                    f"id {done} of {len(hashed)} (counted from 0) finds no place in the hash table "
                    "of this map; make it with a larger capacity"
                )
            self._give_slots(some, found, admissions)
            if self._num_events:
                cell, fingerprint = self._cells(some)
                self._pending[cell[self._pending[cell] >> 4 == fingerprint]] = 0
            end = admissions.end
            found.slot[admissions.events] = admissions.slots
            slots[done : done + end] = found.slot[:end]
            done += end
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

    def _observe_some(self, ids: HashedIds) -> tuple[np.ndarray, _Admissions]:
        """Carry out the first events, as many as do not depend on one another.

        returns : slot of each event, -1 for its bucket's, valid up to the second's `end`
        """
        found = self._table.find(ids)
        slot = found.slot
        event = np.flatnonzero(slot < 0)
        if event.size == 0:
            admissions = _Admissions(len(ids), event, event, event, self._next_victim)
            self._mark(slot, event)
            return slot, admissions

        # Events by cell, each cell's in order. They go on until a second id enters a cell.
        cell, fingerprint = self._cells(ids.take(event))
        order = cell.argsort(kind="stable")
        event, cell, fingerprint = event[order], cell[order], fingerprint[order]
        starts = np.ones(len(event), bool)
        np.not_equal(cell[1:], cell[:-1], out=starts[1:])
        end = len(ids)
        if not starts.all():
            key = ids.key[event]
            is_second = ~starts[1:] & (key[1:] != key[:-1]).any(1)
            if is_second.any():
                end = int(event[1:][is_second].min())
                kept = event < end
                event, cell, fingerprint, starts = (
                    column[kept] for column in (event, cell, fingerprint, starts)
                )

        # Sightings, this one included.
        position = np.arange(len(event))
        rank = position - np.maximum.accumulate(np.where(starts, position, 0))
        stored = self._pending[cell]
        count = np.where(stored >> 4 == fingerprint, stored & 15, 0) + rank + 1
        wanting = np.sort(event[count == self.admit_after])
        admissions_or_none = self._plan(wanting, found, end)
        if admissions_or_none is None:  # no slot for the first event: its id tries again
            none = wanting[:0]
            admissions = _Admissions(1, none, none, none, self._next_victim)
            count -= 1
        else:
            admissions = admissions_or_none
        self._give_slots(ids, found, admissions)
        slot[admissions.events] = admissions.slots

        if admissions.end < end:
            kept = event < admissions.end
            event, cell, fingerprint, count = (
                column[kept] for column in (event, cell, fingerprint, count)
            )
        has_slot = count >= self.admit_after
        self._pending[cell] = np.where(has_slot, 0, fingerprint << 4 | count)  # the last one stays
        own = np.flatnonzero(has_slot)
        slot[event[own]] = slot[event[own - (count[own] - self.admit_after)]]
        self._mark(slot[: admissions.end], admissions.events)
        return slot, admissions

    def _plan(self, wanting: np.ndarray, found: Found, end: int) -> _Admissions | None:
        """Find slots for events that want one, up to the first that must wait for an earlier one.

        wanting : int64, numbers of the events, ascending
        found : of all events; only those before `end` count
        returns : None where event 0 wants a slot and can have none
        """
        unused = np.arange(
            self._num_admitted, min(self._num_admitted + len(wanting), self.capacity)
        )
        slots, freed, next_victim = unused, unused[:0], self._next_victim
        num_unused = len(unused)
        if num_unused < len(wanting):
            victims, next_victim_after = self._queued()
            if victims.size == 0 and wanting[0] == 0 and num_unused == 0:
                self._choose_victims()
                victims, next_victim_after = self._queued()
                if victims.size == 0:
                    return None
            victims = victims[: len(wanting) - num_unused]
            slots = np.concatenate([unused, victims])
            if len(slots) < len(wanting):
                end = min(end, int(wanting[len(slots)]))
            # A victim that is seen before its slot is taken stays; seen later, it is a newcomer.
            hit, of_victim = np.nonzero(found.slot[:end, None] == victims)
            if hit.size:
                taken = wanting[num_unused + of_victim]
                end = min(end, int(np.where(hit < taken, hit + 1, hit).min()))
            freed = self._table.places_of(victims)
        num = int(np.searchsorted(wanting, end))
        if num:
            touched = np.full((num, 3), -1, np.int64)
            touched[:, :2] = found.sets[wanting[:num]]
            touched[num_unused:, 2] = freed[: max(num - num_unused, 0)] // PLACES
            is_full = found.tags[wanting[:num]].all(1)
            num_apart = min(_num_apart(touched), int(is_full.argmax()) if is_full.any() else num)
            if num_apart == 0 and wanting[0] == 0:
                if not self._table.make_room(found.sets[0]):
                    return None
                num_apart = 1
            if num_apart < num:
                num, end = num_apart, int(wanting[num_apart])
        slots, freed = slots[:num], freed[: max(num - num_unused, 0)]
        if freed.size:
            next_victim = int(next_victim_after[len(freed) - 1])
        return _Admissions(end, wanting[:num], slots, freed, next_victim)

    def _queued(self) -> tuple[np.ndarray, np.ndarray]:
        """Victims not seen since they were chosen, and where the queue stands after each."""
        queue = self._victims[self._next_victim : self._num_victims].astype(np.int64)
        alive = np.flatnonzero(self._seen[queue] == 0)
        return queue[alive], self._next_victim + alive + 1

    def _choose_victims(self) -> None:
        """Pass the hand over a window of slots, and queue those with the fewest sightings."""
        window = (self._hand + np.arange(len(self._victims))) % self.capacity
        self._hand = int((self._hand + len(window)) % self.capacity)
        is_recent = np.zeros(len(window), bool)
        distance = (self._recent - window[0]) % self.capacity
        is_recent[distance[(self._recent >= 0) & (distance < len(window))]] = True
        seen = self._seen[window]
        victims = window[:0]
        if not is_recent.all():
            victims = window[~is_recent & (seen == seen[~is_recent].min())]
        self._seen[window] = np.maximum(seen, 1) - 1
        self._seen[victims] = 0
        self._victims[: len(victims)] = victims
        self._num_victims, self._next_victim = len(victims), 0

    def _give_slots(self, ids: HashedIds, found: Found, admissions: _Admissions) -> None:
        if admissions.events.size == 0:
            return
        self._table.free(admissions.freed)
        events, slots = admissions.events, admissions.slots
        self._table.put(ids.take(events), found.sets[events], slots)
        self._seen[slots] = 0
        self._num_admitted += len(slots) - len(admissions.freed)
        self._next_victim = admissions.next_victim

    def _mark(self, slot: np.ndarray, admitted: np.ndarray) -> None:
        """Credit sightings, but those that earned a slot, and remember the slots of these events."""
        ring = (self._num_events + np.arange(len(slot))) % self.max_batch
        self._recent[ring] = slot
        self._num_events += len(slot)
        credited = slot
        if admitted.size:
            credited = slot.copy()
            credited[admitted] = -1
        credited = credited[credited >= 0]
        step = 255 - _MAX_SEEN  # a counter is one byte
        for start in range(0, len(credited), step):
            some = credited[start : start + step]
            np.add.at(self._seen, some, 1)
            self._seen[some] = np.minimum(self._seen[some], _MAX_SEEN)

    def _bucket_slots(self, ids: HashedIds) -> np.ndarray:
        return self.capacity + scaled(ids.high, self.num_buckets)

    def _cells(self, ids: HashedIds) -> tuple[np.ndarray, np.ndarray]:
        """The cell of each id's count, int64 (n,), and its fingerprint, uint16 (n,), 12 bits."""
        cell = scaled(ids.high << np.uint64(32), self.num_counters)
        return cell, (ids.low & np.uint64(0xFFF)).astype(np.uint16)

    def _hashed(self, ids: Iterable[Any] | np.ndarray) -> HashedIds:
        if self._xxh3 is None:
            return HashedIds.of(_integers(ids).view(np.uint64)[:, None])
        try:
            encoded = [x if type(x) is bytes else x.encode("utf-8", "surrogatepass") for x in ids]
        except AttributeError:
            raise _wrong_kind(list(ids), (str, bytes), "texts or bytes", "integer") from None
        digests = b"".join(map(self._xxh3, encoded))
        return HashedIds.of(np.frombuffer(digests, "<u8").astype(np.uint64).reshape(-1, 2))


def _num_counters(capacity: int, num_counters: int | None) -> int:
    if num_counters is None:
        return max(capacity, 1024)
    return check_count("num_counters", num_counters, at_least=1, at_most=2**31 - 1)


def _window(capacity: int) -> int:
    """How many slots the hand passes at once: at most a quarter of a round."""
    return max(1, min(_MAX_WINDOW, capacity // 4))


def _num_apart(touched: np.ndarray) -> int:
    """How many rows go by before one holds a number (not -1) of an earlier row."""
    flat = touched.ravel()
    order = flat.argsort(kind="stable")
    value, row = flat[order], order // touched.shape[1]
    again = row[1:][(value[1:] == value[:-1]) & (row[1:] != row[:-1]) & (value[1:] >= 0)]
    return int(again.min()) if again.size else len(touched)


def _integers(ids: Iterable[Any] | np.ndarray) -> np.ndarray:
    """int64 (n,), contiguous"""
    if not isinstance(ids, np.ndarray):
        ids = list(ids)
        if not ids:
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
            f"id {array[at]} at position {at} is beyond 64 bits with a sign; pass its text to a map "
            "with ids='hashed', or view the array as int64"
        )
    return np.ascontiguousarray(array, np.int64)


def _wrong_kind(ids: list[Any], kinds: tuple[type, ...], wanted: str, other: str) -> DataError:
    for at, value in enumerate(ids):
        in_range = not isinstance(value, int) or -(2**63) <= value < 2**63
        if not isinstance(value, kinds) or isinstance(value, bool) or not in_range:
            return DataError(
                f"id {value!r} at position {at} is {type(value).__name__}; this map holds {wanted}. "
                f"Drop the event, or make a map with ids={other!r}"
            )
    return DataError(f"ids are no list of {wanted}; pass one dimension")


def _xxh3() -> Any:
    try:
        from xxhash import xxh3_128_digest
    except ImportError:
        raise MissingExtraError(
            "ids='hashed' needs xxhash; install it with: pip install 'celrec[stream]'"
        ) from None
    return xxh3_128_digest
