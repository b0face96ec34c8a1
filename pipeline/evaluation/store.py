"""An evaluation's directory while it is written: `items/`, `results.json`, `predictions/`, `models/`, `submission.zip`.

A directory belongs to one model (by the hash of its files) and one set of hyper-parameters (`settings`: those that
were asked for; `task_settings`: what each fine-tuned task took, its own defaults included); anything else is refused,
so that no table mixes two. Tasks and seeds may be added by later commands, and several commands may work on their items
at the same time. Every file appears whole. The records of finished items are the memory of a restart.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.items import Item, Outcome
from pipeline.evaluation.metrics import UNDEFINED, summarise
from pipeline.evaluation.records import ITEMS, Averages, Record, compose, finished, planned, read_records
from pipeline.evaluation.results import RESULTS, Results
from pipeline.files import write_atomically, writing


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
        if output.is_dir() and any(not entry.name.startswith(".") for entry in output.iterdir()):
            self._check_header()
        self._records = read_records(output)
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

    def plan(self, item: Item) -> None:
        """Take an item into the list of this command.

        Raises:
            UserError: there are results of its task with other settings or other rows.
        """
        for record in self._records.values():
            if record["task"] == item.task and record["point"] == item.point and record["done"]:
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
            for folder in ("predictions", ITEMS):
                (self.output / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {self.output}: it cannot be made ({error.strerror})") from None
        for item in self.items:
            if not self.is_done(item):
                self._write_record(item, planned(item, item.flops / flops_per_second))
        self.refresh()

    def is_done(self, item: Item) -> bool:
        """Whether an item is finished, with everything that it is to leave."""
        record = self._records.get(item.name)
        scored = bool(record and record["done"]) and set(item.entries) <= set(record["entries"] if record else ())
        return scored and all((self.output / file).exists() for file in item.files)

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
            self._records = read_records(self.output)
            yield not self.is_done(item)
            if self.is_done(item):
                path.unlink(missing_ok=True)

    def finish(self, item: Item, outcome: Outcome, how: Mapping[str, Any]) -> None:
        """Keep what an item found, and how: seconds, threads, device."""
        estimate = self._records[item.name]["estimated_seconds"]
        self._write_record(item, finished(planned(item, estimate), outcome, how))
        self.refresh()

    def refresh(self) -> None:
        """Write `results.json` anew, from the records of all processes.

        Without a lock: who writes looks again afterwards, so that the last one to write has seen everything.
        """
        while True:
            before = self._state()
            self._records = read_records(self.output)
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

    def _write_record(self, item: Item, record: Record) -> None:
        path = self.output / ITEMS / f"{item.name}.json"
        write_atomically(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
        self._records[item.name] = record

    def estimate(self, item: Item) -> float:
        """How many seconds an item of an opened directory was thought to take."""
        return float(self._records[item.name]["estimated_seconds"])

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
