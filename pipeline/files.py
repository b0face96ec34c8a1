"""Files that appear under their name only when they are whole: temporary name, fsync, rename."""

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from pipeline.errors import UserError

_HASH_BLOCK = 1 << 22
_TOKEN = secrets.token_hex(4)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system inside the block (full, read-only, no permission) into a sentence on `path`.

    Those that safetensors and tokenizers meet are no OSErrors.
    """
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{path}: cannot write: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror or error}") from error
    except Exception as error:
        # The tokenizers library raises bare ones, with Rust's words for an error of the system.
        if type(error) is not Exception or "(os error " not in str(error):
            raise
        raise UserError(f"{path}: cannot write: {error}") from error


_ANOTHER_FOLDER = "set TMPDIR to a folder with space"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of its own for what goes with the block.

    Raises:
        UserError: there is no place for it.
    """
    # Of itself, tempfile passes over a TMPDIR that it cannot use and fills another disk than was asked for.
    asked = os.environ.get("TMPDIR")
    try:
        folder = tempfile.TemporaryDirectory(dir=asked or None, ignore_cleanup_errors=True)
    except OSError as error:
        where = asked or "the system's folders for temporary files"
        raise UserError(
            f"{where}: cannot write temporary files: {error.strerror or error}; {_ANOTHER_FOLDER}"
        ) from error
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def writing_temporary(folder: Path) -> Iterator[None]:
    """As `writing`, for what goes into a temporary folder; the sentence names its place and what to do."""
    try:
        with writing(folder.parent):
            yield
    except UserError as error:
        hint = f"; {_ANOTHER_FOLDER}" if ": cannot write: " in str(error) else ""
        raise UserError(f"{error}{hint}") from error


def temporary_name(path: Path) -> Path:
    """Name beside `path` to write to, the same at each call in this process.

    The process id keeps a killed run's straggler away from its successor, the token processes of the same id on two
    machines away from each other.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.{_TOKEN}.tmp")


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds, at every moment, the old bytes or all of the new ones."""
    temporary = temporary_name(path)
    with writing(path):
        try:
            with open(temporary, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_if_absent(path: Path, content: bytes) -> None:
    """Write `content` unless `path` is there, which stays as it is, whoever writes it at the same moment."""
    temporary = temporary_name(path)
    if path.exists():
        return
    with writing(path):
        try:
            temporary.write_bytes(content)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def open_to_others(directory: Path) -> None:
    """Give the files in `directory` the permissions of the user's umask; safetensors writes for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in directory.iterdir():
        path.chmod(0o666 & ~mask)


def remove_temporaries(directory: Path) -> None:
    """Delete what killed runs left half-written in `directory`."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
