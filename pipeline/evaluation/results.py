"""The output directory of an evaluation: `predictions/TASK_SEED.jsonl` and `results.json`.

A directory belongs to one model (by the hash of its files) and one set of hyper-parameters; anything else is
refused, so that no table mixes two. Tasks and seeds may be added by later commands. Every file appears whole:
it is written under a hidden name, synced and renamed. Finished predictions are the memory of a restart, and
metrics are always computed from them.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluation.metrics import compute, summarise
from pipeline.files import write_atomically

RESULTS = "results.json"


class ResultStore:
    """Reads, checks and writes one output directory; `document` is what `results.json` holds."""

    def __init__(self, output: Path, model: Path, model_sha256: str, settings: dict[str, float]) -> None:
        """Open or prepare (nothing is written yet). Raises `UserError` for a directory of another evaluation."""
        self._output = output
        self.document: dict[str, Any] = {
            "model": str(model),
            "model_sha256": model_sha256,
            "settings": settings,
            "complete": False,
            "tasks": {},
            "not_available": {},
        }
        if output.exists() and not output.is_dir():
            raise UserError(f"--output {output}: it is a file, not a directory.")
        if output.is_dir() and any(not entry.name.startswith(".") for entry in output.iterdir()):
            self._take_up()

    def _take_up(self) -> None:
        """Go on with the tasks of a directory that is in use, if they come from the same evaluation."""
        try:
            found = json.loads((self._output / RESULTS).read_text(encoding="utf-8"))
            same = {key: found[key] == self.document[key] for key in ("model_sha256", "settings")}
            kept = {key: found[key] for key in ("tasks", "not_available")}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--output {self._output}: it holds other files; choose an empty directory.") from None
        if not same["model_sha256"]:
            raise UserError(f"--output {self._output}: it holds results of another model ({found.get('model')}).")
        if not same["settings"]:
            raise UserError(
                f"--output {self._output}: it holds results of other hyper-parameters ({found['settings']})."
            )
        self.document.update(kept)

    def begin(self, name: str, data: str, data_sha256: str) -> None:
        """Enter a scored name with the rows it is about. Raises `UserError` if its results are of other rows."""
        entry = self.document["tasks"].setdefault(name, {"data": data, "data_sha256": data_sha256})
        if entry["data_sha256"] != data_sha256:
            raise UserError(f"--output {self._output}: its results for {name} are of other data ({entry['data']}).")

    def open(self) -> None:
        """Make the directory and write a first `results.json`, by which a restart knows whose it is."""
        try:
            (self._output / "predictions").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {self._output}: it cannot be made ({error.strerror}).") from None
        self.write()

    def write(self) -> None:
        """Replace `results.json` by the document."""
        content = json.dumps(self.document, indent=2, allow_nan=False) + "\n"
        write_atomically(self._output / RESULTS, content.encode())

    def predictions_path(self, name: str, seed: int) -> Path:
        """Where the predictions of one scored name under one seed lie."""
        return self._output / "predictions" / f"{name}_{seed}.jsonl"

    def write_predictions(self, name: str, seed: int, rows: Sequence[tuple[int, float, float]]) -> None:
        """Keep (index, prediction, label) of every dev row: class ids, or values for regression."""
        lines = (json.dumps(dict(zip(("index", "prediction", "label"), row, strict=True))) for row in rows)
        write_atomically(self.predictions_path(name, seed), "".join(f"{line}\n" for line in lines).encode())

    def score(self, name: str, metrics: Sequence[str]) -> dict[int, dict[str, float]]:
        """Compute `metrics` of one scored name from all predictions there are, enter them, return them by seed."""
        pattern = re.compile(re.escape(name) + r"_(\d+)\.jsonl")
        found = {int(m[1]): p for p in (self._output / "predictions").iterdir() if (m := pattern.fullmatch(p.name))}
        values: dict[int, dict[str, float]] = {}
        for seed, path in sorted(found.items()):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            predictions, labels = [row["prediction"] for row in rows], [row["label"] for row in rows]
            values[seed] = {metric: compute(metric, predictions, labels) for metric in metrics}
        for metric in metrics if values else ():
            by_seed = {seed: scores[metric] for seed, scores in values.items()}
            self.document["tasks"][name][metric] = summarise(by_seed)
        return values
