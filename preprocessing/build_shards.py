"""Text to verified token shards: the door to build/, whose __init__.py tells the steps."""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.launch import add_launcher_arguments, only_rank_zero, positive_int
from preprocessing.build.parts import part_option
from preprocessing.build.ranks import joined_ranks
from preprocessing.build.reflow import MODES
from preprocessing.readers.specs import SPEC_HELP

SHARD_TOKENS = 4_000_000
"""8 MB of ids, 16 MB of text, 5 s of one core: what a kill costs at most, and small enough to share out evenly."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="build_shards.py", description="Turn text into verified token shards.")
    parser.add_argument("--input", action="extend", nargs="+", required=True, metavar="SPEC", help=SPEC_HELP)
    tokenizer_help = "tokenizer directory, vocab.txt, or SentencePiece .model"
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help=tokenizer_help)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new or unfinished directory")
    workers_help = "processes of each rank (default: one per core; under mpirun and srun one)"
    parser.add_argument("--workers", type=positive_int, metavar="N", help=workers_help)
    shard_help = "tokens after which a shard is closed (default: %(default)s)"
    parser.add_argument("--shard-tokens", type=positive_int, default=SHARD_TOKENS, help=shard_help)
    case = parser.add_mutually_exclusive_group()
    case_help = "a vocab.txt alone is cased (default: uncased, if no token has capitals)"
    case.add_argument("--cased", action="store_const", const=True, help=case_help)
    case.add_argument("--uncased", dest="cased", action="store_const", const=False, help="a vocab.txt alone is uncased")
    reflow_help = (
        "join hard-wrapped lines into paragraphs and cut Project Gutenberg's licence; auto judges each document"
    )
    parser.add_argument("--reflow", choices=MODES, default="auto", help=f"{reflow_help} (default: %(default)s)")
    length_help = "characters a document needs to be kept (default: %(default)s)"
    parser.add_argument("--min-length", type=positive_int, default=1, metavar="N", help=length_help)
    error_help = "what undecodable bytes and malformed records do: end the run, or cost their document"
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help=f"{error_help} (default: stop)")
    step = parser.add_mutually_exclusive_group()
    part_help = "read and tokenize part I of N alone, on any machine that sees DIR; then end the build with --merge"
    step.add_argument("--part", type=part_option, metavar="I/N", help=part_help)
    step.add_argument(
        "--merge", action="store_true", help="end the build whose parts are all there, or name the missing"
    )
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Entry point; returns the exit code."""
    with joined_ranks() as ranks:
        arguments = ranks.share(parse_arguments)
        if only_rank_zero():
            from preprocessing.build.run import build_shards

            build_shards(arguments, ranks)
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
