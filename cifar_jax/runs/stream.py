"""Images that do not fit the device: they stay on the host, and each part of an epoch gets those that it trains on.

The order of the images and all that is computed with them are as for images on the device, so the results are the same
bit for bit. The host gathers the images of the next part while the device computes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from cifar_jax.data import arrays
from cifar_jax.errors import InputError
from cifar_jax.runs import programs
from cifar_jax.runs.devices import Placement

# Of a device's memory: the images that stay on it, for weights and activations need the rest; the validation images of
# streamed training, which stay there too; the images of a part, of which the next is there beside the present one.
RESIDENT, VALIDATION, PART = 1 / 2, 1 / 4, 1 / 16
FIRST = 10_000  # images for a model that looks at some before training


@dataclass(frozen=True)
class Streamed:
    """The training images of a run, on the host."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N]
    chosen: np.ndarray  # int [M]: the places of those that are trained on
    _orders: dict[int, jax.Array] = field(default_factory=dict)

    def first(self) -> np.ndarray:
        """The first images, for `programs.first_state`."""
        return self.images[self.chosen[:FIRST]]

    def batches(self, recipe: Any, epoch: int, start: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The images [steps * B, H, W, C] and labels of so many steps of an epoch from `start` on, in their order, and
        their positions int32 [steps, B] among the M."""
        for number in {epoch, epoch + 1} - self._orders.keys():  # the next one early: the device may be busy then
            self._orders[number] = programs.epoch_order(recipe, number, len(self.chosen))
        for number in self._orders.keys() - {epoch, epoch + 1}:
            del self._orders[number]
        positions = np.asarray(self._orders[epoch])[start : start + steps]
        places = self.chosen[positions.reshape(-1)]
        return self.images[places], self.labels[places], positions


def is_streamed(data: Mapping[str, arrays.Split], placement: Placement) -> bool:
    """Whether the images of a run, its validation split included, are too many to stay on each device."""
    memory = placement.memory()
    return memory is not None and _size(data) > RESIDENT * memory


def part_limit(recipe: Any, data: Mapping[str, arrays.Split], placement: Placement) -> int | None:
    """The most steps of a part of an epoch; None where all images stay on the device.

    Raises InputError where not even a batch fits, or the validation images, and on an average over whole epochs.
    """
    if not is_streamed(data, placement):
        return None
    memory, image = placement.memory() or 0, data["train"].images[0].nbytes
    own = data.get("validation")
    held_out = own.images.nbytes if own else recipe.data.validation * image
    batch = recipe.batch_size * image
    for what, size, share in (("validation images", held_out, VALIDATION), ("images of a batch", batch, PART)):
        if size > share * memory:
            sizes = f"the {what} take {size / 2**30:.1f} GiB, and the device has {memory / 2**30:.1f} GiB"
            raise InputError(f"{sizes}; use fewer, or smaller ones (data.image_size for a folder)")
    if recipe.average.start_epoch:
        what = f"the images take {_size(data) / 2**30:.1f} GiB of {memory / 2**30:.1f} GiB, so they are streamed"
        raise InputError(f"{what}, and average.start_epoch needs them all at once; use average.decay")
    return int(PART * memory) // batch


def blocks(images: np.ndarray, labels: np.ndarray, batch: int, placement: Placement) -> Iterator[Any]:
    """(images, labels) in blocks that fit the device, of whole batches; the last one takes the rest."""
    memory, size = placement.memory(), len(images)
    if memory is not None and images.nbytes > RESIDENT * memory:
        size = max(1, int(PART * memory) // (batch * images[0].nbytes)) * batch
    count = max(1, len(images) // size)
    for number in range(count):
        chosen = slice(number * size, len(images) if number == count - 1 else (number + 1) * size)
        yield images[chosen], labels[chosen]


def _size(data: Mapping[str, arrays.Split]) -> int:
    return sum(split.images.nbytes for name, split in data.items() if name != "test")
