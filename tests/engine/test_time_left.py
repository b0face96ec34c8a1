"""The time left that a run shows, on a simulated clock: against what it then took."""

import re
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config import TrainConfig
from pipeline.engine import run_log, telemetry
from pipeline.engine.distributed import World
from pipeline.engine.run_log import RunLog
from pipeline.engine.telemetry import Telemetry

COMPILATION = 120.0
EVALUATION, CHECKPOINT = 5.0, 15.0


class Alone(World):
    """One rank without a process group."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def barrier(self) -> None:
        pass


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def simulate(tmp_path, monkeypatch, capsys):
    """Run the logging of a training: for each logged step, the seconds left as said and as they then were.

    None was said where the line shows no time.
    """
    clock = Clock()
    for name in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, name, clock)
    monkeypatch.setattr(telemetry, "measure_peak", lambda *_: 1.0)
    monkeypatch.setattr(run_log, "Board", lambda *_: SimpleNamespace(step=lambda *_: None))

    def run(seconds, first_step: int = 0, **changes: Any) -> dict[int, tuple[float | None, float]]:
        """`seconds`: of training step n (from 1)."""
        train = TrainConfig(**{"steps": 1000, "evaluate_every": 100, "checkpoint_every": 200, **changes})
        log = RunLog(tmp_path, first_step, train)
        watched = Telemetry(Alone(0, 1, torch.device("cpu")), "fp32", 16, 2, 4)
        clock.now += 50  # checkpoint loaded, engine started
        watched.restart(first_step)
        said = {}
        for step in range(first_step + 1, train.steps + 1):
            with watched.clock("forward"):
                clock.now += seconds(step) + (COMPILATION if step == first_step + 1 else 0)
            last = step == train.steps
            evaluated = last or step % train.evaluate_every == 0
            if evaluated or step == 1 or step % train.log_every == 0:
                if evaluated:
                    with watched.clock("evaluate"):
                        clock.now += EVALUATION
                record = {"step": step, "loss": 1.0, "accuracy": 0.5, "kept": {}} | watched.interval(
                    step, lambda batch: 1
                )
                log.step(record, {})
                said[step] = shown(capsys.readouterr().out), clock.now
            if last or step % train.checkpoint_interval == 0:
                with watched.clock("checkpoint"):
                    clock.now += CHECKPOINT
        return {step: (left, clock.now - then) for step, (left, then) in said.items()}

    return run


def shown(line: str) -> float | None:
    found = re.search(r"  (\d+):(\d\d):(\d\d) left\n$", line)
    return 3600 * int(found[1]) + 60 * int(found[2]) + int(found[3]) if found else None


def wrong(said: dict[int, tuple[float | None, float]], since: int, until: int = 980) -> dict[int, Any]:
    """What is off by more than a fifth. The last lines are not looked at: a second is much there."""
    return {
        step: (left, true)
        for step, (left, true) in said.items()
        if since <= step <= until and (left is None or abs(left - true) > true / 5)
    }


def test_compilation_and_start_are_not_counted(simulate):
    said = simulate(lambda step: 1.0)
    assert said[1][0] is None
    assert wrong(said, since=2) == {} and len(said) == 101
    assert said[1000][0] == 0


@pytest.mark.parametrize("first_step", [195, 500, 501])
def test_a_resumed_run_compiles_again_and_may_meet_an_evaluation_at_once(simulate, first_step):
    said = simulate(lambda step: 1.0, first_step=first_step)
    assert next(iter(said.values()))[0] is None
    assert wrong(said, since=first_step + 11) == {}


def test_it_follows_the_speed_after_narrowing(simulate):
    """Steps become ten times as fast; the narrowing itself takes a minute."""
    said = simulate(lambda step: 1.0 if step < 400 else 60.0 if step == 400 else 0.1, evaluate_every=500)
    assert wrong(said, since=430) == {}
    # Nobody can know before.
    assert said[390][0] > 3 * said[390][1]


def test_a_single_slow_interval_is_forgiven(simulate):
    said = simulate(lambda step: 100.0 if step == 555 else 1.0)
    assert wrong(said, since=556) == {}


def test_what_is_not_training_is_foreseen(simulate):
    """Evaluations take as long as the training between them."""
    said = simulate(lambda step: 0.1, evaluate_every=50, checkpoint_every=500)
    assert wrong(said, since=520, until=940) == {}


def test_a_run_of_one_step_has_no_time_left(simulate):
    assert simulate(lambda step: 1.0, steps=1) == {1: (0, CHECKPOINT)}
