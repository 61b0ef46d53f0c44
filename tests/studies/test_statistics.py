"""Against SciPy, against published figures, and by simulation with a known truth."""

import numpy as np
import pytest
from scipy import integrate, stats

from cifar_jax.errors import InputError
from cifar_jax.studies import statistics

ACCURACIES = (0.8102, 0.8149, 0.8117, 0.8171, 0.8090)
BETTER = (0.8161, 0.8190, 0.8129, 0.8214, 0.8188)


def within_binomial_error(hits, chance):
    """Whether the fraction of hits is within 3.5 standard errors of the chance: seeded, so it cannot flake."""
    hits = np.asarray(hits)
    return abs(hits.mean() - chance) < 3.5 * np.sqrt(chance * (1 - chance) / len(hits))


def test_summary_is_scipys():
    summary = statistics.summarise(ACCURACIES)
    error = stats.sem(ACCURACIES)
    assert (summary.count, summary.mean) == (5, pytest.approx(np.mean(ACCURACIES)))
    assert summary.standard_deviation == pytest.approx(np.std(ACCURACIES, ddof=1))
    assert summary.mean_interval == pytest.approx(stats.t.interval(0.95, 4, summary.mean, error))
    variance = 4 * summary.standard_deviation**2 / stats.chi2.ppf([0.975, 0.025], 4)
    assert summary.standard_deviation_interval == pytest.approx(np.sqrt(variance))


def test_summary_of_the_nist_handbook():
    """NIST/SEMATECH e-Handbook, 1.3.5.2 (ZARR13.DAT): n 195, mean 9.261460, s 0.022789, interval 9.258242..9.264679."""
    values = np.random.RandomState(0).normal(size=195)
    values = 9.261460 + 0.022789 * (values - values.mean()) / values.std(ddof=1)
    assert statistics.summarise(values).mean_interval == pytest.approx((9.258242, 9.264679), abs=1e-6)


@pytest.mark.parametrize("count", [3, 5, 10])
def test_intervals_cover_the_truth_in_95_of_100_studies(count):
    studies = np.random.RandomState(1).normal(0.8, 0.004, (2000, count))
    summaries = [statistics.summarise(study) for study in studies]
    means, deviations = (
        [getattr(s, name) for s in summaries] for name in ("mean_interval", "standard_deviation_interval")
    )
    assert within_binomial_error([low <= 0.8 <= high for low, high in means], 0.95)
    assert within_binomial_error([low <= 0.004 <= high for low, high in deviations], 0.95)


def test_few_values_have_no_interval():
    assert statistics.summarise([0.8]) == statistics.Summary(1, 0.8, None, None, None)
    two = statistics.summarise([0.8, 0.9])
    assert two.standard_deviation == pytest.approx(0.1 / np.sqrt(2))
    assert two.mean_interval is two.standard_deviation_interval is None


def test_equal_values_have_an_interval_of_no_width():
    """Five times 0.1 has a standard deviation of 1e-17 in floating point."""
    summary = statistics.summarise([0.1] * 5)
    assert summary.standard_deviation == 0
    assert summary.mean_interval == (summary.mean, summary.mean)
    assert summary.standard_deviation_interval == (0, 0)


@pytest.mark.parametrize("values", [[], [0.8, float("nan")], [float("inf")], [[0.8]]])
def test_what_is_no_list_of_numbers_is_refused(values):
    with pytest.raises(InputError, match="finite numbers"):
        statistics.summarise(values)


def test_paired_test_is_scipys():
    test, expected = statistics.paired_test(BETTER, ACCURACIES), stats.ttest_rel(BETTER, ACCURACIES)
    interval = expected.confidence_interval(0.95)
    assert test.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert test.interval == pytest.approx((interval.low, interval.high))
    assert test.correlation == pytest.approx(stats.pearsonr(BETTER, ACCURACIES).statistic)
    assert test.difference == pytest.approx(np.mean(BETTER) - np.mean(ACCURACIES))


