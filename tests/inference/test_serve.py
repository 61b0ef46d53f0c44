"""The HTTP service: answers, limits, batches, hostile requests, signals, new checkpoints, and the page in a browser."""

import asyncio
import dataclasses
import gc
import io
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import cifar_jax as cj
from cifar_jax import cli
from cifar_jax.inference import batching
from cifar_jax.inference.batching import Batcher, Busy, Failed, Postponed, Unreadable
from cifar_jax.inference.serve import Options, read_token
from cifar_jax.inference.service_images import MAX_SCANS, decode_upload, webp_size
from tests import made
from tests.inference.browser import CHROMIUM, Browser
from tests.inference.conftest import DATA

httpx = pytest.importorskip("httpx")
for name in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(name)

ROOT = Path(__file__).parent.parent.parent
TOKEN = "a-token-of-many-characters"


class Server:
    """launch.py serve in a process of its own, at a port that is free."""

    def __init__(self, workdir, *arguments):
        command = [sys.executable, "launch.py", "serve", f"--workdir={workdir}", "--port=0", *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        self.lines: list[str] = []
        line = self.wait_for("served at") or pytest.fail(self.process.stderr.read())
        self.url = re.search(r"http://\S+", line)[0]
        self.port = int(self.url.rpartition(":")[2])

    def wait_for(self, text):
        """The next line of its output with the text; None where it ends before."""
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        return None

    def client(self, **more):
        return httpx.Client(base_url=self.url, timeout=30, **more)

    def raw(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(60)
        told = self.process.stderr.read()
        self.process.stdout.close(), self.process.stderr.close()
        return code, told


@pytest.fixture(scope="module")
def indexed(workdir, classifier, tmp_path_factory):
    """An index of files, whose folders are classes."""
    folder = tmp_path_factory.mktemp("serve")
    split = DATA["test"]
    for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        place = folder / "secret-place" / split.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    cj.build_index(classifier, folder / "secret-place", folder / "index", workdir=workdir, progress=False)
    return folder / "index"


@pytest.fixture(scope="module")
def server(workdir, indexed):
    server = Server(
        workdir, f"--index={indexed}", "--max_bytes=200000", "--max_images=3", "--timeout=2", "--max_pixels=1000000"
    )
    yield server
    assert server.end() == (0, "")  # and nothing of what the tests sent was logged as an error


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def png(image=None, **more):
    stream = io.BytesIO()
    Image.fromarray(DATA["test"].images[0] if image is None else image).save(stream, more.pop("format", "PNG"), **more)
    return stream.getvalue()


# --- what is answered ---


def test_classes_are_those_of_the_classifier(client, classifier, images):
    expected = classifier.predict(images)
    order = np.argsort(-expected.probabilities, axis=-1, kind="stable")
    for image, name, values, ranks in zip(images, expected.names, expected.probabilities, order, strict=True):
        answer = client.post("/v1/predict", content=png(image)).json()
        assert answer["model"] == classifier.digest[:12]
        (result,) = answer["results"]
        assert (result["class"], result["name"], result["error"]) == (name, None, None)
        assert [each["class"] for each in result["top"]] == [classifier.classes[index] for index in ranks]
        found = [each["probability"] for each in result["top"]]
        np.testing.assert_allclose(found, values[ranks], atol=1e-5)


def at_once(server, contents, headers=None):
    async def ask():
        async with httpx.AsyncClient(base_url=server.url, timeout=30, headers=headers) as client:
            return await asyncio.gather(*(client.post("/v1/predict", content=content) for content in contents))

    return asyncio.run(ask())


def test_many_at_once_are_each_answered_with_their_own(server, classifier, images):
    answers = at_once(server, list(map(png, images)))
    assert [answer.json()["results"][0]["class"] for answer in answers] == classifier.predict(images).names


def test_before_it_is_compiled_and_after_an_error_of_the_program(classifier):
    from cifar_jax.inference.service_app import Limits, Service
    from cifar_jax.inference.service_model import Model

    service = Service(Model(classifier, None, {}), Limits(), None, [])

    async def ask(method, path, content=b""):
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, content=content)

    async def main():
        assert (await ask("GET", "/healthz")).status_code == 200
        for answer in (await ask("GET", "/readyz"), await ask("POST", "/v1/predict", png())):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        service.ready = True
        for answer in (await ask("GET", "/readyz"), await ask("POST", "/v1/predict", png())):
            assert answer.status_code == 200
        service.model = Model(dataclasses.replace(classifier, weights={}), None, {})
        answer = await ask("POST", "/v1/predict", png())
        assert (answer.status_code, answer.json()) == (500, {"error": "an error of the service; its log tells more"})

    asyncio.run(main())
    service.batcher.close()


def test_full_garbage_collections_leave_out_what_was_there_before_it_was_ready(classifier):
    """They would stop all answers."""
    from cifar_jax.inference import serve
    from cifar_jax.inference.service_app import Limits, Service
    from cifar_jax.inference.service_model import Model

    service = Service(Model(classifier, None, {}), Limits(), None, [])
    over = SimpleNamespace(should_exit=True)
    try:
        serve._prepare(service, over, Options(Path("none")), None, "", 0.0, [])
        assert service.ready
        assert gc.get_freeze_count() > 100_000
        assert len(gc.get_objects()) < 10_000
    finally:
        gc.unfreeze()
        service.batcher.close()


def test_a_form_holds_several_images_and_tells_which_is_broken(client, classifier, images):
    files = [("image", ("one.png", png(images[0]))), ("image", ("two.txt", b"text"))]
    files += [("x", ("3.gif", png(images[1], format="GIF")))]
    answer = client.post("/v1/predict?top=1", files=files)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["name"] for result in results] == ["one.png", "two.txt", "3.gif"]
    assert [len(result.get("top", [])) for result in results] == [1, 0, 1]
    assert "not an image of the formats PNG" in results[1]["error"]
    answer = client.post("/v1/predict", files=[("image", ("a", b"1")), ("image", ("b", b"2"))])
    assert answer.status_code == 415
    assert "none of the 2 images can be read" in answer.json()["error"]


