"""A training run on two real ranks that is killed at chosen moments and must end as the uninterrupted one did.

1. A `Harness` trains once without interruption and measures how long start-up, a step and the narrowing take.
2. `plan` draws moments (`Aim`): during start-up, after a step, while a checkpoint is written, right before, during and
   right after narrowing; and whom the SIGKILL hits: one rank, or all with their launcher.
3. `Harness.run` starts the same command again and again; each life is killed at its moment, the last one ends. A life
   whose kill came too late is undone, and another one aims nearer.
4. `differences` compares what is left with the reference: the final checkpoint byte for byte, metrics without times,
   and every selection.

The moments are found from outside, by watching what the job prints and writes: nothing in it knows that it is watched.
Before a kill all of its processes are stopped, so that what is seen then is what is hit.
"""

import contextlib
import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.open import open_training_data
from pipeline.engine.checkpoint import TENSOR_FILES, all_checkpoints, step_of, why_incomplete
from pipeline.recipe import load_recipe
from pipeline.records import read_json_lines
from tests.engine.faults.processes import TRAIN, Job, launch, wait_until
from tests.support.models import random_teacher
from tests.support.runs import make_shards, recipe_values, vocabulary_of, write_deepspeed, write_recipe

STEPS, CHECKPOINT_EVERY, NARROWED_AT = 24, 5, 12
LAST_AIM = 17
"""No moment lies later: the run must not end before it is killed."""
CHECKPOINT_FILES = len(TENSOR_FILES) + 3
TRIES = 5
"""Lives that one aim may take."""
UNTIMED = ("step", "tokens", "loss", "accuracy", "gradient_norm", "kept", "heldout_loss", "heldout_accuracy")
"""What two records of one step must agree in."""

SECTIONS: dict[str, dict[str, Any] | None] = {
    "data": {"reader": "process"},
    "target": {"hidden": 48, "head_size": 12, "intermediate": 100},
    "compaction": {"start_step": 3, "interval_steps": 3, "increments": 3, "decay_steps": 3},
    "train": {
        **{"steps": STEPS, "global_batch": 8, "dropout": 0.1},
        **{"checkpoint_every": CHECKPOINT_EVERY, "evaluate_every": 7},
    },
}
"""Of the recipe: three selections, gates closed and the model narrowed before step 12. A reader process must go with
its rank, however that ends."""
CONFIGURATIONS = {
    "ZeRO 1, fp32": {"zero_optimization": {"stage": 1}},
    "ZeRO 3, fp32": {"zero_optimization": {"stage": 3}},
    "ZeRO 0, fp32": {"zero_optimization": {"stage": 0}},
    "ZeRO 2, fp32": {"zero_optimization": {"stage": 2}},
    "ZeRO 2, bf16": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
}


@dataclass(frozen=True)
class Aim:
    """A moment to kill at.

    Attributes:
        kind: what is waited for, see `KINDS`.
        step: the step it is waited for at.
        part: in [0, 1), how far into what is hit: of the time of a start-up, a step or the narrowing, of the files of
            a checkpoint.
        victims: `rank 0`, `rank 1` or `all`.
    """

    kind: str
    step: int
    part: float
    victims: str

    def is_met_by(self, hit: str) -> bool:
        """Whether a kill was what the aim says, going by what `Life.where` called it."""
        return HITS.get(self.kind, "") in hit


KINDS = ("checkpoint", "narrowing", "step", "checkpoint", "start-up", "before narrowing", "after narrowing", "step")
"""In the order in which a plan deals them out."""
HITS = {
    "checkpoint": "files written",
    "start-up": "start-up",
    "before narrowing": "right before narrowing",
    "narrowing": "while narrowing",
    "after narrowing": "right after narrowing",
}
"""What `Life.where` says of each kind; a step may be any."""
_NARROWING = {"before narrowing": NARROWED_AT - 1, "narrowing": NARROWED_AT, "after narrowing": NARROWED_AT}


def plan(kills: int, seed: int, per_run: int = 4) -> list[list[Aim]]:
    """Draw `kills` moments, in runs of up to `per_run`, each run in the order of its steps."""
    draw = random.Random(seed)
    aims = []
    for number in range(kills):
        kind = KINDS[number % len(KINDS)]
        step = _NARROWING.get(kind, draw.randint(1, LAST_AIM))
        # Rank 0 writes the checkpoints, and would write on without rank 1.
        victims = draw.choice(["rank 0", "all"] if kind == "checkpoint" else ["rank 0", "rank 1", "all", "all"])
        aims.append(Aim(kind, step, draw.random(), victims))
    return [sorted(aims[i : i + per_run], key=lambda aim: aim.step) for i in range(0, kills, per_run)]


@dataclass
class Durations:
    """Seconds, as the uninterrupted run took them."""

    startup: float
    step: float
    narrowing: float


