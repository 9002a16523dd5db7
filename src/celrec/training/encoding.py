"""What entities store once training is over: the last step of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from celrec.core.blend import BlendRule
from celrec.core.codes import MAX_BLEND
from celrec.core.personal import PersonalRule
from celrec.errors import ArgumentError, check_count, check_number


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """How codes are made after the last epoch; for clustered tables.

    blend : m in [1, 64], clusters in a code; 1 keeps hard codes
    personal : whether every entity with data gets a vector of its own
    bytes_per_entity : > 0, total bytes, rows included, over the entities of all tables: chooses
        among additive codes and personal vectors by itself, in place of the two above; None: they
        decide
    blend_rule, personal_rule : see core/blend.py and core/personal.py
    """

    blend: int = 4
    personal: bool = False
    bytes_per_entity: float | None = None
    blend_rule: BlendRule = field(default_factory=BlendRule)
    personal_rule: PersonalRule = field(default_factory=PersonalRule)

    def __post_init__(self) -> None:
        check_count("blend", self.blend, at_least=1, at_most=MAX_BLEND)
        if self.bytes_per_entity is not None:
            check_number("bytes_per_entity", self.bytes_per_entity, above=0)
            if self.personal:
                raise ArgumentError(
                    "personal and bytes_per_entity are both given; the byte budget decides by "
                    "itself who gets a personal vector: leave personal out"
                )

    @property
    def is_personal(self) -> bool:
        """Whether any entity may get a vector of its own."""
        return self.personal or self.bytes_per_entity is not None

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to do beyond hard codes."""
        return self.blend > 1 or self.is_personal
