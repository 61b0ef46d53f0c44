"""SimCLR with the public API: an objective that needs no labels, and a linear probe on the embeddings that it learns
(Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations").

    python examples/simclr.py                                      # the embedded digits; no figure is claimed
    python examples/simclr.py --data=cifar10 --epochs=100 --width=64

Nothing in the package knows of this objective: `cj.Objective` is two functions.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression

import cifar_jax as cj
from cifar_jax import training
from cifar_jax.data import load
from cifar_jax.models.resnet import ResNet
from cifar_jax.training.augment import augment

TEMPERATURE = 0.1  # table 5
PROJECTION = 64  # values of the projection that the loss compares; the embedding before it is what is kept


def two_views(recipe: Any, batch: cj.Batch, key: jax.Array) -> dict[str, jax.Array]:
    """{"first", "second"}: two augmentations of each image, ready for the model, [B, H, W, C]."""
    images = batch.images.astype(jnp.float32) / 255
    targets = jnp.zeros((len(images), 1))  # no labels: the augmentations that would mix them are off
    view = lambda key: training.model_inputs(recipe, augment(recipe.augment, key, images, targets)[0])
    first, second = jax.random.split(key)
    return {"first": view(first), "second": view(second)}


def contrastive_losses(
    recipe: Any, apply: Any, batch_stats: Any, inputs: dict[str, jax.Array], context: Any, key: jax.Array
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """NT-Xent (equation 1), the mean of both directions: each view must find the other one of its image among all."""
    both, batch_stats = apply(jnp.concatenate([inputs["first"], inputs["second"]]), batch_stats, key)
    count = len(both) // 2
    both = both / jnp.linalg.norm(both, axis=-1, keepdims=True)
    similarity = both @ both.T / TEMPERATURE - 1e9 * jnp.eye(2 * count)  # an image is not compared with itself
    partner = jnp.roll(jnp.arange(2 * count), count)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(similarity), partner[:, None], 1)[:, 0]
    found = similarity.argmax(-1) == partner
    return losses.reshape(2, count).mean(0), batch_stats, {"found": found.reshape(2, count).mean(0)}


SIMCLR = cj.Objective(two_views, contrastive_losses, predicts=False)


def probe(classifier: cj.Classifier, train: cj.Split, test: cj.Split) -> float:
    """The test accuracy of a linear classifier on the embeddings, which are not trained further (section 4.2)."""
    scaled = lambda images: classifier.embeddings(images) / 10
    linear = LogisticRegression(max_iter=500).fit(scaled(train.images), train.labels)
    return float(np.mean(linear.predict(scaled(test.images)) == test.labels))


def main(arguments: list[str] | None = None) -> tuple[cj.Run, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage of a ResNet with two stages")
    parser.add_argument("--batch_size", type=int, default=128)
    options = parser.parse_args(arguments)
    data = {split: load(options.data, split) for split in ("train", "test")}
    recipe = cj.load_recipe(
        "configs/resnet18.py",
        {
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "data.validation": 0,
            "optimizer": {"name": "adam", "learning_rate": 3e-3},
            "schedule": {"name": "cosine"},
            "augment": {"flip": 0.0, "crop": 6, "brightness": 0.4, "contrast": 0.4, "cutout": 0},
        },
    )
    encoder = ResNet(PROJECTION, stages=(1, 1), width=options.width)
    run = cj.fit(recipe, data=data, model=encoder, objective=SIMCLR, evaluate=None)
    print(f"the views find each other in {run.history[-1]['train_found']:.1%} of the cases")
    accuracy = probe(run.classifier, data["train"], data["test"])
    print(f"linear probe: test accuracy {accuracy:.2%}")
    return run, accuracy


if __name__ == "__main__":
    cj.prepare_process()
    main()
