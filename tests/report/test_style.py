"""Colours that readers can tell apart and read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from celrec.report.read import KINDS
from celrec.report.style import COLOURS

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    ),
    "deuteranopia": np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    ),
    "tritanopia": np.array(
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(1)


def linear(colour: str) -> np.ndarray:
    """#rrggbb as linear RGB in [0, 1]."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB in CIELAB, where a distance of about 2 is just seen."""
    share = np.clip(TO_XYZ @ np.clip(rgb, 0, 1) / WHITE, 0, None)
    root = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


@pytest.mark.parametrize("screen", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_kinds_differ_for_every_kind_of_vision(vision: str, screen: int) -> None:
    seen = {kind: lab(VISION[vision] @ linear(COLOURS[kind][screen])) for kind in KINDS}
    for one, other in itertools.combinations(KINDS, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


@pytest.mark.parametrize("screen", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("role", [*KINDS, "other", "ink", "quiet"])
def test_text_in_every_colour_can_be_read(role: str, screen: int) -> None:
    """A contrast of 4.5, as WCAG 2 asks of text."""
    light, dark = sorted(
        (float(TO_XYZ[1] @ linear(COLOURS[name][screen])) for name in (role, "paper")), reverse=True
    )
    assert (light + 0.05) / (dark + 0.05) > 4.5
