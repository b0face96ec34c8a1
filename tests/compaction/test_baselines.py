"""The baselines against plain references written down on their own, in float64."""

import copy
import math

import pytest
import torch

from pipeline.baselines.chained import ChainedBert, chained_name
from pipeline.baselines.distillation import distillation_of, soft_target_loss
from pipeline.baselines.minilm import log_relation, minilm_loss, projections_of, relation_loss
from pipeline.compaction.fold import open_indices
from pipeline.compaction.model import is_compactor
from pipeline.models.encoder import Bert, encode
from pipeline.models.loss import masked_lm_loss
from pipeline.models.plain import PlainBert
from tests.support.models import (
    close_random_gates,
    compacted,
    random_teacher,
    randomise_compactors,
    token_batch,
    use_attention,
)


def batch(seed):
    return (
        token_batch(seed=seed),
        token_batch(vocab=16, tokens=5, seed=seed + 1),
        token_batch(tokens=5, seed=seed + 2),
    )


def composed_loss(model, seed):
    ids, positions, labels = batch(seed)
    return masked_lm_loss(encode(model(), model.form, ids, positions), labels)[0]


@pytest.mark.parametrize("layers,hidden,heads,seed", [(1, 12, 2, 0), (2, 24, 3, 1), (3, 20, 5, 2)])
@pytest.mark.parametrize("fused", [True, False])
def test_chained_has_the_loss_and_gradients_of_composed(layers, hidden, heads, seed, fused, monkeypatch):
    teacher = random_teacher(layers, hidden, heads, seed=seed)
    use_attention(monkeypatch, fused)
    composed = compacted(teacher, heads * 2, 2, "dim").double()
    randomise_compactors(composed, seed=seed)
    chained = ChainedBert(composed)
    ids, positions, labels = batch(seed)
    losses = [composed_loss(composed, seed), masked_lm_loss(chained(ids, positions), labels)[0]]
    for loss in losses:
        loss.backward()
    assert abs(losses[0].item() - losses[1].item()) <= 1e-11
    theirs = dict(chained.named_parameters())
    assert len(theirs) == len(list(composed.parameters()))
    for name, parameter in composed.named_parameters():
        got = theirs[chained_name(name)].grad
        assert float((got - parameter.grad).abs().max()) <= 1e-11, name
        assert float(got.abs().max()) > 0, name


@pytest.mark.parametrize("layers,hidden,heads,seed", [(1, 12, 2, 0), (2, 24, 3, 1), (3, 20, 5, 2)])
def test_narrowed_has_the_loss_and_gradients_of_closed(layers, hidden, heads, seed):
    closed = compacted(random_teacher(layers, hidden, heads, seed=seed), heads * 2, 2, "dim").double()
    randomise_compactors(closed, seed=seed)
    narrowed = copy.deepcopy(closed)
    for model in (closed, narrowed):
        close_random_gates(model, seed=seed)
    kept = open_indices(narrowed.gates)
    narrowed.narrow(kept)
    losses = [composed_loss(model, seed) for model in (closed, narrowed)]
    for loss in losses:
        loss.backward()
    assert abs(losses[0].item() - losses[1].item()) <= 1e-10
    sides = {side.name: side for side in closed.sides()}
    for name, parameter in narrowed.named_parameters():
        whole = closed.get_parameter(name).grad
        expected = closed.cut(sides[name], whole, kept) if name in sides else whole
        assert float((parameter.grad - expected).abs().max()) <= 1e-10, name
        assert float(expected.abs().max()) > 0, name


def test_chained_is_a_copy_with_whole_compactors():
    composed = compacted(random_teacher(1), 15, 5, "dim").double()
    randomise_compactors(composed)
    chained = ChainedBert(composed)
    assert torch.equal(chained.qkv_row_compactor[1], composed.qkv_row_delta[1] + torch.eye(24))
    assert sum(map(is_compactor, dict(composed.named_parameters()))) == 11
    with torch.no_grad():
        chained.tables.zero_()
    assert composed.tables.count_nonzero() > 0


