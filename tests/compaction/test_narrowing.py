"""Narrowing: dropping what the gates have closed changes neither the loss, nor a gradient, nor the student."""

import copy

import pytest
import torch
import torch.nn.functional as F

from pipeline.compaction.fold import compare, fold, open_indices
from pipeline.compaction.stacks import STACKS
from pipeline.models.encoder import Bert
from tests.compaction.test_fold import CASES
from tests.support.models import (
    close_random_gates,
    compacted,
    logits,
    random_teacher,
    randomise_compactors,
    token_batch,
)


def narrowed_pair(strategy, hidden, heads, target, head_size, intermediate, seed):
    """A model in float64 whose gates are closed, and its narrowed copy."""
    model = compacted(random_teacher(3, hidden, heads, seed=seed), target, head_size, strategy, intermediate).double()
    randomise_compactors(model, seed=seed + 10)
    close_random_gates(model, seed=seed + 20)
    narrow = copy.deepcopy(model)
    narrow.narrow(open_indices(narrow.gates))
    return model, narrow


@pytest.mark.parametrize("strategy,hidden,heads,target,head_size,intermediate", CASES)
@pytest.mark.parametrize("penalty", [False, True])
def test_loss_and_gradients_stay(strategy, hidden, heads, target, head_size, intermediate, penalty):
    model, narrow = narrowed_pair(strategy, hidden, heads, target, head_size, intermediate, seed=3)
    model.stops_gradient = narrow.stops_gradient = penalty
    ids, labels = token_batch(), token_batch(seed=100)
    losses = [F.cross_entropy(logits(m, ids).flatten(0, 1), labels.flatten()) for m in (model, narrow)]
    for loss in losses:
        loss.backward()
    assert float((losses[0] - losses[1]).detach().abs()) <= 1e-10

    kept, sides = open_indices(model.gates), {side.name: side for side in model.sides()}
    left = dict(narrow.named_parameters())
    for name, whole in model.named_parameters():
        gradient = whole.grad
        if name in sides:
            gradient = model.cut(sides[name], whole.grad, kept)
            # What is dropped was dead: nothing would have moved it any more. So the sums of squares are the same.
            assert float(whole.grad.square().sum()) == pytest.approx(float(gradient.square().sum()), rel=1e-12), name
            assert gradient.numel() < whole.numel()
        assert left[name].shape == gradient.shape
        assert float((left[name].grad - gradient).abs().max()) <= 1e-10, name
    assert any(float(p.grad.abs().max()) > 0 for name, p in left.items() if name.endswith("_delta"))


@pytest.mark.parametrize("strategy,hidden,heads,target,head_size,intermediate", CASES)
def test_fold_gives_the_same_student(strategy, hidden, heads, target, head_size, intermediate):
    model, narrow = narrowed_pair(strategy, hidden, heads, target, head_size, intermediate, seed=5)
    (student, indices), (again, same) = fold(model.eval()), fold(narrow.eval())
    assert indices == same
    for (name, expected), got in zip(student.state_dict().items(), again.state_dict().values(), strict=True):
        assert expected.shape == got.shape and float((expected - got).abs().max()) <= 1e-12, name
    assert compare(narrow, again, [token_batch()]).max_logit_diff_fp64 <= 1e-10


@pytest.mark.parametrize("strategy,hidden,heads,target,head_size,intermediate", CASES)
def test_activations_and_composed_matrices_have_the_students_size(
    strategy, hidden, heads, target, head_size, intermediate
):
    _, narrow = narrowed_pair(strategy, hidden, heads, target, head_size, intermediate, seed=7)
    student, tensors = narrow.target, narrow()
    assert tensors["tables"].shape[1] == target and tensors["norm_gain"].shape[1] == target
    assert tensors["qkv"].shape == (3, 3 * student.hidden, student.hidden)
    assert tensors["ffn_in"].shape == (3, student.intermediate, student.hidden)
    states = Bert(tensors, narrow.form).projections(0, Bert(tensors, narrow.form).embed(token_batch()))
    assert states.shape[-2:] == (student.heads, student.head_size)
    # The teacher's own weights keep their size.
    assert narrow.ffn_in.shape[2] == hidden


def test_bf16_composes_narrow_matrices_to_the_last_rounding():
    _, narrow = narrowed_pair(*CASES[0], seed=9)
    with torch.no_grad():
        exact, rounded = narrow(), copy.deepcopy(narrow).bfloat16()()
        for name in (stack.name for stack in STACKS):
            for one, other in zip(exact[name], rounded[name], strict=True):
                assert float((other.double() - one).abs().max()) <= 0.02 * float(one.abs().max())


@pytest.mark.parametrize("case", CASES[:2])
def test_fifty_steps_after_narrowing_follow_the_whole_model(case):
    """AdamW with decay, its moments cut alike, on the same batches."""
    torch.manual_seed(0)
    model, _ = narrowed_pair(*case, seed=11)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6, weight_decay=0.01)

    def step(one, its_optimizer, number: int) -> float:
        ids, labels = token_batch(seed=number), token_batch(seed=1000 + number)
        loss = F.cross_entropy(logits(one, ids).flatten(0, 1), labels.flatten())
        its_optimizer.zero_grad()
        loss.backward()
        its_optimizer.step()
        return float(loss.detach())

    for number in range(5):
        step(model, optimizer, number)
    narrow, kept = copy.deepcopy(model), open_indices(model.gates)
    sides = {side.name: side for side in model.sides()}
    narrow.narrow(kept)
    successor = torch.optim.AdamW(narrow.parameters(), lr=1e-3, eps=1e-6, weight_decay=0.01)
    whole = dict(model.named_parameters())
    for name, parameter in narrow.named_parameters():
        moments = dict(optimizer.state[whole[name]])
        for key in ("exp_avg", "exp_avg_sq"):
            whole_moment = moments[key].clone()
            moments[key] = model.cut(sides[name], whole_moment, kept) if name in sides else whole_moment
        successor.state[parameter] = {**moments, "step": moments["step"].clone()}

    before = {name: parameter.detach().clone() for name, parameter in narrow.named_parameters()}
    losses = [(step(model, optimizer, 5 + n), step(narrow, successor, 5 + n)) for n in range(50)]
    assert max(abs(wide - slim) for wide, slim in losses) <= 1e-9
    deltas = [name for name in before if name.endswith("_delta")]
    assert all(
        float((narrow.get_parameter(name).detach() - before[name]).abs().max()) > 1e-3 for name in deltas
    )  # it trains