def test_similar_images_are_those_of_the_index_without_its_paths(client, classifier, indexed, images):
    index = cj.load_index(indexed)
    files = [item["path"] for item in index.items]
    answers = cj.find_similar(index, classifier, files, top=3)
    for path, expected in zip(files, answers, strict=True):
        answer = client.post("/v1/similar?top=3", content=Path(path).read_bytes())
        assert "secret-place" not in answer.text
        found = answer.json()["results"][0]["neighbours"]
        np.testing.assert_allclose(
            [each["similarity"] for each in found], [each.similarity for each in expected.neighbours], atol=1e-5
        )
        assert found[0]["label"] == Path(files[found[0]["id"]]).parent.name
        assert found[0]["name"] == Path(files[found[0]["id"]]).name
    picture = client.get(f"/v1/images/{found[0]['id']}")
    assert Image.open(io.BytesIO(picture.content)).format == "PNG"
    assert client.get("/v1/images/40").status_code == client.get("/v1/images/-1").status_code == 404
    assert client.post("/v1/similar?top=101", content=png()).status_code == 400


def follows(value, schema, schemas):
    """Whether a value is as a schema of OpenAPI says; only what our schemas use."""
    if "$ref" in schema:
        return follows(value, schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        return any(follows(value, part, schemas) for part in schema["anyOf"])
    types = {"string": str, "number": (int, float), "integer": int, "boolean": bool, "array": list, "object": dict}
    types |= {"null": type(None)}
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(isinstance(value, types[kind]) for kind in kinds):
        return False
    if isinstance(value, list):
        return all(follows(part, schema["items"], schemas) for part in value)
    if isinstance(value, dict):
        known = schema["properties"]
        return set(schema["required"]) <= set(value) <= set(known) and all(
            follows(value[name], known[name], schemas) for name in value
        )
    return True


def test_the_description_is_true(client):
    described = client.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    asked = {
        "/v1/predict": ("post", {"content": png()}, "Prediction"),
        "/v1/similar": ("post", {"content": png()}, "Similar"),
        "/v1/model": ("get", {}, "Model"),
        "/healthz": ("get", {}, "Status"),
        "/readyz": ("get", {}, "Status"),
        "/metrics": ("get", {}, None),
        "/v1/images/{id}": ("get", {}, None),
    }
    assert set(described["paths"]) == set(asked)
    for path, (method, sent, schema) in asked.items():
        responses = described["paths"][path][method]["responses"]
        answer = client.request(method, path.replace("{id}", "0"), **sent)
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] in responses["200"]["content"]
        assert schema is None or follows(answer.json(), schemas[schema], schemas), answer.json()
    assert not follows({"status": 1}, schemas["Status"], schemas)
    assert follows(client.post("/v1/predict", content=b"no").json(), schemas["Error"], schemas)


