"""An evaluation's directory: `results.json`, `predictions/TASK_SEED.jsonl`, `models/TASK_SEED/`, `submission.zip`.

A directory belongs to one model (by the hash of its files) and one set of hyper-parameters (`settings`: those that
were asked for; `task_settings`: what each fine-tuned task took, its own defaults included); anything else is refused,
so that no table mixes two. Tasks and seeds may be added by later commands. Every file appears whole:
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

    def remark(self, name: str) -> str:
        """What a reader should know of a scored name beside its data; nothing, as a rule."""
        entry = self._document["tasks"][name]
        return (
            f"{entry['max_length']} tokens, trained with {entry['trained_length']}" if "trained_length" in entry else ""
        )

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
        return self._document.get("not_available", {})

    @property
    def settings(self) -> dict[str, Any]:
        """The hyper-parameters of fine-tuning: by name what was given, and by task what tasks took beside that."""
        given = {name: value for name, value in self._document.get("settings", {}).items() if value is not None}
        return {**given, **self._document.get("task_settings", {})}

    @property
    def complete(self) -> bool:
        """False where an evaluation was cut off before its end."""
        return bool(self._document.get("complete", True))

    @property
    def glue_average(self) -> Summary | None:
        """The average over the GLUE tasks without WNLI, where all of them have scores."""
        return self._document.get("glue_average")

    @property
    def glue_average_with_wnli(self) -> Summary | None:
        """The same with WNLI."""
        return self._document.get("glue_average_with_wnli")


class ResultStore(Results):
    """The results of a directory that is being written."""

    def __init__(self, output: Path, model: Path, model_sha256: str, settings: dict[str, float | None]) -> None:
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
                "task_settings": {},
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
            # Without defaults of tasks, all settings stood in `settings`.
            kept["task_settings"] = found.get("task_settings", {})
            kept |= {key: found[key] for key in ("submission",) if key in found}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--output {self._output}: it holds other files; choose an empty directory") from None
        if not same["model_sha256"]:
            raise UserError(f"--output {self._output}: it holds results of another model ({found.get('model')})")
        if not same["settings"]:
            raise UserError(
                f"--output {self._output}: it holds results of other hyper-parameters ({found['settings']})"
            )
        self._document.update(kept)

    def settle(self, task: str, settings: dict[str, float]) -> None:
        """Enter what a task is fine-tuned with.

        Raises:
            UserError: there are results of the task with other settings.
        """
        found = self._document["task_settings"].setdefault(task, settings)
        if found != settings:
            raise UserError(f"--output {self._output}: its results for {task} are of other hyper-parameters ({found})")

    def begin(self, name: str, data: str, data_sha256: str) -> None:
        """Enter a scored name with the rows it is about.

        Raises:
            UserError: there are results of other rows.
        """
        entry = self._document["tasks"].setdefault(name, {"data": data, "data_sha256": data_sha256})
        if entry["data_sha256"] != data_sha256:
            raise UserError(f"--output {self._output}: its results for {name} are of other data ({entry['data']})")
        self.not_available.pop(name, None)

    def mark_length(self, name: str, length: int, trained: int | None) -> None:
        """Enter how many tokens a scored name is measured with, and how many the model was trained with, where fewer.

        Raises:
            UserError: there are results of another length.
        """
        entry = self._document["tasks"][name]
        if entry.setdefault("max_length", length) != length:
            raise UserError(
                f"--output {self._output}: its results for {name} are of windows of {entry['max_length']} tokens, "
                f"not of {length}"
            )
        if trained is not None and trained < length:
            entry["trained_length"] = trained

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

    def model_path(self, task: str, seed: int) -> Path:
        """Where the model of a fine-tuned task under one seed is kept, if it is."""
        return self._output / "models" / f"{task}_{seed}"

    @property
    def submission_path(self) -> Path:
        """Where the zip for the GLUE server lies, if it was asked for."""
        return self._output / "submission.zip"

    def enter_submission(self, seed: int, constant: Mapping[str, str]) -> None:
        """Enter the seed whose models made the zip for the GLUE server, and why files in it are constant."""
        self._document["submission"] = {"seed": seed, "constant": dict(constant)}
        self._write()

    def write_predictions(self, name: str, seed: int, rows: Sequence[tuple[int, float, float]]) -> None:
        """Keep (index, prediction, label) of every dev row: class ids, or values for regression."""
        lines = (json.dumps(dict(zip(("index", "prediction", "label"), row, strict=True))) for row in rows)
        write_atomically(self.predictions_path(name, seed), "".join(f"{line}\n" for line in lines).encode())

    def enter_predictions(self, name: str, metrics: Sequence[str]) -> None:
        """Compute and keep `metrics` of one scored name from all predictions that there are, of whatever seed."""
        values: dict[str, dict[int, float | None]] = {metric: {} for metric in metrics}
        for seed, path in self._seeds(name, "jsonl").items():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            predictions, labels = [row["prediction"] for row in rows], [row["label"] for row in rows]
            for metric in metrics:
                values[metric][seed] = compute(metric, predictions, labels)
        self.enter(name, values)

    def answers_path(self, name: str, seed: int) -> Path:
        """Where the answers of a SQuAD task under one seed lie: `{id: text}`, as the official script takes them."""
        return self._output / "predictions" / f"{name}_{seed}.json"

    def write_answers(self, name: str, seed: int, texts: Mapping[str, str], no_answer: Mapping[str, float]) -> None:
        """Keep the answer to every question and, where some have none, what speaks against an answer."""
        path = self.answers_path(name, seed)
        if no_answer:  # first, as a seed is done when its answers are there
            # In the order that breaks ties in `best_threshold`: the official script keeps that of the file.
            ordered = json.dumps(no_answer, indent=0, sort_keys=True, allow_nan=False)
            write_atomically(path.with_name(f"{path.stem}_na.json"), f"{ordered}\n".encode())
        write_atomically(path, f"{json.dumps(texts, indent=0, ensure_ascii=False)}\n".encode())

    def read_answers(self, name: str) -> dict[int, dict[str, str]]:
        """All answers to a SQuAD task that there are, by seed."""
        return {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in self._seeds(name, "json").items()}

    def _seeds(self, name: str, ending: str) -> dict[int, Path]:
        """The predictions of a scored name that there are, by seed."""
        pattern = re.compile(re.escape(name) + rf"_(\d+)\.{ending}")
        found = {int(m[1]): p for p in (self._output / "predictions").iterdir() if (m := pattern.fullmatch(p.name))}
        return dict(sorted(found.items()))

    def say(self, name: str, seed: int | None = None) -> None:
        """Print the scores of a name under one seed, or the mean over those that there are."""
        shown = [name]
        for metric, summary in self.scores(name).items():
            value = summary["mean"] if seed is None else summary["seeds"][str(seed)]
            undefined = str(seed) in summary.get("undefined", ())
            shown.append(f"{metric} {UNDEFINED if undefined else format(value, '.4f')}")
        print("  " + "  ".join(shown), flush=True)

    def finish(self, glue_average: Summary | None, with_wnli: Summary | None = None) -> None:
        """Keep the averages that there are, and mark the results as complete."""
        averages = {"glue_average": glue_average, "glue_average_with_wnli": with_wnli}
        self._document |= {name: average for name, average in averages.items() if average is not None}
        self._document["complete"] = True
        self._write()

    def _write(self) -> None:
        content = json.dumps(self._document, indent=2, allow_nan=False) + "\n"
        write_atomically(self._output / RESULTS, content.encode())
