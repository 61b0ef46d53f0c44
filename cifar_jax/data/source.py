"""How a data set that this package can prepare is described: where its bytes come from and what they hold."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Contents:
    """A whole data set in memory, before it is written.

    splits: split name -> (images uint8 [N, H, W, 3], {label feature: integers [N]})
    classes: label feature -> class names
    """

    splits: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]
    classes: dict[str, list[str]]


@dataclass(frozen=True)
class Source:
    """How a data set is prepared. Without a `url` its data come with an installed package."""

    version: str
    builder: Callable[[str], type]  # name -> the TFDS builder class that gives name, features and citation
    read: Callable[[Path], Contents]  # the downloaded archive -> its contents
    url: str = ""
    sha256: str = ""
