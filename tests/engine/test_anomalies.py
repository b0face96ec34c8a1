"""The anomalies of losses alone: spikes, overflows, and how many steps in a row were skipped."""

import json
import math

import numpy as np

from pipeline.engine.anomalies import Anomalies, StepResult, describe_windows


def result(loss: float, **changes):
    return StepResult(**{"loss": loss, "accuracy": 0.5, "applied": True, "loss_scale": None} | changes, **SOUND)


SOUND = {"can_lower": False, "stop": False}


def test_a_spike_is_pointed_out_and_a_new_level_is_learned():
    anomalies, draw = Anomalies(), np.random.default_rng(0)
    losses = 5 - np.arange(400) / 400 + draw.normal(0, 0.1, 400)
    assert [anomalies.find(result(float(loss))) for loss in losses] == [None] * 400
    assert anomalies.find(result(6.5)) == "spike" and anomalies.find(result(4.0)) is None
    events = [anomalies.find(result(7.0 + float(noise))) for noise in draw.normal(0, 0.1, 200)]
    assert events[0] == "spike" and 1 < events.count("spike") < 60 and events[60:] == [None] * 140


def test_the_record_goes_on_where_its_checkpoint_was():
    anomalies, draw = Anomalies(), np.random.default_rng(1)
    for loss in draw.normal(5, 0.1, 80):
        anomalies.find(result(float(loss)))
    anomalies.find(result(math.nan, applied=False))
    other = Anomalies()
    other.load_state_dict(json.loads(json.dumps(anomalies.state_dict())))
    assert vars(other) == vars(anomalies) and other.in_a_row == other.skipped == 1


def test_overflows_that_lower_the_loss_scale_are_not_counted_in_a_row():
    anomalies = Anomalies()
    overflow = StepResult(2.0, 0.5, applied=False, loss_scale=1024.0, can_lower=True, stop=False)
    at_least = StepResult(2.0, 0.5, applied=False, loss_scale=1.0, can_lower=False, stop=False)
    no_loss = StepResult(math.inf, 0.5, applied=False, loss_scale=1024.0, can_lower=True, stop=False)
    assert [anomalies.find(step) for step in (overflow, overflow)] == ["overflow"] * 2 and anomalies.in_a_row == 0
    assert [anomalies.find(step) for step in (at_least, no_loss)] == ["skipped"] * 2 and anomalies.in_a_row == 2
    assert anomalies.skipped == 4
    anomalies.find(result(2.0))
    assert anomalies.in_a_row == 0


def test_windows_are_listed_by_source_and_not_all_of_them():
    assert describe_windows([[3, 1]]) == "windows 3, 1"
    assert (
        describe_windows([[3], [], [1, 2, 4]], most=2) == "windows 3 of source 1; windows 1, 2 and 1 more of source 3"
    )
