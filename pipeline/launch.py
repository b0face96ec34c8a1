"""What entry scripts share: that a launcher may have started them, and that libraries keep quiet.

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


def quiet_transformers() -> None:
    """No warnings, load reports and progress bars from transformers, for the rest of the process.

    Every rank would say them, and what matters of them is said here in a sentence.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def positive_int(text: str) -> int:
    """Type of an argparse option that counts something."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
