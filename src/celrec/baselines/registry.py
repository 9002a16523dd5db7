"""All baselines by name, found in the modules of this package."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from celrec.baselines.contract import CompressedEmbedding


@cache
def all_baselines() -> dict[str, type[CompressedEmbedding]]:
    """Every class with a `kind`, by that; in alphabetical order.

    >>> all_baselines()["hashed"].__name__
    'HashedEmbedding'
    """
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{package}.{module.name}")
    found = {cls.kind: cls for cls in _descendants(CompressedEmbedding) if "kind" in cls.__dict__}
    return dict(sorted(found.items()))


def _descendants(cls: Any) -> list[type[CompressedEmbedding]]:
    return [one for child in cls.__subclasses__() for one in (child, *_descendants(child))]
