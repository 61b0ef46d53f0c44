"""Whether the runs of several studies spread differently: their standard deviations, and F tests of each pair.

    python benchmarks/spreads.py benchmarks/results/ablations/variance_*/runs.csv

Each file is the runs.csv of a study; all its runs are one sample. The F test of equal variances (two-sided, for normal
samples; NIST/SEMATECH e-Handbook, section 1.3.5.9) is adjusted for the number of pairs by Holm. The last
line says how many runs of each kind find a ratio of two standard deviations with 80% power at a level of 5%.
"""

import argparse
import csv
import itertools
import math
import statistics
import sys
from pathlib import Path

from scipy import stats
from worker import HERE

sys.path.insert(0, str(HERE.parent))
from cifar_jax.studies.statistics import holm, summarise

METRIC = "validation_accuracy"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="runs.csv")
    parser.add_argument("--ratio", type=float, default=1.5, help="of two deviations, to be found; 1.5")
    options = parser.parse_args()
    samples = {file.parent.name: points(file) for file in options.files}
    if options.ratio <= 1:
        parser.error(f"--ratio is {options.ratio}; it must be above 1")
    for name, values in samples.items():
        found = summarise(values)
        low, high = found.standard_deviation_interval or (math.nan, math.nan)
        deviation = f"sd {statistics.stdev(values):.2f} ({low:.2f} to {high:.2f})"
        print(f"{name}: n={found.count}, mean {found.mean:.2f}%, {deviation}")
    pairs = list(itertools.combinations(samples, 2))
    tests = [f_test(samples[first], samples[second]) for first, second in pairs]
    for (first, second), (ratio, p), adjusted in zip(pairs, tests, holm([p for _, p in tests]), strict=True):
        print(f"{first} / {second}: ratio of the deviations {ratio:.2f}, p = {p:.3f}, after Holm {adjusted:.3f}")
    print(f"a ratio of {options.ratio} is found with 80% power by {runs_needed(options.ratio)} runs of each kind")
    return 0


def points(file: Path) -> list[float]:
    """The metric of the finished runs, in percent."""
    return [100 * float(line[METRIC]) for line in csv.DictReader(file.open()) if line["status"] == "finished"]


def f_test(first: list[float], second: list[float]) -> tuple[float, float]:
    """Ratio of the standard deviations, and p of equal variances."""
    ratio = statistics.stdev(first) / statistics.stdev(second)
    tail = stats.f.cdf(ratio**2, len(first) - 1, len(second) - 1)
    return ratio, float(2 * min(tail, 1 - tail))


def runs_needed(ratio: float) -> int:
    """Of each of two samples; the smaller of the two tails that reject is left out, less than 0.1% here."""
    power = lambda n: stats.f.sf(stats.f.ppf(0.975, n - 1, n - 1) / ratio**2, n - 1, n - 1)
    return next(n for n in itertools.count(2) if power(n) >= 0.8)


if __name__ == "__main__":
    sys.exit(main())
