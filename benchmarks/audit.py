"""Does the label audit find flipped labels? Precision and recall on CIFAR-10 with 5% of the training labels flipped.

    python benchmarks/audit.py --folder=/tmp/audit           # narrow convnet, 3 folds, on two processor cores
    python benchmarks/audit.py --folder=/tmp/audit --config=configs/resnet18_fast.py --folds=5 --name=audit_resnet18
    python benchmarks/audit.py --smoke                       # digits, one epoch: finds errors, measures nothing

A label is flipped to any other class ("uniform"), or to the class that is confused with its own ("similar"). Which ones
follows from --seed; the models of the folds see the flipped labels only. A figure is given for the doubtful images of
the audit, and for its ranking: the precision where a recall of 0.7 is reached. The original labels of CIFAR-10 have
errors too, which count here as false alarms. Fields of the recipe are set by --config.FIELD=VALUE. Writes NAME.json to
--out; the folder keeps the models, and the same command continues an interrupted run.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import commit, machine, recipe_fields
from worker import HERE

sys.path.insert(0, str(HERE.parent))
SHARE = 0.05  # of the labels that are flipped
RECALL = 0.7  # where the precision of the ranking is read
# Classes that a network confuses; those of Patrini et al. 2017 (arXiv 1609.03683), and the missing four.
SIMILAR = {
    "airplane": "ship", "automobile": "truck", "bird": "airplane", "cat": "dog", "deer": "horse",
    "dog": "cat", "frog": "bird", "horse": "deer", "ship": "airplane", "truck": "automobile",
}  # fmt: skip
NARROW: dict[str, Any] = {
    "epochs": 8,
    "model.widths": (16, 32, 64),
    "model.convolutions": (1,),
    "loss.label_smoothing": 0.0,  # probabilities near 0 and 1 are what a label is judged by
}


def flipped(labels: np.ndarray, classes: tuple[str, ...], kind: str, share: float, seed: int) -> np.ndarray:
    """The labels with a share of each class flipped, rounded; `kind` is "uniform" or "similar"."""
    random = np.random.RandomState(seed)
    result = labels.copy()
    for label, name in enumerate(classes):
        own = np.flatnonzero(labels == label)
        chosen = random.permutation(own)[: round(share * len(own))]
        others = np.array([other for other in range(len(classes)) if other != label])
        uniform = others[random.randint(0, len(others), len(chosen))]
        similar = classes.index(SIMILAR[name]) if name in SIMILAR else (label + 1) % len(classes)
        result[chosen] = uniform if kind == "uniform" else similar
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/convnet.py", help="recipe; the narrow convnet if not given")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--kinds", default="uniform,similar", help="of flips, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the flips")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "audits" / "benchmark", help="of the audits")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--name", default="audit", help="of the result")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the result")
    parser.add_argument("--smoke", action="store_true")
    arguments, fields = recipe_fields(sys.argv[1:])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        if options.smoke:
            options.config, options.folds, options.folder = "configs/quickstart.py", 2, Path(scratch)
            fields = {"epochs": 1, "model.width": 4, **fields}
        elif options.config == "configs/convnet.py":
            fields = {**NARROW, **fields}
        result = measure(options, fields)
    print(json.dumps(result, indent=1))
    if not options.smoke:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(options: argparse.Namespace, fields: dict[str, Any]) -> dict[str, Any]:
    import cifar_jax as cj
    from cifar_jax.data.load import load_split
    from cifar_jax.recipe import flatten, to_json

    recipe = cj.load_recipe(options.config, fields)
    splits = {name: load_split(recipe.data, name, options.data_dir) for name in ("train", "test")}
    kinds = {kind: audited(recipe, splits, kind, options) for kind in options.kinds.split(",")}
    return {
        "what": f"finding {SHARE:.0%} flipped labels of {recipe.data.name}",
        **machine(),
        "commit": commit(),
        "config": options.config,
        "changes": {
            name: to_json(recipe)[name] if name in recipe else flatten(to_json(recipe))[name] for name in fields
        },
        "folds": options.folds,
        "seed": options.seed,
        "kinds": kinds,
    }


def audited(recipe: Any, splits: dict[str, Any], kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """The audit of one kind of flips. The audit sorts images by their labels too, so the true ones are looked up."""
    import cifar_jax as cj

    train = splits["train"]
    labels = flipped(train.labels, train.classes, kind, SHARE, options.seed)
    noisy = cj.dataset(train.images, labels, train.classes, f"{train.name}_{kind}")
    true = {image.tobytes(): label for image, label in zip(train.images, train.labels.tolist(), strict=True)}
    wrong = noisy.labels != np.array([true[image.tobytes()] for image in noisy.images])
    found = cj.audit(recipe, options.folder / kind, folds=options.folds, data={**splits, "train": noisy})
    judged = found.labels["train"]
    return {
        "flipped": int(wrong.sum()),
        "accuracies": found.figures()["accuracies"],
        "out_of_fold_accuracy_on_true_labels": round(
            float((judged.suggested == np.array([true[image.tobytes()] for image in noisy.images])).mean()), 4
        ),
        "doubtful": precision_and_recall(judged.doubtful, wrong),
        f"precision_at_recall_{RECALL}": round(precision_at(judged.ranked, wrong, RECALL), 4),
        "precision_of_the_first": {
            count: round(float(wrong[judged.ranked[:count]].mean()), 4)
            for count in (100, 500, 1000)
            if count < len(wrong)
        },
        "filters": filters(judged, wrong),
        "scores": scores(judged, wrong),
    }


def precision_and_recall(chosen: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Of bool arrays [N]: the images that are chosen, and those whose labels are wrong."""
    right = int((chosen & wrong).sum())
    count = int(chosen.sum())
    return {"count": count, "precision": round(right / max(1, count), 4), "recall": round(right / int(wrong.sum()), 4)}


def precision_at(ranked: np.ndarray, wrong: np.ndarray, recall: float) -> float:
    """The precision of the shortest head of a ranking (most doubtful first) that holds this share of `wrong`."""
    hits = np.cumsum(wrong[ranked])
    length = int(np.searchsorted(hits, np.ceil(recall * wrong.sum()))) + 1
    return float(hits[length - 1] / length)


def filters(judged: Any, wrong: np.ndarray) -> dict[str, Any]:
    """What each of cleanlab's ways would call doubtful; one of them is the audit's."""
    from cleanlab.filter import find_label_issues

    names = (
        "low_self_confidence", "low_normalized_margin", "prune_by_noise_rate", "prune_by_class", "both",
        "confident_learning", "predicted_neq_given",
    )  # fmt: skip
    wide = judged.probabilities.astype(np.float64)
    wide /= wide.sum(-1, keepdims=True)
    choose = lambda name: find_label_issues(judged.labels, wide, filter_by=name, n_jobs=1)
    return {name: precision_and_recall(choose(name), wrong) for name in names}


def scores(judged: Any, wrong: np.ndarray) -> dict[str, float]:
    """The precision at RECALL of the rankings by cleanlab's scores; one of them is the audit's."""
    from cleanlab.rank import get_label_quality_scores

    found = {}
    for name in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        quality = get_label_quality_scores(judged.labels, judged.probabilities.astype(np.float64), method=name)
        found[name] = round(precision_at(np.argsort(quality, kind="stable"), wrong, RECALL), 4)
    return found


if __name__ == "__main__":
    sys.exit(main())
