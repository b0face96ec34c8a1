"""What `results.json` of an evaluation holds, for whoever shows it."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

RESULTS = "results.json"
ATTENTION = "attention.json"
"""What task attention keeps beside it, by layer and head."""

Summary = dict[str, Any]
"""`mean`, `std` (0.0 for one seed) and `seeds`, the value of every seed by its digits; `undefined`, the seeds of which
the value is no number and counts as 0, where there are any."""


class Results:
    """The content of one file."""

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

    @property
    def grid(self) -> dict[str, Any]:
        """By task the points of a grid, by what they were chosen, and which one was."""
        return self._document.get("grid", {})
