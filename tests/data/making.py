"""Small interactions for the tests of the data layer."""

from collections.abc import Sequence

from hypothesis import strategies as st

from celrec.data.interactions import Interactions
from celrec.data.vocabulary import Vocabulary


def interactions_of(
    rows: Sequence[Sequence[float]],
    *,
    num_users: int | None = None,
    num_items: int | None = None,
    has_times: bool = True,
) -> Interactions:
    """From rows of (user, item, label, timestamp)."""
    user, item, label, timestamp = (list(column) for column in zip(*rows, strict=True))
    return Interactions(
        user=user,
        item=item,
        label=label,
        timestamp=timestamp if has_times else None,
        users=Vocabulary.from_values(range(num_users or max(user) + 1)),
        items=Vocabulary.from_values(range(num_items or max(item) + 1)),
    )


@st.composite
def some_interactions(
    draw: st.DrawFn, *, min_rows: int = 1, has_times: bool | None = None
) -> Interactions:
    """A few interactions with many ties in time, repeated pairs and entities without rows.

    has_times : None draws it
    """
    num_users = draw(st.integers(1, 6))
    num_items = draw(st.integers(1, 8))
    row = st.tuples(
        st.integers(0, num_users - 1),
        st.integers(0, num_items - 1),
        st.integers(1, 5),
        st.integers(0, 4),
    )
    rows = draw(st.lists(row, min_size=min_rows, max_size=60))
    if has_times is None:
        has_times = draw(st.booleans())
    return interactions_of(rows, num_users=num_users, num_items=num_items, has_times=has_times)
