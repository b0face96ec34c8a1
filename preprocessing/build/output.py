"""The output directory of a build: whose it is, what is done, and when it is whole.

DIR/.build/            while unfinished only
    source_hash        of what this directory is being made
    tokenizer/         the tokenizer the tasks use
    text_00007.zst     what the first pass left of task 7: cleaned documents; goes when the task is done
    digests_00007.bin  16 bytes for each of them
    clean_00007.json   marker: the first pass of task 7 is done, with its counts
    duplicates.npy     which documents of each task are duplicates
    task_00007.json    marker: task 7 is done, with these shards (names, counts, hashes)
    claims/            under several ranks: who began a task first runs it
    lock               held by the build that runs, by its rank 0
DIR/shard_*.bin .idx   whole shards
DIR/tokenizer/, DIR/manifest.json    appear last, in this order; then .build goes
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from pipeline.data.indexed import ShardInfo
from pipeline.data.manifest import MANIFEST_NAME, TOKENIZER_NAME, Manifest, read_manifest, tokenizer_fingerprint
from pipeline.errors import DataError, UserError
from pipeline.files import remove_temporaries, sync_directory, write_atomically, writing
from preprocessing.tokenizing.tokenizer import load_encoder

BUILD_NAME = ".build"
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Work:
    """What one pass of a task went through: documents, and bytes of their text."""

    documents: int
    text_bytes: int


@dataclass(frozen=True)
class CleanResult(Work):
    """What the first pass of a task left, and by reason the number of documents left out."""

    left_out: dict[str, int]


@dataclass(frozen=True)
class TaskResult(Work):
    """What a finished task left: its shards in order, and documents skipped by reason."""

    shards: tuple[ShardInfo, ...]
    skipped: dict[str, int]


def text_path(output: Path, task: int) -> Path:
    """Working file with the cleaned documents of a task."""
    return output / BUILD_NAME / f"text_{task:05d}.zst"


def digests_path(output: Path, task: int) -> Path:
    """Working file with the digests of a task's documents, `DIGEST_BYTES` each."""
    return output / BUILD_NAME / f"digests_{task:05d}.bin"


def duplicates_path(output: Path) -> Path:
    """Working file that says which documents are duplicates."""
    return output / BUILD_NAME / "duplicates.npy"


def write_clean_marker(output: Path, task: int, result: CleanResult) -> None:
    """Record that the first pass of a task is done; its text and digests must be under their names already."""
    write_atomically(_clean_marker_path(output, task), json.dumps(asdict(result)).encode())


def clean_result_of(output: Path, task: int) -> CleanResult:
    """What the first pass of a task left. FileNotFoundError if it has to be run."""
    return CleanResult(**json.loads(_clean_marker_path(output, task).read_bytes()))


def write_marker(output: Path, task: int, result: TaskResult) -> None:
    """Record that a task is done; its shards must be under their names already. Its working text goes."""
    write_atomically(_marker_path(output, task), json.dumps(asdict(result)).encode())
    text_path(output, task).unlink(missing_ok=True)


class BuildDirectory:
    """An output directory that belongs to one build, identified by its source hash."""

    def __init__(self, output: Path, source_hash: str) -> None:
        self.output = output
        self.work = output / BUILD_NAME
        self.source_hash = source_hash
        self.claims = self.work / "claims"
        self._lock: TextIO | None = None
        self._counted = set[str]()

    def is_finished(self) -> bool:
        """True if this build is done here. UserError if the directory holds anything but this build."""
        if (self.output / MANIFEST_NAME).exists():
            if read_manifest(self.output).source_hash != self.source_hash:
                raise UserError(f"{self.output} holds finished shards of other input, tokenizer or options")
            return True
        recorded = self.work / "source_hash"
        if recorded.exists() and recorded.read_text(encoding="utf-8") != self.source_hash:
            what = "an unfinished build of other input, tokenizer or options"
            raise UserError(f"{self.output} holds {what}; delete it or choose another directory")
        if not self.work.exists() and self.output.exists() and any(self.output.iterdir()):
            raise UserError(f"{self.output} is not empty; choose another directory")
        return False

    def open(self, tokenizer: Path) -> Path:
        """Begin or continue; `tokenizer` is a directory to copy. Return the directory the tasks read it from."""
        with writing(self.output):
            self.work.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            remove_temporaries(self.output)
            remove_temporaries(self.work)
            # A copy of a killed run may be incomplete.
            shutil.copytree(tokenizer, self.work / TOKENIZER_NAME, dirs_exist_ok=True)
            shutil.rmtree(self.claims, ignore_errors=True)
            self.claims.mkdir()
        write_atomically(self.work / "source_hash", self.source_hash.encode())
        return self.work / TOKENIZER_NAME

    def is_clean(self, task: int) -> bool:
        """Whether the first pass of a task that is not finished need not be run."""
        return _clean_marker_path(self.output, task).exists() and text_path(self.output, task).exists()

    def result_of(self, task: int) -> TaskResult | None:
        """What a finished task left, or None if it has to be run."""
        try:
            fields = json.loads(_marker_path(self.output, task).read_bytes())
        except FileNotFoundError:
            return None
        shards = tuple(ShardInfo(**shard) for shard in fields["shards"])
        there = all((self.output / f"{shard.name}.idx").exists() for shard in shards)
        return TaskResult(**{**fields, "shards": shards}) if there else None

    def news(self, marker: str) -> list[Work]:
        """What tasks went through that were marked as done, by any process, since this was called last."""
        found = [path for path in self.work.glob(f"{marker}_*.json") if path.name not in self._counted]
        self._counted.update(path.name for path in found)
        done = [json.loads(path.read_bytes()) for path in found]
        return [Work(fields["documents"], fields["text_bytes"]) for fields in done]

    def __getstate__(self) -> dict[str, object]:
        """Without the lock, which is this process's: other ranks get copies."""
        return {**vars(self), "_lock": None}

    def finish(self, results: Iterable[TaskResult]) -> Manifest:
        """Put tokenizer and manifest in place, in task order. DataError, and nothing left, if nothing was written."""
        shards, skipped = list[ShardInfo](), Counter[str]()
        for result in results:
            shards.extend(result.shards)
            skipped.update(result.skipped)
        if not shards:
            self._remove_all()
            raise DataError(f"the input holds no document; left out: {listed(skipped)}")
        tokenizer = self.work / TOKENIZER_NAME
        vocab_size = load_encoder(tokenizer).vocab_size
        fingerprint = tokenizer_fingerprint(tokenizer)
        with writing(self.output):
            # Left over where a run was killed between here and the manifest.
            shutil.rmtree(self.output / TOKENIZER_NAME, ignore_errors=True)
            os.replace(tokenizer, self.output / TOKENIZER_NAME)
            sync_directory(self.output)
        manifest = Manifest(self.source_hash, fingerprint, vocab_size, dict(skipped), tuple(shards))
        manifest.write(self.output)
        self.remove_work()
        return manifest

    def remove_work(self) -> None:
        """Drop markers and working copies; also what a run left that was killed just before."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _remove_all(self) -> None:
        self.remove_work()
        if not any(self.output.iterdir()):
            self.output.rmdir()

    def _take_lock(self) -> None:
        self._lock = open(self.work / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.output}: another process is building here") from error


def listed(skipped: Mapping[str, int]) -> str:
    """Numbers of documents by reason, in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items())) or "none"


def _clean_marker_path(output: Path, task: int) -> Path:
    return output / BUILD_NAME / f"clean_{task:05d}.json"


def _marker_path(output: Path, task: int) -> Path:
    return output / BUILD_NAME / f"task_{task:05d}.json"
