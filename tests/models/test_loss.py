"""The loss of the decoder against the plain one, which has all logits before it."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.models import loss
from pipeline.models.loss import accuracy_of, decoder_loss, masked_lm_loss


def inputs(batch=3, predicted=7, hidden=12, vocab=61, dtype=torch.float64, seed=0):
    """Hidden states, weight, bias and labels; logits that differ by several units."""
    torch.manual_seed(seed)
    tensors = torch.randn(batch, predicted, hidden), torch.randn(vocab, hidden), torch.randn(vocab)
    labels = torch.randint(vocab, (batch, predicted))
    return *(tensor.to(dtype).requires_grad_() for tensor in tensors), labels


def gradients(of_loss, tensors, scale=1.0):
    return torch.autograd.grad(of_loss, tensors, torch.full_like(of_loss, scale))


@pytest.mark.parametrize("rows", [1, 2, 5, 21, 100])
@pytest.mark.parametrize("shape", [(3, 7, 12, 61), (1, 1, 5, 2), (2, 9, 3, 200)])
def test_loss_accuracy_and_gradients_are_the_plain_ones(rows, shape, monkeypatch):
    *tensors, labels = inputs(*shape, seed=rows)
    labels[0, 0] = F.linear(*tensors)[0, 0].argmax()  # not every prediction is wrong
    monkeypatch.setattr(loss, "_rows_at_once", lambda *_: rows)
    expected, accuracy = masked_lm_loss(F.linear(*tensors), labels)
    found, right = decoder_loss(*tensors, labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    known = float((F.linear(*tensors).argmax(-1) == labels).double().mean())
    assert float(right) == pytest.approx(float(accuracy)) == pytest.approx(known)
    assert known > 0 and not right.requires_grad
    wanted, got = gradients(expected, tensors, 3.5), gradients(found, tensors, 3.5)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert [float(value) for value in decoder_loss(*tensors, labels)] == [float(found), float(right)]


HALF = [(torch.bfloat16, 1.0), (torch.bfloat16, 1 / 3), *((torch.float16, 2.0**power) for power in (4, 8, 16))]


@pytest.mark.parametrize("rows", [10, 152])
@pytest.mark.parametrize("dtype,scale", HALF)
def test_half_precision_is_as_close_to_the_truth_as_the_plain_loss(dtype, scale, rows, monkeypatch):
    monkeypatch.setattr(loss, "_rows_at_once", lambda *_: rows)  # in pieces, as CPUs do, and all at once, as GPUs do
    *tensors, labels = inputs(8, 19, 32, 3000, dtype, seed=1)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    truth = gradients(masked_lm_loss(F.linear(*exact), labels)[0], exact)
    plain = gradients(masked_lm_loss(F.linear(*tensors), labels)[0], tensors, scale)
    found = gradients(decoder_loss(*tensors, labels)[0], tensors, scale)
    for name, one, other, true in zip(("hidden", "weight", "bias"), found, plain, truth, strict=True):
        ours, theirs = ((gradient.double() / scale - true).norm() for gradient in (one, other))
        assert one.dtype == dtype and ours <= 1.2 * theirs and ours <= 0.01 * true.norm(), name


@pytest.mark.parametrize("rows", [1, 4])
def test_predictions_may_be_as_sure_as_can_be(rows, monkeypatch):
    """Right or wrong by up to a thousand units, the loss is exact and no gradient is lost."""
    monkeypatch.setattr(loss, "_rows_at_once", lambda *_: rows)
    leads = torch.tensor([1000.0, -1000.0, 20.0, 41.0])
    hidden, labels = torch.stack([leads, torch.ones(4)], -1)[None].requires_grad_(), torch.zeros(1, 4, dtype=torch.long)
    weight, bias = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, -50.0]]), torch.zeros(3)
    weight.requires_grad_()
    found = decoder_loss(hidden, weight, bias, labels)[0]
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = masked_lm_loss(F.linear(*exact), labels)[0]
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for one, other in zip(
        torch.autograd.grad(found, (hidden, weight)), torch.autograd.grad(expected, exact), strict=True
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_makes_the_loss_none(rows, dtype, wrong, monkeypatch):
    monkeypatch.setattr(loss, "_rows_at_once", lambda *_: rows)
    for position in (0, 1):
        hidden, weight, bias = torch.ones(1, 2, 3), torch.ones(5, 3), torch.zeros(5)
        hidden[0, position, 1] = wrong
        labels = torch.tensor([[0, 1]])
        assert not torch.isfinite(decoder_loss(hidden.to(dtype), weight.to(dtype), bias.to(dtype), labels)[0])


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("overflows", [torch.inf, 200.0])
def test_a_labels_logit_must_be_a_number_too(rows, dtype, overflows, monkeypatch):
    """Infinite alone, or by a product too large for fp16, it makes no perfect prediction."""
    monkeypatch.setattr(loss, "_rows_at_once", lambda *_: rows)
    hidden, weight, labels = torch.full((1, 2, 4), 200.0), torch.zeros(5, 4), torch.tensor([[3, 1]])
    weight[3] = overflows
    found = decoder_loss(hidden.to(dtype), weight.to(dtype), torch.zeros(5).to(dtype), labels[:, :1].expand(-1, 2))[0]
    assert torch.isfinite(found) == (dtype != torch.float16 and overflows == 200.0)


@pytest.mark.parametrize("rows", [32, 1216])
def test_fp32_is_as_good_as_its_sums(rows, monkeypatch):
    monkeypatch.setattr(loss, "_rows_at_once", lambda *_: rows)
    *tensors, labels = inputs(1, 1216, 16, 3000, torch.float32, seed=2)
    labels[0, ::3] = 7  # a word whose gradients are a long sum
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    truth = gradients(masked_lm_loss(F.linear(*exact), labels)[0], exact)
    for name, one, true in zip(
        ("hidden", "weight", "bias"), gradients(decoder_loss(*tensors, labels)[0], tensors), truth, strict=True
    ):
        assert (one.double() - true).norm() <= 1e-5 * true.norm(), name


def test_a_tie_counts_half():
    hidden, labels = torch.ones(1, 4, 1), torch.tensor([[0, 1, 2, 0]])
    weight, bias = torch.zeros(3, 1), torch.tensor([2.0, 2.0, 1.0])
    for accuracy in (
        decoder_loss(hidden, weight, bias, labels)[1],
        accuracy_of(F.linear(hidden, weight, bias), labels),
    ):
        assert float(accuracy) == pytest.approx((0.5 + 0.5 + 0 + 0.5) / 4)


def test_fp16_loses_neither_small_probabilities_nor_large_weights():
    hidden, bias, labels = torch.ones(1, 2, 4).half(), torch.zeros(5).half(), torch.tensor([[1, 2]])
    weight = torch.zeros(5, 4).half()
    weight[0, 0], weight[1, 0] = 16, -16
    hidden.requires_grad_()
    found = torch.autograd.grad(decoder_loss(hidden, weight, bias, labels)[0], hidden, torch.tensor(256.0))[0]
    assert float(found[0, 0, 0]) == pytest.approx(256 * 16, rel=1e-3)
