"""TensorBoard: everything a run shows there. The tags and their units are listed in docs/monitoring.md.

Tags sort alphabetically on the page, and `mlm` is to come first: no other section begins with a letter before m.
Step n of a curve is the state after n optimizer steps; a choice of dimensions stands at the step that it comes before.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pipeline.compaction.groups import Gates
from pipeline.compaction.schedule import Schedule
from pipeline.engine.deepspeed_config import precision

KEPT, CLOSING, RETIRED = (31, 119, 180, 255), (255, 127, 14, 255), (200, 200, 200, 255)
"""Colours (RGBA) of a dimension that stays, that an increment just chose, and that an earlier one chose."""
MAP_WIDTH, MAP_ASPECT = 384, 0.35
"""A map of kept dimensions is at least so many pixels wide, and so many times as high as it is wide."""
BINS = 30
SPEED = ("tokens_per_s", "model_flop_utilisation", "model_tflop_per_s")


class Board:
    """Writes the events of one run, on rank 0.

    Args:
        directory: of the run, which holds config.yaml, ds_config.json and environment.txt.
        first_step: completed steps at the start; what an earlier attempt wrote of later ones is withdrawn.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)
        self._gates_at = first_step
        self._describe(directory, first_step + 1)

    def step(self, record: dict[str, Any], rates: dict[str, float]) -> None:
        """The scalars of one logged step, from the record that also goes to metrics.jsonl."""
        scalars = {
            **{f"mlm/{name}": record.get(name) for name in ("accuracy", "heldout_loss", "heldout_accuracy")},
            ("relations/loss" if record["accuracy"] is None else "mlm/loss"): record["loss"],
            "relations/heldout_loss": record.get("heldout_relation_loss"),
            **{f"optimizer/{name}": record.get(name) for name in ("gradient_norm", "loss_scale", "skipped_steps")},
            **{f"optimizer/lr_{role}": rate for role, rate in rates.items()},
            **{f"speed/{name}": record[name] for name in SPEED},
            **{f"system/{name}_memory_gib": used for name, used in record["memory_gib"].items()},
            **{f"time/{phase}_ms": time for phase, time in record["time_ms"].items()},
            **{f"width/{group}": kept for group, kept in record["kept"].items()},
        }
        for tag, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(tag, value, record["step"])
        self._keep()

    def selection(self, choices: list[dict[str, Any]], schedule: Schedule) -> None:
        """An increment that was just made: its scores, and what is left of every group.

        A dimension's score stands as the binary logarithm of its ratio to the group's median, which is 0 for every
        kind of score; dimensions that were retired before, or that score 0, are left out.

        Args:
            choices: one per group, with step (from 0), group and scores (one per dimension, or none in a replay).
            schedule: as it stands after this increment.
        """
        config, now = schedule.config, choices[0]["step"]
        self.gates(now + 1, schedule.gates)
        moments = list(range(config.start_step, now + 1, config.interval_steps))
        for choice in choices:
            group, scores = choice["group"], torch.tensor(choice["scores"], dtype=torch.float64)
            selected_at = schedule.selected_at[group]
            picture = width_map(selected_at, moments, config.increments)
            self._writer.add_image(f"width_map/{group}", picture, now + 1, dataformats="HWC")
            if len(scores):
                scores = scores[(selected_at < 0) | (selected_at == now)]
                self._histogram(f"width_scores/{group}", (scores / scores.median()).log2(), now + 1)
        self._keep()

    def gates(self, step: int, gates: Gates) -> None:
        """The gate values of every group; what narrowing has cut off counts as 0."""
        if step == self._gates_at:
            return
        self._gates_at = step
        edges = np.linspace(0.0, 1.0, BINS + 1)
        values = gates.split(gates.value.detach().cpu())
        if gates.narrowed:
            sizes = {name: group.size for name, group in gates.groups.items()}
            kept = {name: torch.tensor(indices) for name, indices in gates.kept_by_group().items()}
            values = {name: torch.zeros(size).index_fill(0, kept[name], 1.0) for name, size in sizes.items()}
        for group, value in values.items():
            self._writer.add_histogram(f"width_gates/{group}", value.numpy(), step, bins=edges)

    def compactors(self, step: int, norms: dict[str, Tensor]) -> None:
        """What a method's `norms` found."""
        for name, values in norms.items():
            self._histogram(f"width_compactors/{name}", values, step)
        self._keep()

    def close(self) -> None:
        self._writer.close()

    def _keep(self) -> None:
        """Hand over what was written: a killed run must not lose it, for the next attempt may begin behind it."""
        self._writer.flush()

    def _histogram(self, tag: str, values: Tensor, step: int) -> None:
        values = values[values.isfinite()]
        if len(values):
            self._writer.add_histogram(tag, values.numpy(), step, bins=BINS)

    def _describe(self, directory: Path, step: int) -> None:
        """What is trained and how, as text and for comparison with other runs."""
        recipe = (directory / "config.yaml").read_text(encoding="utf-8")
        deepspeed = (directory / "ds_config.json").read_text(encoding="utf-8")
        environment = (directory / "environment.txt").read_text(encoding="utf-8")
        parameters = hyperparameters(yaml.safe_load(recipe), json.loads(deepspeed))
        rows = [f"| {name} | {value} |" for name, value in parameters.items()]
        self._writer.add_text("run/hyperparameters", "\n".join(["| key | value |", "|---|---|", *rows]), step)
        for name, language, text in (
            ("recipe", "yaml", recipe),
            ("deepspeed", "json", deepspeed),
            ("environment", "", environment),
        ):
            self._writer.add_text(f"run/{name}", f"```{language}\n{text}```", step)
        experiment, session, _ = hparams(parameters, {"mlm/loss": None, "mlm/heldout_loss": None})
        for summary in (experiment, session):
            self._writer._get_file_writer().add_summary(summary)
        self._keep()


