"""The second pass: tokenize what the first left of a task, but the duplicates, and write its shards and marker.

A task is a pure function of its text, the duplicates, the tokenizer and the shard size, so whoever runs it, and
however often, the shards are the same bytes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path

import numpy as np

from pipeline.data.indexed import IndexedWriter, ShardInfo
from preprocessing.build.cleaning import cleaned_texts
from preprocessing.build.duplicates import duplicates_of
from preprocessing.build.output import TaskResult, clean_result_of, write_marker
from preprocessing.build.plan import Task
from preprocessing.tokenizing.cutting import Cutter, load_cutter
from preprocessing.tokenizing.tokenizer import Encoder, load_encoder

_BATCH_CHARACTERS = 1 << 18
"""Enough text per call to hide its overhead, little enough to stay in memory: encodings take 100 times their text."""


@dataclass(frozen=True)
class TaskRunner:
    """Runs tasks of one build; small, so that every worker process gets its own copy."""

    output: Path
    tokenizer: Path
    shard_tokens: int

    def __call__(self, task: Task) -> TaskResult:
        """Write the task's shards and marker, or leave no shard half-written."""
        encoder, cutter = _tools(self.tokenizer)
        shards = _ShardSeries(self.output, task.index, encoder.vocab_size, self.shard_tokens)
        first_pass = clean_result_of(self.output, task.index)
        duplicate = duplicates_of(self.output, task.index, first_pass.documents)
        skipped, text_bytes = Counter(first_pass.left_out), 0
        if duplicate.any():
            skipped["duplicate"] = int(duplicate.sum())
        pairs = zip(cleaned_texts(self.output, task.index), duplicate.tolist(), strict=True)
        texts = (text for text, left_out in pairs if not left_out)
        try:
            for text, ids in encode(encoder, cutter, texts):
                text_bytes += len(text.encode())
                # Text of control characters alone is as empty as none.
                if ids.size:
                    shards.add(ids)
                else:
                    skipped["empty"] += 1
            finished = shards.finish()
        except BaseException:
            shards.discard()
            raise
        documents = sum(shard.documents for shard in finished)
        result = TaskResult(documents, text_bytes, finished, dict(skipped))
        write_marker(self.output, task.index, result)
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


class _ShardSeries:
    """The shards of one task: a shard is closed once it holds `shard_tokens`; documents are never cut."""

    def __init__(self, output: Path, task: int, vocab_size: int, shard_tokens: int) -> None:
        self._prefix = f"shard_{task:05d}"
        self._output = output
        self._vocab_size = vocab_size
        self._shard_tokens = shard_tokens
        self._writer: IndexedWriter | None = None
        self._finished: list[ShardInfo] = []

    def add(self, ids: np.ndarray) -> None:
        if self._writer is None:
            name = f"{self._prefix}_{len(self._finished):03d}"
            self._writer = IndexedWriter(self._output / name, self._vocab_size)
        self._writer.add(ids)
        if self._writer.tokens >= self._shard_tokens:
            self.finish()

    def finish(self) -> tuple[ShardInfo, ...]:
        """Close the open shard, if any, and return all."""
        if self._writer is not None:
            self._finished.append(self._writer.finish())
            self._writer = None
        return tuple(self._finished)

    def discard(self) -> None:
        """Drop the open shard; finished ones stay, a later run writes the same again."""
        if self._writer is not None:
            self._writer.discard()
