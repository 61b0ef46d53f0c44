"""Requests a second of `launch.py serve` with and without batching, hostile uploads among good ones, and a long load.

    python benchmarks/serve.py rate --wrk=PATH                   # cnn and resnet20, wrk of Debian's package `wrk`
    python benchmarks/serve.py rate --wrk=PATH --peer=COMMAND    # PNGs as base64, e.g. serve_litserve.py
    python benchmarks/serve.py hostile                           # 10,000 uploads
    python benchmarks/serve.py long --wrk=PATH --seconds=600
    (each with --smoke: finds errors, measures nothing)

rate: wrk keeps 32 connections busy, each with one request at a time: a PNG of 32x32 pixels (2.5 KB). Sides take turns,
there and back; a service is stopped (SIGSTOP) while it is not its turn. They are the service; the same with --batch=1;
and a model that costs next to nothing, which tells what HTTP and decoding cost. The ceiling is what batching could
give: 1 / (seconds of HTTP + seconds of the model per image in a batch), and the share is (service - without) /
(ceiling - without). Seconds of the model are measured in a process of its own. The load generator runs on the same
cores. Models were trained for one step.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from measuring import commit, machine, spread, turns
from predict import busy, write_pngs
from serve_hostile import good_load, hostile_load
from worker import HERE, cores

sys.path.insert(0, str(HERE.parent))
CONNECTIONS = 32
LUA = """
local contents = {}
for name in io.popen("ls -d '%s'/*"):lines() do
  local file = io.open(name, "rb"); contents[#contents + 1] = file:read("*a"); file:close()
end
local turn = 0
request = function()
  turn = turn %% #contents + 1
  return wrk.format("POST", nil, {["content-type"] = "%s"}, contents[turn])
end
done = function(summary, latency)
  local failed = 0
  for _, count in pairs(summary.errors) do failed = failed + count end
  io.write(string.format("RESULT {\\"requests\\": %%d, \\"seconds\\": %%f, \\"p50_ms\\": %%f, \\"p99_ms\\": %%f, " ..
    "\\"max_ms\\": %%f, \\"errors\\": %%d}\\n", summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, failed))
end
"""
MODEL = """
import sys, time, json
import numpy as np
import cifar_jax as cj
cj.prepare_process()
classifier = cj.load_classifier(sys.argv[1])
images = np.random.RandomState(0).randint(0, 256, (int(sys.argv[2]), 32, 32, 3), dtype=np.uint8)
classifier.probabilities(images)
start, count = time.perf_counter(), 0
while time.perf_counter() - start < 1.5:
    classifier.probabilities(images)
    count += len(images)
print((time.perf_counter() - start) / count)
"""


class Service:
    """A server in a process of its own."""

    def __init__(self, workdir: Path, *arguments: str, command: str | None = None) -> None:
        self.command = command
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        started = command.split() if command else [sys.executable, "launch.py", "serve", "--port=0"]
        self.process = subprocess.Popen(
            [*started, f"--workdir={workdir}", *arguments],
            cwd=HERE.parent,
            env=environment,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(rb"http://\S+", line):
                self.url = found[0].decode()
                return
        raise SystemExit("the service did not start")

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)  # a peer may have workers that outlive it

    def memory(self) -> float:
        """MB of its process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return float(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1000  # type: ignore[index]

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        self.process.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rate", "hostile", "long"))
    parser.add_argument("--wrk", default="wrk")
    parser.add_argument("--peer", help="command of another service; it prints its address")
    parser.add_argument("--models", default="cnn,resnet20")
    parser.add_argument("--rounds", type=int, default=3, help="passes there and back")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--uploads", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.seconds, options.uploads, options.models = 1, 1.0, 100, "cnn"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pngs(folder / "pngs", 64)
        (folder / "load.lua").write_text(LUA % (folder / "pngs", "image/png"))
        (folder / "json").mkdir()
        for path in (folder / "pngs").iterdir():
            text = json.dumps({"image": base64.b64encode(path.read_bytes()).decode()})
            (folder / "json" / f"{path.stem}.json").write_text(text)
        (folder / "load_peer.lua").write_text(LUA % (folder / "json", "application/json"))
        others, began = busy(), time.perf_counter()
        result = {"what": f"serve {options.what}", **machine(), "commit": commit()}
        result |= {"rate": rates, "hostile": hostile, "long": long}[options.what](folder, options)
        # Ended services and their clients are children, whose time `busy` takes off.
        share = (busy() - others) / (time.perf_counter() - began) / cores()
        result |= {"others_share_of_cpu": round(share, 2), "load_average": [round(load, 1) for load in os.getloadavg()]}
    print(json.dumps(result, indent=1))
    if not options.smoke:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"serve_{options.what}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def train(workdir: Path, model: str) -> Path:
    import cifar_jax as cj

    images = np.random.RandomState(0).randint(0, 256, (128, 32, 32, 3), dtype=np.uint8)
    tiny = {"model": {"name": "cnn", "width": 1, "kernel_size": 1, "hidden": 1}} if model == "nothing" else {}
    recipe = cj.load_recipe(f"configs/{'cnn' if model == 'nothing' else model}.py", {"epochs": 1, **tiny})
    cj.fit(recipe, workdir / model, data={"train": (images, np.arange(128) % 10)}, evaluate=None, progress=False)
    return workdir / model


def load(service: Service, folder: Path, options: argparse.Namespace, seconds: float | None = None) -> dict[str, Any]:
    """One run of wrk against /v1/predict."""
    command = [options.wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds or options.seconds:g}s", "--timeout", "10s"]
    peer = service.command is not None
    command += ["-s", str(folder / ("load_peer.lua" if peer else "load.lua"))]
    command += [f"{service.url}{'/predict' if peer else '/v1/predict'}"]
    service.signal(signal.SIGCONT)
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = json.loads(re.search(r"RESULT (.*)", text)[1])  # type: ignore[index]
    return {**found, "requests_per_second": found["requests"] / found["seconds"]}


def rates(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    nothing = train(folder, "nothing")
    result: dict[str, Any] = {"connections": CONNECTIONS, "seconds": options.seconds, "load_generator": "wrk (Debian)"}
    for name in options.models.split(","):
        workdir = train(folder, name)
        services = {"service": Service(workdir), "without": Service(workdir, "--batch=1"), "nothing": Service(nothing)}
        if options.peer:
            services["peer"] = Service(workdir, command=options.peer)
        try:
            for service in services.values():
                load(service, folder, options, 2)
                service.signal(signal.SIGSTOP)  # a peer that waits actively would slow the others
            sides: dict[str, Any] = {side: partial(in_turn, one, folder, options) for side, one in services.items()}
            sides |= {
                "model_alone": partial(model_seconds, workdir, 1),
                "model_batched": partial(model_seconds, workdir, 32),
            }
            result[name] = figures(turns(sides, options.rounds), list(services))
        finally:
            for service in services.values():
                service.close()
    return result


def in_turn(service: Service, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    try:
        return load(service, folder, options)
    finally:
        service.signal(signal.SIGSTOP)


def model_seconds(workdir: Path, batch: int) -> float:
    """Of an image, by `Classifier.probabilities` of so many."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-c", MODEL, str(workdir), str(batch)]
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def figures(answers: dict[str, list[Any]], services: list[str]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for side in services:
        runs = answers[side]
        told[side] = {name: spread([run[name] for run in runs]) for name in ("requests_per_second", "p50_ms", "p99_ms")}
        told[side]["errors"] = sum(run["errors"] for run in runs)
    told["model_ms_alone"] = spread([1000 * value for value in answers["model_alone"]])
    told["model_ms_in_a_batch"] = spread([1000 * value for value in answers["model_batched"]])
    rate = {side: [run["requests_per_second"] for run in answers[side]] for side in services}
    ceilings = [1 / (1 / http + cost) for http, cost in zip(rate["nothing"], answers["model_batched"], strict=True)]
    told["ceiling"] = spread(ceilings)
    told["gain"] = spread([ours / other for ours, other in zip(rate["service"], rate["without"], strict=True)])
    shares = zip(rate["service"], rate["without"], ceilings, strict=True)
    told["share_of_the_possible_gain"] = spread([(one - two) / (most - two) for one, two, most in shares if most > two])
    if "peer" in rate:
        told["against_the_peer"] = spread([one / two for one, two in zip(rate["service"], rate["peer"], strict=True)])
    return told


def hostile(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    service = Service(train(folder, "cnn"))
    pngs = [path.read_bytes() for path in sorted((folder / "pngs").iterdir())]
    try:
        asyncio.run(good_load(service.url, pngs, 3000))  # buffers that every service needs are there after it
        return asyncio.run(hostile_load(service.url, pngs, options.uploads, 0.02, service.memory))
    finally:
        service.close()


def long(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    service = Service(train(folder, "cnn"))
    try:
        load(service, folder, options, 5)
        parts, memory = [], [service.memory()]
        for _ in range(10):
            parts.append(load(service, folder, options, options.seconds / 10))
            memory.append(service.memory())
        pending = httpx.get(f"{service.url}/metrics").text
        assert "cifar_jax_pending_images 0.0" in pending
        rate = spread([part["requests_per_second"] for part in parts])
        requests, errors = sum(part["requests"] for part in parts), sum(part["errors"] for part in parts)
        return {"seconds": options.seconds, "requests": requests, "errors": errors, "rate": rate, "memory_mb": memory}
    finally:
        service.close()


if __name__ == "__main__":
    sys.exit(main())
