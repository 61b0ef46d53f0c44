"""The model card: README.md of an export, with the metadata block that Hugging Face reads.

Every figure comes from the run. The intervals are Wilson's for a proportion (Wilson 1927), of the images of the split:
they say nothing of other seeds. https://huggingface.co/docs/hub/model-cards describes the block.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from scipy import stats

import cifar_jax
from cifar_jax.models.counts import counts
from cifar_jax.recipe import flatten, to_json
from cifar_jax.runs.workdir import Run
from cifar_jax.training import model
from cifar_jax.training.metrics import Evaluation
from cifar_jax.training.state import input_shape

FILE = "README.md"
DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}  # their names on Hugging Face
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
SHOWN = (
    "epochs",
    "batch_size",
    "optimizer",
    "schedule",
    "loss",
    "augment",
    "average",
    "evaluation.views",
    "dtype",
    "seed",
)


def model_card(
    run: Run,
    evaluations: Sequence[Evaluation],
    files: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """The card in Markdown; `files` are name -> what it is, `notes` sentences about the export."""
    name = run.recipe.model.name if isinstance(run.recipe.model.name, str) else type(model(run.recipe)).__name__
    data = TITLES.get(run.recipe.data.name, run.recipe.data.name)
    sections = [
        metadata(run, name, evaluations),
        f"# {name}, {data}",
        _summary(run),
        "## Evaluation",
        *(map(_evaluation, evaluations) if evaluations else ["The run stores no evaluation."]),
        "## Probabilities",
        _probabilities(run),
        "## Training",
        _training(run),
        "## Files",
        "\n".join(["| file | |", "|---|---|", *(f"| `{file}` | {what} |" for file, what in files.items())]),
        *notes,
    ]
    return "\n\n".join(sections) + "\n"


def metadata(run: Run, name: str, evaluations: Sequence[Evaluation]) -> str:
    """The block in YAML. Values are written as JSON, which YAML contains."""
    recipe = run.recipe
    fields: dict[str, Any] = {
        "library_name": "cifar_jax",
        "pipeline_tag": "image-classification",
        "tags": ["jax", "flax", "image-classification"],
        "metrics": ["accuracy"],
    }
    if recipe.data.name in DATASETS:
        fields["datasets"] = [DATASETS[recipe.data.name]]
    results = [
        {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {
                "type": DATASETS.get(recipe.data.name, recipe.data.name),
                "name": TITLES.get(recipe.data.name, recipe.data.name),
                "split": seen.split,
            },
            "metrics": [
                {"type": "accuracy", "name": "Accuracy", "value": seen.accuracy},
                {"type": "loss", "name": "Negative log-likelihood in nats", "value": seen.loss},
            ],
        }
        for seen in evaluations
    ]
    if results:
        fields["model-index"] = [{"name": name, "results": results}]
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def _summary(run: Run) -> str:
    recipe = run.recipe
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.classifier.weights["params"]))
    shape = "x".join(map(str, recipe.data.image_shape))
    _, multiply_adds = counts(model(recipe), input_shape(recipe))
    return (
        f"An image classifier: {parameters:,} parameters, {multiply_adds / 1e6:,.1f} M multiply-adds for an image of"
        f" {shape}. It tells {len(run.classes)} classes apart: {', '.join(run.classes)}. Images of anything else get"
        " one of these classes too."
    )


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion."""
    interval = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _evaluation(seen: Evaluation) -> str:
    right = round(seen.accuracy * seen.count)
    low, high = accuracy_interval(right, seen.count)
    top5 = accuracy_interval(round(seen.top5_accuracy * seen.count), seen.count)
    rows = [
        f"Split `{seen.split}`, {seen.count:,} images, one run; 95% intervals over the images.",
        "",
        "| figure | value | 95% interval |",
        "|---|---|---|",
        f"| accuracy | {seen.accuracy:.2%} | {low:.2%} to {high:.2%} |",
        f"| top-5 accuracy | {seen.top5_accuracy:.2%} | {top5[0]:.2%} to {top5[1]:.2%} |",
        f"| loss (nats) | {seen.loss:.4f} | |",
        f"| calibration error, as trained | {seen.expected_calibration_error:.2%} | |",
        "",
        "| class | precision | recall | 95% interval of the recall | images |",
        "|---|---|---|---|---|",
    ]
    for index, name in enumerate(seen.classes):
        images = int(seen.confusion_matrix[index].sum())
        around = accuracy_interval(int(seen.confusion_matrix[index, index]), images) if images else (0.0, 1.0)
        figures = f"{seen.precision[index]:.2%} | {seen.recall[index]:.2%}"
        rows.append(f"| {name} | {figures} | {around[0]:.2%} to {around[1]:.2%} | {images:,} |")
    return "\n".join(rows)


def _probabilities(run: Run) -> str:
    if run.temperature == 1:
        return "The probabilities are those of the network as trained: no temperature was fitted."
    lines = [f"The logits are divided by the temperature {run.temperature:.3f}, fitted on the validation split."]
    if run.thresholds:
        lines += [
            "",
            "An image is taken for a class where its probability reaches the threshold. On validation:",
            "",
        ]
        lines += ["| class | probability from | recall | precision |", "|---|---|---|---|"]
        for each in run.thresholds.values():
            lines.append(f"| {each.class_name} | {each.value:.4f} | {each.recall} | {each.precision} |")
    return "\n".join(lines)


def _training(run: Run) -> str:
    values = {
        path: value
        for path, value in sorted(flatten(to_json(run.recipe)).items())
        if any(path == shown or path.startswith(f"{shown}.") for shown in SHOWN) and value not in (0, 0.0, [], "")
    }
    digests = "; ".join(f"`{split}` {digest}" for split, digest in sorted(run.digests.items()))
    state = run.reason or "not complete: this is its last checkpoint"
    return "\n".join(
        [
            f"Trained on {run.recipe.data.train_count:,} images of {run.recipe.data.name} by cifar_jax"
            f" {cifar_jax.__version__}; the run's state: {state}. `model.json` holds the whole recipe.",
            "",
            "| field | value |",
            "|---|---|",
            *(f"| {path} | {value} |" for path, value in values.items()),
            "",
            f"Digests of the data: {digests or 'none'}.",
        ]
    )
