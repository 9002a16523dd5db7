"""All baselines by name, found in the modules of this package."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from celrec import baselines
from celrec.baselines.contract import CompressedEmbedding


@cache
def all_baselines() -> dict[str, type[CompressedEmbedding]]:
    """Every class with a `kind`, by that; in alphabetical order.

    >>> sorted(all_baselines())[:1], all_baselines()["hashed"].__name__
    (['hashed'], 'HashedEmbedding')
    """
    for module in pkgutil.iter_modules(baselines.__path__):
        importlib.import_module(f"{baselines.__name__}.{module.name}")
    found = {cls.kind: cls for cls in _descendants(CompressedEmbedding) if "kind" in cls.__dict__}
    return dict(sorted(found.items()))


def _descendants(cls: type[CompressedEmbedding]) -> list[type[CompressedEmbedding]]:
    return [one for child in cls.__subclasses__() for one in (child, *_descendants(child))]
