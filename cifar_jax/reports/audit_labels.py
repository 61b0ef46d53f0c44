"""Which labels are doubtful: confident learning (Northcutt et al. 2021, arXiv 1911.00068) by cleanlab."""

from dataclasses import dataclass

import numpy as np

from cifar_jax.errors import InputError

# cleanlab's names. The confident joint estimates the number of errors; so many labels of the lowest quality are
# doubtful. docs/label_audit.md compares them with the others.
FILTER = "low_self_confidence"
SCORE = "self_confidence"


@dataclass(frozen=True)
class Judged:
    """The labels of N images of a split, judged by probabilities of models that were not trained on the images."""

    labels: np.ndarray  # int32 [N]
    probabilities: np.ndarray  # float32 [N, classes]
    quality: np.ndarray  # float64 [N], of the label: the probability of its class
    doubtful: np.ndarray  # bool [N]

    @property
    def suggested(self) -> np.ndarray:
        """The most probable class of each image, int64 [N]."""
        return self.probabilities.argmax(-1)

    @property
    def correct(self) -> np.ndarray:
        """Where it is the label, bool [N]."""
        return self.suggested == self.labels

    @property
    def ranked(self) -> np.ndarray:
        """All places, the most doubtful label first, int64 [N]."""
        return np.argsort(self.quality, kind="stable")

    def suggestions(self, classes: int) -> np.ndarray:
        """The doubtful images by (label, suggested class), int64 [classes, classes]."""
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (self.labels[self.doubtful], self.suggested[self.doubtful]), 1)
        return counts


def check_library() -> None:
    """Raises InputError where cleanlab is missing."""
    try:
        import cleanlab  # noqa: F401
    except ImportError as error:
        remedy = "install it with pip install -c constraints.txt -e '.[audit]'"
        raise InputError(f"an audit needs cleanlab, which is not installed; {remedy}") from error


def judge(labels: np.ndarray, probabilities: np.ndarray) -> Judged:
    """Labels int [N] by probabilities float [N, classes]. A split without an image of some class is judged too.

    Raises InputError where cleanlab is missing, or a probability is not finite.
    """
    check_library()
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    if not np.isfinite(probabilities).all():
        raise InputError("the models' probabilities are not finite; lower optimizer.learning_rate and audit anew")
    wide = probabilities.astype(np.float64)
    wide /= wide.sum(-1, keepdims=True)
    quality = get_label_quality_scores(labels, wide, method=SCORE)
    doubtful = find_label_issues(labels, wide, filter_by=FILTER, n_jobs=1)
    return Judged(labels, probabilities, np.asarray(quality, np.float64), np.asarray(doubtful, bool))
