"""The first pass: what the readers give, cleaned, in a working file per task, with a digest of every document.

Reading and cleaning happen once, however dear they are (wikitext is parsed, a hub downloads): the second pass reads
the working files. Which documents are duplicates can only be told when every digest is there (duplicates.py).
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from pipeline.files import temporary_name, writing
from preprocessing.build.output import DIGEST_BYTES, CleanResult, digests_path, text_path, write_clean_marker
from preprocessing.build.plan import Task
from preprocessing.build.reflow import reflow
from preprocessing.readers.compressed import open_text
from preprocessing.readers.documents import Piece, Tally
from preprocessing.readers.formats import read_piece

_LENGTH_BYTES = 8
_LEVEL = 1
"""250 MB/s, and English takes 40 % of its size."""


@dataclass(frozen=True)
class Cleaning:
    """What becomes of a document before it is tokenized.

    `reflow` is a mode of reflow.py, `min_length` the characters a document needs, and `skip_faults` whether the run
    goes on after undecodable bytes and malformed records.
    """

    reflow: str = "auto"
    min_length: int = 1
    skip_faults: bool = False

    @property
    def settings(self) -> str:
        """What of this decides the output; without `skip_faults` a run gives the same documents or none."""
        return f"reflow={self.reflow} min_length={self.min_length}"


@dataclass(frozen=True)
class Cleaner:
    """Runs the first pass of tasks; small, so that every worker process gets its own copy."""

    output: Path
    cleaning: Cleaning

    def __call__(self, task: Task) -> CleanResult:
        """Write the task's text, digests and marker. DataError if an input is damaged."""
        tally = Tally(self.cleaning.skip_faults)
        files = _WorkingFiles(self.output, task.index)
        try:
            for text in clean_texts(task.pieces, self.cleaning, tally):
                files.add(text.encode())
            files.finish()
        except BaseException:
            files.discard()
            raise
        result = CleanResult(files.documents, files.text_bytes, dict(tally.left_out))
        write_clean_marker(self.output, task.index, result)
        return result


def clean_texts(pieces: Iterable[Piece], cleaning: Cleaning, tally: Tally) -> Iterator[str]:
    """Texts of the pieces that pass every filter but that of duplicates; the others are counted in `tally`."""
    for piece in pieces:
        for document in read_piece(piece, tally):
            text = reflow(document.text, cleaning.reflow)
            if not text:
                tally.drop("empty")
            elif len(text) < cleaning.min_length:
                tally.drop("short")
            else:
                yield text


def cleaned_texts(output: Path, task: int) -> Iterator[str]:
    """The texts that the first pass of a task left, in order."""
    path = text_path(output, task)
    with open_text(path) as stream:
        while length := stream.read(_LENGTH_BYTES):
            raw = stream.read(int.from_bytes(length, "little"))
            yield raw.decode()


class _WorkingFiles:
    """Text and digests of one task, written under temporary names until `finish`."""

    def __init__(self, output: Path, task: int) -> None:
        self.documents = self.text_bytes = 0
        self._paths = (text_path(output, task), digests_path(output, task))
        self._packer = zstandard.ZstdCompressor(_LEVEL).compressobj()
        with writing(output):
            self._streams: list[BinaryIO] = [open(temporary_name(path), "wb") for path in self._paths]  # noqa: SIM115

    def add(self, raw: bytes) -> None:
        packed = self._packer.compress(len(raw).to_bytes(_LENGTH_BYTES, "little") + raw)
        self._write(packed, hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest())
        self.documents += 1
        self.text_bytes += len(raw)

    def finish(self) -> None:
        self._write(self._packer.flush(), b"")
        for path, stream in zip(self._paths, self._streams, strict=True):
            with writing(path):
                stream.flush()
                os.fsync(stream.fileno())
                stream.close()
                os.replace(temporary_name(path), path)

    def discard(self) -> None:
        for path, stream in zip(self._paths, self._streams, strict=True):
            with suppress(OSError):  # a full disk fails the last flush as well
                stream.close()
            temporary_name(path).unlink(missing_ok=True)

    def _write(self, *contents: bytes) -> None:
        for path, stream, content in zip(self._paths, self._streams, contents, strict=True):
            with writing(path):
                stream.write(content)
