"""Errors a user can cause, their exit codes, and the frame in which every entry script runs.

Every such error is one plain sentence: what is wrong, where, what to do. Anything else that escapes is a
defect of this project and keeps its traceback.
"""

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


_UNREADABLE = re.compile("[\udc80-\udcff]")
"""How Python writes bytes of an argument that are no text: TensorBoard and the tokenizers library take no such path."""


class UserError(Exception):
    """Bad arguments, configuration or output directory."""

    exit_code = EXIT_USAGE
    said_elsewhere = False
    """Another rank has the same error and says it."""

    def __init__(self, *sentences: str) -> None:
        self.sentences = sentences
        """One for each thing that is wrong."""
        listed = [f"{len(sentences)} settings cannot work:", *(f"- {sentence}" for sentence in sentences)]
        super().__init__(sentences[0] if len(sentences) == 1 else "\n".join(listed))


class DataError(UserError):
    """Bad input data; the sentence names the file and the offset or line, and what was expected."""

    exit_code = EXIT_DATA


class LostError(UserError):
    """A process of the job is lost, through no fault of what was asked for."""

    exit_code = EXIT_HUNG


class Refusals:
    """Gathers what is wrong with settings, so that a user learns all of it at once."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Note a `UserError` of the block and go on behind it."""
        try:
            yield
        except UserError as error:
            self.sentences += error.sentences

    def refuse(self) -> None:
        """Raise all that was noted.

        Raises:
            UserError: there is something.
        """
        refuse(self.sentences)


def refuse(sentences: Iterable[str]) -> None:
    """Raise these sentences as one `UserError`, each once, if there are any."""
    if found := tuple(dict.fromkeys(sentences)):
        raise UserError(*found)


def first_line(error: Exception) -> str:
    """What a library's error says, in one line; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def give_up_stdout() -> None:
    """Let all that is or was printed go nowhere from here on: nobody reads it, or its disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def escape_unprintable() -> None:
    """Print as an escape what the encoding of stdout or stderr has no character for, instead of failing.

    A path may have any, whatever the terminal or the batch system's log can show.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _no_text(argument: str) -> str:
    shown = argument.encode("ascii", errors="backslashreplace").decode()
    return f"argument {shown} holds bytes that are no text in {sys.getfilesystemencoding()}: rename the file or folder"


def run_entry_point(main: Callable[[], int]) -> NoReturn:
    """Run `main`, turn a `UserError` into its sentence on stderr, and exit with the code of the design."""
    escape_unprintable()
    try:
        refuse(_no_text(argument) for argument in sys.argv if _UNREADABLE.search(argument))
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
