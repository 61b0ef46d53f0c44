"""Answer HTTP requests with a trained run: the classes of images, and the images of an index that are similar.

A browser shows a page at the address. /openapi.json describes the requests. SIGTERM and Ctrl-C finish what was
accepted. docs/serving.md tells more.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run")
    parser.add_argument("--index", type=Path, metavar="DIR", help="folder that the command index made, for /v1/similar")
    parser.add_argument("--host", default="127.0.0.1", help="address; 127.0.0.1, which other machines cannot reach")
    parser.add_argument("--port", type=int, default=8000, help="8000; 0 takes any that is free")
    parser.add_argument("--token_file", type=Path, metavar="FILE", help="a token that requests must bring")
    parser.add_argument(
        "--cors_origin",
        action="append",
        default=[],
        metavar="URL",
        help="let pages of this origin ask; may be repeated",
    )
    parser.add_argument(
        "--allow_host", action="append", default=[], metavar="NAME", help="a name that a proxy passes; may be repeated"
    )
    parser.add_argument("--watch", action="store_true", help="load new checkpoints as the run writes them")
    parser.add_argument("--max_bytes", type=int, default=10 << 20, metavar="N", help="of a request; 10485760")
    parser.add_argument("--max_pixels", type=int, default=16_000_000, metavar="N", help="of an image; 16000000")
    parser.add_argument("--max_images", type=int, default=16, metavar="N", help="of a request; 16")
    parser.add_argument("--queue", type=int, default=256, metavar="N", help="images in work, beyond it 429; 256")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images that are computed together; 32")
    parser.add_argument("--batch_delay", type=float, default=10.0, metavar="MS", help="wait for others, ms; 10")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="for a body, and for its answer; 10")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets, for the pictures of an index")


def run(options: argparse.Namespace) -> int:
    from cifar_jax.inference.serve import Options, serve

    other = ("command", "changes", "cors_origin", "allow_host")
    given = {name: value for name, value in vars(options).items() if name not in other}
    return serve(Options(**given, cors_origins=tuple(options.cors_origin), hosts=tuple(options.allow_host)))


def last_words() -> str:
    """What a signal leaves before the service runs. Imports nothing."""
    return "stopped before anything was served"
