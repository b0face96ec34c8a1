"""The first pass: what the readers give, cleaned and tokenized, in working files of each task.

Documents are read and tokenized once, however dear that is. Which of them are duplicates can only be told when every
task is read (duplicates.py), so all are tokenized: whoever reads a task needs to know nothing of the others.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.data.indexed import stored_ids
from pipeline.files import temporary_name, writing
from preprocessing.build.cleaning import Cleaning, clean_texts
from preprocessing.build.output import (
    DIGEST_BYTES,
    ReadResult,
    digests_path,
    ids_path,
    lengths_path,
    write_read_marker,
)
from preprocessing.build.plan import Task
from preprocessing.readers.documents import Tally
from preprocessing.tokenizing.cutting import Cutter, load_cutter
from preprocessing.tokenizing.tokenizer import Encoder, load_encoder

_BATCH_CHARACTERS = 1 << 18
"""Enough text per call to hide its overhead, little enough to stay in memory: encodings take 100 times their text."""


@dataclass(frozen=True)
class TaskReader:
    """Runs the first pass of tasks; small, so that every worker process gets its own copy."""

    output: Path
    tokenizer: Path
    cleaning: Cleaning

    def __call__(self, task: Task) -> ReadResult:
        """Write the task's ids, lengths, digests and marker. DataError if an input is damaged."""
        encoder, cutter = _tools(self.tokenizer)
        tally = Tally(self.cleaning.skip_faults)
        files = _WorkingFiles(self.output, task.index, encoder.vocab_size)
        try:
            for text, ids in encode(encoder, cutter, clean_texts(task.pieces, self.cleaning, tally)):
                files.add(text.encode(), ids)
            files.finish()
        except BaseException:
            files.discard()
            raise
        result = ReadResult(files.documents, files.text_bytes, dict(tally.left_out), encoder.vocab_size)
        write_read_marker(self.output, task.index, result)
        return result


def encode(encoder: Encoder, cutter: Cutter, texts: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each text with its ids (tokens,) int32, without special tokens; long texts are encoded in parts."""
    for batch in _batches(texts):
        cut = [list(cutter.parts(text, _BATCH_CHARACTERS)) for text in batch]
        ids = (ids for parts in _batches(chain.from_iterable(cut)) for ids in encoder(parts))
        for text, parts in zip(batch, cut, strict=True):
            yield text, np.concatenate(list(islice(ids, len(parts))))


@cache
def _tools(directory: Path) -> tuple[Encoder, Cutter]:
    return load_encoder(directory), load_cutter(directory)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = list[str](), 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _WorkingFiles:
    """Ids, lengths and digests of one task's documents, written under temporary names until `finish`."""

    def __init__(self, output: Path, task: int, vocab_size: int) -> None:
        self.documents = self.text_bytes = 0
        self._vocab_size = vocab_size
        self._paths = (ids_path(output, task), lengths_path(output, task), digests_path(output, task))
        with writing(output):
            self._streams: list[BinaryIO] = [open(temporary_name(path), "wb") for path in self._paths]  # noqa: SIM115

    def add(self, raw: bytes, ids: np.ndarray) -> None:
        digest = hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest()
        contents = (stored_ids(ids, self._vocab_size).tobytes(), ids.size.to_bytes(4, "little"), digest)
        for path, stream, content in zip(self._paths, self._streams, contents, strict=True):
            with writing(path):
                stream.write(content)
        self.documents += 1
        self.text_bytes += len(raw)

    def finish(self) -> None:
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
