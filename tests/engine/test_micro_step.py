"""Micro-steps: gradients of the mean over micro-batches, at any loss scale, on the type's own or static memory."""

import contextlib

import pytest
import torch

from pipeline.compaction.model import CompactedBert
from pipeline.engine.micro_step import Carry, MicroStep, Recording, dropout_seed
from pipeline.models.encoder import encode
from pipeline.models.loss import masked_lm_loss, masked_lm_of
from pipeline.models.plain import PlainBert
from tests.support.models import close_random_gates, compacted, random_teacher, randomise_compactors, token_batch

CPU = torch.device("cpu")


def clock(_: str) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext()


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    return [
        {
            "input_ids": token_batch(seed=seed),
            "positions": torch.tensor([[1, 5, 9]]).expand(4, -1),
            "labels": token_batch(tokens=3, seed=seed + 100),
        }
        for seed in range(count)
    ]


def model(closing: bool, scored: bool) -> CompactedBert:
    """In float64, compactors away from the identity."""
    made = compacted(random_teacher(), 15, 5, "dim", 31).double()
    randomise_compactors(made)
    if closing:
        close_random_gates(made)
        made.gates.set(made.gates.value.clamp(min=0.3), made.gates.value < 1)
    made.gates.value = made.gates.value.double()
    made.gates.record_gradient(scored)
    return made


def gradients(made: CompactedBert) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in made.named_parameters()}
    return found if made.gates.value.grad is None else {**found, "gates": made.gates.value.grad}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], factor: float = 1.0) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value * factor, rtol=1e-10, atol=1e-12 * factor)


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("scored", [False, True])
def test_what_is_carried_to_the_parameters_is_the_gradient_of_the_mean_loss(closing, scored):
    data, expected = batches(3), model(closing, scored)
    tensors = expected()
    losses = [
        masked_lm_loss(encode(tensors, expected.form, b["input_ids"], b["positions"]), b["labels"])[0] for b in data
    ]
    torch.stack(losses).mean().backward()
    found = model(closing, scored)
    step = MicroStep(masked_lm_of(found.form, training=True), 3, CPU, clock)
    for _ in range(2):  # nothing is left of the step before
        found.zero_grad()
        found.gates.record_gradient(scored)
        step.begin(found(), loss_scale=8.0)
        for batch in data:
            step.run(batch, seed=0)
        (step.carried_loss() * 1024).backward()  # as DeepSpeed scales it, or not
    assert_equal(gradients(found), gradients(expected), factor=8.0)
    assert ("gates" in gradients(found)) == scored
    assert float(step.means()[0]) == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-6)


def test_many_small_gradients_in_half_precision_are_not_lost():
    """Of 1,024 equal ones, bf16 itself would take 256."""
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    step = MicroStep(lambda tensors, _: (tensors["w"].sum().float(), torch.tensor(0.0)), 1024, CPU, clock)
    step.begin({"w": weight * 1})
    for _ in range(1024):
        step.run({}, seed=0)
    step.carried_loss().backward()
    assert weight.grad.tolist() == [1.0] * 4


def test_a_tensor_without_gradient_gets_none():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    Carry.apply(torch.tensor(1.0), [torch.ones(2), None], *weights).backward()
    assert weights[0].grad is not None and weights[1].grad is None


def test_dropout_is_a_function_of_the_keys_alone():
    teacher = random_teacher()
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.3
    plain, (batch,) = PlainBert(teacher), batches(1)
    step = MicroStep(masked_lm_of(plain.form, training=True), 1, CPU, clock)

    def loss(*keys: int) -> float:
        torch.rand(7)
        step.begin(plain())
        step.run(batch, dropout_seed(*keys))
        return float(step.means()[0])

    assert loss(1, 2, 3) == loss(1, 2, 3)
    assert len({loss(1, 2, 3), loss(1, 2, 4), loss(2, 2, 3)}) == 3


def recorded_steps(monkeypatch, capture) -> tuple[list[dict[str, torch.Tensor]], list[str]]:
    """Gradients after steps in three forms, on static memory; what was said. `capture` stands in for CUDA's."""
    monkeypatch.setattr(Recording, "_capture", capture)
    said: list[str] = []
    found = []
    made = model(closing=True, scored=True)
    loss_of = masked_lm_of(made.form, training=True)
    step = MicroStep(loss_of, 2, CPU, clock, recorded=capture is not None, say=said.append)
    for scored, closing in ((True, True), (True, True), (False, True), (False, False)):
        made.zero_grad()
        made.gates.record_gradient(scored)
        if not closing:
            made.gates.set(torch.ones(len(made.gates.value)), torch.zeros(len(made.gates.value), dtype=bool))
        step.begin(made(), loss_scale=4.0)
        for batch in batches(2):
            step.run(batch, seed=0)
        step.carried_loss().backward()
        found.append(dict(gradients(made), means=step.means()))
    return found, said


def test_a_step_on_static_memory_is_the_same_in_every_form(monkeypatch):
    """All that can be seen of a recording without a GPU: what is recorded is done again in its stead."""
    captures = []

    def capture(recording):
        captures.append(sorted(recording.sums))
        return recording._work

    plain, _ = recorded_steps(monkeypatch, None)
    recorded, said = recorded_steps(monkeypatch, capture)
    for found, expected in zip(recorded, plain, strict=True):
        assert_equal(found, expected)
    assert said == [] and [("gate" in names) for names in captures] == [True, False, False]


def test_what_cannot_be_recorded_runs_as_it_is_and_that_is_said_once(monkeypatch):
    def capture(recording):
        recording._work()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    plain, _ = recorded_steps(monkeypatch, None)
    recorded, said = recorded_steps(monkeypatch, capture)
    for found, expected in zip(recorded, plain, strict=True):
        assert_equal(found, expected)
    assert len(said) == 1 and said[0].endswith("and runs without: operation not permitted when stream is capturing")
