"""The gated LayerNorm against a sliced one, by its formula, and its gradients against autograd's."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.models.norm import LayerNorms

EPSILON = 1e-5


def layer_norm(inputs, gain, bias, epsilon, gate=None):
    """One norm alone, of a sum as it is used in a layer."""
    return LayerNorms(gain[None], bias[None], epsilon, gate)(0, inputs / 2, inputs / 2)


def by_formula(inputs, gain, bias, gate):
    """As design says it, for autograd to differentiate."""
    mean = (gate * inputs).sum(-1, keepdim=True) / gate.sum()
    variance = (gate * (inputs - mean) ** 2).sum(-1, keepdim=True) / gate.sum()
    return (inputs - mean) / (variance + EPSILON).sqrt() * (gate * gain) + gate * bias


def random_case(size: int, seed: int):
    torch.manual_seed(seed)
    inputs = torch.randn(4, 5, size, dtype=torch.float64) * 0.02 * 10**seed + 1
    gain, bias = torch.randn(2, size, dtype=torch.float64)
    gate = torch.rand(size, dtype=torch.float64)
    gate[::3], gate[1::5] = 1.0, 0.0
    return inputs, gain, bias, gate


@pytest.mark.parametrize("seed", range(4))
def test_value_and_all_gradients(seed):
    leaves = [tensor.requires_grad_() for tensor in random_case(17 + seed, seed)]
    inputs, gain, bias, gate = leaves
    ours, theirs = layer_norm(inputs, gain, bias, EPSILON, gate), by_formula(inputs, gain, bias, gate)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(ours)
    for got, expected in zip(
        torch.autograd.grad(ours, leaves, direction), torch.autograd.grad(theirs, leaves, direction), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_closed_gates_give_the_norm_of_the_slice(seed):
    inputs, gain, bias, _ = random_case(19, seed)
    kept = torch.randperm(19)[:7]
    gate = torch.zeros(19).index_fill(0, kept, 1.0)
    got = layer_norm(inputs, gain, bias, EPSILON, gate)
    expected = F.layer_norm(inputs[..., kept], (7,), gain[kept], bias[kept], EPSILON)
    torch.testing.assert_close(got[..., kept], expected, rtol=0, atol=1e-12)
    assert float(got[..., gate == 0].abs().max()) == 0.0


def test_open_gates_change_nothing():
    inputs, gain, bias, _ = random_case(8, 1)
    fused = layer_norm(inputs, gain, bias, EPSILON)
    assert torch.equal(fused, F.layer_norm(inputs, (8,), gain, bias, EPSILON))
    torch.testing.assert_close(layer_norm(inputs, gain, bias, EPSILON, torch.ones(8)), fused, rtol=0, atol=1e-12)


def test_half_precision_sums_in_fp32():
    inputs, gain, bias, gate = random_case(64, 1)
    halves = [tensor.bfloat16().requires_grad_() for tensor in (inputs, gain, bias)]
    wide = [tensor.detach().double().requires_grad_() for tensor in halves]
    gates = [gate.float().requires_grad_(), gate.float().double().requires_grad_()]
    outputs = [layer_norm(*h, EPSILON, g) for h, g in ((halves, gates[0]), (wide, gates[1]))]
    assert outputs[0].dtype == torch.bfloat16
    torch.testing.assert_close(outputs[0].double(), outputs[1], rtol=2**-8, atol=1e-5)
    direction = torch.randn_like(outputs[0])
    got = torch.autograd.grad(outputs[0], [*halves, gates[0]], direction)
    expected = torch.autograd.grad(outputs[1], [*wide, gates[1]], direction.double())
    assert [g.dtype for g in got] == [torch.bfloat16] * 3 + [torch.float32]
    for one, other in zip(got, expected, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 0.01


def test_norms_one_after_the_other_share_the_gate():
    (inputs, *_, gate), (residual, *_) = random_case(11, 2), random_case(11, 3)
    gains, biases = torch.randn(2, 3, 11, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (inputs, residual, gains, biases, gate)]
    norms = LayerNorms(gains, biases, EPSILON, gate)
    ours = norms(2, norms(1, norms(0, inputs, residual), residual)[:, :2])
    hidden = by_formula(inputs + residual, gains[0], biases[0], gate)
    hidden = by_formula(hidden + residual, gains[1], biases[1], gate)
    theirs = by_formula(hidden[:, :2], gains[2], biases[2], gate)
    direction = torch.randn_like(ours)
    for got, expected in zip(
        torch.autograd.grad(ours, leaves, direction), torch.autograd.grad(theirs, leaves, direction), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
