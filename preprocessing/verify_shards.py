"""Check a shard directory against its manifest and print every fault with its file and byte."""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.launch import add_launcher_arguments, only_rank_zero


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="verify_shards.py", description="Check a shard directory.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory that build_shards.py wrote")
    parser.add_argument("--quick", action="store_true", help="headers, sizes, manifest and tokenizer only")
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments()
    if only_rank_zero():
        from preprocessing.inspection.verification import verify

        verify(arguments.directory, arguments.quick)
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
