"""The second pass: the documents of a task that are no duplicates become its shards; only ids are copied.

A task is a pure function of its text, the duplicates, the tokenizer and the shard size, so whoever runs it, and
however often, the shards are the same bytes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.indexed import DTYPES, IndexedWriter, ShardInfo, dtype_code
from preprocessing.build.duplicates import duplicates_of
from preprocessing.build.output import TaskResult, ids_path, lengths_path, read_result_of, write_marker
from preprocessing.build.plan import Task


@dataclass(frozen=True)
class TaskWriter:
    """Runs the second pass of tasks; small, so that every worker process gets its own copy."""

    output: Path
    shard_tokens: int

    def __call__(self, task: Task) -> TaskResult:
        """Write the task's shards and marker, or leave no shard half-written."""
        read = read_result_of(self.output, task.index)
        lengths = np.fromfile(lengths_path(self.output, task.index), dtype="<i4")
        duplicate = duplicates_of(self.output, task.index, read.documents)
        # Text of control characters alone is as empty as none.
        empty = ~duplicate & (lengths == 0)
        skipped = Counter(read.left_out)
        for reason, left_out in (("duplicate", duplicate), ("empty", empty)):
            if left_out.any():
                skipped[reason] += int(left_out.sum())
        shards = tuple(self._shards(task.index, lengths, ~duplicate & ~empty, read.vocab_size))
        result = TaskResult(read.documents, read.text_bytes, shards, dict(skipped))
        write_marker(self.output, task.index, result)
        return result

    def _shards(self, task: int, lengths: np.ndarray, kept: np.ndarray, vocab_size: int) -> Iterator[ShardInfo]:
        """Write the kept documents; lengths and kept are (documents,).

        One shard's ids are in memory at a time: a file that cannot be cut is one task, whatever its size.
        """
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        for number, (first, end) in enumerate(shard_bounds(np.where(kept, lengths, 0), self.shard_tokens)):
            dtype, count = DTYPES[dtype_code(vocab_size)], int(starts[end] - starts[first])
            offset = int(starts[first]) * dtype.itemsize
            ids = np.fromfile(ids_path(self.output, task), dtype, count, offset=offset)
            here = kept[first:end]
            writer = IndexedWriter(self.output / f"shard_{task:05d}_{number:03d}", vocab_size)
            try:
                writer.add(ids[np.repeat(here, lengths[first:end])], lengths[first:end][here])
                shard = writer.finish()
            except BaseException:
                writer.discard()
                raise
            yield shard


def shard_bounds(lengths: np.ndarray, shard_tokens: int) -> Iterator[tuple[int, int]]:
    """Which documents each shard holds, first and one past the last; none are cut.

    Args:
        lengths: (documents,) tokens of each, 0 for one that is left out.
        shard_tokens: a shard ends with the document that reaches this.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    first, before = 0, 0
    while len(ends) and before < ends[-1]:
        last = min(int(np.searchsorted(ends, before + shard_tokens)), len(ends) - 1)
        yield first, last + 1
        first, before = last + 1, int(ends[last])
