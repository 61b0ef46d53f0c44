"""Images a second of data.name=image_folder: JPEGs of 512x512 pixels that this script draws, to 64x64.

    python benchmarks/image_folder.py            # 3,000 files, three first loads and three second ones
    python benchmarks/image_folder.py --smoke    # 40 files: finds errors, measures nothing

The files are smooth noise at quality 90, about 55 KB each, and lie in the page cache. A first load decodes them; a
second one finds them decoded in the cache folder, and compares names, sizes, times and the digest of the arrays. Writes
image_folder.json to --out.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from measuring import commit, machine, spread
from PIL import Image
from worker import HERE, cores

sys.path.insert(0, str(HERE.parent))
SIDE, SIZE = 512, 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.files, options.rounds = 40, 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "images", options.files)
        rounds = [load(folder, number) for number in range(options.rounds)]
    result = {
        "what": "images a second of image_folder",
        **machine(),
        "commit": commit(),
        "files": options.files,
        "first_images_per_second": spread([options.files / first for first, _ in rounds]),
        "second_load_seconds": spread([second for _, second in rounds]),
    }
    print(json.dumps(result, indent=1))
    if not options.smoke:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "image_folder.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def draw(folder: Path, count: int) -> None:
    """`count` JPEGs in two classes."""
    random = np.random.RandomState(0)
    noise = [random.randint(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(20)]
    smooth = [np.asarray(Image.fromarray(part).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for part in noise]
    for name in ("one", "other"):
        (folder / name).mkdir(parents=True)

    def write(number: int) -> None:
        shifted = np.roll(smooth[number % 20], (7 * number % SIDE, 13 * number % SIDE), (0, 1))
        Image.fromarray(shifted).save(folder / ("one", "other")[number % 2] / f"{number}.jpg", quality=90)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, range(count)))


def load(folder: Path, number: int) -> tuple[float, float]:
    """Seconds of a first and a second load, with a cache folder of their own."""
    from cifar_jax.data.load import load_splits
    from cifar_jax.runs.recipes import load_recipe

    os.environ["XDG_CACHE_HOME"] = str(folder / f"cache{number}")
    fields = {"name": "image_folder", "path": str(folder / "images"), "image_size": SIZE}
    data = load_recipe("configs/cnn.py", {f"data.{name}": value for name, value in fields.items()}).data
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        load_splits(data, test=True, progress=False)
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


if __name__ == "__main__":
    sys.exit(main())
