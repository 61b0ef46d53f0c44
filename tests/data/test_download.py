"""A download is resumed and checked, and a failed connection is reported quickly."""

import hashlib
import http.client
import socket
import time
import urllib.error

import numpy as np
import pytest

from cifar_jax.data import download as module
from cifar_jax.data.download import download
from cifar_jax.errors import InputError
from tests.data.server import Server

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
# What `download` raises when the connection fails, and `prepare` turns into an InputError.
FAILURES = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def server():
    served = Server(CONTENT)
    yield served
    served.close()


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "archive.tar.gz"


def part_of(archive):
    return archive.with_name(archive.name + ".part")


def test_a_download_has_the_content_and_no_part(server, archive):
    download(server.url, SHA256, archive, progress=False)
    assert archive.read_bytes() == CONTENT
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_is_resumed(server, archive, ranges):
    server.ranges, server.cut = ranges, 100_000
    with pytest.raises(FAILURES, match=r"cut off|IncompleteRead"):
        download(server.url, SHA256, archive, progress=False)
    assert not archive.exists()
    assert part_of(archive).read_bytes() == CONTENT[:100_000]
    download(server.url, SHA256, archive, progress=False)
    assert archive.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]
    assert server.sent == len(CONTENT) + (0 if ranges else 100_000)  # with ranges no byte is sent twice


def test_a_complete_part_is_used(server, archive):
    part_of(archive).write_bytes(CONTENT)
    download(server.url, SHA256, archive, progress=False)
    assert archive.read_bytes() == CONTENT
    assert server.sent == 0


@pytest.mark.parametrize("exists", [True, False])
def test_a_wrong_checksum_removes_the_file(server, archive, exists):
    server.content = b"something else"
    if exists:
        archive.write_bytes(server.content)
    with pytest.raises(InputError) as error:
        download(server.url, SHA256, archive, progress=False)
    for word in (server.url, SHA256, hashlib.sha256(server.content).hexdigest()):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert list(archive.parent.iterdir()) == []
    assert len(server.asked) == (0 if exists else 1)


def test_an_http_error_is_reported(server, archive):
    server.status = 503
    with pytest.raises(ConnectionError, match="HTTP 503"):
        download(server.url, SHA256, archive, progress=False)


def test_a_refused_connection_is_reported(archive):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match="Connection refused"):
        download(f"http://127.0.0.1:{port}/archive.tar.gz", SHA256, archive, progress=False)


@pytest.mark.parametrize("hanging", ["getaddrinfo", "create_connection"])
def test_offline_fails_within_the_limit(archive, monkeypatch, hanging):
    def hang(*_, **__):
        time.sleep(4)
        raise OSError("too late")

    monkeypatch.setattr(socket, hanging, hang)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer from nowhere.invalid within 1.5 s"):
        download("http://nowhere.invalid/archive.tar.gz", SHA256, archive, progress=False)
    assert time.monotonic() - start < module.CONNECT_SECONDS + 0.5


def test_a_proxy_is_asked_instead_of_the_server(server, archive, monkeypatch):
    # The name itself need not resolve behind a proxy.
    monkeypatch.setenv("http_proxy", server.url.rpartition("/")[0])
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # the opener of an earlier request keeps its proxies
    download("http://nowhere.invalid/archive.tar.gz", SHA256, archive, progress=False)
    assert archive.read_bytes() == CONTENT
    assert len(server.asked) == 1
