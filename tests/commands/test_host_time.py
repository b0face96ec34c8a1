"""`benchmarks/host_time.py`: its rows, and one short run of the trainer here."""

import argparse
import sys

import pytest

from benchmarks import host_time
from pipeline.errors import UserError
from pipeline.records import NOT_TRAINING
from tests.support import ROOT


def line(step: int, optimizer: float) -> dict:
    """A logged step whose phases take 1 ms each, but the optimizer."""
    times = {**dict.fromkeys((*host_time.PHASES, *NOT_TRAINING), 1.0), "optimizer": optimizer}
    return {"step": step, "time_ms": {**times, "step": sum(times.values())}}


def test_only_narrowed_steps_count_and_only_their_training():
    settled = host_time.SETTLED + host_time.LOG_EVERY
    times = host_time.times_of([line(1, 99.0), line(settled - 1, 99.0), line(settled, 2.0), line(settled + 5, 4.0)])
    assert [row["step"] for row in times] == [8.0, 10.0]  # six phases of 1 ms and the optimizer


def test_rows_have_medians_and_the_range_of_the_rounds():
    rounds = [host_time.times_of([line(100, value)]) for value in (1.0, 7.0, 2.0)]
    row = host_time.summed_up(rounds)
    assert row["host_ms"] == 8.0 and row["host_ms_range"] == [7.0, 13.0] and row["rounds"] == [7.0, 13.0, 8.0]
    assert row["time_ms"] == {**dict.fromkeys(host_time.PHASES, 1.0), "optimizer": 2.0}
    cells = [cell.strip() for cell in host_time.table({"bf16": row}).splitlines()[2].strip("|").split("|")]
    assert cells == ["bf16", "8.0", "7.0 to 13.0", *["1.0"] * 5, "2.0", "1.0"]


def test_the_trainer_here_is_measured_after_it_was_narrowed(tmp_path):
    steps = host_time.SETTLED + 2 * host_time.LOG_EVERY
    arguments = argparse.Namespace(rounds=1, precisions=["bf16"], widths=[(16, 8)], steps=steps)
    ((name, row),) = host_time.measure(arguments, {"here": ROOT}, tmp_path).items()
    assert name == "bf16, 16 to 8, here"
    assert row["host_ms"] > 0 and all(row["time_ms"][phase] > 0 for phase in ("forward", "backward", "optimizer"))
    said = (tmp_path / "16_8" / "bf16_0_0.log").read_text()
    assert f"step {host_time.NARROWED}: every gate is closed or open, narrowed to" in said


def test_too_few_steps_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["host_time.py", "--json", str(tmp_path / "out.json"), "--steps", "20"])
    with pytest.raises(UserError, match="--steps 20 must be at least 30"):
        host_time.main()


@pytest.mark.parametrize("text", ["24", "24:", "12:24", "12:12", "12:0", "a:b"])
def test_widths_that_cannot_be(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no FROM:TO, such as 24:12"):
        host_time.width_pair(text)


def test_widths_are_multiples_of_the_heads():
    assert host_time.width_pair("24:12") == (24, 12)
    with pytest.raises(argparse.ArgumentTypeError, match="'24:11': both must be multiples of 2"):
        host_time.width_pair("24:11")
