"""Search by similarity: milliseconds a query, and what is found among CIFAR-10's images.

    python benchmarks/similar.py --workdir=RUN [--workdir=RUN ...]    # trained runs of CIFAR-10; all parts
    python benchmarks/similar.py --parts=speed                        # no data and no run
    python benchmarks/similar.py --smoke                              # little of each: finds errors, measures nothing

speed    50,000 random embeddings of 512 numbers, ten neighbours; batches of 64 queries and single ones take turns with
         usearch (HNSW, its defaults), whose recall is counted against the exact answers
quality  precision@10 of CIFAR-10's test images as queries against the 50,000 training images: the share of neighbours
         of the same class; of each run, of its architecture with the first weights of seed 0, and of raw pixels
unseen   configs/cnn.py trained for 8 epochs at learning rate 0.01 on 8 classes; queries are test images of the other
         two, searched among the training images of these two (half of which are right by chance)
planted  near duplicates of 1,000 training images as queries against all 50,000: the share whose original is found first

Writes similar.json to --out; parts that are not run keep their figures.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import commit, machine, spread
from PIL import Image
from predict import busy
from worker import HERE, cores

sys.path.insert(0, str(HERE.parent))
PARTS = ("speed", "quality", "unseen", "planted")
HIDDEN = (("cat", "dog"), ("automobile", "ship"))
TOP = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", action="append", default=[], type=Path, help="a trained run; repeatable")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--unseen", type=Path, help="folder of the runs on 8 classes; kept there for the next call")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.rows, options.rounds, options.parts = 2000, 1, ("speed",)
    file = options.out / "similar.json"
    result = json.loads(file.read_text()) if file.exists() and not options.smoke else {"what": "similar"}
    for part in options.parts:
        if part == "speed":
            found: Any = speed(options.rows, options.rounds)
        elif part == "unseen":
            with tempfile.TemporaryDirectory() as folder:
                found = {" and ".join(pair): unseen(pair, options.unseen or Path(folder)) for pair in HIDDEN}
        else:
            found = {"quality": quality, "planted": planted}[part](options.workdir)
        result[part] = {**machine(), "commit": commit(), **found}
        print(json.dumps({part: result[part]}, indent=1), flush=True)
        if not options.smoke:
            options.out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=1) + "\n")
    return 0


# --- speed ---


def speed(rows: int, rounds: int) -> dict[str, Any]:
    from cifar_jax.inference.search import ExactSearch, GraphSearch, new_graph, normalised

    random = np.random.RandomState(0)
    vectors = normalised(random.randn(rows, 512)).astype(np.float16)
    queries = normalised(random.randn(320, 512))
    start = time.perf_counter()
    exact = ExactSearch([vectors])
    loading = time.perf_counter() - start
    graph, start = new_graph(512), time.perf_counter()
    graph.add(np.arange(rows), vectors)
    building = time.perf_counter() - start
    sides: dict[str, Callable[[], Any]] = {
        "exact_batches_of_64": lambda: exact.search(queries, TOP),
        "exact_alone": lambda: [exact.search(queries[place : place + 1], TOP) for place in range(40)],
        "usearch_batch": lambda: graph.search(queries, TOP),
        "usearch_alone": lambda: [GraphSearch(graph).search(queries[place : place + 1], TOP) for place in range(40)],
    }
    counts = {
        "exact_batches_of_64": len(queries),
        "exact_alone": 40,
        "usearch_batch": len(queries),
        "usearch_alone": 40,
    }
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    others, began = busy(), time.perf_counter()
    for number in range(rounds + 1):
        for name, side in sides.items():
            start, cpu = time.perf_counter(), time.process_time()
            side()
            took = time.perf_counter() - start, time.process_time() - cpu
            if number:  # the first pass warms up
                turns[name].append((1e3 * took[0] / counts[name], 1e3 * took[1] / counts[name]))
    found = graph.search(queries, TOP).keys
    right = exact.search(queries, TOP)[1]
    recall = np.mean([len(set(a) & set(b)) / TOP for a, b in zip(found.tolist(), right.tolist(), strict=True)])
    return {
        "rows": rows,
        "dimension": 512,
        "ms_per_query": {name: spread([wall for wall, _ in own]) for name, own in turns.items()},
        "cpu_ms_per_query": {name: spread([cpu for _, cpu in own]) for name, own in turns.items()},
        "exact_load_seconds": round(loading, 3),
        "usearch_build_seconds": round(building, 1),
        "usearch_recall_at_10": round(float(recall), 4),
        "others_share_of_cpu": round((busy() - others) / (time.perf_counter() - began) / cores(), 3),
    }


# --- quality ---


def embedders(workdirs: list[Path]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Trained runs, each architecture of theirs with first weights, and raw pixels."""
    import cifar_jax as cj

    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for workdir in workdirs:
        classifier = cj.load_classifier(workdir)
        name = classifier.recipe.model.name
        found[f"{name} ({workdir.name})"] = classifier.embeddings
        found[f"{name}, untrained"] = untrained(classifier).embeddings
    found["raw pixels"] = pixels
    return found


