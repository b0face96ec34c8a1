"""What every entry script shares because a launcher may have started it.

The `deepspeed` launcher starts its script once per rank and adds `--local_rank=N`. A script that is one
process by nature runs on rank 0 and returns at once elsewhere.
"""

import argparse
import os


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Accept, and hide from `--help`, the options that launchers add to a script's command line."""
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def only_rank_zero() -> bool:
    """True in a process that was started alone or as rank 0."""
    return os.environ.get("RANK", "0") == "0"


def positive_int(text: str) -> int:
    """Type of an argparse option that counts something."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
