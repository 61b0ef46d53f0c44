"""Data sets are found, downloaded and prepared; stock TFDS reads what is written."""

import dataclasses
import hashlib
import http.server
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cifar_jax.data import store as datasets
from cifar_jax.errors import InputError

ROOT = Path(__file__).parent.parent.parent
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def small():
    """-> (archive bytes, {split: (images [N, 32, 32, 3], labels [N])}) in the CIFAR-10 binary form."""
    random = np.random.default_rng(0)
    files = {"cifar-10-batches-bin/batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}
    expected = {"train": ([], []), "test": ([], [])}
    for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        labels = random.integers(0, 10, 12, dtype=np.uint8)
        images = random.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
        records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(12, -1)], axis=1)
        files[f"cifar-10-batches-bin/{name}"] = records.tobytes()
        for whole, part in zip(expected["test" if name.startswith("test") else "train"], (images, labels), strict=True):
            whole.append(part)
    joined = {split: tuple(np.concatenate(part) for part in parts) for split, parts in expected.items()}
    return _tar(files), joined


class Server:
    """Serves `content` on loopback; `cut` sends only that many bytes of the next answer."""

    def __init__(self, content: bytes):
        self.content, self.ranges, self.cut, self.status = content, True, None, None
        self.asked: list[str | None] = []  # the Range header of each request
        self.sent = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.asked.append(asked)
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and outer.ranges else 0
                if outer.status or start >= len(outer.content):
                    self.send_error(outer.status or 416)
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                body = body[: outer.cut]
                outer.cut = None
                outer.sent += len(body)
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/cifar-10-binary.tar.gz"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(small, monkeypatch):
    served = Server(small[0])
    _point(monkeypatch, served.url, small[0])
    yield served
    served.http.shutdown()
    served.http.server_close()


def _point(monkeypatch, url: str, content: bytes) -> None:
    entry = dataclasses.replace(datasets.DATASETS["cifar10"], url=url, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(datasets.DATASETS, "cifar10", entry)


def _downloads(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "tfds/downloads").iterdir() if path.is_file())


