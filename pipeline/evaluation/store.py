"""An evaluation's directory while it is written: `items/`, `results.json`, `predictions/`, `models/`, `submission.zip`.

A directory belongs to one model (by the hash of its files) and one set of hyper-parameters (`settings`: those that
were asked for; `task_settings`: what each fine-tuned task took, its own defaults included); anything else is refused,
so that no table mixes two. Tasks and seeds may be added by later commands, and several commands may work on their items
at the same time. Every file appears whole. The records of finished items are the memory of a restart.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.items import Item, Outcome, When
from pipeline.evaluation.metrics import UNDEFINED, summarise
from pipeline.evaluation.records import ITEMS, Averages, Record, compose, finished, planned, read_records
from pipeline.evaluation.results import RESULTS, Results
from pipeline.files import write_atomically, write_if_absent, writing

FOLDERS = {"predictions", ITEMS}
"""What is made before anything is written."""


class ResultStore(Results):
    """The results of a directory that is being written."""

    def __init__(
        self,
        output: Path,
        model: Path,
        model_sha256: str,
        settings: Mapping[str, Any],
        order: Sequence[str] = (),
        averages: Averages | None = None,
    ) -> None:
        """Open or prepare; nothing is written yet.

        Args:
            output: the directory.
            model: what is evaluated.
            model_sha256: of its files.
            settings: the hyper-parameters that were asked for.
            order: of tasks in `results.json`.
            averages: what is computed from all scores.

        Raises:
            UserError: the directory belongs to another evaluation, or to something else.
        """
        self.output = output
        self.items: list[Item] = []
        self._header = {"model": str(model), "model_sha256": model_sha256, "settings": dict(settings)}
        self._order, self._averages = order, averages or {}
        if output.exists() and not output.is_dir():
            raise UserError(f"--output {output}: it is a file, not a directory")
        found = {entry.name for entry in output.iterdir() if entry.name[0] != "."} if output.is_dir() else set()
        if not found <= FOLDERS:  # another process may have made these a moment ago
            self._check_header()
        self._evaluation = hashlib.sha256(json.dumps([model_sha256, self._header["settings"]]).encode()).hexdigest()
        self._seconds: dict[str, float] = {}
        self._records = self._read()
        super().__init__(self._compose())

    def _check_header(self) -> None:
        """Look whether a directory that is in use belongs to the same evaluation."""
        try:
            found = json.loads((self.output / RESULTS).read_text(encoding="utf-8"))
            same = {key: found[key] == self._header[key] for key in ("model_sha256", "settings")}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--output {self.output}: it holds other files; choose an empty directory") from None
        if not same["model_sha256"]:
            raise UserError(f"--output {self.output}: it holds results of another model ({found.get('model')})")
        if not same["settings"]:
            raise UserError(f"--output {self.output}: it holds results of other hyper-parameters ({found['settings']})")
        if not (self.output / ITEMS).is_dir():
            raise UserError(f"--output {self.output}: its results have no {ITEMS}; choose an empty directory")

    def _read(self) -> dict[str, Record]:
        """All records there are.

        Raises:
            UserError: one is of another evaluation, which began at the same moment.
        """
        found = read_records(self.output)
        if any(record["evaluation"] != self._evaluation for record in found.values()):
            raise UserError(f"--output {self.output}: it holds results of another model or of other hyper-parameters")
        return found

    def plan(self, item: Item) -> None:
        """Take an item into the list of this command.

        Raises:
            UserError: there are results of its task with other settings or other rows.
        """
        for record in self._records.values():
            same = record["task"] == item.task and record["point"] == item.point and item.when is not When.LAST
            if same and record["done"]:
                self._compare(item, record)
        self.items.append(item)

    def _compare(self, item: Item, record: Record) -> None:
        """Look whether an item and one that is done make one score."""
        its = f"--output {self.output}: its results for"
        for name, entry in item.entries.items():
            found = record["entries"].get(name, entry)
            if found["data_sha256"] != entry["data_sha256"]:
                raise UserError(f"{its} {name} are of other data ({found['data']})")
            if found.get("max_length") != entry.get("max_length"):
                lengths = f"windows of {found['max_length']} tokens, not of {entry['max_length']}"
                raise UserError(f"{its} {name} are of {lengths}")
        if record["settings"] != (dict(item.settings) if item.settings else None):
            raise UserError(f"{its} {item.task} are of other hyper-parameters ({record['settings']})")

    def open(self, flops_per_second: float) -> None:
        """Make the directory with a record of every item of this command.

        Raises:
            UserError: it cannot be made.
        """
        try:
            for folder in FOLDERS:
                (self.output / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {self.output}: it cannot be made ({error.strerror})") from None
        if (self.output / RESULTS).exists():
            self._check_header()  # again: another command may have begun since
        for item in self.items:
            self._seconds[item.name] = item.flops / flops_per_second
            # What another process has written since stays, and so do scores that are to be made again.
            write_if_absent(self._path(item), _encoded(self._planned(item)))
        self.refresh()

    def is_done(self, item: Item) -> bool:
        """Whether an item is finished, with everything that it is to leave."""
        record = self._records.get(item.name)
        if not record or not record["done"]:
            return False
        if item.when is When.LAST and record["settings"] != item.settings:
            return False
        left = bool(record["done"]["failure"]) or all((self.output / file).exists() for file in item.files)
        return left and set(item.entries) <= set(record["entries"])

    @contextmanager
    def claim(self, item: Item) -> Iterator[bool]:
        """Keep other processes from an item inside the block; false where one has finished it or is at it.

        The system releases it with the process, however that ends.
        """
        path = self.output / ITEMS / f".{item.name}.lock"
        with writing(path):
            stream = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed below)
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:
                pass  # a file system without locks: parts of the list and the workers of one command never meet
            self._records = self._read()
            yield not self.is_done(item)
            if self.is_done(item):
                path.unlink(missing_ok=True)

    def finish(self, item: Item, outcome: Outcome, how: Mapping[str, Any]) -> None:
        """Keep what an item found, and how: seconds, threads, device."""
        write_atomically(self._path(item), _encoded(finished(self._planned(item), outcome, how)))
        self.refresh()

    def refresh(self) -> None:
        """Write `results.json` anew, from the records of all processes.

        Without a lock: who writes looks again afterwards, so that the last one to write has seen everything.
        """
        while True:
            before = self._state()
            self._records = self._read()
            self._document = self._compose()
            content = json.dumps(self._document, indent=2, allow_nan=False) + "\n"
            write_atomically(self.output / RESULTS, content.encode())
            if self._state() == before:
                return

    def _state(self) -> list[tuple[str, int, int]]:
        """What tells one state of the records from another."""
        found = []
        for path in sorted((self.output / ITEMS).glob("[!.]*.json")):
            status = path.stat()
            found.append((path.name, status.st_ino, status.st_mtime_ns))
        return found

    def _compose(self) -> dict[str, Any]:
        return compose(self._header, self._records.values(), self._order, self._averages)

    def _path(self, item: Item) -> Path:
        return self.output / ITEMS / f"{item.name}.json"

    def _planned(self, item: Item) -> Record:
        # A worker's directory was opened by the process that started it.
        found: float = self._records.get(item.name, {}).get("estimated_seconds", 0.0)
        return planned(item, self._seconds.get(item.name, found), self._evaluation)

    @property
    def undone(self) -> list[str]:
        """The names of all items in the directory that are not done, whoever planned them."""
        return [name for name, record in self._records.items() if not record["done"]]

    def estimate(self, item: Item) -> float:
        """How many seconds an item of an opened directory was thought to take."""
        return self._seconds[item.name]

    def say(self, item: Item) -> None:
        """Print the scores that an item has found: the mean, where there are several."""
        for name, metrics in self._records[item.name]["done"]["scores"].items():
            shown = [name]
            for metric, by_seed in metrics.items():
                summary = summarise({int(seed): value for seed, value in by_seed.items()})
                shown.append(f"{metric} {UNDEFINED if 'undefined' in summary else format(summary['mean'], '.4f')}")
            print("  " + "  ".join(shown), flush=True)
        for verdict in self._records[item.name]["done"]["verdicts"].values():
            print(f"  {verdict}", flush=True)


def model_file(task: str, seed: int) -> str:
    """Where the model of a fine-tuning is kept, relative to the output directory."""
    return f"models/{task}_{seed}"


def _encoded(record: Record) -> bytes:
    return (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
