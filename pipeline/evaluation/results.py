"""An evaluation's directory: `predictions/TASK_SEED.jsonl` and `results.json`, which only this module knows.

A directory belongs to one model (by the hash of its files) and one set of hyper-parameters; anything else is
refused, so that no table mixes two. Tasks and seeds may be added by later commands. Every file appears whole:
it is written under a hidden name, synced and renamed. Finished predictions are the memory of a restart, and
metrics are always computed from them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, UserError
from pipeline.evaluation.metrics import UNDEFINED, compute, summarise
from pipeline.files import write_atomically

RESULTS = "results.json"
ATTENTION = "attention.json"
"""What task attention keeps beside it, by layer and head."""

Summary = dict[str, Any]
"""`mean`, `std` (0.0 for one seed) and `seeds`, the value of every seed by its digits; `undefined`, the seeds of which
the value is no number and counts as 0, where there are any."""


class Results:
    """What `results.json` holds, to be read by whoever shows it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    @classmethod
    def read(cls, directory: Path) -> "Results":
        """The results in an evaluation directory.

        Raises:
            DataError: `results.json` is not there, or not what `evaluate.py` writes.
        """
        try:
            document = json.loads((directory / RESULTS).read_text(encoding="utf-8"))
            if isinstance(document["model"], str) and isinstance(document["tasks"], dict):
                return cls(document)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise DataError(f"{directory / RESULTS}: the results that pipeline/evaluate.py writes were expected")

    @property
    def model(self) -> Path:
        """The directory of the model that was evaluated."""
        return Path(self._document["model"])

    @property
    def names(self) -> list[str]:
        """All scored names, in the order of the file."""
        return list(self._document["tasks"])

    def data(self, name: str) -> str:
        """What rows a scored name is about; `full` for all of the official ones."""
        return self._document["tasks"][name]["data"]

    def scores(self, name: str) -> dict[str, Summary]:
        """The summary of every metric of a scored name; nothing where it has no score yet."""
        return {
            metric: value for metric, value in self._document["tasks"].get(name, {}).items() if isinstance(value, dict)
        }

    def verdict(self, name: str) -> str | None:
        """What follows from the scores of a name, in a sentence, where its task draws a conclusion."""
        return self._document["tasks"][name].get("verdict")

    @property
    def not_available(self) -> dict[str, str]:
        """Why a name that was asked for could not be scored."""
        return self._document["not_available"]

    @property
    def glue_average(self) -> Summary | None:
        """The average over the GLUE tasks, where all of them have scores."""
        return self._document.get("glue_average")