class Run:
    """A run directory and the command that begins or continues it."""

    def __init__(self, directory: Path, inputs: dict[str, Path]) -> None:
        self.directory = directory
        self.arguments = ("--config", inputs["recipe"], "--deepspeed_config", inputs["deepspeed"])
        self.lives = 0

    def start(self) -> "Life":
        self.lives += 1
        return Life(self)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def half_written(self) -> dict[str, Path]:
        """Temporary directories of checkpoints, by name."""
        return {path.name: path for path in self.checkpoints.glob(".step_*.tmp")}

    def copy_to(self, directory: Path) -> None:
        """Replace `directory` by what the run's is now, which may be nothing."""
        _copy(self.directory, directory)

    def go_back_to(self, directory: Path) -> None:
        """Undo what came after `copy_to`."""
        _copy(directory, self.directory)


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target)


class Life(Job):
    """One start of a run, watched from outside."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._old_temporaries = set(run.half_written())
        command = launch("torchrun", TRAIN, *run.arguments, "--output", run.directory)
        super().__init__(command, run.directory.with_name(f"{run.directory.name}_life_{run.lives}.log"))

    def logged(self) -> int:
        """The last step this life says it has taken; 0 before."""
        said = re.findall(r"^step +(\d+)/", self.text(), re.MULTILINE)
        return int(said[-1]) if said else 0

    def files_written(self, step: int) -> int:
        """Files there are of the checkpoint that is being written; -1 if none of `step` or later is."""
        for name, path in self.run.half_written().items():
            if name not in self._old_temporaries and int(name.split(".")[1].removeprefix("step_")) >= step:
                with contextlib.suppress(FileNotFoundError):  # it was whole, and got its name, just now
                    return len(list(path.iterdir()))
        return -1

    def narrowed(self) -> bool:
        return "narrowed to" in self.text()

    def resumed_from(self) -> int | None:
        """The step this life says it goes on from; None if it began anew."""
        said = self.text().partition("resumed from ")[2].splitlines()
        return step_of(Path(said[0])) if said else None

    def reached(self, aim: Aim) -> bool:
        """Whether what `aim` waits for has come (or has gone by, on a slow machine)."""
        if aim.kind == "start-up":
            return len(self.ranks()) == 2
        if aim.kind == "checkpoint":
            files = int(aim.part * CHECKPOINT_FILES)
            return self.files_written(aim.step) >= files or self.logged() > aim.step + CHECKPOINT_EVERY
        if aim.kind == "after narrowing":
            return self.narrowed() or self.logged() > aim.step
        return self.logged() >= aim.step

    def kill_at(self, aim: Aim, durations: Durations) -> dict[str, Any]:
        """Wait for the moment, kill, wait until nothing is left; what was found.

        AssertionError if the run ended before, or something is left after five minutes.
        """
        while not self.reached(aim):
            assert self.running(), f"the job ended by itself:\n{self.text()[-4000:]}"
            at = self.logged() or self.resumed_from()
            if at and aim.kind != "start-up" and at >= aim.step - CHECKPOINT_EVERY:
                time.sleep(0.001)
            else:  # looking takes time that the job needs: closely only when the moment is near
                self.family()
                time.sleep(0.1)
        length = {"start-up": durations.startup, "checkpoint": 0.0, "narrowing": durations.narrowing}
        time.sleep(aim.part * length.get(aim.kind, durations.step))
        with self.stopped():
            assert self.running(), "the run ended before it was killed"
            hit = self.where()
            killed = time.monotonic()
            self.kill(aim.victims)
        self.wait()
        return {
            "aim": aim.kind,
            "killed": aim.victims,
            "hit": hit,
            "nothing_left_after_s": round(time.monotonic() - killed, 1),
        }

    def where(self) -> str:
        """Where the job is, as its directory and its log tell."""
        for name, path in self.run.half_written().items():
            if name not in self._old_temporaries:
                return f"{name.split('.')[1]} with {len(list(path.iterdir()))} of {CHECKPOINT_FILES} files written"
        step = self.logged()
        if not step:
            return "start-up"
        if step == NARROWED_AT and not self.narrowed():
            return "while narrowing"
        around = {NARROWED_AT - 1: ", right before narrowing", NARROWED_AT: ", right after narrowing"}
        return f"after step {step}{around.get(step, '')}"


class Harness:
    """Inputs, and one uninterrupted run per configuration, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shards = make_shards(directory / "shards", words=800)
        # Large enough that writing a checkpoint takes a while: 0.3 M parameters and twice as many moments.
        random_teacher(2, 96, 4, vocab=vocabulary_of(shards)).save_pretrained(directory / "teacher")
        self.recipe = directory / "recipe.yaml"
        write_recipe(self.recipe, recipe_values(shards, directory / "teacher", **SECTIONS))
        require_epochs_to_end(self.recipe)
        self.references: dict[str, tuple[Path, Durations]] = {}

    def inputs(self, configuration: str) -> dict[str, Path]:
        path = self.directory / f"{configuration.replace(', ', '_').replace(' ', '').lower()}.json"
        write_deepspeed(path, gradient_clipping=1.0, **CONFIGURATIONS[configuration])
        return {"recipe": self.recipe, "deepspeed": path}

    def reference(self, configuration: str) -> tuple[Path, Durations]:
        """The uninterrupted run of a configuration and what took how long in it."""
        if configuration not in self.references:
            inputs = self.inputs(configuration)
            run = Run(self.directory / f"{inputs['deepspeed'].stem}_uninterrupted", inputs)
            self.references[configuration] = run.directory, measure(run.start())
        return self.references[configuration]

    def run(self, number: int, configuration: str, aims: list[Aim]) -> dict[str, Any]:
        """One run that is killed at every aim and then left to end: its kills, and how it differs at the end."""
        reference, durations = self.reference(configuration)
        run = Run(self.directory / f"run_{number}", self.inputs(configuration))
        kills: list[dict[str, Any]] = []
        missed: list[dict[str, Any]] = []
        for aim in aims:
            life, found = self._hit(run, aim, durations, missed)
            _note_resume(kills, life)
            kills.append(found)
        life = run.start()
        try:
            assert life.wait(300) == 0, life.text()[-4000:]
        finally:
            life.end()
        _note_resume(kills, life)
        different = differences(run.directory, reference)
        return {
            "configuration": configuration,
            "seconds_uninterrupted": {name: round(value, 3) for name, value in asdict(durations).items()},
            "kills": kills,
            "missed_and_undone": missed,
            "equal": not different,
            "differences": different,
        }

    def _hit(
        self, run: Run, aim: Aim, durations: Durations, missed: list[dict[str, Any]]
    ) -> tuple[Life, dict[str, Any]]:
        """The life that was killed at `aim`, and what was found; kills at another moment are added to `missed`."""
        before = self.directory / "before"
        run.copy_to(before)
        for _ in range(TRIES):
            life = run.start()
            try:
                found = life.kill_at(aim, durations)
            finally:
                life.end()
            if aim.is_met_by(found["hit"]):
                return life, found
            missed.append(found)
            run.go_back_to(before)
            aim = replace(aim, part=aim.part / 2)  # a busy machine makes a kill late, never early
        raise AssertionError(f"no kill of {TRIES} was {HITS[aim.kind]}: {missed}")


