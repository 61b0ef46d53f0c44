"""Images a second of `launch.py predict`, beside the decoder alone, and the time that the command takes to start.

    python benchmarks/predict.py            # 10,000 PNGs of 32x32 and 2,000 JPEGs of 512x512 pixels, with cnn
    python benchmarks/predict.py --smoke    # few files: finds errors, measures nothing

The three take turns: the command on one image, which is its start; on all images; and the decoder on all of them, in a
process of its own that times itself. A rate is images / (whole command - start of the same turn). CPU seconds are those
of the command and its threads. The model was trained for one step: its weights cost what trained ones cost. Files lie
in the page cache, programs in the compilation cache. Writes predict.json to --out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from image_folder import draw
from measuring import commit, machine, spread
from PIL import Image
from worker import HERE, cores

sys.path.insert(0, str(HERE.parent))
DECODER = """
import sys, time
from cifar_jax.data.image_files import find_images, read_images
paths = find_images(sys.argv[1:])
start = time.perf_counter()
count = sum(not isinstance(image, str) for image in read_images(paths, (32, 32, 3)))
print(count / (time.perf_counter() - start))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pngs", type=int, default=10_000)
    parser.add_argument("--jpegs", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.pngs, options.jpegs, options.rounds = 100, 20, 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder / "run")
        write_pngs(folder / "pngs", options.pngs)
        draw(folder / "jpegs", options.jpegs)
        result = {"what": "predict", "model": "cnn", **machine(), "commit": commit()}
        for kind, count in (("pngs", options.pngs), ("jpegs", options.jpegs)):
            result[kind] = measure(folder, kind, count, options.rounds)
    print(json.dumps(result, indent=1))
    if not options.smoke:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "predict.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def train(workdir: Path) -> None:
    import cifar_jax as cj

    random = np.random.RandomState(0)
    images = random.randint(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    data = {"train": (images, np.arange(64) % 10)}
    cj.fit(cj.load_recipe("configs/cnn.py", {"epochs": 1}), workdir, data=data, evaluate=None, progress=False)


def write_pngs(folder: Path, count: int) -> None:
    """Smooth noise, which takes as many bytes as photographs of this size (2.5 KB)."""
    folder.mkdir()
    random = np.random.RandomState(0)

    def write(number: int) -> None:
        small = Image.fromarray(random.randint(0, 256, (20, 20, 3), dtype=np.uint8))
        small.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number:06d}.png")

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, range(count)))


def measure(folder: Path, kind: str, count: int, rounds: int) -> dict[str, Any]:
    one = next((folder / kind).rglob("*.*g"))
    command(folder, one)  # compiles
    command(folder, folder / kind)
    turns = []
    for _ in range(rounds):
        others = busy()
        began = time.perf_counter()
        start, start_cpu = command(folder, one)
        whole, whole_cpu = command(folder, folder / kind)
        decoder = float(child([sys.executable, "-c", DECODER, str(folder / kind)]))
        elapsed = time.perf_counter() - began
        turns.append(
            {
                "start_seconds": start,
                "start_cpu_seconds": start_cpu,
                "images_per_second": count / (whole - start),
                "cpu_microseconds_per_image": 1e6 * (whole_cpu - start_cpu) / count,
                "decoder_images_per_second": decoder,
                "share_of_the_decoder": count / (whole - start) / decoder,
                "others_share_of_cpu": (busy() - others) / elapsed / cores(),
            }
        )
    mean_bytes = sum(path.stat().st_size for path in (folder / kind).rglob("*.*g")) / count
    figures = {name: spread([turn[name] for turn in turns]) for name in turns[0]}
    return {"files": count, "mean_bytes": round(mean_bytes), **figures, "turns": turns}


def command(folder: Path, source: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the whole command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    arguments = [f"--workdir={folder / 'run'}", "--format=csv", f"--out={folder / 'rows.csv'}", "--force", str(source)]
    child([sys.executable, "launch.py", "predict", *arguments])
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def child(arguments: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    return subprocess.run(
        arguments,
        cwd=HERE.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    ).stdout


def busy() -> float:
    """Processor seconds since the start of the system that were neither this process's nor its children's."""
    if not Path("/proc/stat").exists():
        return float("nan")
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
    return total - sum(usage.ru_utime + usage.ru_stime for usage in own)


if __name__ == "__main__":
    sys.exit(main())