def hyperparameters(recipe: dict[str, Any], deepspeed: dict[str, Any]) -> dict[str, int | float | str]:
    """Every key of the recipe that is set, as `section.key`, and how the run is spread over ranks.

    Args:
        recipe: as in config.yaml.
        deepspeed: as in ds_config.json, complete.
    """
    flat: dict[str, Any] = {}
    for key, value in recipe.items():
        flat |= {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
    micro, accumulation = deepspeed["train_micro_batch_size_per_gpu"], deepspeed["gradient_accumulation_steps"]
    flat["run.ranks"] = deepspeed["train_batch_size"] // (micro * accumulation)
    flat["run.micro_batch"], flat["run.accumulation"] = micro, accumulation
    flat["run.precision"] = precision(deepspeed)
    flat["run.zero_stage"] = deepspeed.get("zero_optimization", {}).get("stage", 0)
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in flat.items() if v is not None}


def width_map(selected_at: Tensor, moments: list[int], increments: int) -> np.ndarray:
    """A picture of one group: dimensions from left to right, one row per increment from top to bottom.

    The first row is the start, where every dimension is kept. Rows of increments still to come are transparent.

    Args:
        selected_at: (size,) int64, the step at which each dimension was chosen, -1 for those that stay.
        moments: steps of the increments so far.
        increments: of the whole schedule.

    Returns:
        (height, width, 4) uint8, RGBA.
    """
    chosen = selected_at.numpy()
    rows = np.zeros((increments + 1, len(chosen), 4), dtype=np.uint8)
    rows[: len(moments) + 1] = KEPT
    for row, moment in enumerate(moments, start=1):
        rows[row, (chosen >= 0) & (chosen < moment)] = RETIRED
        rows[row, chosen == moment] = CLOSING
    across = -(-MAP_WIDTH // len(chosen))
    down = max(1, round(MAP_ASPECT * across * len(chosen) / len(rows)))
    return rows.repeat(down, axis=0).repeat(across, axis=1)
