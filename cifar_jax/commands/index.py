"""Embed the images of a folder or a split, so that `similar` can search among them.

SOURCE is a folder (all images at any depth), a pattern, or train, validation or test of the run's data set; a folder of
such a name is ./train. Embeddings are the inputs of the model's last layer.
"""

import argparse
from pathlib import Path

import cifar_jax as cj


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a folder; or train, validation or test")
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the index")
    parser.add_argument("--add", action="store_true", help="add what is new to an index that exists")
    parser.add_argument("--force", action="store_true", help="replace an index that exists")
    parser.add_argument("--approximate", action="store_true", help="a graph for millions of images; extra 'similar'")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets; TFDS_DATA_DIR if not given")


def run(options: argparse.Namespace) -> int:
    classifier = cj.load_classifier(options.workdir)
    chosen = {name: getattr(options, name) for name in ("workdir", "add", "force", "approximate", "data_dir")}
    print(cj.build_index(classifier, options.source, options.out, **chosen))
    return 0


def last_words() -> str:
    """What a signal leaves: an index is written beside its place, or a part of it before it counts."""
    return "stopped; the index is as it was before, and the same command begins again"
