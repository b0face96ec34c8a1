"""Composition against plain products, gates on both sides, the paper's reset."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.compaction import compose as compose_module
from pipeline.compaction.compose import compose, compose_bias, compose_tables
from pipeline.compaction.model import CompactedBert
from pipeline.cost import composes_rows_first
from tests.support.models import (
    close_random_gates,
    compacted,
    logits,
    random_teacher,
    randomise_compactors,
    set_gate,
    token_batch,
)

SIZES = [(3, 7, 5, 7, 5), (2, 6, 11, 3, 4), (4, 12, 3, 2, 3), (1, 5, 9, 5, 2), (2, 13, 13, 1, 12)]
"""Matrices, out, in, kept out, kept in."""


def kept_of(count: int, size: int, kept: int, seed: int) -> torch.Tensor | None:
    if kept == size:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(size, generator=generator)[:kept].sort().values for _ in range(count)])


@pytest.fixture(params=["as half precision does", "as fp32 does"])
def each_way(request, monkeypatch):
    """Both ways to compose, whatever the type: equality is shown in float64."""
    monkeypatch.setattr(compose_module, "_adds_identity", lambda dtype: request.param == "as fp32 does")


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("sizes", SIZES)
def test_composed_is_the_product_and_so_are_its_gradients(sizes):
    count, out, into, kept_out, kept_in = sizes
    torch.manual_seed(sum(sizes))
    shapes = ((count, out, into), (count, into, kept_in), (count, kept_out, out), (count, out))
    weight, row, column, bias = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    rows, columns = kept_of(count, out, kept_out, 1), kept_of(count, into, kept_in, 2)
    expected, expected_bias = [], []
    for n in range(count):
        left = torch.eye(out, dtype=torch.float64)[slice(None) if rows is None else rows[n]] + column[n]
        right = torch.eye(into, dtype=torch.float64)[:, slice(None) if columns is None else columns[n]] + row[n]
        expected.append(left @ weight[n] @ right)
        expected_bias.append(left @ bias[n])
    got = compose(weight, row, column, columns, rows), compose_bias(bias, column, rows)
    wanted = torch.stack(expected), torch.stack(expected_bias)
    direction = torch.randn_like(wanted[0]), torch.randn_like(wanted[1])
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    factors = (weight, row, column, bias)
    ours, theirs = (torch.autograd.grad(pair, factors, direction) for pair in (got, wanted))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_fp32_alone_adds_the_identity():
    types = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    assert [compose_module._adds_identity(dtype) for dtype in types] == [False, True, False, False]


@pytest.mark.parametrize("narrowed", [False, True])
def test_compactors_that_are_nothing_leave_fp32_as_it_is(narrowed):
    torch.manual_seed(0)
    weight, tables = torch.randn(3, 7, 5), torch.randn(11, 7)
    rows, columns = (kept_of(3, size, size - 2, size) if narrowed else None for size in (7, 5))
    expected = weight if rows is None else compose_module.select(compose_module.select(weight, rows, 1), columns, 2)
    count_out, count_in = expected.shape[1:]
    assert torch.equal(
        compose(weight, torch.zeros(3, 5, count_in), torch.zeros(3, count_out, 7), columns, rows), expected
    )
    kept = None if rows is None else rows[0]
    assert torch.equal(
        compose_tables(tables, torch.zeros(count_out, 7), kept), tables if kept is None else tables[:, kept]
    )


def test_both_orders_are_tried():
    assert {composes_rows_first(size[1:3], size[3:]) for size in SIZES} == {True, False}


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("kept", [None, torch.tensor([0, 2, 3])])
def test_tables_meet_one_compactor(kept, dtype, tolerance):
    torch.manual_seed(0)
    size = 5 if kept is None else 3
    factors = [torch.randn(*shape).to(dtype).requires_grad_() for shape in ((9, 5), (size, 5))]
    exact = [factor.detach().double().requires_grad_() for factor in factors]
    direction = torch.randn(9, size).to(dtype)
    whole = torch.eye(5, dtype=torch.float64)[slice(None) if kept is None else kept] + exact[1]
    found, expected = compose_tables(*factors, kept), exact[0] @ whole.T
    pairs = [(found, expected)]
    pairs += zip(
        torch.autograd.grad(found, factors, direction),
        torch.autograd.grad(expected, exact, direction.double()),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


def test_bf16_composition_rounds_once():
    """The bf16 composition is off from the exact product by hardly more than the rounding of the result."""
    torch.manual_seed(0)
    weight = torch.randn(2, 64, 48).bfloat16()
    row, column = (torch.randn(2, 48, 48) * 1e-3).bfloat16(), (torch.randn(2, 64, 64) * 1e-3).bfloat16()
    got = compose(weight, row, column)
    assert got.dtype == torch.bfloat16
    exact = (torch.eye(64) + column.float()).double() @ weight.double() @ (torch.eye(48) + row.float()).double()
    change = exact - weight.double()
    rounding = exact.abs() * 2.0**-8  # of bf16, relative
    assert float(((got.double() - exact).abs() - rounding).max()) < 0.02 * float(change.abs().max())
    # The naive way, identity + delta rounded to bf16, loses most of the change.
    naive = (torch.eye(64).bfloat16() + column) @ weight @ (torch.eye(48).bfloat16() + row)
    errors = [float((way.double() - exact).norm()) for way in (got, naive)]
    assert errors[1] > 1.5 * errors[0]


def test_half_open_attention_and_ffn_gates_scale_what_the_design_says():
    model = compacted(random_teacher(2), 15, 5, "dim").double()
    randomise_compactors(model)
    plain = model()
    values = {name: torch.linspace(0, 1, size) for name, size in (("attention.1", 24), ("ffn.1", 96))}
    for name, value in values.items():
        set_gate(model, name, value)
    gated = model()
    attention, ffn = (value.double() for value in values.values())
    rows = attention.repeat(3)  # Q, K and V, one below the other
    torch.testing.assert_close(gated["qkv"][1], plain["qkv"][1] * rows[:, None])
    torch.testing.assert_close(gated["qkv_bias"][1], plain["qkv_bias"][1] * rows)
    torch.testing.assert_close(gated["ffn_out"][1], plain["ffn_out"][1] * ffn)
    untouched = {name: value for name, value in plain.items() if name not in ("qkv", "qkv_bias", "ffn_out")}
    assert all(torch.equal(gated[name], value) for name, value in untouched.items())
    assert all(torch.equal(gated[name][0], plain[name][0]) for name in ("qkv", "qkv_bias", "ffn_out"))


def test_half_precision_meets_the_gates_in_fp32():
    model = compacted(random_teacher(2), 15, 5, "dim").bfloat16()
    plain = model()
    value = torch.full((24,), 0.3)  # no number of bf16
    set_gate(model, "attention.1", value)
    gated = model()["qkv"][1]
    assert torch.equal(gated, (plain["qkv"][1].float() * 0.3).bfloat16())
    assert not torch.equal(gated, plain["qkv"][1] * value.bfloat16()[0])


def test_penalty_stops_the_task_gradient_of_retired_rows_and_columns():
    template = compacted(random_teacher(2), 15, 5, "dim")
    model = CompactedBert(random_teacher(2), template.target, "dim", stops_gradient=True).double()
    randomise_compactors(model)
    close_random_gates(model)
    # Selected, and still wide open: the reset must act all the same.
    model.gates.set(torch.ones_like(model.gates.value), model.gates.retired.clone())
    F.cross_entropy(logits(model, token_batch()).flatten(0, 1), token_batch(seed=9).flatten()).backward()
    sides = [side for side in model.sides() if side.name.endswith("_delta")]
    assert len(sides) == 2 * 5 + 1
    for side in sides:
        gradient = model.get_parameter(side.name).grad
        gradient = gradient[None] if side.dim == 0 else gradient
        retired = model.gates.retired_of(side.kind)
        for number, one in enumerate(gradient):
            gone = retired[number * len(retired) // len(gradient)]
            if side.is_row:
                one = one.T
            assert float(one[gone].abs().max()) == 0.0 and float(one[~gone].abs().max()) > 0, side.name


def test_accumulation_gives_the_gradients_of_the_whole_batch():
    model = compacted(random_teacher(2), 15, 5, "dim")
    randomise_compactors(model)
    ids, labels = token_batch(batch=8), token_batch(batch=8, seed=9)

    def gradients(parts):
        model.zero_grad()
        for part_ids, part_labels in zip(ids.chunk(parts), labels.chunk(parts), strict=True):
            (F.cross_entropy(logits(model, part_ids).flatten(0, 1), part_labels.flatten()) / parts).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, parts = gradients(1), gradients(4)
    assert float((whole - parts).norm() / whole.norm()) <= 1e-5
