"""The output directory of a build: whose it is, what is done, and when it is whole.

DIR/.build/            while unfinished only
    source_hash        of what this directory is being made
    settings.json      the tokenizer and the options in it, by name
    parts              in how many parts, if in parts
    tokenizer/         the tokenizer the tasks use
    ids_00007.bin      what the first pass left of task 7: the ids of its documents; goes when the task is done
    lengths_00007.bin  how many ids each document has, int32; goes too
    digests_00007.bin  16 bytes for each of them
    read_00007.json    marker: the first pass of task 7 is done, with its counts
    duplicates.npy     which documents of each task are duplicates
    task_00007.json    marker: task 7 is done, with these shards (names, counts, hashes)
    claims/            under several ranks: who began a task first runs it
    lock               held by the build that runs, by its rank 0; parts that run hold it together
    part_2.lock        held by part 2 while it runs
    opening.lock       held by whoever begins, for a moment
DIR/shard_*.bin .idx   whole shards
DIR/tokenizer/, DIR/manifest.json    appear last, in this order; then .build goes
"""

import fcntl
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from pipeline.data.indexed import ShardInfo
from pipeline.data.manifest import MANIFEST_NAME, TOKENIZER_NAME, Manifest, read_manifest, tokenizer_fingerprint
from pipeline.errors import DataError, UserError
from pipeline.files import remove_temporaries, sync_directory, write_atomically, writing
from preprocessing.build.parts import Part
from preprocessing.tokenizing.tokenizer import load_encoder

BUILD_NAME = ".build"
DIGEST_BYTES = 16
_TASK = re.compile(r"_(\d{5,})\.")
"""The task that a working file or a marker is of, in its name."""


@dataclass(frozen=True)
class Work:
    """What one pass of a task went through: documents, and bytes of their text."""

    documents: int
    text_bytes: int


@dataclass(frozen=True)
class ReadResult(Work):
    """What the first pass of a task left, by reason the number of documents left out, and whose ids these are."""

    left_out: dict[str, int]
    vocab_size: int


@dataclass(frozen=True)
class TaskResult(Work):
    """What a finished task left: its shards in order, and documents skipped by reason."""

    shards: tuple[ShardInfo, ...]
    skipped: dict[str, int]


def ids_path(output: Path, task: int) -> Path:
    """Working file with the ids of a task's documents, as shards hold them."""
    return output / BUILD_NAME / f"ids_{task:05d}.bin"


def lengths_path(output: Path, task: int) -> Path:
    """Working file with the number of ids of each of a task's documents, int32."""
    return output / BUILD_NAME / f"lengths_{task:05d}.bin"


def digests_path(output: Path, task: int) -> Path:
    """Working file with the digests of a task's documents, `DIGEST_BYTES` each."""
    return output / BUILD_NAME / f"digests_{task:05d}.bin"


def duplicates_path(output: Path) -> Path:
    """Working file that says which documents are duplicates."""
    return output / BUILD_NAME / "duplicates.npy"


def write_read_marker(output: Path, task: int, result: ReadResult) -> None:
    """Record that the first pass of a task is done; its working files must be under their names already."""
    write_atomically(_read_marker_path(output, task), json.dumps(asdict(result)).encode())


def read_result_of(output: Path, task: int) -> ReadResult:
    """What the first pass of a task left. FileNotFoundError if it has to be run."""
    return ReadResult(**json.loads(_read_marker_path(output, task).read_bytes()))


def write_marker(output: Path, task: int, result: TaskResult) -> None:
    """Record that a task is done; its shards must be under their names already. Its ids go."""
    write_atomically(_marker_path(output, task), json.dumps(asdict(result)).encode())
    for path in (ids_path(output, task), lengths_path(output, task)):
        path.unlink(missing_ok=True)


