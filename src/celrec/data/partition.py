"""Partitions: which interactions train, which choose, which test.

Four ways to divide, each a pure function from interactions to row numbers:
`random_partition` (the rating protocol), `leave_last_out` (the GMF protocol), `by_time`, and
`truncated`, which makes some users and items cold and tests on them.
"Time order" is everywhere the order of (timestamp, user, item), by dense ids; a vocabulary made of
integers or strings is sorted, so that is the order of the raw ids, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from celrec.data.interactions import Interactions
from celrec.errors import ArgumentError, DataError, check_count, check_number


@dataclass(frozen=True, eq=False)
class Partition:
    """Row numbers of the train, validation and test sets; disjoint.

    train, validation, test : int64 index arrays into the Interactions; validation may be empty
    name : how it was made, with every parameter
    raises : DataError if a row is in two sets, or if train or test is empty

    >>> Partition(train=[0, 1], validation=[2], test=[3]).merge_validation().train.tolist()
    [0, 1, 2]
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    name: str = "partition"

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            rows = np.array(getattr(self, part), dtype=np.int64)
            rows.flags.writeable = False
            object.__setattr__(self, part, rows)
            if rows.size == 0 and part != "validation":
                raise DataError(f"{self.name} leaves no interaction for {part}")
        rows, times_used = np.unique(
            np.concatenate([self.train, self.validation, self.test]), return_counts=True
        )
        if (times_used > 1).any():
            raise DataError(f"{self.name} uses row {rows[times_used > 1][0]} more than once")

    def merge_validation(self) -> Partition:
        """The partition of the reported run: validation rows train, too; the test set stays."""
        merged = np.concatenate([self.train, self.validation])
        return replace(self, train=merged, validation=np.empty(0, np.int64))

    def describe(self) -> str:
        """One line: how it was made and the sizes.

        >>> print(Partition(train=[0, 1], validation=[2], test=[3], name="by hand").describe())
        by hand: 2 train (50%), 1 validation (25%), 1 test (25%)
        """
        sizes = {part: len(getattr(self, part)) for part in ("train", "validation", "test")}
        total = sum(sizes.values())
        shares = [f"{size:,} {part} ({100 * size / total:.3g}%)" for part, size in sizes.items()]
        return f"{self.name}: {', '.join(shares)}"


def random_partition(
    interactions: Interactions, *, seed: int, test_share: float = 0.2, validation_share: float = 0.1
) -> Partition:
    """Divide at random: the rating protocol.

    Rows are put in time order, or in the order of (user, item) where there are no times, so the
    order of the file does not matter; then permuted by `np.random.default_rng(seed)`. The first
    (1 - test_share) n of the permutation develop, the rest is the test set; the last
    `validation_share` of the development rows validate.

    seed : >= 0
    test_share : above 0, below 1, share of all rows
    validation_share : at least 0, below 1, share of the development rows
    raises : DataError if train or test would be empty

    >>> from celrec.data.synthetic import planted_clusters
    >>> data = planted_clusters(9, 9, 2, 2, num_interactions=1000, seed=0).interactions
    >>> print(random_partition(data, seed=0).describe())
    random(seed=0, ...): 720 train (72%), 80 validation (8%), 200 test (20%)
    """
    seed = check_count("seed", seed)
    _check_shares(test_share, validation_share)
    rows = _time_order(interactions)
    permuted = rows[np.random.default_rng(seed).permutation(len(rows))]
    name = f"random(seed={seed}, test_share={test_share:g}, validation_share={validation_share:g})"
    return _cut(permuted, test_share, validation_share, name)


def by_time(
    interactions: Interactions, *, test_share: float = 0.2, validation_share: float = 0.1
) -> Partition:
    """Train on the past, test on the future.

    The last `test_share` of the rows in time order is the test set; of the earlier ones, the last
    `validation_share` validate. Shares and errors as in `random_partition`; times are needed.

    >>> from celrec.data.synthetic import planted_clusters
    >>> data = planted_clusters(9, 9, 2, 2, num_interactions=10, seed=0).interactions
    >>> by_time(data, test_share=0.3, validation_share=0.0).test.tolist()
    [7, 8, 9]
    """
    _check_shares(test_share, validation_share)
    _check_times(interactions, "by_time")
    name = f"by_time(test_share={test_share:g}, validation_share={validation_share:g})"
    return _cut(_time_order(interactions), test_share, validation_share, name)


def leave_last_out(
    interactions: Interactions, *, num_test: int = 2, num_validation: int = 1
) -> Partition:
    """Every user's last events test, those before validate: the GMF protocol by default.

    Events are ordered by (user, timestamp, item); repeats of all three keep the order of the file.
    A user with num_test + num_validation events or fewer keeps all of them in train. Sets are in
    that same order.

    num_test : >= 1;  num_validation : >= 0
    raises : DataError without times, or if no user has enough events

    >>> from celrec.data.vocabulary import Vocabulary
    >>> data = Interactions(user=[0, 0, 0, 0, 1], item=[0, 1, 2, 3, 0], label=[1, 1, 1, 1, 1],
    ...     timestamp=[40, 30, 20, 10, 10],
    ...     users=Vocabulary.from_values("ab"), items=Vocabulary.from_values("wxyz"))
    >>> parts = leave_last_out(data)
    >>> parts.train.tolist(), parts.validation.tolist(), parts.test.tolist()
    ([3, 4], [2], [1, 0])
    """
    num_test = check_count("num_test", num_test, at_least=1)
    num_validation = check_count("num_validation", num_validation)
    _check_times(interactions, "leave_last_out")
    in_time_order = _time_order(interactions)
    order = in_time_order[np.argsort(interactions.user[in_time_order], kind="stable")]
    user = interactions.user[order]
    counts = interactions.user_counts()
    num_left = np.cumsum(counts)[user] - np.arange(len(user))  # events of the user from here on
    has_enough = counts[user] > num_test + num_validation
    is_test = has_enough & (num_left <= num_test)
    is_validation = has_enough & ~is_test & (num_left <= num_test + num_validation)
    name = f"leave_last_out(num_test={num_test}, num_validation={num_validation})"
    return Partition(
        train=order[~is_test & ~is_validation],
        validation=order[is_validation],
        test=order[is_test],
        name=name,
    )


