"""Find the images of an index that are most similar to others.

QUERY are files, folders or patterns. The answer: for each query its neighbours with their cosine similarity, the most
similar first. A query that is in the index finds itself.
"""

import argparse
import json
import sys
from pathlib import Path

import cifar_jax as cj

FORMATS = ("table", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="image files, folders or patterns")
    parser.add_argument("--index", required=True, type=Path, metavar="DIR", help="folder that the command index made")
    parser.add_argument("--top", type=int, default=10, help="images for each query; 10")
    parser.add_argument("--format", default="table", help="table or json; table")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw the answers there, a PNG")
    parser.add_argument("--workdir", help="folder of the model, where it was moved; that of the index if not given")
    parser.add_argument("--exact", action="store_true", help="search exactly in an index with a graph")
    parser.add_argument("--force", action="store_true", help="replace --sheet")
    parser.add_argument("--data_dir", help="for --sheet: folder of prepared TFDS data sets")


def run(options: argparse.Namespace) -> int:
    from cifar_jax.inference.similar import find_similar, sheet_of
    from cifar_jax.runs.files import write_bytes

    if options.format not in FORMATS:
        raise cj.InputError(f"--format={options.format} is unknown; it is one of {', '.join(FORMATS)}")
    if options.sheet and options.sheet.exists() and not options.force:
        raise cj.InputError(f"'{options.sheet}' exists; replace it with --force, or name another file")
    index = cj.load_index(options.index)
    workdir = options.workdir or index.record["workdir"]
    if workdir is None:
        raise cj.InputError(f"the index in '{options.index}' does not say where its model is; name its --workdir")
    classifier = cj.load_classifier(workdir)
    answers = find_similar(index, classifier, options.queries, top=options.top, exact=options.exact)
    if options.format == "json":
        print(json.dumps([answer.to_json() for answer in answers], indent=1))
    else:
        print(*answers, sep="\n")
    if options.sheet:
        write_bytes(options.sheet, sheet_of(answers, classifier, options.data_dir))
        print(f"wrote {options.sheet}", file=sys.stderr)
    return 0
