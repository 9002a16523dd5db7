"""Labels: from ratings to a yes or no."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from celrec.data.interactions import Interactions
from celrec.errors import DataError, check_number


def binarize(
    interactions: Interactions, positive_from: float, drop: float | None = None
) -> Interactions:
    """Label 1 where the rating is at least `positive_from`, else 0.

    positive_from : the smallest rating that counts as a yes, in units of the ratings
    drop : rows with exactly this rating (the undecided middle) are left out; None keeps all
    returns : vocabularies and titles stay, entities that lost all their rows included
    raises : DataError if no row or only one class is left, naming the range of the ratings

    The GMF protocol is `binarize(ratings, positive_from=4, drop=3)`.

    >>> from celrec.data.vocabulary import Vocabulary
    >>> ratings = Interactions(user=[0, 0, 0], item=[0, 1, 2], label=[2, 3, 4],
    ...     users=Vocabulary.from_values("a"), items=Vocabulary.from_values("xyz"))
    >>> binarize(ratings, positive_from=4, drop=3).label.tolist()
    [0.0, 1.0]
    """
    positive_from = check_number("positive_from", positive_from)
    kept = interactions
    if drop is not None:
        # float32, or 3.3 would differ from the stored 3.3
        is_kept = interactions.label != np.float32(check_number("drop", drop))
        if not is_kept.any():
            raise DataError(f"every rating of {interactions.name} is {drop:g}: none is left")
        kept = interactions.take(is_kept)
    is_positive = kept.label >= np.float32(positive_from)
    if is_positive.all() or not is_positive.any():
        only = int(is_positive[0])
        raise DataError(
            f"every label of {kept.name} would be {only}: ratings go from {kept.label.min():g} to "
            f"{kept.label.max():g} and positive_from is {positive_from:g}; choose a value between"
        )
    return replace(kept, label=is_positive)