def truncated(
    interactions: Interactions, *, seed: int, keep: Sequence[int] = (1, 3, 5), share: float = 0.1
) -> Partition:
    """Make users and items cold, and test on what is taken from them.

    A random tenth of the users, and of the items, keep 1, 3 or 5 random events in train, a third
    of them each; their other events are the test set. Another tenth, cut in the same way, gives the
    validation set: in the reported run, where that is merged into train, those are whole again.
    Entities with no more than `max(keep)` events are left as they are. An event of a cut user and a
    cut item is not kept; it tests if either of them tests.

    seed : >= 0
    keep : >= 1, numbers of events
    share : above 0, at most 1/2, of the users and of the items that test, and that validate
    raises : DataError if nothing could be cut

    >>> from celrec.data.synthetic import planted_clusters
    >>> data = planted_clusters(60, 40, 2, 2, num_interactions=1500, seed=0).interactions
    >>> parts = truncated(data, seed=0)
    >>> np.unique(data.take(parts.train).user_counts()[data.user[parts.test]])[:3].tolist()
    [1, 3, 5]
    """
    seed = check_count("seed", seed)
    for count in keep:
        check_count("keep", count, at_least=1)
    check_number("share", share, above=0, at_most=0.5)
    rng = np.random.default_rng(seed)
    order = _time_order(interactions)
    ids = {"user": interactions.user[order], "item": interactions.item[order]}
    roles = {  # of every entity: 0 whole, 1 validates, 2 tests
        name: _roles(ids[name], num_entities, share, max(keep), rng)
        for name, num_entities in (
            ("user", interactions.num_users),
            ("item", interactions.num_items),
        )
    }
    role_of = {name: roles[name][ids[name]] for name in ids}
    role = np.maximum(role_of["user"], role_of["item"])
    for name, other in (("user", "item"), ("item", "user")):
        events = np.flatnonzero((role_of[name] > 0) & (role_of[other] == 0))
        kept = _random_few(ids[name][events], keep, rng)
        role[events[kept]] = 0
    return Partition(
        train=order[role == 0],
        validation=order[role == 1],
        test=order[role == 2],
        name=f"truncated(seed={seed}, keep={tuple(keep)}, share={share:g})",
    )


def _roles(
    ids: np.ndarray, num_entities: int, share: float, too_few: int, rng: np.random.Generator
) -> np.ndarray:
    """2 for a random share of the entities, 1 for another, 0 for the rest and the rarely seen."""
    roles = np.zeros(num_entities, np.int64)
    num_cut = _part_of(num_entities, share)
    entities = rng.permutation(num_entities)
    roles[entities[:num_cut]] = 2
    roles[entities[num_cut : 2 * num_cut]] = 1
    roles[np.bincount(ids, minlength=num_entities) <= too_few] = 0
    return roles


def _random_few(ids: np.ndarray, keep: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Positions of some random events of each entity: of as many as one of `keep`, in turns."""
    shuffled = rng.permutation(len(ids))
    shuffled = shuffled[np.argsort(ids[shuffled], kind="stable")]
    _, first, which, counts = np.unique(
        ids[shuffled], return_index=True, return_inverse=True, return_counts=True
    )
    wanted = rng.permutation(np.resize(keep, len(counts)))
    return shuffled[np.arange(len(ids)) - first[which] < wanted[which]]


def _time_order(interactions: Interactions) -> np.ndarray:
    """Row numbers sorted by (timestamp, user, item), or by (user, item) without times."""
    keys = [interactions.item, interactions.user]  # the last key is the first to sort by
    if interactions.timestamp is not None:
        keys.append(interactions.timestamp)
    return np.lexsort(keys)


def _cut(rows: np.ndarray, test_share: float, validation_share: float, name: str) -> Partition:
    num_development = _part_of(len(rows), 1 - test_share)
    num_train = num_development - _part_of(num_development, validation_share)
    return Partition(
        train=rows[:num_train],
        validation=rows[num_train:num_development],
        test=rows[num_development:],
        name=name,
    )


def _part_of(count: int, share: float) -> int:
    """The share rounded down, but 0.8 of 10 is 8 although 1 - 0.2 is a hair off."""
    return int(round(share * count, 6))


def _check_shares(test_share: float, validation_share: float) -> None:
    check_number("test_share", test_share, above=0, at_most=1)
    check_number("validation_share", validation_share, at_least=0, at_most=1)
    if test_share == 1 or validation_share == 1:
        raise ArgumentError("test_share and validation_share must be below 1: something must train")


def _check_times(interactions: Interactions, what: str) -> None:
    if interactions.timestamp is None:
        raise DataError(
            f"{what} needs times and {interactions.name} has none; name their column when reading "
            "(timestamp=), or use random_partition"
        )