def test_paired_test_of_student_1908():
    """Cushny and Peebles' hours of sleep in Student 1908, section IX: difference 1.58, t = 4.06, p = 0.0028."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    test = statistics.paired_test(second, first)
    assert (test.difference, test.p) == (pytest.approx(1.58), pytest.approx(0.002833, abs=1e-6))
    assert test.interval == pytest.approx((0.7001142, 2.4598858), abs=1e-7)


def test_welch_test_is_scipys():
    for base in (ACCURACIES, ACCURACIES[:3]):
        test, expected = statistics.welch_test(BETTER, base), stats.ttest_ind(BETTER, base, equal_var=False)
        interval = expected.confidence_interval(0.95)
        assert (test.p, test.degrees) == (pytest.approx(expected.pvalue), pytest.approx(expected.df))
        assert test.interval == pytest.approx((interval.low, interval.high))


def test_under_the_null_five_tests_in_a_hundred_find_a_difference():
    random = np.random.RandomState(2)
    seeds = random.normal(0, 0.003, (2000, 4, 1))  # what the seed does to both arms
    pairs = 0.8 + seeds + random.normal(0, 0.002, (2000, 4, 2))
    tests = [statistics.paired_test(study[:, 0], study[:, 1]) for study in pairs]
    assert within_binomial_error([test.p < 0.05 for test in tests], 0.05)
    assert within_binomial_error([test.interval[0] <= 0 <= test.interval[1] for test in tests], 0.95)
    apart = random.normal(0.8, 0.002, (2000, 6)), random.normal(0.8, 0.008, (2000, 4))
    # Welch's degrees of freedom are an approximation: within 2 points of 5%.
    sizes = np.mean([statistics.welch_test(a, b).p < 0.05 for a, b in zip(*apart, strict=True)])
    assert 0.03 < sizes < 0.07


@pytest.mark.parametrize("count", [3, 5, 12])
def test_the_detectable_difference_is_found_in_80_of_100_studies(count):
    wanted = statistics.detectable_difference(0.003, count)
    studies = np.random.RandomState(3).normal(wanted, 0.003, (2000, count))
    found = [statistics.paired_test(study, np.zeros(count)).p < 0.05 for study in studies]
    assert within_binomial_error(found, 0.80)


@pytest.mark.parametrize("count", [3, 5, 30])
def test_the_power_at_the_detectable_difference_is_80_percent(count):
    """t = (z + d sqrt(n)) / s, z normal and s chi / sqrt(n-1): the chance that |t| is large, integrated over chi."""
    shift, degrees = statistics.detectable_difference(1.0, count) * np.sqrt(count), count - 1
    critical = stats.t.ppf(0.975, degrees) / np.sqrt(degrees)
    found = lambda chi: stats.norm.sf(critical * chi - shift) + stats.norm.cdf(-critical * chi - shift)
    power, _ = integrate.quad(lambda chi: stats.chi.pdf(chi, degrees) * found(chi), 0, 30, limit=200)
    assert power == pytest.approx(0.8, abs=1e-7)


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_pairs_needed_are_those_of_the_published_tables(effect, pairs):
    """G*Power 3.1, means, matched pairs, two-sided."""
    assert statistics.pairs_needed(1.0, effect) == pairs
    assert statistics.detectable_difference(1.0, pairs) <= effect < statistics.detectable_difference(1.0, pairs - 1)


def test_many_pairs_are_those_of_the_normal_distribution():
    """((1.959964 + 0.841621) / 0.001)^2"""
    assert statistics.pairs_needed(1.0, 0.001) == pytest.approx(7848880, abs=10)


def test_pairs_needed_are_never_fewer_than_a_test_takes():
    assert statistics.pairs_needed(0.0, 0.01) == statistics.pairs_needed(1e-6, 0.01) == 3
    for difference in (0.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="positive"):
            statistics.pairs_needed(0.01, difference)
    with pytest.raises(InputError, match="at least 3 pairs"):
        statistics.detectable_difference(0.01, 2)


def test_equal_differences_have_a_defined_p():
    """0.81 - 0.80 and 0.71 - 0.70 differ in the last bit: they count as equal."""
    base = np.array([0.80, 0.70, 0.60, 0.50])
    same = statistics.paired_test(base, base)
    assert (same.difference, same.interval, same.p, same.detectable) == (0, (0, 0), 1, 0)
    shifted = statistics.paired_test(base + 0.01, base)
    assert (shifted.standard_deviation, shifted.p, shifted.detectable) == (0, 0, 0)
    assert shifted.interval == (shifted.difference, shifted.difference)
    flat = statistics.paired_test([0.8, 0.8, 0.8], [0.7, 0.8, 0.9])
    assert (flat.correlation, flat.difference, flat.p) == (None, 0, pytest.approx(1))


def test_welch_of_equal_values_has_a_defined_p():
    assert statistics.welch_test([0.1] * 3, [0.1] * 4) == statistics.WelchTest(0.0, (0.0, 0.0), 1.0, None)
    assert statistics.welch_test([0.9] * 3, [0.8] * 3).p == 0
    one_flat = statistics.welch_test([0.9] * 3, ACCURACIES)
    assert one_flat.degrees == pytest.approx(4)
    tiny = statistics.welch_test(np.array(BETTER) * 1e-120, np.array(ACCURACIES) * 1e-120)
    assert tiny.degrees == pytest.approx(statistics.welch_test(BETTER, ACCURACIES).degrees)


def test_two_pairs_are_no_test():
    test = statistics.paired_test([0.81, 0.82], [0.80, 0.83])
    assert (test.count, test.interval, test.p, test.correlation, test.detectable) == (2, None, None, None, None)
    assert statistics.welch_test([0.81, 0.82], ACCURACIES).p is None
    with pytest.raises(InputError, match="got 2, 5"):
        statistics.paired_test([0.81, 0.82], ACCURACIES)


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 and 0.04 x 1, none smaller than the one before it."""
    assert statistics.holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert statistics.holm([0.6, 0.7]) == [1, 1]
    assert statistics.holm([0.03]) == [0.03]
    assert statistics.holm([None]) == [None]


