"""Servers that the tests of streams talk to, all on loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of our own; skips where redis-server or the client is not installed."""
    redis = pytest.importorskip("redis", reason="the extra redis is not installed")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        port = finder.getsockname()[1]
    folder: Path = tmp_path_factory.mktemp("redis")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as server:
        url = f"redis://127.0.0.1:{port}"
        try:
            with redis.Redis.from_url(url) as client:
                for _ in range(200):
                    try:
                        client.ping()
                        break
                    except redis.ConnectionError:
                        time.sleep(0.02)
                else:
                    pytest.fail(f"redis-server did not come up at {url}")
            yield url
        finally:
            server.terminate()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[Any]:
    """A client of an empty Redis."""
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def kafka() -> Iterator[tuple[str, Callable[[str, list[bytes]], None]]]:
    """The address of librdkafka's mock cluster, and a function that writes to partition 0."""
    confluent_kafka = pytest.importorskip(
        "confluent_kafka", reason="the extra kafka is not installed"
    )
    producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "log_level": 3})
    broker = next(iter(producer.list_topics(timeout=10).brokers.values()))

    def write(topic: str, values: list[bytes]) -> None:
        for value in values:
            producer.produce(topic, value, partition=0)
        assert producer.flush(10) == 0

    yield f"{broker.host}:{broker.port}", write
    producer.flush(1)
