"""celrec: embedding tables hundreds of times smaller, and as accurate.

The front door: the names that most programs need. Everything else is imported from the file that
defines it.
"""

from celrec.core.cluster_optimizer import ClusterOptimizer, ClusterSchedule
from celrec.core.embedding import ClusteredEmbedding, ClusteredEmbeddingBag
from celrec.core.memory import MemoryReport, TableMemory, memory_report
from celrec.core.reassign import ReassignRule
from celrec.core.split import GainSplit, PaperSplit

__version__ = "0.1.0"

__all__ = [
    "ClusterOptimizer",
    "ClusterSchedule",
    "ClusteredEmbedding",
    "ClusteredEmbeddingBag",
    "GainSplit",
    "MemoryReport",
    "PaperSplit",
    "ReassignRule",
    "TableMemory",
    "memory_report",
]
