"""Scores against finite differences and by hand, quotas, ties, curves, and the schedule's record."""

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.compaction.groups import Gates, Group, build_groups
from pipeline.compaction.schedule import Schedule, gate_value
from pipeline.compaction.selection import TaylorScores, choose, norm_scores, random_scores
from pipeline.config import CompactionConfig
from pipeline.errors import UserError
from pipeline.models.huggingface import shape_of
from pipeline.shapes import BertShape, resolve_target
from tests.support.models import compacted, logits, random_teacher, randomise_compactors, token_batch


def test_taylor_is_the_squared_finite_difference_of_the_loss():
    model = compacted(random_teacher(2, 12, 2, vocab=31, intermediate=10), 6, 3, "dim", intermediate=5).double()
    randomise_compactors(model)
    ids, labels = token_batch(31), token_batch(31, seed=9)
    model.gates.value = model.gates.value.double()
    model.gates.record_gradient(True)

    def loss():
        return F.cross_entropy(logits(model, ids).flatten(0, 1), labels.flatten())

    loss().backward()
    taylor = TaylorScores(model.gates)
    taylor.add(model.gates.value.grad)
    step, checked = 1e-5, 0
    for name, gates in model.gates.split(model.gates.value).items():
        for index in range(len(gates)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    gates[index] += sign * step
                    values.append(float(loss()))
                    gates[index] -= sign * step
            expected = ((values[0] - values[1]) / (2 * step)) ** 2
            assert float(taylor.scores()[name][index]) == pytest.approx(expected, rel=1e-4, abs=1e-12), (name, index)
            checked += expected > 1e-10
    assert checked > 30


def test_taylor_averages_squares_and_survives_a_checkpoint():
    gates = Gates({"residual": Group("residual", 3, 1)})
    taylor = TaylorScores(gates)
    taylor.add(torch.tensor([1.0, -2.0, 0.0]))
    taylor.add(torch.tensor([3.0, 0.0, 0.0]))
    taylor.add(torch.tensor([1.0, float("inf"), 0.0]))  # is no gradient, and does not count
    again = TaylorScores(gates)
    again.load_state_dict(taylor.state_dict())
    for scores in (taylor, again):
        assert scores.scores()["residual"].tolist() == [5.0, 2.0, 0.0]
    taylor.reset()
    assert taylor.scores()["residual"].tolist() == [0.0, 0.0, 0.0]


def test_norm_scores_sum_the_row_compactor_columns_of_all_readers():
    model = compacted(random_teacher(2), 15, 5, "dim")
    randomise_compactors(model)
    assert model.qkv_row_delta.shape == (6, 24, 24)  # query, key and value of layer 0, then those of layer 1
    for group, readers in {
        "residual": [*model.qkv_row_delta, *model.ffn_in_row_delta, *model.transform_row_delta],
        "attention.1": [model.attention_out_row_delta[1]],
        "ffn.0": [model.ffn_out_row_delta[0]],
    }.items():
        expected = torch.zeros(model.gates.groups[group].size, dtype=torch.float64)
        for reader in readers:
            compactor = torch.eye(len(expected), dtype=torch.float64) + reader.detach().double()
            for column in range(len(expected)):
                expected[column] += math.sqrt(sum(float(x) ** 2 for x in compactor[:, column]))
        torch.testing.assert_close(norm_scores(model)[group], expected, rtol=1e-12, atol=0)


def test_random_scores_are_a_pure_function():
    group = Group("ffn.3", 50, 10)
    assert torch.equal(random_scores(group, 2, seed=1), random_scores(group, 2, seed=1))
    for other in (random_scores(group, 3, 1), random_scores(group, 2, 2), random_scores(Group("ffn.4", 50, 10), 2, 1)):
        assert not torch.equal(random_scores(group, 2, 1), other)


@pytest.mark.parametrize("strategy,hidden,head_size", [("dim", 12, 2), ("head", 16, 4), ("head", 4, 4)])
@pytest.mark.parametrize("increments", [1, 3, 16])
def test_quotas(strategy, hidden, head_size, increments):
    """After increment k of n, floor(k r / n) are retired; per head, or by whole heads."""
    teacher = BertShape(layers=2, hidden=24, heads=6, intermediate=96, vocab_size=50)
    target = resolve_target(teacher, strategy, hidden, head_size)
    torch.manual_seed(0)
    for group in build_groups(teacher, target, strategy).values():
        retired = torch.zeros(group.size, dtype=torch.bool)
        for increment in range(1, increments + 1):
            chosen = choose(group, torch.rand(group.size, dtype=torch.float64), retired, increment, increments)
            assert not bool(retired[chosen].any())
            retired[chosen] = True
            if group.name.startswith("attention"):
                heads = retired.reshape(6, 4).sum(1)
                if strategy == "dim":
                    assert heads.tolist() == [increment * (4 - head_size) // increments] * 6
                else:
                    assert set(heads.tolist()) <= {0, 4}
                    assert int((heads == 4).sum()) == increment * (6 - hidden // 4) // increments
            else:
                assert int(retired.sum()) == increment * (group.size - group.target_size) // increments
        assert int((~retired).sum()) == group.target_size


def test_lowest_score_goes_first_and_the_lowest_index_wins_ties():
    group = Group("residual", 6, 2)
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0, 9.0, 1.0], dtype=torch.float64)
    retired = torch.zeros(6, dtype=torch.bool)
    assert choose(group, scores, retired, 1, 2) == [1, 3]
    retired[[1, 3]] = True
    assert choose(group, scores, retired, 2, 2) == [2, 5]


def test_a_head_is_scored_by_the_sum_of_its_dimensions():
    group = Group("attention.0", 6, 4, unit=2)
    scores = torch.tensor([0.0, 9.0, 4.0, 4.0, 5.0, 5.0], dtype=torch.float64)
    assert choose(group, scores, torch.zeros(6, dtype=torch.bool), 1, 1) == [2, 3]


def test_gate_curves():
    for t in range(40):
        assert gate_value("anneal", t, 40, 5e-5) == pytest.approx(1 - t / 40, abs=1e-12)
        assert gate_value("penalty", t, 40, 5e-5) == pytest.approx(math.exp(-30 * t * 5e-5), abs=1e-12)
    for decay in ("anneal", "penalty"):
        assert gate_value(decay, 0, 40, 5e-5) == 1.0
        assert gate_value(decay, 40, 40, 5e-5) == 0.0 and gate_value(decay, 4000, 40, 5e-5) == 0.0
    assert gate_value("penalty", 1000, 5000, 5e-5) == pytest.approx(0.22, abs=0.07)  # published decay: 0.28


def test_schedule_walks_every_gate_to_the_target():
    teacher = random_teacher()
    model = compacted(teacher, 15, 5, "dim")
    config = CompactionConfig(start_step=3, interval_steps=2, increments=4, decay_steps=5, selection="random")
    schedule = Schedule(config, model.gates, compactor_lr=1e-3)
    for step in range(config.end_step + 1):
        increment = config.increment_due(step)
        assert (increment is not None) == (step in (3, 5, 7, 9))
        if increment:
            scores = {n: random_scores(g, increment, 0) for n, g in model.gates.groups.items()}
            schedule.retire(step, schedule.choose(increment, scores))
        schedule.set_gates(step)
        for name, gates in model.gates.split(model.gates.value).items():
            since = step - schedule.selected_at[name]
            expected = torch.where(schedule.selected_at[name] < 0, 1.0, (1 - since / 5).clamp(min=0))
            assert float((gates - expected).abs().max()) <= 1e-6
        assert model.gates.all_open == bool((model.gates.value == 1).all())
    wanted = {name: group.target_size for name, group in model.gates.groups.items()}
    assert config.end_step == 14 and schedule.open_count() == wanted
    assert {n: int(gates.sum()) for n, gates in model.gates.split(model.gates.value).items()} == wanted

    again = Schedule(config, compacted(random_teacher(), 15, 5, "dim").gates, compactor_lr=1e-3)
    again.load_state_dict(schedule.state_dict())
    again.set_gates(11)
    schedule.set_gates(11)
    assert torch.equal(again.gates.value, schedule.gates.value) and not again.gates.all_open


@pytest.mark.parametrize(
    "sizes,message",
    [
        ({"hidden": 100}, "100"),
        ({"hidden": 96, "head_size": 10}, "multiple of target.head_size"),
        ({"hidden": 96, "head_size": 16}, "keeps the teacher's 12 heads"),
        ({"hidden": 960, "head_size": 80}, "wider than the teacher"),
        ({"hidden": 96, "params": 11_000_000}, "not both"),
        ({}, "no target"),
    ],
)
def test_targets_that_are_no_student(sizes, message):
    teacher = BertShape(12, 768, 12, 3072, 30522)
    with pytest.raises(UserError, match=message):
        resolve_target(teacher, "dim", **sizes)


@pytest.mark.parametrize("strategy,head_size", [("dim", 6), ("head", 8)])
def test_the_default_intermediate_size_is_named_where_it_does_not_fit(strategy, head_size):
    teacher = BertShape(2, 24, 3, 60, 61)
    hidden = 2 * head_size if strategy == "head" else 3 * head_size
    sentence = rf"target\.hidden {hidden} makes the intermediate size {4 * hidden}, four times hidden by default.* 60$"
    with pytest.raises(UserError, match=sentence):
        resolve_target(teacher, strategy, hidden, head_size)
    assert resolve_target(teacher, strategy, hidden, head_size, intermediate=60).intermediate == 60
    with pytest.raises(UserError, match=rf"target {hidden}/{4 * hidden} is wider than the teacher"):
        resolve_target(teacher, strategy, hidden, head_size, intermediate=4 * hidden)
    with pytest.raises(UserError, match=r"no student of this teacher has target\.intermediate \(four times hidden"):
        resolve_target(BertShape(2, 24, 3, 11, 61), "dim", params=1000)


@pytest.mark.parametrize("strategy,hidden", [("dim", 192), ("head", 192)])
def test_params_picks_the_nearest_legal_shape(strategy, hidden):
    shape = resolve_target(BertShape(12, 768, 12, 3072, 30522), strategy, params=11_000_000)
    assert shape.hidden == hidden and round(shape.parameters / 1e6, 1) == 11.3


def test_config_refuses_the_impossible():
    for bad in ({"increments": 0}, {"interval_steps": 0}, {"start_step": -1}, {"start_step": 0}):
        with pytest.raises(UserError):
            CompactionConfig(**bad)
    assert shape_of(random_teacher().config).head_size == 8
