"""What the tests of the data layer share."""

from collections.abc import Callable
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def real_file() -> Callable[[str], Path]:
    """The path of a real data set, by name; skips the test where it is not at hand."""

    def find(name: str) -> Path:
        path = SHARED_DATA / f"{name}.parquet"
        if not path.is_file():
            pytest.skip(f"{path} is not at hand")
        return path

    return find
