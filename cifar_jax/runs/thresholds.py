"""The probability from which an image is taken for a class, and what it gives. probabilities are float [N, C]."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from cifar_jax.errors import InputError

CONFIDENCE = 0.95
FEWEST = 5  # images of the class on which a threshold is chosen


@dataclass(frozen=True)
class Rate:
    """`part` of `whole` images, with the exact binomial interval (Clopper & Pearson 1934) at 95%."""

    part: int
    whole: int

    @property
    def value(self) -> float:
        return self.part / self.whole if self.whole else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        if not self.whole:
            return 0.0, 1.0
        found = stats.binomtest(self.part, self.whole).proportion_ci(CONFIDENCE)
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2%} ({low:.1%} to {high:.1%}, {self.part} of {self.whole})"


@dataclass(frozen=True)
class Threshold:
    """An image is taken for the class where its probability is at least `value`."""

    class_name: str
    value: float
    interval: tuple[float, float]  # 95%, of the threshold that the wanted recall has among all images of the class
    wanted: str  # "recall" or "precision"
    wanted_value: float
    recall: Rate  # on the images that the threshold was chosen on
    precision: Rate

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Threshold":
        rates = {name: Rate(**values[name]) for name in ("recall", "precision")}
        return cls(**{**values, **rates, "interval": tuple(values["interval"])})

    def __str__(self) -> str:
        low, high = self.interval
        head = f"'{self.class_name}' from a probability of {self.value:.4f} ({low:.4f} to {high:.4f})"
        return f"{head}: recall {self.recall}, precision {self.precision}"


def rates(scores: np.ndarray, positive: np.ndarray, value: float) -> tuple[Rate, Rate]:
    """Recall and precision where the scores [N] of at least `value` are taken for the class; positive is bool [N]."""
    taken = scores >= value
    right = int((taken & positive).sum())
    return Rate(right, int(positive.sum())), Rate(right, int(taken.sum()))


def choose_value(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    class_name: str,
    recall: float | None = None,
    precision: float | None = None,
) -> Threshold:
    """The highest threshold that reaches the wanted recall, or the one with the highest recall at the wanted precision.

    For a precision it lies halfway to the next lower score of any image: on these images every threshold in between is
    the same, and one at the lowest score that is taken would miss images that score a little less.

    The interval of a threshold for a recall is that of a quantile by order statistics (David & Nagaraja 2003, section
    7.1); a threshold for a precision has the interval of the recall that it reaches.

    Raises InputError where the class is unknown or has fewer than 5 images, where not exactly one of recall and
    precision is given, or where the precision is not reached.
    """
    wanted, target = check_wanted(classes, class_name, recall, precision)
    label = list(classes).index(class_name)
    scores, positive = probabilities[:, label].astype(np.float64), labels == label
    own = np.sort(scores[positive])
    if len(own) < FEWEST:
        raise InputError(f"a threshold needs at least {FEWEST} images of '{class_name}'; validation has {len(own)}")
    if wanted == "recall":
        value = own[len(own) - int(np.ceil(target * len(own) - 1e-9))]
    else:
        reaching = [score for score in own if rates(scores, positive, score)[1].value >= target]
        if not reaching:
            best = max(rates(scores, positive, score)[1].value for score in own)
            raise InputError(f"no threshold of '{class_name}' has a precision of {target:.2%}; the best has {best:.2%}")
        below = scores[scores < reaching[0]]
        value = (reaching[0] + below.max()) / 2 if len(below) else reaching[0]
    found = rates(scores, positive, value)
    share = 1 - (target if wanted == "recall" else found[0].value)
    return Threshold(class_name, float(value), _quantile_interval(own, share), wanted, target, *found)


def check_wanted(
    classes: Sequence[str], class_name: str, recall: float | None, precision: float | None
) -> tuple[str, float]:
    """What is wanted of a threshold, by name, and how much. Raises InputError as `choose_value` does."""
    if class_name not in classes:
        raise InputError(f"class '{class_name}' is unknown; the run knows {', '.join(classes)}")
    given = {name: value for name, value in (("recall", recall), ("precision", precision)) if value is not None}
    if len(given) != 1:
        raise InputError("a threshold is chosen for a recall or for a precision; give one of the two")
    ((wanted, target),) = given.items()
    if not 0 < target <= 1:
        raise InputError(f"{wanted} is {target}; it must be above 0 and at most 1")
    return wanted, target


def _quantile_interval(ordered: np.ndarray, share: float) -> tuple[float, float]:
    """95% interval of the quantile at `share`; 0 and 1 where the sample is too small to bound it."""
    count = len(ordered)
    low = int(stats.binom.ppf((1 - CONFIDENCE) / 2, count, share)) - 1
    high = int(stats.binom.ppf((1 + CONFIDENCE) / 2, count, share))
    return float(ordered[low]) if low >= 0 else 0.0, float(ordered[high]) if high < count else 1.0


def decide(probabilities: np.ndarray, classes: Sequence[str], thresholds: Mapping[str, float]) -> np.ndarray:
    """int64 [N], the class that each image is taken for.

    Without thresholds the most probable. A class with a threshold is taken where its probability reaches it, of several
    the one that exceeds it most, as a ratio; otherwise the most probable of the classes without a threshold, or of all
    where each has one.
    """
    if not thresholds:
        return probabilities.argmax(-1)
    limits = np.array([thresholds.get(name, np.inf) for name in classes])
    ratios = probabilities / np.maximum(limits, 1e-12)
    bounded = np.isfinite(limits)
    others = probabilities if bounded.all() else np.where(bounded, -1.0, probabilities)
    return np.where((ratios >= 1).any(-1), ratios.argmax(-1), others.argmax(-1))
