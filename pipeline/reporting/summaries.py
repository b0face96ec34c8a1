"""What a report says of each run and each evaluated model, read from the records they left."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import DataError, UserError
from pipeline.evaluation.results import Results
from pipeline.records import NOT_TRAINING, read_json_lines
from pipeline.shapes import BertShape


@dataclass(frozen=True)
class RunSummary:
    """One training run.

    Logged steps, the steps at which dimensions were selected, the recipe, and what environment.txt says by its keys
    (machine, commit, command, versions; nothing if it is not there).
    """

    name: str
    directory: Path
    method: str
    metrics: list[dict[str, Any]]
    selections: list[int]
    recipe: dict[str, Any]
    environment: dict[str, str]

    @classmethod
    def read(cls, directory: Path) -> "RunSummary":
        """Read a run directory.

        Raises:
            UserError: it logged nothing yet.
            DataError: its recipe cannot be read.
        """
        metrics = read_json_lines(directory / "metrics.jsonl")
        if not metrics:
            raise UserError(f"{directory} has no logged step yet")
        path = directory / "config.yaml"
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
            method = recipe["method"]
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            raise DataError(f"{path}: the recipe that pipeline/train.py writes into a run was expected") from None
        selections = sorted({line["step"] for line in read_json_lines(directory / "selection.jsonl")})
        return cls(directory.name, directory, method, metrics, selections, recipe, read_environment(directory))

    def kept(self) -> dict[str, list[tuple[int, int]]]:
        """(step, dimensions kept) at every logged step, by group; nothing where a run has no groups."""
        groups: dict[str, list[tuple[int, int]]] = {}
        for line in self.metrics:
            for group, count in line.get("kept", {}).items():
                groups.setdefault(group, []).append((line["step"], count))
        return groups

    def numbers(self) -> dict[str, Any]:
        """What report.json says of this run."""
        last = self.metrics[-1]
        heldout = [line for line in self.metrics if "heldout_loss" in line]
        # The first logged interval pays for warming up, so a run's speed is the middle of the rest.
        speeds = sorted(line["tokens_per_s"] for line in self.metrics[1:]) or [last["tokens_per_s"]]
        return {
            "method": self.method,
            "step": last["step"],
            "tokens": last["tokens"],
            "tokens_per_s": speeds[len(speeds) // 2],
            "data_wait": self._data_wait(),
            "heldout_loss": heldout[-1]["heldout_loss"] if heldout else None,
            "heldout_accuracy": heldout[-1]["heldout_accuracy"] if heldout else None,
        }

    def _data_wait(self) -> float:
        """The share of the steps, in [0, 1], that waiting for data takes; the first logged interval left out."""
        waited = trained = 0.0
        for before, line in itertools.pairwise(self.metrics):
            steps, time_ms = line["step"] - before["step"], line["time_ms"]
            waited += steps * time_ms["data"]
            trained += steps * (time_ms["step"] - sum(time_ms[phase] for phase in NOT_TRAINING))
        return waited / max(trained, 1e-9)


@dataclass(frozen=True)
class EvaluationSummary:
    """One evaluated model: its name, shape and results; where it was folded from, by the keys of its fold.json.

    `recipe` is that of its run; nothing where that is not known or gone.
    """

    name: str
    directory: Path
    shape: BertShape
    results: Results
    fold: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "EvaluationSummary":
        """Read an evaluation directory and the configuration of its model.

        Raises:
            UserError: the model is gone.
            DataError: results or configuration cannot be read.
        """
        results = Results.read(directory)
        path = results.model / "config.json"
        if not path.is_file():
            raise UserError(f"{directory} evaluates {results.model}, which is no model directory any more")
        try:
            shape = BertShape.from_config(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{path}: the configuration of a BERT was expected") from None
        fold = read_fold(results.model)
        return cls(results.model.name, directory, shape, results, fold, read_source(fold))

    def scores(self) -> dict[str, dict[str, float]]:
        """`task metric` -> mean, std and number of seeds; also how many of them are undefined, where some are."""
        return {
            f"{name} {metric}": {
                "mean": value["mean"],
                "std": value["std"],
                "seeds": len(value["seeds"]),
                **({"undefined": len(value["undefined"])} if "undefined" in value else {}),
            }
            for name in self.results.names
            for metric, value in self.results.scores(name).items()
        }

    def numbers(self) -> dict[str, Any]:
        """What report.json says of this model."""
        return {
            "parameters": self.shape.parameters,
            "encoder_parameters": self.shape.encoder_parameters,
            "hidden": self.shape.hidden,
            "layers": self.shape.layers,
            "scores": self.scores(),
            **{name: value for name, value in (("remarks", self.remarks()), ("verdicts", self.verdicts())) if value},
        }

    def remarks(self) -> dict[str, str]:
        """What a reader should know of a task beside its data, where there is something."""
        return {name: remark for name in self.results.names if (remark := self.results.remark(name))}

    def verdicts(self) -> dict[str, str]:
        """What tasks conclude, where they do."""
        return {name: verdict for name in self.results.names if (verdict := self.results.verdict(name))}


def read_environment(run: Path) -> dict[str, str]:
    """The lines `key: value` of a run's environment.txt; nothing if it is not there."""
    path = run / "environment.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return {key: value for key, colon, value in (line.partition(": ") for line in lines) if colon}


def read_fold(model: Path) -> dict[str, Any]:
    """What fold.py left on a student; nothing for a model that was not folded.

    Raises:
        DataError: its fold.json cannot be read.
    """
    path = model / "fold.json"
    if not path.is_file():
        return {}
    try:
        fold = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        fold = None
    if not isinstance(fold, dict):
        raise DataError(f"{path}: the record that pipeline/fold.py writes was expected")
    return fold


def read_source(fold: dict[str, Any]) -> dict[str, Any]:
    """The recipe of the run that a student was folded from, where it still is; a run that is shown is read with care.

    Args:
        fold: the student's fold.json.
    """
    try:
        recipe = yaml.safe_load((Path(fold["source_run"]) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}
    return recipe if isinstance(recipe, dict) else {}