def test_holm_keeps_the_chance_of_a_false_finding():
    """Five arms against one base, none better: the tests share the base, and any finding is a false one."""
    studies = np.random.RandomState(4).normal(0, 1, (1000, 6, 5))
    found = []
    for base, *arms in studies:
        p_values = [statistics.paired_test(arm, base).p for arm in arms]
        found.append((min(p_values) < 0.05, min(statistics.holm(p_values)) < 0.05))
    uncorrected, corrected = np.mean(found, 0)
    assert uncorrected > 0.1
    assert corrected < 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / 1000)


def simulated_spreads(shift, runs=5, images=200, studies=2000):
    """Each study draws new images with chances of 0.2..0.8; each run shifts all of them by its own draw."""
    random = np.random.RandomState(5)
    spreads = []
    for _ in range(studies):
        chances = random.uniform(0.2, 0.8, images) + random.uniform(-shift, shift, (runs, 1))
        spreads.append(statistics.evaluation_spread(random.uniform(size=(runs, images)) < chances))
    return spreads


@pytest.mark.parametrize("shift", [0.0, 0.06, 0.2])
def test_the_true_variance_is_estimated_without_bias(shift):
    """A run's true accuracy is 0.5 + its shift, uniform in ± shift: the variance is shift^2 / 3."""
    spreads = simulated_spreads(shift)
    estimates = np.array([spread.true_variance for spread in spreads])
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - shift**2 / 3) < 3.5 * error
    # What the spread on these images alone would say is off by many errors; the test can see a missing correction.
    observed = np.array([spread.variance for spread in spreads])
    assert observed.mean() - shift**2 / 3 > 5 * error
    assert shift or (estimates < 0).any()


def test_independent_runs_spread_as_their_images_predict():
    """Chances of 0.2..0.8: E[p (1 - p)] = 1/4 - 0.6^2 / 12, over 200 images."""
    expected = (0.25 - 0.36 / 12) / 200
    images = np.array([spread.images_variance for spread in simulated_spreads(0.0)])
    assert abs(images.mean() - expected) < 3.5 * images.std() / np.sqrt(len(images))


def test_the_true_variance_is_the_mean_covariance_of_two_images():
    """Appendix B.2: equal to the mean over pairs of images of the covariance of their errors between runs."""
    correct = np.random.RandomState(6).uniform(size=(4, 7)) < 0.7
    covariance = np.cov(correct.T.astype(float))
    mean = (covariance.sum() - np.trace(covariance)) / (7 * 6)
    spread = statistics.evaluation_spread(correct)
    assert spread.true_variance == pytest.approx(mean)
    assert spread.standard_deviation == pytest.approx(correct.mean(1).std(ddof=1))
    assert statistics.evaluation_spread(correct.astype(np.uint8)) == spread


def test_equal_runs_have_no_spread():
    spread = statistics.evaluation_spread(np.array([[1, 0, 1]] * 3))
    assert (spread.variance, spread.images_variance, spread.true_variance) == (0, 0, 0)


@pytest.mark.parametrize("correct", [np.ones(5), np.ones((1, 5)), np.ones((5, 1)), np.full((2, 2), 0.5)])
def test_spread_refuses_what_is_no_matrix_of_results(correct):
    with pytest.raises(InputError):
        statistics.evaluation_spread(correct)


def test_mcnemar_by_hand():
    """Image counts 10 against 2: p = 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12."""
    first = np.array([1] * 50 + [1] * 10 + [0] * 2 + [0] * 8, bool)
    second = np.array([1] * 50 + [0] * 10 + [1] * 2 + [0] * 8, bool)
    test = statistics.mcnemar_test(first, second)
    assert (test.only_first, test.only_second, test.p) == (10, 2, pytest.approx(2 * 79 / 4096))
    assert statistics.mcnemar_test(second, first).p == test.p
    assert statistics.mcnemar_test(first, first) == statistics.McNemarTest(0, 0, 1.0)
    with pytest.raises(InputError, match=r"\[70\] and \[69\]"):
        statistics.mcnemar_test(first, second[1:])
    with pytest.raises(InputError, match="0 or 1"):
        statistics.mcnemar_test(first * 0.5, second)


def test_mcnemar_finds_nothing_in_equal_models():
    """The exact test is conservative: at most 5 findings in 100."""
    results = np.random.RandomState(7).uniform(size=(500, 2, 300)) < 0.8
    found = np.mean([statistics.mcnemar_test(first, second).p < 0.05 for first, second in results])
    assert 0.01 < found < 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / 500)
