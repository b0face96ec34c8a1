"""Errors a user can cause, their exit codes, and the frame in which every entry script runs.

Every such error is one plain sentence: what is wrong, where, what to do. Anything else that escapes is a
defect of this project and keeps its traceback.
"""

import io
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

EXIT_DONE = 0
EXIT_USAGE = 2
"""Bad arguments, configuration or output directory."""
EXIT_DATA = 3
"""Bad input data."""
EXIT_HUNG = 70
"""The job got no further: a rank hangs or is lost."""
EXIT_STOPPED = 75
"""Stopped on request, after a checkpoint."""


class UserError(Exception):
    """Bad arguments, configuration or output directory."""

    exit_code = EXIT_USAGE
    said_elsewhere = False
    """Another rank has the same error and says it."""


class DataError(UserError):
    """Bad input data; the sentence names the file and the offset or line, and what was expected."""

    exit_code = EXIT_DATA


def give_up_stdout() -> None:
    """Let all that is or was printed go nowhere from here on: nobody reads it, or its disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def escape_unprintable() -> None:
    """Print as an escape what the encoding of stdout or stderr has no character for, instead of failing.

    A path may have any, also bytes that are no text at all, whatever the terminal or the batch system's log can show.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_entry_point(main: Callable[[], int]) -> NoReturn:
    """Run `main`, turn a `UserError` into its sentence on stderr, and exit with the code of the design."""
    escape_unprintable()
    try:
        code = main()
    except UserError as error:
        if os.environ.get("RANK", "0") != "0" and not error.said_elsewhere:
            # Ranks find the same mistake at the same moment. Rank 0 says it once; the launcher then ends
            # the others. A mistake that only this rank met is still said, a little later.
            time.sleep(10)
        if not error.said_elsewhere:
            print(f"error: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    try:
        sys.stdout.flush()
    except OSError:
        give_up_stdout()
    sys.exit(code)
