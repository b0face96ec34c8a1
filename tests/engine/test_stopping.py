"""What a stop leaves behind: whose wish it was, and no request for the next start. Ranks are played by lists."""

import json
import signal
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from pipeline.config import TeacherConfig
from pipeline.engine import stopping
from pipeline.engine.distributed import World
from pipeline.engine.run_directory import record_start
from pipeline.engine.stopping import StopRequest, request
from pipeline.recipe import Recipe


@dataclass(frozen=True)
class Alone(World):
    """Rank 0, whose other ranks say what the test gives them."""

    others: tuple[Any, ...] = ()

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]

    def broadcast(self, value: Any) -> Any:
        return value


@pytest.fixture
def stop(tmp_path, monkeypatch):
    """Make the request of a rank 0 in `tmp_path`, given what the other ranks were asked by."""
    kept = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    monkeypatch.setattr(stopping, "_reason", None)
    monkeypatch.setattr(Alone, "on_all", lambda self, action: action())
    yield lambda *others: StopRequest(tmp_path, Alone(0, 1 + len(others), torch.device("cpu"), others))
    for number, handler in kept.items():
        signal.signal(number, handler)


def recorded(directory) -> dict[str, Any]:
    return json.loads((directory / "stopped.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_is_recorded_by_its_name(stop, tmp_path, number):
    asked = stop()
    signal.raise_signal(number)
    assert asked.received() and asked.settle(7, finished=False) == number.name
    assert recorded(tmp_path) == {"reason": number.name, "rank": 0, "step": 7}


def test_the_reason_is_that_of_whichever_rank_was_asked(stop, tmp_path):
    asked = stop(None, "launcher gone")
    assert not asked.received() and asked.settle(3, finished=False) == "launcher gone"
    assert recorded(tmp_path) == {"reason": "launcher gone", "rank": 2, "step": 3}


def test_the_first_signal_is_the_reason(stop, tmp_path):
    asked = stop()
    request("SIGUSR1")
    request("SIGTERM")
    assert asked.settle(3, finished=False) == "SIGUSR1"


@pytest.mark.parametrize("when", ["before the start", "after a signal", "while the checkpoint is written"])
def test_a_stop_file_counts_before_signals_whenever_it_came(stop, tmp_path, when):
    """A batch system may signal a job that its user has just asked to end: it must not be requeued."""
    if when == "before the start":
        (tmp_path / "stop").touch()
    asked = stop("SIGTERM")
    if when == "after a signal":
        request("SIGUSR1")
        assert asked.received()
        (tmp_path / "stop").touch()
    assert asked.received() == (when != "while the checkpoint is written")
    (tmp_path / "stop").touch()
    assert asked.settle(0, finished=False) == "stop file"
    assert recorded(tmp_path) == {"reason": "stop file", "rank": 0, "step": 0}
    assert not (tmp_path / "stop").exists()


def test_a_stop_file_that_is_gone_again_was_still_the_reason(stop, tmp_path):
    asked = stop("SIGTERM")
    (tmp_path / "stop").touch()
    assert asked.received()
    (tmp_path / "stop").unlink()
    assert asked.settle(1, finished=False) == "stop file"


@pytest.mark.parametrize("received", [True, False])
def test_a_run_at_its_end_has_not_been_stopped_and_leaves_no_request(stop, tmp_path, received):
    """In the last step, or while its checkpoint is written."""
    asked = stop("SIGTERM")
    (tmp_path / "stop").touch()
    if received:
        assert asked.received()
    asked.settle(9, finished=True)
    assert list(tmp_path.iterdir()) == []


def test_the_next_start_forgets_what_stopped_the_last(stop, tmp_path):
    stop("SIGTERM").settle(4, finished=False)
    (tmp_path / "stop").touch()
    record_start(tmp_path, Recipe(teacher=TeacherConfig(path="teacher")), {}, ["train.py"])
    assert not (tmp_path / "stopped.json").exists() and (tmp_path / "stop").exists()