def untrained(classifier: Any) -> Any:
    from cifar_jax import training

    return replace(classifier, weights=training.evaluated_weights(training.init(classifier.recipe)))


def pixels(images: np.ndarray) -> np.ndarray:
    """In -1..1, so that the angle between two images tells more than their brightness."""
    return images.reshape(len(images), -1).astype(np.float32) / 127.5 - 1


def nearest(
    embed: Callable[[np.ndarray], np.ndarray], library: np.ndarray, queries: np.ndarray, top: int
) -> np.ndarray:
    """The numbers of the nearest images of the library, as an index stores and searches them."""
    from cifar_jax.inference.search import ExactSearch, normalised

    parts = [
        normalised(embed(library[start : start + 1000])).astype(np.float16) for start in range(0, len(library), 1000)
    ]
    return ExactSearch(parts).search(normalised(embed(queries)), top)[1]


def precision(embed: Any, library: tuple[np.ndarray, np.ndarray], queries: tuple[np.ndarray, np.ndarray]) -> float:
    found = nearest(embed, library[0], queries[0], TOP)
    return round(float((library[1][found] == queries[1][:, None]).mean()), 4)


def cifar(split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    from cifar_jax.data import arrays

    found = arrays.load("cifar10", split)
    return found.images, found.labels, found.classes


def quality(workdirs: list[Path]) -> dict[str, Any]:
    library, queries = cifar("train")[:2], cifar("test")[:2]
    sides = {name: precision(embed, library, queries) for name, embed in embedders(workdirs).items()}
    return {"library": len(library[0]), "queries": len(queries[0]), "precision_at_10": sides}


def unseen(pair: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Of a run that never saw two classes: precision@10 among these."""
    import cifar_jax as cj

    images, labels, classes = cifar("train")
    hidden = [classes.index(name) for name in pair]
    kept = [label for label in range(len(classes)) if label not in hidden]
    rows = np.flatnonzero(np.isin(labels, kept))
    names = [classes[label] for label in kept]
    data = {"train": cj.dataset(images[rows], np.searchsorted(kept, labels[rows]), names)}
    changes = {"epochs": 8, "optimizer.learning_rate": 0.01, "checkpoint.every_epochs": 8}
    recipe = cj.load_recipe("configs/cnn.py", changes)
    run = cj.fit(recipe, folder / f"without_{'_'.join(pair)}", data=data, evaluate=None)
    of_pair = lambda images, labels: (images[np.isin(labels, hidden)], labels[np.isin(labels, hidden)])
    library, queries = of_pair(images, labels), of_pair(*cifar("test")[:2])
    classifier = run.classifier
    sides = {"trained on the other 8": classifier, "untrained": untrained(classifier)}
    found = {name: precision(side.embeddings, library, queries) for name, side in sides.items()}
    return {
        "library": len(library[0]),
        "queries": len(queries[0]),
        "precision_at_10": {**found, "raw pixels": precision(pixels, library, queries), "by chance": 0.5},
    }


# --- near duplicates ---


def crop(image: Image.Image) -> Image.Image:
    return image.crop((2, 2, 30, 30)).resize((32, 32), Image.Resampling.BICUBIC)


def brighter(image: Image.Image) -> Image.Image:
    return image.point(lambda value: min(255, round(1.3 * value)))


def recompressed(image: Image.Image) -> Image.Image:
    import io

    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=50)
    return Image.open(stream).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "cropped by 2 pixels a side": crop,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "brighter by 30%": brighter,
    "JPEG of quality 50": recompressed,
}


def planted(workdirs: list[Path], count: int = 1000) -> dict[str, Any]:
    images = cifar("train")[0]
    chosen = np.random.RandomState(0).permutation(len(images))[:count]
    queries = {
        name: np.stack([np.asarray(change(Image.fromarray(images[place]))) for place in chosen])
        for name, change in CHANGES.items()
    }
    together = np.concatenate(list(queries.values()))
    sides = {}
    for name, embed in embedders(workdirs).items():
        first = nearest(embed, images, together, 1)[:, 0].reshape(len(queries), count)
        sides[name] = {
            change: round(float((own == chosen).mean()), 4) for change, own in zip(queries, first, strict=True)
        }
    return {"library": len(images), "queries_of_each": count, "found_first": sides}


if __name__ == "__main__":
    sys.exit(main())