def kl(p, q):
    """Sum of p log(p / q) of two lists of probabilities."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(values):
    exponentials = [math.exp(v) for v in values]
    return [e / sum(exponentials) for e in exponentials]


@pytest.mark.parametrize("shape,temperature", [((2, 3, 7), 1.0), ((1, 4, 5), 2.0), ((3, 1, 11), 0.7)])
def test_soft_target_loss_is_the_sum_it_says(shape, temperature):
    generator = torch.Generator().manual_seed(shape[2])
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    rows = zip(teacher.flatten(0, 1).tolist(), student.flatten(0, 1).tolist(), strict=True)
    values = [
        kl(softmax([t / temperature for t in theirs]), softmax([s / temperature for s in ours]))
        for theirs, ours in rows
    ]
    expected = temperature**2 * sum(values) / len(values)
    assert float(soft_target_loss(student, teacher, temperature)) == pytest.approx(expected, abs=1e-12)


def test_soft_targets_in_bf16_are_compared_in_fp32():
    torch.manual_seed(0)
    student, teacher = (torch.randn(2, 3, 50).bfloat16() for _ in range(2))
    loss = soft_target_loss(student, teacher, 2.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, soft_target_loss(student.float(), teacher.float(), 2.0))


def pair(layers=2, seed=0):
    """A teacher and a narrower student, in float64."""
    teacher, student = (PlainBert(random_teacher(layers, *sizes, seed=seed)) for sizes in ((24, 3), (12, 2)))
    return student.double(), teacher.double()


def running(model):
    return Bert(model(), model.form)


def test_distillation_trains_the_student_alone_on_the_predicted_positions():
    student, teacher = pair()
    ids, positions = token_batch(), token_batch(vocab=16, tokens=3, seed=8)
    batch = {"input_ids": ids, "positions": positions, "labels": positions}
    loss_of = distillation_of(student.form, teacher(), teacher.form, temperature=1.5)
    loss_of(student(), batch)[0].backward()
    got = {name: p.grad.clone() for name, p in student.named_parameters()}
    assert all(p.grad is None for p in teacher.parameters())

    student.zero_grad()
    rows = torch.arange(len(ids))[:, None]
    ours, theirs = (encode(model(), model.form, ids)[rows, positions] for model in (student, teacher))
    target, log_student = (theirs.detach() / 1.5).softmax(-1), (ours / 1.5).log_softmax(-1)
    cross_entropy = -(target * log_student).sum(-1).mean() * 1.5**2  # KL but for a constant
    cross_entropy.backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=0, atol=1e-11)
    assert any(float(g.abs().max()) > 1e-3 for g in got.values())


@pytest.mark.parametrize("batch,tokens,hidden,heads", [(1, 3, 4, 2), (2, 5, 12, 3), (3, 4, 6, 1)])
def test_a_relation_is_the_softmax_of_scaled_products(batch, tokens, hidden, heads):
    vectors = torch.randn(batch, tokens, hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(hidden))
    got = log_relation(vectors, heads).exp()
    assert got.shape == (batch, heads, tokens, tokens)
    size = hidden // heads
    for b in range(batch):
        for head in range(heads):
            rows = vectors[b, :, head * size : (head + 1) * size].tolist()
            for i, left in enumerate(rows):
                scores = [sum(x * y for x, y in zip(left, right, strict=True)) / math.sqrt(size) for right in rows]
                assert got[b, head, i].tolist() == pytest.approx(softmax(scores), abs=1e-13)


@pytest.mark.parametrize("relation_heads", [1, 2, 6])
def test_relation_loss_is_the_sum_it_says_for_unequal_widths(relation_heads):
    generator = torch.Generator().manual_seed(relation_heads)
    draw = [[torch.randn(2, 4, h, dtype=torch.float64, generator=generator) for _ in range(3)] for h in (12, 18)]
    student, teacher = (tuple(tensors) for tensors in draw)
    expected = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        pairs = zip(
            log_relation(theirs, relation_heads).exp().flatten(0, 2).tolist(),
            log_relation(ours, relation_heads).exp().flatten(0, 2).tolist(),
            strict=True,
        )
        values = [kl(p, q) for p, q in pairs]
        expected += sum(values) / len(values)
    assert float(relation_loss(student, teacher, relation_heads)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("layers,number", [(1, 0), (3, 2), (3, 1)])
def test_projections_are_those_inside_the_layer(layers, number):
    student, _ = pair(layers)
    seen, bert = {}, student.bert()
    heads = bert.bert.encoder.layer[number].attention.self
    for name in ("query", "key", "value"):
        getattr(heads, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    bert(input_ids=token_batch())
    projections = projections_of(running(student), number, token_batch())
    for got, name in zip(projections, ("query", "key", "value"), strict=True):
        torch.testing.assert_close(got, seen[name], rtol=0, atol=1e-12)


def test_minilm_is_zero_for_equal_models_and_trains_the_student_below_its_last_projections():
    student, teacher = pair()
    twin = copy.deepcopy(teacher)
    assert minilm_loss(running(twin), running(teacher), token_batch(), 4).item() == pytest.approx(0, abs=1e-14)
    loss = minilm_loss(running(student), running(teacher), token_batch(), 4)
    loss.backward()
    assert loss.item() > 1e-3
    assert all(p.grad is None for p in teacher.parameters())
    trained = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert float(trained["tables"].abs().max()) > 0 and float(trained["qkv"][1].abs().max()) > 0
    for name in ("attention_out", "ffn_in", "ffn_out"):
        assert float(trained[name][0].abs().max()) > 0 and not trained[name][1].any(), name
    assert not any(name.startswith(("transform", "decoder")) and gradient.any() for name, gradient in trained.items())
