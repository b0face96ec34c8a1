"""The gate's arithmetic, 7-bit weights, the rounds of the table, batches of text."""

import itertools
import math

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pipeline.deploy import gate, int8, latency
from pipeline.deploy.quality import MaskedTokens, TaskScores
from pipeline.deploy.text import Text
from tests.support.windows import VOCABULARY

VNNI, AVX2 = "flags : fpu avx2 avx512f avx512_vnni\n", "flags : fpu avx2 avx512f\n"


@pytest.mark.parametrize(
    "processor,flags,reduced",
    [("x86_64", VNNI, False), ("x86_64", AVX2, True), ("AMD64", "avx_vnni", False), ("aarch64", AVX2, False)],
)
def test_the_range_is_reduced_where_products_overflow(tmp_path, monkeypatch, processor, flags, reduced):
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(int8, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(int8.platform, "machine", lambda: processor)
    assert int8.needs_reduced_range() is reduced


def one_product(path):
    """Words looked up in a table (700, 32), times a weight (32, 8)."""
    draw = np.random.default_rng(0)
    table = draw.normal(size=(700, 32)).astype(np.float32) * np.exp(draw.normal(size=(700, 1))).astype(np.float32)
    weight = draw.normal(size=(32, 8)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("MatMul", ["rows", "w"], ["y"])]
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])
    constants = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "w")]
    proto = helper.make_graph(nodes, "g", [ids], [y], constants)
    onnx.save_model(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return table, weight


@pytest.mark.parametrize("reduced,largest", [(False, 127), (True, 64)])
def test_weights_have_a_scale_by_channel_and_tables_one_by_row(tmp_path, reduced, largest):
    table, weight = one_product(tmp_path / "m.onnx")
    assert int8.quantise(tmp_path / "m.onnx", tmp_path / "q.onnx", reduced) == 1
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert (
        np.abs(found["w_quantized"]).max(axis=0).min() >= largest - 1 and np.abs(found["w_quantized"]).max() <= largest
    )
    assert np.allclose(found["w_quantized"] * found["w_scale"], weight, atol=np.abs(weight).max() / (2 * largest) * 1.1)
    rows = found["table_quantized"] * found["table_rows_scale"]
    assert (np.abs(rows - table) <= np.abs(table).max(axis=1, keepdims=True) / 250).all()


def test_a_product_that_is_no_integer_one_is_a_defect(tmp_path, monkeypatch):
    one_product(tmp_path / "m.onnx")
    monkeypatch.setattr(int8, "quantize_dynamic", lambda proto, path, **_: onnx.save_model(proto, path))
    with pytest.raises(RuntimeError, match="left matrix products in fp32"):
        int8.quantise(tmp_path / "m.onnx", tmp_path / "q.onnx", False)


def test_logits_must_agree_on_every_batch():
    inputs = [{"input_ids": np.zeros((1, length), np.int64)} for length in (8, 32)]

    def predict(change):
        return lambda batch: np.full((1, batch["input_ids"].shape[1], 2), 50.0) + (change if batch is inputs[1] else 0)

    assert gate.compare(predict(0), predict(4.9e-3), inputs).passes
    failed = gate.compare(predict(0), predict(5.1e-3), inputs)
    assert not failed.passes and failed.limit == pytest.approx(5e-3)
    assert [shape["length"] for shape in failed.shapes] == [8, 32]
    assert not gate.compare(predict(0), predict(math.nan), inputs).passes
    assert not gate.compare(predict(math.nan), predict(0), inputs).passes


def test_shapes_go_as_far_as_the_model(monkeypatch):
    assert {length for _, length in gate.shapes(512)} == {8, 32, 128, 512}
    assert {length for _, length in gate.shapes(24)} == {8, 24}
    assert {rows for rows, _ in gate.shapes(24)} > {1, 2}
    monkeypatch.setattr(latency, "LENGTHS", (32, 128, 512))
    assert latency.lengths(512) == (32, 128, 512) and latency.lengths(200) == (32, 128) and latency.lengths(24) == (24,)


def test_an_int8_model_may_fall_by_its_margin():
    tokens = MaskedTokens(None, None, 512)
    assert gate.judge(tokens, {"loss": 2.0}, {"loss": 2.049}, None).passes
    verdict = gate.judge(tokens, {"loss": 2.0}, {"loss": 2.051}, None)
    assert not verdict.passes and "it is 0.051 nat worse" in verdict.sentence()
    assert gate.judge(tokens, {"loss": 2.0}, {"loss": 2.051}, 0.1).record()["default_margin"] == 0.05
    assert not gate.judge(tokens, {"loss": 2.0}, {"loss": math.nan}, None).passes
    assert "no numbers" in gate.judge(tokens, {"loss": 2.0}, {"loss": math.nan}, None).sentence()
    task = TaskScores.__new__(TaskScores)
    task.title = "task mrpc"
    before = {"mrpc accuracy": 0.80, "mrpc f1": 0.85}
    assert gate.judge(task, before, {"mrpc accuracy": 0.83, "mrpc f1": 0.8401}, None).passes
    verdict = gate.judge(task, before, {"mrpc accuracy": 0.83, "mrpc f1": 0.8399}, None)
    assert not verdict.passes and "it is 1.010 points worse in task mrpc, where 1 points" in verdict.sentence()
    assert not gate.judge(task, before, {"mrpc accuracy": math.nan, "mrpc f1": math.nan}, None).passes


def test_batches_are_text_with_padding():
    text = Text(np.arange(10, 500), pad_id=0)
    batch = text.batch(3, 16, VOCABULARY, padded=True)
    assert batch["attention_mask"].sum(axis=1).tolist() == [16, 14, 12]
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        end = int(mask.sum())
        assert ids[0] == VOCABULARY.cls_id and ids[end - 1] == VOCABULARY.sep_id
        assert (ids[1 : end - 1] >= 10).all() and (ids[end:] == 0).all() and not mask[end:].any()
    whole = text.batch(3, 16, VOCABULARY, padded=False)
    assert whole["attention_mask"].all() and whole["input_ids"].dtype == np.int64
    assert whole["input_ids"][:, 1:-1].flatten().tolist() == list(range(10, 10 + 3 * 14))


def test_a_window_of_text_predicts_the_same_tokens_every_time():
    text = Text(np.arange(10, 10 + 126 * 9), pad_id=0)
    first, second = (list(text.windows(VOCABULARY, 512)) for _ in range(2))
    assert [len(batch.input_ids) for batch in first] == [8, 1]
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.input_ids, other.input_ids)
        assert one.input_ids.shape[1] == 128 and one.positions.shape[1] == 19


def test_variants_take_turns(monkeypatch):
    """What slows the machine down for a while meets all variants alike."""
    clock, order = itertools.count(), []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock) / 16)
    monkeypatch.setattr(latency, "SECONDS", 1.0)
    variants = {name: (lambda inputs, name=name: order.append(name)) for name in "ab"}
    times = latency._side_by_side(variants, {})
    turns = [name for name, _ in itertools.groupby(order)]
    assert turns == ["a", "b"] * (1 + latency.ROUNDS)
    assert len(times["a"]) == len(times["b"]) == 10 and len(order) == 2 * (1 + latency.ROUNDS * 3)
    for seconds, longest, counted, passes in ((0.01, 1.0, latency.ROUNDS, 1 + latency.ROUNDS), (1.0, 0.01, 1, 1)):
        monkeypatch.setattr(latency, "SECONDS", seconds)
        monkeypatch.setattr(latency, "LONGEST", longest)
        order.clear()
        found = latency._side_by_side(variants, {})
        assert [len(taken) for taken in found.values()] == [counted, counted] and order == ["a", "b"] * passes
