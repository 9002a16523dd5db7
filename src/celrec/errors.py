"""The exceptions of celrec, and the argument checks that raise them.

One family: `except CelrecError` catches every mistake that a caller can make. Where a standard
exception says the same thing (ValueError, IndexError, ...), ours is also one of those. Every
message names the thing, where it was found, the value found, the value wanted and a remedy.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real


class CelrecError(Exception):
    """The base of every error that celrec raises on purpose."""


class ArgumentError(CelrecError, ValueError):
    """An argument is outside its range, or two arguments contradict each other."""


class EntityIdError(CelrecError, IndexError):
    """An id points outside the N entities of a table."""


class DtypeError(CelrecError, TypeError):
    """A tensor or array has a type that cannot be used here."""


class DataError(CelrecError, ValueError):
    """A data file or an array of interactions cannot be used as it is."""


class BadEventError(CelrecError, ValueError):
    """One record of a stream is no event: it goes to the dead letters, and the stream goes on.

    reason : what is wrong, in words that are the same for all records of the kind
    detail : what was found
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class SourceError(CelrecError, OSError):
    """A source of events cannot be reached or read."""


class PositionError(CelrecError, LookupError):
    """A source no longer holds what follows a position: going on would leave a gap."""


class LossError(CelrecError, ArithmeticError):
    """A loss is NaN or infinite, has the wrong shape, or mixes samples."""


class SampleError(CelrecError, ValueError):
    """A batch and its look-ups do not line up, or two passes saw different samples."""


class MetricError(CelrecError, ValueError):
    """A metric is undefined on the data it was given."""


class CheckpointError(CelrecError, OSError):
    """A checkpoint or run folder is missing, damaged, or belongs to something else."""


class ConfigError(CelrecError, ValueError):
    """A configuration names an unknown key or a value outside its range."""


class CatalogError(CelrecError, OSError):
    """A public data set could not be obtained."""


class MissingExtraError(CelrecError, ImportError):
    """An optional dependency is not installed."""


def check_count(name: str, value: object, *, at_least: int = 0, at_most: int | None = None) -> int:
    """Return `value` as an int in [at_least, at_most], or raise ArgumentError naming it.

    >>> check_count("max_clusters", 8, at_least=2)
    8
    """
    wanted = f"an integer of at least {at_least}"
    if at_most is not None:
        wanted = f"an integer from {at_least} to {at_most}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ArgumentError(f"{name} is {value!r}; wanted {wanted}")
    number = int(value)
    if number < at_least or (at_most is not None and number > at_most):
        raise ArgumentError(f"{name} is {number}; wanted {wanted}")
    return number


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return `value` as a finite float within the bounds, or raise ArgumentError naming it.

    above, at_least : lower bound, exclusive and inclusive
    at_most : upper bound, inclusive

    >>> check_number("eta", 0.1, at_least=0, at_most=1)
    0.1
    """
    bounds = [
        f"above {above:g}" if above is not None else "",
        f"at least {at_least:g}" if at_least is not None else "",
        f"at most {at_most:g}" if at_most is not None else "",
    ]
    wanted = "a finite number " + " and ".join(bound for bound in bounds if bound)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ArgumentError(f"{name} is {value!r}; wanted {wanted.strip()}")
    number = float(value)
    is_low = (above is not None and number <= above) or (at_least is not None and number < at_least)
    if is_low or (at_most is not None and number > at_most):
        raise ArgumentError(f"{name} is {number:g}; wanted {wanted}")
    return number


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, and list them all.

    returns : a sentence to append to an error message

    >>> nearest_name("ratng", ["user", "item", "rating"])
    "did you mean 'rating'? Known: item, rating, user"
    """
    names = sorted(known)
    listed = ", ".join(names) if names else "none"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? Known: {listed}" if close else f"known: {listed}"