def _sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def _pairs(images, labels) -> Counter:
    return Counter((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def test_importing_and_finding_leaves_tfds_alone(tmp_path):
    folder = tmp_path / "tfds/cifar10/3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    code = (
        "import sys; from cifar_jax.data import arrays as data, store as datasets; assert datasets.find('cifar10');"
        "assert not {'tensorflow_datasets', 'PIL', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_the_package_is_light():
    """The parent's own imports are left out: what counts here is the import of cifar_jax.data alone."""
    code = (
        "import sys, types; parent = types.ModuleType('cifar_jax'); parent.__path__ = ['cifar_jax'];"
        "sys.modules['cifar_jax'] = parent; import cifar_jax.data; assert cifar_jax.data.load;"
        "assert not {'tensorflow_datasets', 'PIL', 'sklearn', 'jax', 'array_record'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_find_takes_the_highest_complete_version(tmp_path):
    def make(*parts, info=True):
        folder = tmp_path.joinpath(*parts)
        folder.mkdir(parents=True)
        if info:
            (folder / "dataset_info.json").write_text("{}")
        return folder

    assert datasets.find("foo") is None
    nine, ten = make("tfds/foo/9.0.0"), make("tfds/foo/10.0.0")
    make("tfds/foo/incomplete.ABC123_11.0.0")
    make("tfds/foo/12.0.0", info=False)
    config = make("tfds/foo/large/1.0.0")
    assert datasets.find("foo") == ten
    assert datasets.find("foo:9.0.0") == nine
    assert datasets.find("foo:9.0.1") is None
    assert datasets.find("foo/large") == config
    # The order: data_dir, else TFDS_DATA_DIR, and the cache last.
    cached = make("cache/cifar_jax/tensorflow_datasets/foo/99.0.0")
    other = make("other/foo/1.0.0")
    assert datasets.find("foo") == ten
    assert datasets.find("foo", tmp_path / "other") == other
    assert datasets.find("foo", tmp_path / "empty") == cached
    for name in ("../foo", "/etc", "", "foo:latest", "a/b/c"):
        with pytest.raises(InputError, match="is not a name"):
            datasets.find(name)


def test_home_is_the_last_default(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR")
    folder = tmp_path / "home/tensorflow_datasets/foo/1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    assert datasets.find("foo") == folder


def test_stock_tfds_reads_what_is_prepared(server, small, tmp_path, capfd):
    folder = datasets.prepare("cifar10", progress=False)
    assert folder == tmp_path / "tfds/cifar10/3.0.2" == datasets.find("cifar10")
    assert _downloads(tmp_path) == ["cifar10.lock"]  # the archive is not kept
    assert capfd.readouterr() == ("", "")

    import tensorflow_datasets as tfds

    assert "tensorflow" not in sys.modules
    with datasets.quiet():
        builder = tfds.builder_from_directory(folder)
        stock = tfds.data_source("cifar10", data_dir=tmp_path / "tfds")
        assert builder.info.full_name == "cifar10/3.0.2"
        assert builder.info.features["label"].names == NAMES
        assert "Krizhevsky" in builder.info.citation
        for split, (images, labels) in small[1].items():
            for source in (builder.as_data_source(split), stock[split]):
                examples = list(source)
                pairs = _pairs([example["image"] for example in examples], [example["label"] for example in examples])
                assert pairs == _pairs(images, labels)
                assert {example["id"] for example in examples} == {
                    f"{split}_{index:05d}".encode() for index in range(len(images))
                }
    asked = len(server.asked)
    assert datasets.prepare("cifar10", progress=False) == folder
    assert len(server.asked) == asked == 1


def test_cifar100_keeps_both_labels(tmp_path, monkeypatch):
    random = np.random.default_rng(1)
    coarse, fine = [f"coarse{n}" for n in range(20)], [f"fine{n}" for n in range(100)]
    records = random.integers(0, 256, (30, 3074), dtype=np.uint8)
    records[:, 0], records[:, 1] = np.arange(30) % 20, 99 - np.arange(30)
    archive = _tar(
        {
            "cifar-100-binary/coarse_label_names.txt": "\n".join(coarse).encode(),
            "cifar-100-binary/fine_label_names.txt": "\n".join(fine).encode(),
            "cifar-100-binary/train.bin": records[:20].tobytes(),
            "cifar-100-binary/test.bin": records[20:].tobytes(),
        }
    )
    downloads = tmp_path / "tfds/downloads"
    downloads.mkdir(parents=True)
    (downloads / "cifar-100-binary.tar.gz").write_bytes(archive)  # an archive that is there needs no connection
    entry = dataclasses.replace(datasets.DATASETS["cifar100"], sha256=hashlib.sha256(archive).hexdigest())
    monkeypatch.setitem(datasets.DATASETS, "cifar100", entry)
    folder = datasets.prepare("cifar100", progress=False)
    import tensorflow_datasets as tfds

    with datasets.quiet():
        builder = tfds.builder_from_directory(folder)
        examples = {example["id"]: example for example in builder.as_data_source("train")}
    assert folder.parts[-2:] == ("cifar100", "3.0.2")
    assert builder.info.features["coarse_label"].names == coarse
    assert builder.info.features["label"].names == fine
    assert [(example["coarse_label"], example["label"]) for _, example in sorted(examples.items())] == [
        (n % 20, 99 - n) for n in range(20)
    ]


def test_a_download_that_was_cut_off_goes_on(server, small, tmp_path):
    half = len(small[0]) // 2
    server.cut = half
    with pytest.raises(InputError, match="cannot be downloaded") as error:
        datasets.prepare("cifar10", progress=False)
    for part in (server.url, "cifar10/3.0.2", "--data_dir", "TFDS_DATA_DIR", str(tmp_path / "tfds")):
        assert part in _sentence(error)
    assert datasets.find("cifar10") is None
    part = tmp_path / "tfds/downloads/cifar-10-binary.tar.gz.part"
    assert part.read_bytes() == small[0][:half]
    datasets.prepare("cifar10", progress=False)
    assert server.asked == [None, f"bytes={half}-"]
    assert server.sent == len(small[0])  # no byte twice


def test_a_server_without_ranges_starts_again(server, small, tmp_path):
    server.ranges, server.cut = False, 1000
    with pytest.raises(InputError):
        datasets.prepare("cifar10", progress=False)
    assert datasets.prepare("cifar10", progress=False).is_dir()
    assert server.asked == [None, "bytes=1000-"]
    assert server.sent == len(small[0]) + 1000


def test_a_complete_part_is_taken(server, small, tmp_path):
    part = tmp_path / "tfds/downloads/cifar-10-binary.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(small[0])
    assert datasets.prepare("cifar10", progress=False).is_dir()
    assert server.sent == 0


def test_wrong_bytes_are_removed(server, small, tmp_path, monkeypatch):
    _point(monkeypatch, server.url, b"something else")
    with pytest.raises(InputError) as error:
        datasets.prepare("cifar10", progress=False)
    for digest in (hashlib.sha256(small[0]).hexdigest(), hashlib.sha256(b"something else").hexdigest()):
        assert digest in _sentence(error)
    assert _downloads(tmp_path) == ["cifar10.lock"]
    assert datasets.find("cifar10") is None
    _point(monkeypatch, server.url, small[0])
    assert datasets.prepare("cifar10", progress=False).is_dir()
    assert server.asked == [None, None]


def test_an_http_error_is_told(server):
    server.status = 503
    with pytest.raises(InputError, match="HTTP 503") as error:
        datasets.prepare("cifar10", progress=False)
    assert server.url in _sentence(error)


def test_refused_connection(small, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _point(monkeypatch, f"http://127.0.0.1:{port}/cifar-10-binary.tar.gz", small[0])
    with pytest.raises(InputError, match="Connection refused"):
        datasets.prepare("cifar10", progress=False)


@pytest.mark.parametrize("hanging", ["getaddrinfo", "create_connection"])
def test_offline_answers_within_two_seconds(small, monkeypatch, hanging):
    _point(monkeypatch, "http://nowhere.invalid/cifar-10-binary.tar.gz", small[0])

    def hang(*_, **__):
        time.sleep(4)
        raise OSError("too late")

    monkeypatch.setattr(socket, hanging, hang)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"no answer from nowhere.invalid within 1.5 s"):
        datasets.prepare("cifar10", progress=False)
    assert time.monotonic() - start < 2


def test_a_proxy_is_asked_in_place_of_the_server(server, monkeypatch):
    # Behind a proxy the name itself need not resolve; an HTTP proxy is sent the whole address.
    proxy = server.url.rpartition("/")[0]
    _point(monkeypatch, "http://nowhere.invalid/cifar-10-binary.tar.gz", server.content)
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("urllib.request._opener", None)  # one is kept from the first request, with its proxies
    assert datasets.prepare("cifar10", progress=False).is_dir()
    assert len(server.asked) == 1


def test_killed_while_writing_leaves_nothing_that_counts(tmp_path):
    code = """
import os, signal
from tensorflow_datasets.core import dataset_info
from cifar_jax.data import store as datasets
def kill(self, folder):
    assert "incomplete" in str(folder) and os.listdir(folder), folder
    os.kill(os.getpid(), signal.SIGKILL)
dataset_info.DatasetInfo.write_to_directory = kill  # all shards are written, the description is not
datasets.prepare("digits", progress=False)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = list((tmp_path / "cache/cifar_jax/tensorflow_datasets/digits").iterdir())
    assert [path.name.split(".")[0] for path in left] == ["incomplete"]
    (left[0] / "dataset_info.json").write_text('{"fileFormat": "array_record"}')  # killed just before the rename
    assert datasets.find("digits") is None
    assert datasets.prepare("digits", progress=False).name == "1.0.0"


def test_two_processes_prepare_one_set(tmp_path):
    code = "import sys; from cifar_jax.data.store import *; print(prepare('digits', sys.argv[1], progress=False))"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "d")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0].decode().strip() for process in both] == [str(tmp_path / "d/digits/1.0.0")] * 2
    assert [path.name for path in (tmp_path / "d/digits").iterdir()] == ["1.0.0"]


def test_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    folder = datasets.prepare("digits", progress=False)
    # Not in TFDS_DATA_DIR, which may be shared and read-only.
    assert folder == tmp_path / "cache/cifar_jax/tensorflow_datasets/digits/1.0.0"
    assert not (tmp_path / "tfds").exists()
    import tensorflow_datasets as tfds

    with datasets.quiet():
        builder = tfds.builder_from_directory(folder)
        train, test = (list(builder.as_data_source(split)) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    for share in np.bincount([example["label"] for example in test]) / np.bincount(
        [example["label"] for example in train + test]
    ):
        assert abs(share - 0.2) < 1 / 150  # each class within one of its fifth
    bunch = load_digits()
    small = [example["image"][::4, ::4, 0] for example in train + test]
    for example in train[:20]:
        image = example["image"]
        assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
        assert (image == image[::4, ::4].repeat(4, 0).repeat(4, 1)).all()
        assert (image == image[..., :1]).all()
    labels = [example["label"] for example in train + test]
    assert _pairs(small, labels) == _pairs(np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8), bunch.target)


def test_digits_go_to_a_data_dir_that_is_given(tmp_path):
    assert datasets.prepare("digits", tmp_path / "mine", progress=False) == tmp_path / "mine/digits/1.0.0"


@pytest.mark.parametrize("given", [True, False])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, small, given):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(InputError) as error:
        datasets.prepare("cifar10", tmp_path / "file" if given else None, progress=False)
    text = _sentence(error)
    assert f"cannot be prepared in {tmp_path / 'file'} ({'--data_dir' if given else 'TFDS_DATA_DIR'})" in text


def test_a_full_disk_is_one_sentence(tmp_path):
    code = """
import resource
from cifar_jax.data import store as datasets
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    datasets.prepare("digits", progress=False)
except datasets.InputError as error:
    print(error)
assert datasets.find("digits") is None
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"data set 'digits' cannot be prepared in .*File too large.*\n", done.stdout), done.stdout


@pytest.mark.parametrize("name", ["cifar11", "cifar10:1.0.0", "digits/large"])
def test_unknown_names(name, tmp_path):
    with pytest.raises(InputError) as error:
        datasets.prepare(name)
    text = _sentence(error)
    for part in (repr(name), "Known: cifar10, cifar100, digits", "array_record"):
        assert part in text
    assert ("did you mean 'cifar10" in text) or name == "digits/large"
    assert not (tmp_path / "tfds").exists()


def test_tfrecord_form_is_refused(tmp_path):
    folder = tmp_path / "tfds/cifar10/3.0.2"
    folder.mkdir(parents=True)
    for info in ({"fileFormat": "tfrecord"}, {}):  # without the field TFDS means tfrecord
        (folder / "dataset_info.json").write_text(json.dumps(info))
        with pytest.raises(InputError, match=r"'tfrecord' form.*array_record is needed"):
            datasets.prepare("cifar10")


def test_the_table_agrees_with_stock_tfds():
    from tensorflow_datasets import url_checksums

    folder = Path(next(iter(url_checksums.__path__)))
    for name in ("cifar10", "cifar100"):
        entry = datasets.DATASETS[name]
        assert str(entry.builder(name).VERSION) == entry.version
        url, _, digest, _ = (folder / f"{name}.txt").read_text().split()
        assert (entry.url, entry.sha256) == (url, digest)


def test_the_cache_has_its_default_under_home(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert datasets.cache_dir() == tmp_path / "home/.cache/cifar_jax"
    assert os.fspath(tmp_path) in os.fspath(datasets.cache_dir())
