"""Statistics of repeated runs. Pure functions on NumPy arrays; no function returns NaN.

Values are one number per run, in the units of the metric: an accuracy is a fraction in 0..1. Tests are two-sided at
alpha = 0.05, intervals have 95% confidence, power is 80%. Normal distribution between seeds is assumed by Student's
and the chi-square intervals; the test of McNemar and the spread of `evaluation_spread` assume nothing of the kind.

With fewer than 3 values (or pairs) there is no interval and no p-value, only None: with two, the interval of the mean
is 18 standard deviations wide.

Where values do not vary at all, a t test is not defined. Here the interval is then the difference itself, and p is 1
where the difference is 0 and 0 where it is not.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from cifar_jax.errors import InputError

ALPHA = 0.05
POWER = 0.8
FEWEST = 3  # values that an interval, a p-value and a correlation need

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """Repeated runs of one recipe. `standard_deviation` has n - 1 degrees of freedom; None for a single value."""

    count: int
    mean: float
    standard_deviation: float | None
    mean_interval: Interval | None
    standard_deviation_interval: Interval | None


@dataclass(frozen=True)
class PairedTest:
    """`arm` - `base` over common seeds. `standard_deviation` is that of the differences, `correlation` that of the
    pairs (Pearson), `detectable` the smallest true difference that so many pairs find with 80% power."""

    count: int
    difference: float
    standard_deviation: float | None
    interval: Interval | None
    p: float | None
    correlation: float | None
    detectable: float | None


@dataclass(frozen=True)
class WelchTest:
    """`arm` - `base` as independent samples of unequal variance. `degrees` of freedom; None where they have none."""

    difference: float
    interval: Interval | None
    p: float | None
    degrees: float | None
    detectable: float | None = None  # the smallest true difference that so many runs find with 80% power


@dataclass(frozen=True)
class EvaluationSpread:
    """Variances of the accuracy between runs, in squared fractions.

    `variance` is the one observed on these images. `images_variance` is what runs of equal true accuracy would show on
    so few images. `true_variance` estimates the variance on unlimited images; an estimate without bias may be negative.
    """

    runs: int
    images: int
    standard_deviation: float
    variance: float
    images_variance: float
    true_variance: float


@dataclass(frozen=True)
class McNemarTest:
    """Two trained models on the same images: how many images only one of them classifies correctly, and p."""

    only_first: int
    only_second: int
    p: float


def summarise(values: Sequence[float] | np.ndarray) -> Summary:
    """Mean m, standard deviation s (n - 1) and their 95% intervals, for values [n].

    m ± t(0.975, n-1) s / sqrt(n) (Student 1908), and s sqrt((n-1) / chi2(q, n-1)) for q = 0.975 and 0.025.
    Source: NIST/SEMATECH e-Handbook of Statistical Methods, sections 1.3.5.2 and 1.3.5.8.
    """
    values = _numbers(values)
    count, mean = len(values), float(values.mean())
    deviation = _standard_deviation(values)
    if deviation is None or count < FEWEST:
        return Summary(count, mean, deviation, None, None)
    low, high = (deviation * math.sqrt((count - 1) / stats.chi2.ppf(q, count - 1)) for q in (1 - ALPHA / 2, ALPHA / 2))
    return Summary(
        count, mean, deviation, _around(mean, deviation / math.sqrt(count), count - 1), (float(low), float(high))
    )


def paired_test(arm: Sequence[float] | np.ndarray, base: Sequence[float] | np.ndarray) -> PairedTest:
    """Paired t test of arm [n] against base [n], whose entries at one index have the same seed.

    With d = arm - base, mean m and standard deviation s, t = m sqrt(n) / s has n - 1 degrees of freedom (Student 1908).
    Raises InputError where the lengths differ.
    """
    arm, base = _numbers(arm), _numbers(base)
    if len(arm) != len(base):
        raise InputError(
            f"a paired test needs as many values of the arm as of the base; it got {len(arm)}, {len(base)}"
        )
    count, differences, scale = len(arm), arm - base, _scale(arm, base)
    deviation = _standard_deviation(differences, scale)
    difference = _rounded(float(differences.mean()), scale)
    if deviation is None or count < FEWEST:
        return PairedTest(count, difference, deviation, None, None, None, None)
    error = deviation / math.sqrt(count)
    correlation = None
    if _standard_deviation(arm) and _standard_deviation(base):
        correlation = float(np.clip(np.corrcoef(arm, base)[0, 1], -1, 1))
    return PairedTest(
        count=count,
        difference=difference,
        standard_deviation=deviation,
        interval=_around(difference, error, count - 1),
        p=_student_p(difference, error, count - 1),
        correlation=correlation,
        detectable=detectable_difference(deviation, count),
    )


def welch_test(arm: Sequence[float] | np.ndarray, base: Sequence[float] | np.ndarray) -> WelchTest:
    """Welch's t test of arm [n] against base [m], which have no seeds in common or are treated so.

    t = difference of means / sqrt(v), v = s1^2 / n + s2^2 / m, with v^2 / (s1^4 / (n^2 (n-1)) + s2^4 / (m^2 (m-1)))
    degrees of freedom (Welch 1947; Satterthwaite 1946).
    """
    arm, base = _numbers(arm), _numbers(base)
    difference = _rounded(float(arm.mean() - base.mean()), _scale(arm, base))
    if min(len(arm), len(base)) < FEWEST:
        return WelchTest(difference, None, None, None)
    parts = [(_standard_deviation(values) or 0.0) ** 2 / len(values) for values in (arm, base)]
    error = math.sqrt(sum(parts))
    if not error:
        return WelchTest(difference, (difference, difference), _student_p(difference, 0.0, 1), None)
    # Divided by the larger part first: the squares of small variances underflow.
    shares = [part / max(parts) for part in parts]
    weights = [share**2 / (len(values) - 1) for share, values in zip(shares, (arm, base), strict=True)]
    degrees = sum(shares) ** 2 / sum(weights)
    detectable = _noncentrality(degrees) * error
    p = _student_p(difference, error, degrees)
    return WelchTest(difference, _around(difference, error, degrees), p, degrees, detectable)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for the number of tests, in the given order; None is no test, and stays None.

    With p sorted, p_(1) <= ... <= p_(k): the adjusted p_(j) is the largest of min(1, (k - i + 1) p_(i)) over i <= j.
    The chance of one or more false findings is then at most alpha, whatever the dependence between the tests.
    Source: Holm 1979, A simple sequentially rejective multiple test procedure, section 3.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted


def detectable_difference(standard_deviation: float, count: int) -> float:
    """The smallest true difference that a paired t test with `count` pairs finds with 80% power.

    `standard_deviation` is that of the differences between the pairs. With a true difference d, t has the noncentral t
    distribution with n - 1 degrees of freedom and noncentrality d sqrt(n) / s; solved for P(|t| > t(0.975, n-1)) = 0.8.
    Source: Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, chapter 2.

    Raises InputError with fewer than 3 pairs.
    """
    if count < FEWEST:
        raise InputError(f"a detectable difference needs at least {FEWEST} pairs; it got {count}")
    return _noncentrality(float(count - 1)) * standard_deviation / math.sqrt(count)


def pairs_needed(standard_deviation: float, difference: float) -> int:
    """The smallest number of pairs, at least 3, that finds a true `difference` with 80% power.

    `standard_deviation` is that of the differences between the pairs. Raises InputError unless the difference is
    positive.
    """
    if not (math.isfinite(difference) and difference > 0):
        raise InputError(f"the difference to detect is {difference!r}; it must be a positive number")
    # The normal approximation is a lower bound, and only a few pairs too low.
    normal = (stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER)) * standard_deviation / difference
    count = max(FEWEST, math.ceil(normal**2))
    while detectable_difference(standard_deviation, count) > difference:
        count += 1
    return count


def evaluation_spread(correct: np.ndarray) -> EvaluationSpread:
    """How much of the spread between runs comes from the finite set of evaluation images.

    correct: bool or 0/1, [runs, images]; run r classifies image i correctly. With R runs, N images, and p_i the
    fraction of runs that classify image i correctly:

        variance         s^2 = sum_r (a_r - mean)^2 / (R - 1), a_r the accuracy of run r
        images_variance  e   = (1 / N^2) sum_i p_i (1 - p_i) R / (R - 1)
        true_variance        = N / (N - 1) (s^2 - e)

    e is the variance of the accuracy between runs whose errors on different images are independent (section 3.2).
    The estimator of the true variance is theorem 2 (equation 3 in section 3.3, proof in B.2). The paper states it for
    the exact variances over runs; it is linear in them, so it stays unbiased with their unbiased estimates, which have
    R - 1 in place of R. It assumes that the images are a random sample.
    Source: Jordan 2023, arXiv 2304.01910v4.

    Raises InputError unless there are at least 2 runs and 2 images, each entry 0 or 1.
    """
    correct = np.asarray(correct)
    if correct.ndim != 2 or min(correct.shape) < 2:
        shape = list(correct.shape)
        raise InputError(f"the spread over evaluation images needs [runs, images] with at least 2 of both; got {shape}")
    _check_correct(correct)
    runs, images = correct.shape
    accuracies = correct.mean(1, dtype=np.float64)
    deviation = _standard_deviation(accuracies) or 0.0
    rates = correct.mean(0, dtype=np.float64)
    expected = float((rates * (1 - rates)).sum()) * runs / (runs - 1) / images**2
    true = images / (images - 1) * (deviation**2 - expected)
    return EvaluationSpread(runs, images, deviation, deviation**2, expected, true)


def mcnemar_test(first: np.ndarray, second: np.ndarray) -> McNemarTest:
    """McNemar's exact test of two trained models; first, second: bool or 0/1 [images], correct or not.

    Under the null hypothesis, each image that only one model classifies correctly is of either model with chance 1/2:
    p is that of the two-sided binomial test; 1 where there is no such image. It compares these two trained models on
    images of this kind, not the recipes, whose spread between seeds it cannot see.
    Source: McNemar 1947; Dietterich 1998, Approximate statistical tests, section 3.1.

    Raises InputError where the shapes differ or an entry is not 0 or 1.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 1 or first.shape != second.shape:
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise InputError(f"McNemar's test needs predictions of the same images, [images] each; it got {shapes}")
    _check_correct(first)
    _check_correct(second)
    first, second = first.astype(bool), second.astype(bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemarTest(only_first, only_second, p)


def _numbers(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """values as float64 [n]. Raises InputError where there are none, or one is not finite."""
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise InputError(f"statistics need a list of one or more finite numbers; got {values!r}")
    return numbers


def _check_correct(correct: np.ndarray) -> None:
    if not np.isin(correct, (0, 1)).all():
        raise InputError(f"per-image results are 0 or 1, or bool; got {correct[~np.isin(correct, (0, 1))][0]!r}")


def _scale(*samples: np.ndarray) -> float:
    """The largest absolute value: what rounding errors are relative to."""
    return max(float(np.abs(values).max()) for values in samples)


def _rounded(value: float, scale: float) -> float:
    """The value, or 0 where it is a rounding error of numbers of size `scale`."""
    return value if abs(value) > 8 * np.finfo(np.float64).eps * scale else 0.0


def _standard_deviation(values: np.ndarray, scale: float | None = None) -> float | None:
    """n - 1 degrees of freedom; exactly 0 where the values differ by rounding errors only; None for a single value."""
    if len(values) < 2:
        return None
    spread = _rounded(float(np.ptp(values)), _scale(values) if scale is None else scale)
    return float(values.std(ddof=1)) if spread else 0.0


def _around(center: float, error: float, degrees: float) -> Interval:
    """Student's 95% interval for a standard error."""
    half = float(stats.t.ppf(1 - ALPHA / 2, degrees)) * error
    return center - half, center + half


@functools.cache
def _noncentrality(degrees: float) -> float:
    """That of a t test with so many degrees of freedom and 80% power: 5.7 with 2, 2.8 with many."""
    return float(optimize.brentq(lambda value: _power(value, degrees) - POWER, 1.0, 10.0, xtol=1e-10))


def _power(noncentrality: float, degrees: float) -> float:
    """P(p < 0.05) of a t test, for a noncentrality in 1..10."""
    critical = stats.t.ppf(1 - ALPHA / 2, degrees)
    # The far tail is below 1e-17 where SciPy returns NaN for it.
    far = np.nan_to_num(stats.nct.cdf(-critical, degrees, noncentrality))
    return float(stats.nct.sf(critical, degrees, noncentrality) + far)


def _student_p(difference: float, error: float, degrees: float) -> float:
    if not error:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.t.sf(abs(difference / error), degrees))