class ResultStore(Results):
    """The results of a directory that is being written."""

    def __init__(self, output: Path, model: Path, model_sha256: str, settings: dict[str, float]) -> None:
        """Open or prepare; nothing is written yet.

        Raises:
            UserError: the directory belongs to another evaluation, or to something else.
        """
        self._output = output
        super().__init__(
            {
                "model": str(model),
                "model_sha256": model_sha256,
                "settings": settings,
                "complete": False,
                "tasks": {},
                "not_available": {},
            }
        )
        if output.exists() and not output.is_dir():
            raise UserError(f"--output {output}: it is a file, not a directory")
        if output.is_dir() and any(not entry.name.startswith(".") for entry in output.iterdir()):
            self._take_up()

    def _take_up(self) -> None:
        """Go on with the tasks of a directory that is in use, if they come from the same evaluation."""
        try:
            found = json.loads((self._output / RESULTS).read_text(encoding="utf-8"))
            same = {key: found[key] == self._document[key] for key in ("model_sha256", "settings")}
            kept = {key: found[key] for key in ("tasks", "not_available")}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--output {self._output}: it holds other files; choose an empty directory") from None
        if not same["model_sha256"]:
            raise UserError(f"--output {self._output}: it holds results of another model ({found.get('model')})")
        if not same["settings"]:
            raise UserError(
                f"--output {self._output}: it holds results of other hyper-parameters ({found['settings']})"
            )
        self._document.update(kept)

    def begin(self, name: str, data: str, data_sha256: str) -> None:
        """Enter a scored name with the rows it is about.

        Raises:
            UserError: there are results of other rows.
        """
        entry = self._document["tasks"].setdefault(name, {"data": data, "data_sha256": data_sha256})
        if entry["data_sha256"] != data_sha256:
            raise UserError(f"--output {self._output}: its results for {name} are of other data ({entry['data']})")
        self.not_available.pop(name, None)

    def miss(self, name: str, reason: str) -> None:
        """Enter why a name cannot be scored."""
        self.not_available[name] = reason

    def open(self) -> None:
        """Make the directory and write a first `results.json`, by which a restart knows whose it is."""
        try:
            (self._output / "predictions").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {self._output}: it cannot be made ({error.strerror})") from None
        self._write()

    def enter(self, name: str, values: Mapping[str, Mapping[int, float | None]]) -> None:
        """Keep the values of every metric of a scored name, by seed; None where they are undefined."""
        for metric, by_seed in values.items():
            self._document["tasks"][name][metric] = summarise(by_seed)
        self._write()

    def conclude(self, name: str, verdict: str) -> None:
        """Keep what follows from the scores of a name, in a sentence."""
        self._document["tasks"][name]["verdict"] = verdict
        self._write()

    def read_document(self, file: str) -> dict[str, Any]:
        """What `write_document` kept; empty where there is nothing that can be read."""
        try:
            found = json.loads((self._output / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_document(self, file: str, document: dict[str, Any]) -> None:
        """Keep what a task knows beyond its scores, beside `results.json`."""
        write_atomically(self._output / file, (json.dumps(document, allow_nan=False) + "\n").encode())

    def predictions_path(self, name: str, seed: int) -> Path:
        """Where the predictions of one scored name under one seed lie."""
        return self._output / "predictions" / f"{name}_{seed}.jsonl"

    def write_predictions(self, name: str, seed: int, rows: Sequence[tuple[int, float, float]]) -> None:
        """Keep (index, prediction, label) of every dev row: class ids, or values for regression."""
        lines = (json.dumps(dict(zip(("index", "prediction", "label"), row, strict=True))) for row in rows)
        write_atomically(self.predictions_path(name, seed), "".join(f"{line}\n" for line in lines).encode())

    def enter_predictions(self, name: str, metrics: Sequence[str]) -> None:
        """Compute and keep `metrics` of one scored name from all predictions that there are, of whatever seed."""
        pattern = re.compile(re.escape(name) + r"_(\d+)\.jsonl")
        found = {int(m[1]): p for p in (self._output / "predictions").iterdir() if (m := pattern.fullmatch(p.name))}
        values: dict[str, dict[int, float | None]] = {metric: {} for metric in metrics}
        for seed, path in sorted(found.items()):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            predictions, labels = [row["prediction"] for row in rows], [row["label"] for row in rows]
            for metric in metrics:
                values[metric][seed] = compute(metric, predictions, labels)
        self.enter(name, values)

    def say(self, name: str, seed: int | None = None) -> None:
        """Print the scores of a name under one seed, or the mean over those that there are."""
        shown = [name]
        for metric, summary in self.scores(name).items():
            value = summary["mean"] if seed is None else summary["seeds"][str(seed)]
            undefined = str(seed) in summary.get("undefined", ())
            shown.append(f"{metric} {UNDEFINED if undefined else format(value, '.4f')}")
        print("  " + "  ".join(shown), flush=True)

    def finish(self, glue_average: Summary | None) -> None:
        """Mark the results as complete."""
        if glue_average is not None:
            self._document["glue_average"] = glue_average
        self._document["complete"] = True
        self._write()

    def _write(self) -> None:
        content = json.dumps(self._document, indent=2, allow_nan=False) + "\n"
        write_atomically(self._output / RESULTS, content.encode())
