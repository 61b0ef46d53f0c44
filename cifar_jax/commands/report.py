"""Write report.html about a run, several runs and studies, or a search: one page without outside resources."""

import argparse
from pathlib import Path

import cifar_jax as cj


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="+", metavar="FOLDER", help="workdir of a run; or several, or studies; or a search"
    )
    parser.add_argument("--out", help="folder of the page; that of the run or study if not given")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")
    parser.add_argument("--metric", default="validation_accuracy", help="what several runs are compared by")
    parser.add_argument("--embedding", default="pca", help="map of the embeddings: pca, tsne or none")
    parser.add_argument("--figures", action="store_true", help="write them as PNG and SVG too, into a folder figures")


def run(options: argparse.Namespace) -> int:
    paths = [Path(path) for path in options.paths]
    chosen = {
        "data_dir": options.data_dir,
        "metric": options.metric,
        "embedding": options.embedding,
        "figures": options.figures,
    }
    print(f"wrote {cj.report(paths, options.out, **chosen)}")
    return 0
