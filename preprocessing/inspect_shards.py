"""Show what a shard directory holds: counts, lengths, share of [UNK], and some documents as text."""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.launch import add_launcher_arguments, only_rank_zero, positive_int

HISTOGRAM_NAME = "tokens_per_document.png"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="inspect_shards.py", description="Show what a shard directory holds.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory that build_shards.py wrote")
    documents_help = "documents to print, spread evenly (default: %(default)s)"
    parser.add_argument("--documents", type=positive_int, default=3, metavar="N", help=documents_help)
    histogram_help = f"where the histogram of tokens per document goes (default: DIR/{HISTOGRAM_NAME})"
    parser.add_argument("--histogram", type=Path, metavar="PNG", help=histogram_help)
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments()
    if only_rank_zero():
        from preprocessing.inspection.summary import show

        directory = arguments.directory
        show(directory, arguments.documents, arguments.histogram or directory / HISTOGRAM_NAME)
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