class BuildDirectory:
    """An output directory that belongs to one build, identified by its source hash; all of it, or one part.

    `settings` are those that decide the shards' bytes beside the input, by the name that a user knows them by.
    """

    def __init__(self, output: Path, source_hash: str, settings: Mapping[str, str], part: Part | None) -> None:
        self.output = output
        self.work = output / BUILD_NAME
        self.source_hash = source_hash
        self.settings = dict(settings)
        self.claims = self.work / "claims"
        self._part = part
        self._locks = list[TextIO]()
        self._counted = set[str]()

    def is_finished(self) -> bool:
        """True if this build is done here. UserError if the directory holds anything but this build."""
        if (self.output / MANIFEST_NAME).exists():
            if read_manifest(self.output).source_hash != self.source_hash:
                raise UserError(f"{self.output} holds finished shards of other input, tokenizer or options")
            return True
        if self._recorded("source_hash") not in (None, self.source_hash):
            what = f"an unfinished build {self._difference()}"
            raise UserError(f"{self.output} holds {what}; delete it or choose another directory")
        # Another part may begin at this moment, so .build by itself is nobody else's.
        if not self.work.exists() and self.output.exists() and {*os.listdir(self.output)} - {BUILD_NAME}:
            raise UserError(f"{self.output} is not empty; choose another directory")
        return False

    def open(self, tokenizer: Path) -> bool:
        """Begin or continue; `tokenizer` is a directory to copy. False if another process has just finished here."""
        with writing(self.output):
            self.work.mkdir(parents=True, exist_ok=True)
            self._take_locks()
            with _locked(self.work / "opening.lock", fcntl.LOCK_EX):
                if self.is_finished():
                    return False
                write_atomically(self.work / "settings.json", json.dumps(self.settings).encode())
                write_atomically(self.work / "source_hash", self.source_hash.encode())
                self._record_parts()
                self._copy_tokenizer(tokenizer)
            self._clear()
        return True

    @property
    def tokenizer(self) -> Path:
        """The directory the tasks read the tokenizer from."""
        return self.work / TOKENIZER_NAME

    def parts(self) -> int | None:
        """In how many parts this is being built; None if in none."""
        count = self._recorded("parts")
        return None if count is None else int(count)

    def is_read(self, task: int) -> bool:
        """Whether the first pass of a task that is not finished need not be run."""
        needed = (_read_marker_path, ids_path, lengths_path)
        return all(path(self.output, task).exists() for path in needed)

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
        own = filter(self._is_own, self.work.glob(f"{marker}_*.json"))
        found = [path for path in own if path.name not in self._counted]
        self._counted.update(path.name for path in found)
        done = [json.loads(path.read_bytes()) for path in found]
        return [Work(fields["documents"], fields["text_bytes"]) for fields in done]

    def __getstate__(self) -> dict[str, object]:
        """Without the locks, which are this process's: other ranks get copies."""
        return {**vars(self), "_locks": []}

    def finish(self, results: Iterable[TaskResult]) -> Manifest:
        """Put tokenizer and manifest in place, in task order. DataError, and nothing left, if nothing was written."""
        shards, skipped = list[ShardInfo](), Counter[str]()
        for result in results:
            shards.extend(result.shards)
            skipped.update(result.skipped)
        if not shards:
            self._remove_all()
            raise DataError(f"the input holds no document; left out: {listed(skipped)}")
        vocab_size = load_encoder(self.tokenizer).vocab_size
        fingerprint = tokenizer_fingerprint(self.tokenizer)
        with writing(self.output):
            # Left over where a run was killed between here and the manifest.
            shutil.rmtree(self.output / TOKENIZER_NAME, ignore_errors=True)
            os.replace(self.tokenizer, self.output / TOKENIZER_NAME)
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

    def _difference(self) -> str:
        """What the build in the directory was asked for that this one is not: words behind `an unfinished build`."""
        recorded = self._recorded("settings.json")
        if recorded is None:
            return "of other input, tokenizer or options"
        known = json.loads(recorded)
        others = {name: value for name, value in known.items() if value != self.settings.get(name)}
        if not others:
            return "of other input"
        words = (f"another {name}" if name[:2] != "--" else f"{name} {value}" for name, value in others.items())
        return f"with {' and '.join(words)}"

    def _recorded(self, name: str) -> str | None:
        try:
            return (self.work / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _take_locks(self) -> None:
        try:
            kind = fcntl.LOCK_EX if self._part is None else fcntl.LOCK_SH
            self._locks = [_locked(self.work / "lock", kind | fcntl.LOCK_NB)]
        except BlockingIOError as error:
            raise UserError(f"{self.output}: another process is building here") from error
        if self._part is None:
            return
        try:
            self._locks.append(_locked(self.work / f"part_{self._part.number}.lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(f"{self.output}: another process is building part {self._part} here") from error

    def _record_parts(self) -> None:
        count = self.parts()
        if self._part is None or count == self._part.count:
            return
        if count is not None:
            hint = f"give --part I/{count}, or delete it or choose another directory"
            raise UserError(f"{self.output} is being built in {count} parts, not {self._part.count}; {hint}")
        write_atomically(self.work / "parts", str(self._part.count).encode())

    def _copy_tokenizer(self, tokenizer: Path) -> None:
        """Put it in place, unless it is there whole: other parts may be reading it."""
        with suppress(DataError):  # none there, or what a power cut has left
            if tokenizer_fingerprint(self.tokenizer) == tokenizer_fingerprint(tokenizer):
                return
        copy = self.work / f"{TOKENIZER_NAME}.new"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tokenizer, copy)
        shutil.rmtree(self.tokenizer, ignore_errors=True)
        os.replace(copy, self.tokenizer)

    def _clear(self) -> None:
        """Remove what killed runs have left half-written, but nothing of parts that run."""
        if self._part is not None:
            for leftover in self.work.glob(".*.tmp"):
                if self._is_own(leftover):
                    leftover.unlink(missing_ok=True)
            return
        remove_temporaries(self.output)
        remove_temporaries(self.work)
        shutil.rmtree(self.claims, ignore_errors=True)
        self.claims.mkdir()

    def _is_own(self, path: Path) -> bool:
        """Whether a file is of a task that is built here."""
        task = _TASK.search(path.name)
        return task is not None and (self._part is None or self._part.holds(int(task[1])))


def _locked(path: Path, kind: int) -> TextIO:
    """The file at `path` with a lock, which goes when it is closed. BlockingIOError where another has it."""
    stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(stream, kind)
    except OSError:
        stream.close()
        raise
    return stream


def listed(skipped: Mapping[str, int]) -> str:
    """Numbers of documents by reason, in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items())) or "none"


def _read_marker_path(output: Path, task: int) -> Path:
    return output / BUILD_NAME / f"read_{task:05d}.json"


def _marker_path(output: Path, task: int) -> Path:
    return output / BUILD_NAME / f"task_{task:05d}.json"
