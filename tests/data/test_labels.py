"""Ratings become yes or no."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from celrec.data.interactions import Interactions
from celrec.data.labels import binarize
from celrec.data.readers import read_interactions
from celrec.errors import ArgumentError, DataError
from tests.data.making import interactions_of


def rated(*ratings: float) -> Interactions:
    return interactions_of([(0, i, rating, i) for i, rating in enumerate(ratings)])


def test_ratings_from_the_threshold_on_are_positive() -> None:
    ratings = rated(1, 2, 3, 4, 5)
    assert binarize(ratings, positive_from=4).label.tolist() == [0, 0, 0, 1, 1]
    kept = binarize(ratings, positive_from=4, drop=3)
    assert kept.label.tolist() == [0, 0, 1, 1]
    assert kept.item.tolist() == [0, 1, 3, 4]
    assert kept.items is ratings.items


def test_fractions_compare_as_they_are_stored() -> None:
    ratings = rated(0.1, 3.3, 4.7)
    assert binarize(ratings, positive_from=3.3).label.tolist() == [0, 1, 1]
    assert binarize(ratings, positive_from=4.7, drop=3.3).label.tolist() == [0, 1]


def test_one_class_only_is_refused() -> None:
    with pytest.raises(DataError, match=r"every label .* would be 0: ratings go from 1 to 5"):
        binarize(rated(1, 5), positive_from=6)
    with pytest.raises(DataError, match=r"every label .* would be 1: .* positive_from is 0"):
        binarize(rated(1, 5), positive_from=0)
    with pytest.raises(DataError, match="every rating of interactions is 3: none is left"):
        binarize(rated(3, 3), positive_from=4, drop=3)
    with pytest.raises(ArgumentError, match="positive_from is nan"):
        binarize(rated(1, 5), positive_from=float("nan"))


def test_movielens_as_the_gmf_protocol_labels_it(real_file: Callable[[str], Path]) -> None:
    ratings = read_interactions(real_file("ml_100k"))
    labels = binarize(ratings, positive_from=4, drop=3)
    counts = np.bincount(ratings.label.astype(int))
    assert len(labels) == len(ratings) - counts[3]
    assert labels.label.sum() == counts[4] + counts[5]
