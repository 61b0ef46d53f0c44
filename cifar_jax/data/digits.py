"""The handwritten digits that come with scikit-learn, as a data set of 32x32 RGB images: no download."""

from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.data.source import Contents, Source


def _digits(_: str) -> type:
    import tensorflow_datasets as tfds

    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description="1,797 handwritten digits of 8x8 pixels, each pixel enlarged to 4x4, grey as RGB.",
                features=tfds.features.FeaturesDict(
                    {
                        "id": tfds.features.Text(),
                        "image": tfds.features.Image(shape=(32, 32, 3)),
                        "label": tfds.features.ClassLabel(num_classes=10),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
                citation="E. Alpaydin, C. Kaynak. Optical Recognition of Handwritten Digits, UCI, 1998.",
            )

    return Digits


def _read_digits(_: Path) -> Contents:
    """scikit-learn's copy: 1,797 x 8 x 8, values 0 to 16. Every fifth of a class is test: 360 of 1,797."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(small.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
    by_class = np.argsort(bunch.target, kind="stable")
    chosen = np.zeros(len(images), bool)
    chosen[by_class[::5]] = True
    splits = {
        split: (images[mask], {"label": bunch.target[mask]}) for split, mask in (("train", ~chosen), ("test", chosen))
    }
    return Contents(splits, {"label": [str(digit) for digit in range(10)]})


DIGITS = Source(version="1.0.0", builder=_digits, read=_read_digits)
