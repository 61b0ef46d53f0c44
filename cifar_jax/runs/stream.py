"""Images that do not fit the device: they stay on the host, and each part of an epoch gets those that it trains on.

The order of the images and all that is computed with them are as for images on the device, so the results are the same
bit for bit on the CPU. The host gathers the images of the next part while the device computes, unless something waits
for the result of each part: early stopping, or `stoppable`.
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
FIRST = 100_000  # images at most for a model that looks at some before training, and for a measurement


@dataclass(frozen=True)
class Streamed:
    """The training images of a run, on the host."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N]
    chosen: np.ndarray  # int [M]: the places of those that are trained on
    first_count: int
    _orders: dict[int, jax.Array] = field(default_factory=dict)

    def first(self) -> np.ndarray:
        """The first images, for `programs.first_state`."""
        return self.images[self.chosen[: self.first_count]]

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


def first_count(data: Mapping[str, arrays.Split], placement: Placement) -> int | None:
    """How many of streamed training images may be on the device before training; None where all of them may."""
    if not is_streamed(data, placement):
        return None
    return min(FIRST, int(PART * (placement.memory() or 0)) // data["train"].images[0].nbytes)


def part_limit(recipe: Any, data: Mapping[str, arrays.Split], placement: Placement) -> int | None:
    """The most steps of a part of an epoch; None where all images stay on the device.

    Raises InputError where not even a batch fits, or the validation images, and on what takes whole epochs at once.
    """
    if not is_streamed(data, placement):
        return None
    whole = f"the images take {_size(data) / 2**30:.3g} GiB, so they do not stay on the device"
    if recipe.average.start_epoch:
        raise InputError(f"{whole}, and average.start_epoch needs them there; use average.decay")
    if recipe.chunk_epochs > 1:
        raise InputError(f"{whole}, and chunk_epochs={recipe.chunk_epochs} joins epochs; set it to 1")
    memory, image = placement.memory() or 0, data["train"].images[0].nbytes
    own = data.get("validation")
    held_out = own.images.nbytes if own else recipe.data.validation * image
    batch = recipe.batch_size * image
    limits = (
        ("the validation images", held_out, VALIDATION, "a quarter", "hold out fewer"),
        ("the images of a batch", batch, PART, "a sixteenth", "lower batch_size"),
    )
    for what, size, share, part, remedy in limits:
        if size > share * memory:
            sizes = f"{what} take {size / 2**30:.3g} GiB, and may take {part} of the device's {memory / 2**30:.3g} GiB"
            raise InputError(f"{sizes}; {remedy}, or make them smaller (data.image_size for a folder)")
    return int(PART * memory) // batch


def blocks(images: np.ndarray, labels: np.ndarray, batch: int, placement: Placement) -> Iterator[Any]:
    """(images, labels) in blocks of whole batches that fit beside what a training keeps; the last takes the rest."""
    memory, size = placement.memory(), len(images)
    if memory is not None and images.nbytes > PART * memory:
        size = max(1, int(PART * memory) // (batch * images[0].nbytes)) * batch
    count = max(1, len(images) // size)
    for number in range(count):
        chosen = slice(number * size, len(images) if number == count - 1 else (number + 1) * size)
        yield images[chosen], labels[chosen]


def _size(data: Mapping[str, arrays.Split]) -> int:
    return sum(split.images.nbytes for name, split in data.items() if name != "test")