def require_epochs_to_end(recipe_path: Path) -> None:
    """AssertionError unless a life that goes on from any checkpoint but the last two reads into a new epoch."""
    recipe = load_recipe(recipe_path, [])
    data, _, _ = open_training_data(recipe.data, recipe.train.seed)
    _, epochs, _ = data.locate(np.arange(STEPS) * recipe.train.global_batch)
    assert all(epochs[step] < epochs[-1] for step in range(0, LAST_AIM, CHECKPOINT_EVERY)), epochs


def _note_resume(kills: list[dict[str, Any]], life: Life) -> None:
    """Write down where the life after a kill went on; one that was itself killed while it started says nothing."""
    if kills:
        kills[-1]["resumed_from_step"] = life.resumed_from() or 0
        if not life.logged() and not life.resumed_from():
            kills[-1]["resumed_from_step"] = "the next kill came before it had"


def measure(life: Life) -> Durations:
    """Watch an uninterrupted run to its end."""
    moments: dict[str, float] = {}
    try:
        wait_until(lambda: len(life.ranks()) == 2, "two ranks")
        moments["ranks"] = time.monotonic()
        while life.running():
            for name, happened in _milestones(life):
                if happened and name not in moments:
                    moments[name] = time.monotonic()
            time.sleep(0.001 if life.logged() else 0.05)
        assert life.wait() == 0, life.text()[-4000:]
    finally:
        life.end()
    return Durations(
        startup=moments["first step"] - moments["ranks"],
        step=(moments["later step"] - moments["first step"]) / (CHECKPOINT_EVERY - 2),
        narrowing=moments["narrowed"] - moments["gates closed"],
    )


def _milestones(life: Life) -> Iterator[tuple[str, bool]]:
    logged = life.logged()
    yield "first step", logged >= 1
    yield "later step", logged >= CHECKPOINT_EVERY - 1
    yield "gates closed", logged >= NARROWED_AT
    yield "narrowed", logged >= NARROWED_AT and life.narrowed()


def differences(run: Path, reference: Path) -> list[str]:
    """In what the end of a run differs from that of another; nothing if they are equal bit for bit."""
    found = []
    last = all_checkpoints(reference / "checkpoints")[-1].name
    fault = why_incomplete(run / "checkpoints" / last)
    if fault:
        return [fault]
    for path in sorted((reference / "checkpoints" / last).iterdir()):
        if path.read_bytes() != (run / "checkpoints" / last / path.name).read_bytes():
            found.append(f"{last}/{path.name}")
    if (run / "checkpoints" / "latest").read_text().strip() != last:
        found.append("checkpoints/latest")
    if list((run / "checkpoints").glob(".*.tmp")):
        found.append("checkpoints holds what was half written")
    if _untimed(run) != _untimed(reference):
        found.append("metrics.jsonl")
    if (run / "selection.jsonl").read_bytes() != (reference / "selection.jsonl").read_bytes():
        found.append("selection.jsonl")
    return found


def _untimed(run: Path) -> list[dict[str, Any]]:
    return [{key: line.get(key) for key in UNTIMED} for line in read_json_lines(run / "metrics.jsonl")]