def test_metrics_count(client):
    def count():
        found = re.search(r'requests_total{path="/v1/predict",status="415"} (\S+)', client.get("/metrics").text)
        return float(found[1]) if found else 0

    before = count()
    client.post("/v1/predict", content=b"no")
    assert count() == before + 1
    shown = ("cifar_jax_batch_images_count", "cifar_jax_pending_images 0.0", "cifar_jax_held_bytes 0.0")
    for name in (*shown, "cifar_jax_ready 1.0"):
        assert name in client.get("/metrics").text


# --- what is refused ---


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width, height):
    """A PNG of few bytes and so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * min(height, 100)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def webp(width, height):
    content = png(format="WEBP", lossless=True)
    extended = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + extended + content[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def scans():
    """A progressive JPEG whose last scan is repeated."""
    content = png(np.zeros((64, 64, 3), np.uint8), format="JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * MAX_SCANS + content[-2:]


SVG = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
HOSTILE = {
    "nothing": (b"", 400),
    "text": (b"hello", 415),
    "svg": (SVG, 415),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 415),
    "tiff": (png(format="TIFF"), 415),
    "truncated": (png()[:-40], 422),
    "damaged": (png()[:50] + b"\0" * 30 + png()[80:], 422),
    "half a jpeg": (png(np.zeros((64, 64, 3), np.uint8), format="JPEG")[:300], 422),
    "bomb": (bomb(60_000, 60_000), 413),
    "small bomb": (bomb(1001, 1000), 413),
    "webp": (webp(16_000, 16_000), 413),
    "scans": (scans(), 413),
    "bytes": (b"x" * 200_001, 413),
    "texts": (png()[:-12] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000))) + png()[-12:], 422),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_images_are_refused_with_a_sentence(client, name):
    content, status = HOSTILE[name]
    start = time.monotonic()
    answer = client.post("/v1/predict", content=content)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert len(answer.json()["error"]) > 10
    assert time.monotonic() - start < 5
    assert client.post("/v1/predict", content=png()).status_code == 200


def test_polyglots_are_images_and_nothing_else(client):
    answer = client.post("/v1/predict", content=png() + b"<script>alert(1)</script>")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_names_come_back_as_text(client):
    answer = client.post("/v1/predict", files=[("image", ('<script>"ü\u202e.png', png()))])
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.json()["results"]) == 1


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "multipart/form-data", 400),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x", 400),
        (b"nothing", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n" + b"a" * 50_000, "multipart/form-data; boundary=x", 400),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--", "multipart/form-data; boundary=x", 400),
        (b"\r\n--" * 49_000, "multipart/form-data; boundary=" + "y" * 70, 400),
        (b"--x--" * 1000, "multipart/form-data; boundary=" + "y" * 1000, 400),
    ],
)
def test_forms_that_are_none(client, body, kind, status):
    assert client.post("/v1/predict", content=body, headers={"content-type": kind}).status_code == status


def test_too_many_images_paths_methods_and_numbers(client):
    four = [("image", ("a.png", png())) for _ in range(4)]
    answer = client.post("/v1/predict", files=four)
    assert answer.status_code == 413
    assert "more than 3 images" in answer.json()["error"]
    assert client.post("/v1/nothing", content=b"x" * 1000).status_code == 404
    assert client.get("/v1/predict").status_code == 405
    assert client.get("/v1/images/..%2f..%2fetc%2fpasswd").status_code == 404
    for top in ("0", "-1", "5", "x", "1e1", "²", "9" * 5000):
        assert client.post("/v1/predict", params={"top": top}, content=png()).status_code == 400


def test_headers_have_a_limit_and_slow_senders_too(server, client):
    with server.raw() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    with server.raw() as connection:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head + b"x")
        start = time.monotonic()
        for _ in range(3):  # of --timeout
            assert client.post("/v1/predict", content=png()).status_code == 200
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert 1 < time.monotonic() - start < 10
    with server.raw() as connection:  # chunks without an end
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = b"fa00\r\n" + b"x" * 0xFA00 + b"\r\n"
        connection.sendall(sent * 4)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_the_answer_to_a_body_that_is_too_long_arrives(server, client):
    answer = client.post("/v1/predict", content=bytes(5_000_000))
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    with server.raw() as connection:  # a client that sends all of it before it reads
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n")
        for _ in range(20):
            connection.sendall(bytes(1_000_000))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    with server.raw() as connection:  # curl asks before it sends
        connection.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_page_of_another_name_cannot_read_the_answers(server, client):
    """DNS rebinding: the name of a foreign page points to this machine."""
    for host, status in (
        ("evil.example", 403),
        ("localhost.evil.example:80", 403),
        ("localhost", 200),
        (f"127.0.0.1:{server.port}", 200),
        ("[::1]", 200),
    ):
        assert client.get("/v1/model", headers={"host": host}).status_code == status


def test_pages_and_answers_have_a_strict_policy_and_no_cors(client):
    for path in ("/", "/page.js", "/page.css", "/icon.svg", "/v1/model", "/healthz", "/nothing"):
        headers = client.get(path, headers={"origin": "https://example.org"}).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control")]
    assert "server" not in headers
    for name in ("index.html", "page.css", "page.js"):
        text = (ROOT / "cifar_jax" / "inference" / "page" / name).read_text()
        assert not re.search(r"https?://|//[a-z]+\.|innerHTML|\bstyle=|\bon[a-z]+=", text), name


# --- the batcher, alone ---


def run_batcher(scenario, decode, compute, **more):
    async def main():
        batcher = Batcher(decode, compute, **more)
        try:
            return await scenario(batcher)
        finally:
            await asyncio.to_thread(batcher.close)

    return asyncio.run(main())


def as_number(key, content, small):
    if content == b"broken":
        return Unreadable(415, "broken")
    if content == b"large" and small:
        raise Postponed
    return (content, small)


def test_a_batch_holds_what_is_there_and_results_keep_their_places():
    sizes, gate = [], threading.Event()

    def compute(key, images):
        gate.wait(10)
        sizes.append(len(images))
        return [(key, *image) for image in images]

    async def scenario(batcher):
        asks = [asyncio.ensure_future(batcher.submit("a", [b"%d" % number])) for number in range(9)]
        both = asyncio.ensure_future(batcher.submit("b", [b"large", b"broken", b"1"]))
        await asyncio.sleep(0.2)
        assert batcher.pending == 11  # what is broken was found at once
        gate.set()
        return [*(await asyncio.gather(*asks)), await both], batcher.pending

    results, pending = run_batcher(scenario, as_number, compute, batch=4)
    assert results[:9] == [[("a", b"%d" % number, True)] for number in range(9)]
    assert results[9] == [("b", b"large", False), Unreadable(415, "broken"), ("b", b"1", True)]
    assert pending == 0
    assert max(sizes) <= 4
    assert len(sizes) < 9


def test_a_batch_waits_for_those_who_were_just_answered(monkeypatch):
    monkeypatch.setattr(batching, "LEAST_WAIT", 1.0)
    sizes, together = [], threading.Barrier(4)

    def decode(key, content, small):
        if content == b"first":
            together.wait(10)
        return content

    def compute(key, images):
        sizes.append(len(images))
        return images

    async def scenario(batcher):
        batcher._small = ThreadPoolExecutor(4)
        await asyncio.gather(*(batcher.submit("a", [b"first"]) for _ in range(4)))
        asks = []
        for _ in range(4):  # one after another
            asks.append(asyncio.ensure_future(batcher.submit("a", [b"again"])))
            await asyncio.sleep(0.02)
        await asyncio.gather(*asks)
        for _ in range(2):  # the others have gone: it waits once
            await batcher.submit("a", [b"alone"])

    run_batcher(scenario, decode, compute, delay=5.0)
    assert sizes == [4, 4, 1, 1]


def test_a_full_queue_refuses_and_what_was_given_up_is_not_computed():
    computed, gate = [], threading.Event()

    def compute(key, images):
        computed.extend(images)
        return images

    def decode(key, content, small):
        gate.wait(10)
        return content

    async def scenario(batcher):
        first = asyncio.ensure_future(batcher.submit("a", [b"1", b"2"]))
        await asyncio.sleep(0.05)
        with pytest.raises(Busy):
            await batcher.submit("a", [b"3"])
        first.cancel()
        gate.set()
        while batcher.pending:
            await asyncio.sleep(0.01)
        return await batcher.submit("a", [b"4", b"5"])

    assert run_batcher(scenario, decode, compute, capacity=2) == [b"4", b"5"]
    assert set(computed) <= {b"1", b"2", b"4", b"5"}
    assert b"3" not in computed


def test_a_batch_is_as_large_as_pays():
    """17 images that would be padded to 32 wait for no gain; the order stays."""
    from cifar_jax.inference.service_model import Model

    flat = Model(None, None, {}, {"predict": {1: 1.0, 2: 2.0, 4: 3.9, 8: 7.8}})
    assert [flat.best_count("predict", count) for count in (1, 2, 3, 4, 5, 7, 8)] == [1, 2, 2, 4, 4, 4, 8]
    steep = Model(None, None, {}, {"predict": {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3}})
    assert [steep.best_count("predict", count) for count in (1, 3, 5, 8)] == [1, 3, 5, 8]
    assert Model(None, None, {}).best_count("predict", 7) == 7
    sizes, gate, order = [], threading.Event(), []

    def compute(key, images):
        gate.wait(10)
        sizes.append(len(images))
        order.extend(images)
        return images

    async def scenario(batcher):
        first = asyncio.ensure_future(batcher.submit("a", [b"0"]))
        await asyncio.sleep(0.1)
        rest = [asyncio.ensure_future(batcher.submit("a", [b"%d" % number])) for number in range(1, 8)]
        await asyncio.sleep(0.1)
        gate.set()
        return await asyncio.gather(first, *rest)

    choose = lambda key, count: flat.best_count("predict", count)
    found = run_batcher(scenario, lambda key, content, small: content, compute, choose=choose)
    assert found == [[b"%d" % number] for number in range(8)]
    assert sizes == [1, 4, 2, 1]
    assert sorted(order) == [b"%d" % number for number in range(8)]


def test_an_error_of_the_program_is_that_of_its_batch_alone():
    def compute(key, images):
        if key == "bad":
            raise RuntimeError("no")
        return images

    async def scenario(batcher):
        return await asyncio.gather(batcher.submit("bad", [b"1"]), batcher.submit("good", [b"2"]))

    (failed,), good = run_batcher(scenario, lambda key, content, small: content, compute)
    assert isinstance(failed, Failed)
    assert good == [b"2"]


def test_a_webp_of_too_many_pixels_is_not_even_opened(monkeypatch):
    """Pillow allocates two images of its size to open it."""
    from cifar_jax.inference import service_images

    monkeypatch.setattr(service_images, "decode", None)
    refused = decode_upload(webp(16_000, 16_000), (8, 8, 3), "stretch", 10**6, True)
    assert (refused.status, "16000x16000 pixels" in refused.reason) == (413, True)


def test_sizes_of_webp_are_those_of_pillow():
    random = np.random.RandomState(0)
    for height, width in ((1, 1), (7, 300), (513, 64)):
        for lossless in (True, False):
            content = png(random.randint(0, 255, (height, width, 3), np.uint8), format="WEBP", lossless=lossless)
            assert webp_size(content) == (width, height)
    assert webp_size(webp(16_000, 12_345)) == (16_000, 12_345)
    assert webp_size(png()) is None
    with pytest.raises(Postponed):
        decode_upload(png(np.zeros((600, 600, 3), np.uint8)), (8, 8, 3), "stretch", 10**6, True)


# --- starting and ending ---


def test_a_token_is_asked_for(workdir, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    one = ("--queue=1", "--max_images=1")
    server = Server(workdir, f"--token_file={tmp_path / 'token'}", "--cors_origin=https://example.org", *one)
    with server.client() as client:
        for path in ("/v1/model", "/metrics", "/v1/images/0"):
            for headers in ({}, {"authorization": TOKEN}, {"authorization": f"Bearer {TOKEN}x"}):
                answer = client.get(path, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.post("/v1/predict", content=png()).status_code == 401
        assert client.get("/healthz").status_code == client.get("/").status_code == 200
        right = {"authorization": f"Bearer {TOKEN}"}
        assert client.post("/v1/predict", content=png(), headers=right).status_code == 200
        assert client.post("/v1/similar", content=png(), headers=right).status_code == 404  # there is no index
        for origin, allowed in (("https://example.org", True), ("https://other.org", False)):
            answer = client.get("/v1/model", headers=right | {"origin": origin})
            assert ("access-control-allow-origin" in answer.headers) == allowed
    answers = at_once(server, [png()] * 40, right)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert {answer.headers.get("retry-after") for answer in refused} == {"1"}
    assert server.end(signal.SIGINT) == (0, "")


def test_sigterm_finishes_what_was_accepted(workdir):
    server = Server(workdir)
    content = png()
    with server.raw() as connection, server.raw() as idle:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[:20])
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.sendall(content[20:])
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.rpartition(b"\r\n")[2])["results"][0]["error"] is None
    assert server.process.wait(30) == 0


def test_a_second_signal_does_not_wait(workdir):
    server = Server(workdir)
    with server.raw() as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        assert server.end()[0] == 128 + signal.SIGTERM


def test_a_new_checkpoint_is_loaded_without_dropping_a_request(workdir, other_workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    server = Server(run, "--watch")
    names, statuses, stop = [], [], threading.Event()

    def ask():
        with server.client() as client:
            while not stop.is_set():
                answer = client.post("/v1/predict", content=png())
                statuses.append(answer.status_code)
                names.append(answer.json().get("model"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        (run / "run.json").write_text("{")  # damaged: the model that is there goes on
        time.sleep(2.5)
        cj.fit(made.recipe({"epochs": 1, "seed": 1}), tmp_path / "other", data=DATA, progress=False)
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "other", run)
        assert server.wait_for("now serving model")
        time.sleep(0.2)
    finally:
        stop.set()
        asking.join()
    expected = [cj.load_classifier(path).digest[:12] for path in (workdir, tmp_path / "other")]
    assert set(statuses) == {200}
    assert list(dict.fromkeys(names)) == expected
    code, told = server.end()
    assert code == 0
    assert "the new files are not used" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_bytes": 0}, "--max_bytes=0 would refuse every request"),
        ({"timeout": 0.0}, "--timeout=0.0 is no number of seconds"),
        ({"batch_delay": -1.0}, "must be in 0..1000 milliseconds"),
        ({"port": 70000}, "--port=70000 is no port"),
        ({"max_images": 999}, "more than the --queue=256 holds"),
        ({"cors_origins": ("*",)}, "is no origin"),
    ],
)
def test_numbers_that_make_no_sense(tmp_path, change, told):
    with pytest.raises(cj.InputError, match=re.escape(told)):
        Options(tmp_path, **change).check()


def test_what_cannot_be_served_is_told(workdir, other_workdir, indexed, tmp_path, capsys, monkeypatch):
    def told(*arguments):
        assert cli.main(["serve", *arguments]) == 2
        return capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"error: --port={port} cannot be used at 127.0.0.1 (Address already in use)" in told(
            f"--workdir={workdir}", f"--port={port}"
        )
    here = "--port=0"
    assert "holds no run" in told(f"--workdir={tmp_path}", here)
    bare = shutil.copytree(workdir, tmp_path / "bare")
    for name in ("checkpoints", "manifests"):
        shutil.rmtree(bare / name)
    assert "has no whole checkpoint yet" in told(f"--workdir={bare}", here)
    assert "was made by another model" in told(f"--workdir={other_workdir}", f"--index={indexed}", here)
    assert "holds no index" in told(f"--workdir={workdir}", f"--index={tmp_path}", here)
    assert "is no address of this machine" in told(f"--workdir={workdir}", here, "--host=not.a.host.invalid")
    assert "cannot be read (No such file" in told(f"--workdir={workdir}", here, f"--token_file={tmp_path / 'no'}")
    for content in (b"", b"short", b"two words of a token", b"\xff" * 20):
        (tmp_path / "token").write_bytes(content)
        with pytest.raises(cj.InputError, match="holds no token"):
            read_token(tmp_path / "token")
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert "pip install -c constraints.txt -e '.[serve]'" in told(f"--workdir={workdir}", here)


# --- the page ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    browser = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.close()


def opened(browser, server, width=1280, scheme="light"):
    browser.events.clear()
    browser.screen(width, scheme=scheme)
    browser.open(server.url)
    browser.wait("document.getElementById('about').textContent.includes('knows 4 classes')")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_dropped_image_is_answered_with_classes_and_similar_images(browser, server, client, width, tmp_path):
    (tmp_path / "dropped.png").write_bytes(png())
    expected = client.post("/v1/predict", content=png()).json()["results"][0]
    opened(browser, server, width)
    browser.drop(width // 2, 200, tmp_path / "dropped.png")
    browser.wait("document.getElementById('status').textContent.endsWith('.')")
    browser.wait("document.querySelectorAll('.similar img').length == 10")
    rows = browser.value("[...document.querySelectorAll('.classes li')].map(row => row.innerText.split('\\n'))")
    assert [row[0] for row in rows] == [each["class"] for each in expected["top"]]
    assert rows[0][1] == f"{expected['top'][0]['probability']:.1%}"
    wide = "[...document.querySelectorAll('.bar')].map(bar => bar.offsetWidth / bar.parentNode.offsetWidth)"
    np.testing.assert_allclose(browser.value(wide), [each["probability"] for each in expected["top"]], atol=0.02)
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
    found = browser.names()
    assert ("list", "Most probable classes") in found
    assert ("image", "Your image dropped.png") in found
    assert ("status", "") in found
    assert ("button", "Choose images") in found
    assert (("button", "Take a photo") in found) or width == 1280
    assert not [name for role, name in found if role in ("image", "button", "textbox") and not name]
    assert browser.problems() == []
    assert all(url.startswith((server.url, "blob:", "data:")) for url in browser.requested())


def test_the_keyboard_reaches_the_buttons_and_the_focus_is_seen(browser, server):
    opened(browser, server)
    browser.key("Tab")
    assert browser.value("document.activeElement.id") == "files"
    outline = "getComputedStyle(document.querySelector('label[for=files]')).outlineStyle"
    assert browser.value(outline) == "solid"
    browser.send("Page.setInterceptFileChooserDialog", enabled=True)
    browser.key("Enter", "\r")
    browser.wait("true")
    assert any(event.get("method") == "Page.fileChooserOpened" for event in browser.events)
    browser.send("Page.setInterceptFileChooserDialog", enabled=False)


def test_chosen_and_pasted_images_and_what_is_wrong(browser, server, tmp_path):
    (tmp_path / "chosen.png").write_bytes(png())
    (tmp_path / "wrong.txt").write_bytes(b"text")
    opened(browser, server)
    node = browser.send(
        "DOM.querySelector", nodeId=browser.send("DOM.getDocument")["root"]["nodeId"], selector="#files"
    )
    browser.send("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(tmp_path / "chosen.png")])
    browser.wait("document.getElementById('status').textContent.startsWith('chosen.png: class')")
    browser.drop(600, 200, tmp_path / "wrong.txt")
    browser.wait("document.getElementById('status').textContent.includes('not an image of the formats')")
    # A TIFF-less browser format: a pasted SVG is drawn by the browser and sent as JPEG.
    browser.value(
        """{const data = new DataTransfer();
        data.items.add(new File(["<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>"], "pasted.svg",
            {type: "image/svg+xml"}));
        document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true})); 0}"""
    )
    browser.wait("document.getElementById('status').textContent.startsWith('pasted.svg:')")


def test_dark_mode_is_dark(browser, server):
    def lightness(scheme):
        opened(browser, server, scheme=scheme)
        colours = browser.value("['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])")
        return [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]

    light, dark = lightness("light"), lightness("dark")
    assert light[0] > 700 > 100 > light[1]
    assert dark[0] < 100 < 600 < dark[1]


def test_the_page_asks_for_a_token(browser, workdir, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    server = Server(workdir, f"--token_file={tmp_path / 'token'}")
    browser.open(server.url)
    browser.wait("!document.getElementById('token').hidden")
    assert browser.value("document.activeElement.id") == "secret"
    browser.send("Input.insertText", text=TOKEN)
    browser.key("Enter", "\r")
    browser.wait("document.getElementById('about').textContent.includes('knows 4 classes')")
    assert server.end() == (0, "")
