"""Composition against the chained oracle, the gated LayerNorm against a sliced one, gates on both sides."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.compaction.groups import Gate, Group
from pipeline.compaction.layers import CompactedEmbeddings, CompactedLinear, GatedLayerNorm, compose
from tests.support.models import close_random_gates, compacted, random_teacher, randomise_compactors, token_batch


def chained_linear(self, inputs):
    """The published form: activations through three matrices."""
    eye_in = torch.eye(len(self.row_delta), dtype=inputs.dtype)
    eye_out = torch.eye(len(self.column_delta), dtype=inputs.dtype)
    hidden = F.linear(inputs, eye_in + self.row_delta)
    hidden = F.linear(hidden, self.weight, self.bias)
    out = F.linear(hidden, eye_out + self.column_delta)
    if self.gated == "rows":
        return out * self.out_gate.value
    return out


def chained_embeddings(self, input_ids, segment_ids=None):
    compactor = torch.eye(len(self.column_delta), dtype=self.word.dtype) + self.column_delta
    summed = self.word[input_ids] + self.position[: input_ids.shape[1]] + self.segment[0]
    return self.norm(F.linear(summed, compactor)), F.linear(self.word, compactor)


@pytest.mark.parametrize("seed", range(3))
def test_composed_and_chained_agree_in_loss_and_gradients(monkeypatch, seed):
    model = compacted(random_teacher(3, seed=seed), 15, 5, "dim").double()
    randomise_compactors(model, seed=seed)
    ids, labels = token_batch(seed=seed), token_batch(seed=seed + 100)

    def loss_and_gradients():
        model.zero_grad()
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    composed_loss, composed = loss_and_gradients()
    monkeypatch.setattr(CompactedLinear, "forward", chained_linear)
    monkeypatch.setattr(CompactedEmbeddings, "forward", chained_embeddings)
    chained_loss, chained = loss_and_gradients()
    assert abs(float(composed_loss - chained_loss)) <= 1e-10
    assert composed.keys() == chained.keys()
    for name in composed:
        assert float((composed[name] - chained[name]).abs().max()) <= 1e-10, name
    assert all(float(g.abs().max()) > 0 for name, g in composed.items() if name.endswith("_delta"))


@pytest.mark.parametrize("seed", range(5))
def test_gated_norm_equals_the_norm_of_the_slice(seed):
    torch.manual_seed(seed)
    norm = nn.LayerNorm(19).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    gate = Gate(Group("residual", 19, 7))
    kept = torch.randperm(19)[:7]
    value = torch.zeros(19)
    value[kept] = 1
    gate.set(value, value == 0)
    inputs = torch.randn(4, 5, 19, dtype=torch.float64) * 3 + 1
    got = GatedLayerNorm(norm, gate)(inputs)
    expected = F.layer_norm(inputs[..., kept], (7,), norm.weight[kept], norm.bias[kept], norm.eps)
    torch.testing.assert_close(got[..., kept], expected, rtol=0, atol=1e-12)
    assert float(got[..., gate.retired].abs().max()) == 0.0


def test_gated_norm_between_zero_and_one_follows_its_formula():
    torch.manual_seed(0)
    norm, gate = nn.LayerNorm(6).double(), Gate(Group("residual", 6, 3))
    value = torch.tensor([1.0, 0.25, 0.0, 0.75, 1.0, 0.5])
    gate.set(value, value < 1)
    inputs = torch.randn(6, dtype=torch.float64)
    mean = sum(float(g) * float(x) for g, x in zip(value, inputs, strict=True)) / 3.5
    var = sum(float(g) * (float(x) - mean) ** 2 for g, x in zip(value, inputs, strict=True)) / 3.5
    expected = (inputs - mean) / (var + norm.eps) ** 0.5 * value
    torch.testing.assert_close(GatedLayerNorm(norm, gate)(inputs[None])[0], expected, rtol=0, atol=1e-12)


def test_open_gates_use_the_fused_norm_and_asking_for_scores_changes_nothing():
    norm, gate = nn.LayerNorm(8).double(), Gate(Group("residual", 8, 4))
    layer, inputs = GatedLayerNorm(norm, gate), torch.randn(3, 8, dtype=torch.float64)
    fused = layer(inputs)
    assert torch.equal(fused, F.layer_norm(inputs, (8,), norm.weight, norm.bias, norm.eps))
    gate.record_gradient(True)
    torch.testing.assert_close(layer(inputs), fused, rtol=0, atol=1e-12)


def test_bf16_composition_rounds_once():
    """Against the exact product, the bf16 composition is off by hardly more than the one rounding of the result."""
    torch.manual_seed(0)
    weight = torch.randn(64, 48).bfloat16()
    row, column = (torch.randn(48, 48) * 1e-3).bfloat16(), (torch.randn(64, 64) * 1e-3).bfloat16()
    got = compose(weight, row, column)
    assert got.dtype == torch.float32
    exact = (torch.eye(64) + column.float()).double() @ weight.double() @ (torch.eye(48) + row.float()).double()
    change = exact - weight.double()
    assert float((got - exact).abs().max()) < 0.02 * float(change.abs().max())
    # The naive way, identity + delta rounded to bf16, loses most of the change.
    naive = (torch.eye(64).bfloat16() + column) @ weight @ (torch.eye(48).bfloat16() + row)
    assert float((naive.double() - exact).abs().max()) > 10 * float((got - exact).abs().max())


def test_half_open_attention_and_ffn_gates_scale_what_the_design_says():
    model = compacted(random_teacher(1), 15, 5, "dim").double()
    randomise_compactors(model)
    layer = model.layers[0]
    query, ffn_in, ffn_out = layer.attention.self.query, layer.intermediate.dense, layer.output.dense
    plain = [linear.composed() for linear in (query, ffn_in, ffn_out)]
    for name in ("attention.0", "ffn.0"):
        gate = model.gates[name]
        value = torch.linspace(0, 1, gate.group.size)
        gate.set(value, value < 1)
    attention, ffn = (model.gates[name].value.double() for name in ("attention.0", "ffn.0"))
    torch.testing.assert_close(query.composed()[0], plain[0][0] * attention[:, None])
    torch.testing.assert_close(query.composed()[1], plain[0][1] * attention)
    torch.testing.assert_close(ffn_in.composed()[0], plain[1][0])
    torch.testing.assert_close(ffn_out.composed()[0], plain[2][0] * ffn)
    torch.testing.assert_close(ffn_out.composed()[1], plain[2][1])


def test_penalty_stops_the_task_gradient_of_retired_rows_and_columns():
    from pipeline.compaction.model import CompactedBert

    teacher = random_teacher(2)
    template = compacted(teacher, 15, 5, "dim")
    model = CompactedBert(random_teacher(2), template.target, "dim", stops_gradient=True).double()
    randomise_compactors(model)
    close_random_gates(model)
    for gate in model.gates.values():  # selected, and still wide open: the reset must act all the same
        gate.set(torch.ones(gate.group.size), gate.retired.clone())
    F.cross_entropy(model(token_batch()).flatten(0, 1), token_batch(seed=9).flatten()).backward()
    checked = 0
    for module in model.modules():
        if isinstance(module, CompactedLinear):
            assert float(module.row_delta.grad[:, module.in_gate.retired].abs().max()) == 0.0
            assert float(module.column_delta.grad[module.out_gate.retired].abs().max()) == 0.0
            assert float(module.row_delta.grad[:, ~module.in_gate.retired].abs().max()) > 0
            assert float(module.column_delta.grad[~module.out_gate.retired].abs().max()) > 0
            checked += 1
    residual = model.gates["residual"]
    assert float(model.embeddings.column_delta.grad[residual.retired].abs().max()) == 0.0
    assert checked == 2 * 6 + 1


def test_accumulation_gives_the_gradients_of_the_whole_batch():
    model = compacted(random_teacher(2), 15, 5, "dim")
    randomise_compactors(model)
    ids, labels = token_batch(batch=8), token_batch(batch=8, seed=9)

    def gradients(parts):
        model.zero_grad()
        for part_ids, part_labels in zip(ids.chunk(parts), labels.chunk(parts), strict=True):
            (F.cross_entropy(model(part_ids).flatten(0, 1), part_labels.flatten()) / parts).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, parts = gradients(1), gradients(4)
    assert float((whole - parts).norm() / whole.norm()) <= 1e-5
