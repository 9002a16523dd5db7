"""celrec: embedding tables tens to hundreds of times smaller, close to the accuracy of full ones.

The front door: the names that most programs need. Everything else is imported from the file that
defines it. Names are imported when they are first asked for, so that `celrec --help` does not wait
for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celrec.core.cluster_optimizer import ClusterOptimizer, ClusterSchedule
    from celrec.core.embedding import ClusteredEmbedding, ClusteredEmbeddingBag
    from celrec.core.memory import MemoryReport, TableMemory, memory_report
    from celrec.core.online import OnlineLearner, OnlineRule
    from celrec.core.online_embedding import OnlineEmbedding
    from celrec.core.reassign import ReassignRule
    from celrec.core.split import GainSplit, PaperSplit

__version__ = "0.1.0"

_HOME = {
    "ClusterOptimizer": "celrec.core.cluster_optimizer",
    "ClusterSchedule": "celrec.core.cluster_optimizer",
    "ClusteredEmbedding": "celrec.core.embedding",
    "ClusteredEmbeddingBag": "celrec.core.embedding",
    "GainSplit": "celrec.core.split",
    "MemoryReport": "celrec.core.memory",
    "OnlineEmbedding": "celrec.core.online_embedding",
    "OnlineLearner": "celrec.core.online",
    "OnlineRule": "celrec.core.online",
    "PaperSplit": "celrec.core.split",
    "ReassignRule": "celrec.core.reassign",
    "TableMemory": "celrec.core.memory",
    "memory_report": "celrec.core.memory",
}

__all__ = [
    "ClusterOptimizer",
    "ClusterSchedule",
    "ClusteredEmbedding",
    "ClusteredEmbeddingBag",
    "GainSplit",
    "MemoryReport",
    "OnlineEmbedding",
    "OnlineLearner",
    "OnlineRule",
    "PaperSplit",
    "ReassignRule",
    "TableMemory",
    "memory_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
