"""pipeline/export.py: what it writes is the model, runs without this project, and is refused where it is not."""

import json
import shutil
import stat

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.metrics import accuracy_score
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertModel,
)

from pipeline.deploy import graph
from pipeline.deploy import run as running
from pipeline.errors import EXIT_DATA, EXIT_USAGE
from tests.deploy.conftest import TEACHER, make_classifier, write_sst2, write_words
from tests.support import ROOT
from tests.support.refusals import assert_one_sentence

FILES = ["README.md", "config.json", "export.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"]
TEXTS = ["the king of the city", "a river", "in the year of the great war he was born near the old town and lived"]


@pytest.fixture(scope="module")
def exported(run_export, tmp_path_factory):
    """The shipped teacher with an int8 version at the default margins: directory and what was printed."""
    output = tmp_path_factory.mktemp("exported") / "new" / "teacher"
    code, out, err = run_export(TEACHER, output, "--int8", "--teacher", TEACHER)
    assert (code, err) == (0, ""), err
    return output, out


def read(output):
    return json.loads((output / "export.json").read_text())


def onnx_logits(path, inputs):
    return onnxruntime.InferenceSession(str(path)).run(["logits"], {name: np.asarray(v) for name, v in inputs.items()})[
        0
    ]


def test_the_directory_has_what_a_service_needs(exported):
    output, out = exported
    assert sorted(path.name for path in output.iterdir()) == sorted([*FILES, "model_int8.onnx", "vocab.txt"])
    assert [path.name for path in output.parent.iterdir()] == ["teacher"]
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600 for path in output.iterdir())
    record = read(output)
    sizes = {name: (output / name).stat().st_size for name in ("model.onnx", "model_int8.onnx")}
    weights = (TEACHER / "model.safetensors").stat().st_size
    assert record["bytes"] == {"teacher, PyTorch": weights, "PyTorch": weights, **sizes}
    assert sizes["model_int8.onnx"] < 0.3 * sizes["model.onnx"]
    assert {(cell["batch"], cell["length"]) for cell in record["latency"]} == {
        (batch, length) for batch in (1, 2) for length in (32, 64)
    }
    for cell in record["latency"]:
        assert list(cell["variants"]) == ["teacher, PyTorch", "PyTorch", "ONNX", "int8"]
        assert all(0 < v["median_ms"] <= v["p95_ms"] and v["passes"] >= 1 for v in cell["variants"].values())
    card = (output / "README.md").read_text()
    for variant in ("PyTorch", "ONNX", "int8"):
        assert f"| {variant} | {record['quality'][variant]['loss']:.4f} |" in card
        assert f"{variant}: loss {record['quality'][variant]['loss']:.4f}" in out
    cell = record["latency"][0]["variants"]
    row = " | ".join(f"{value['median_ms']:.2f} ({value['p95_ms']:.2f})" for value in cell.values())
    assert f"| 1 | 32 | 1 | {row} |" in card and f"| 1 | 32 | 1 | {row} |" in out
    assert card.count("\n---\n") == 1 and "## The model that was exported" in card


def test_the_file_takes_any_batch_and_length_and_is_the_model(exported):
    output, _ = exported
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))
    shapes = {found.name: (found.type, found.shape) for found in session.get_inputs()}
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert shapes == {name: ("tensor(int64)", ["batch", "length"]) for name in names}
    tokenizer = AutoTokenizer.from_pretrained(output)
    model = AutoModelForMaskedLM.from_pretrained(TEACHER).eval()
    for texts in (TEXTS, TEXTS[:1], [" ".join(TEXTS * 30)] * 2):
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits.numpy()
        assert np.abs(onnx_logits(output / "model.onnx", inputs) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert inputs["input_ids"].shape == (2, 512)


def test_nothing_of_this_machine_is_in_the_file(exported):
    assert str(ROOT).encode() not in (exported[0] / "model.onnx").read_bytes()
    assert b"site-packages" not in (exported[0] / "model.onnx").read_bytes()


def test_int8_passes_at_the_default_margin_and_is_integers_by_channel(exported):
    record, proto = read(exported[0]), onnx.load(exported[0] / "model_int8.onnx")
    int8 = record["int8"]
    assert int8["written"] and int8["fall"] <= int8["margin"] == int8["default_margin"] == 0.05
    fall = record["quality"]["int8"]["loss"] - record["quality"]["PyTorch"]["loss"]
    assert int8["fall"] == pytest.approx(fall) and fall != 0 and int8["unit"] == "nat"
    kinds = [node.op_type for node in proto.graph.node]
    # Four layers of six products, the head's transform and its decoder. The others are attention's, of activations.
    assert kinds.count("MatMulInteger") == int8["integer_products"] == 4 * 6 + 2
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    weights = [node.input[1] for node in proto.graph.node if node.op_type == "MatMulInteger"]
    assert not any(n.input[1] in constants for n in proto.graph.node if n.op_type == "MatMul")
    outputs = sorted(constants[name.removesuffix("_quantized") + "_scale"].dims[0] for name in weights)
    assert outputs == sorted([*[192] * 5 * 4, *[768] * 4, 192, 4096])
    signed = onnx.TensorProto.INT8
    assert {constants[name].data_type for name in weights if name in constants} == {signed}
    assert kinds.count("DynamicQuantizeLinear") > 4 * 3  # activations: unsigned by the definition of the operator
    # The table of words lies there once, for looking up and for the decoder.
    words = [tensor for tensor in constants.values() if 4096 in tensor.dims and tensor.data_type == signed]
    assert [tuple(tensor.dims) for tensor in words if len(tensor.dims) == 2] == [(4096, 192)]
    assert sum(len(tensor.raw_data) for tensor in constants.values() if tensor.data_type == 1) < 200_000


def test_a_graph_that_is_not_the_model_is_refused(run_export, exported, tmp_path, monkeypatch):
    """One entry of one weight is off."""

    def perturbed(subject):
        proto = onnx.load(exported[0] / "model.onnx")
        bias = next(tensor for tensor in proto.graph.initializer if list(tensor.dims) == [768])
        values = onnx.numpy_helper.to_array(bias).copy()
        values[3] += 0.05
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return proto

    monkeypatch.setattr(running, "export_graph", perturbed)
    code, _, err = run_export(TEACHER, tmp_path / "out", "--int8")
    assert_one_sentence(code, err, EXIT_USAGE, "the ONNX model is not", "nothing is written: its logits differ by")
    assert list(tmp_path.iterdir()) == []


def test_int8_of_a_student_with_an_outlier_is_refused_and_fp32_stays(run_export, one_layer, tmp_path):
    """One channel of the values is 1024 times as large, and its reader as much smaller: the same model in fp32."""
    student = shutil.copytree(one_layer, tmp_path / "student")
    model = BertForMaskedLM.from_pretrained(student)
    attention = model.bert.encoder.layer[0].attention
    with torch.no_grad():
        attention.self.value.weight[5] *= 1024
        attention.self.value.bias[5] *= 1024
        attention.output.dense.weight[:, 5] /= 1024
    model.save_pretrained(student)
    code, _, err = run_export(student, tmp_path / "out", "--int8")
    record = read(tmp_path / "out")
    fall = record["int8"]["fall"]
    parts = ("out/model_int8.onnx", "is not written", f"it is {fall:.3f} nat worse", "0.05 nat were allowed")
    assert_one_sentence(code, err, EXIT_USAGE, *parts)
    assert fall > 0.3 and record["int8"]["written"] is False
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "vocab.txt"])
    assert list(record["latency"][0]["variants"]) == ["PyTorch", "ONNX"] and "model_int8.onnx" not in record["bytes"]
    assert record["quality"]["ONNX"]["loss"] == pytest.approx(record["quality"]["PyTorch"]["loss"], abs=1e-5)
    assert "so it was not written" in (tmp_path / "out" / "README.md").read_text()


def test_a_kept_classifier_is_measured_by_its_task(run_export, tmp_path):
    """One with a single segment, which sees both texts of a pair as that one."""
    model, data = make_classifier(tmp_path / "sst2_1"), write_sst2(tmp_path / "glue")
    spec = write_words(tmp_path / "text.txt")
    task = ("--data", spec, "--task", "sst2", "--task-data", data)
    code, _, err = run_export(model, tmp_path / "out", "--int8", "--int8-margin", 100, *task)
    assert (code, err) == (0, ""), err
    record = read(tmp_path / "out")
    assert record["int8"]["margin"] == 100 and record["int8"]["default_margin"] == 1
    assert record["int8"]["unit"] == "points" and record["text"]["source"] == spec

    rows = [line.split("\t") for line in (data / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    texts, labels = [row[0] for row in rows], [int(row[1]) for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt", return_token_type_ids=True)
    assert inputs["input_ids"].shape[1] == 20
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        logits = classifier(**inputs).logits.numpy()
    assert np.abs(onnx_logits(tmp_path / "out" / "model.onnx", inputs) - logits).max() < 1e-4
    accuracy = accuracy_score(labels, logits.argmax(1))
    assert record["quality"]["PyTorch"] == record["quality"]["ONNX"] == {"sst2 accuracy": pytest.approx(accuracy)}
    assert 0.2 < accuracy < 0.8
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["1"] == "positive"
    pair = dict(tokenizer("w1 w2", "w3", return_tensors="np", return_token_type_ids=True))
    assert pair["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
    for file in ("model.onnx", "model_int8.onnx"):
        one = pair | {"token_type_ids": np.zeros((1, 6), np.int64)}
        assert np.array_equal(onnx_logits(tmp_path / "out" / file, pair), onnx_logits(tmp_path / "out" / file, one))


def test_weights_beyond_one_file_lie_beside_it(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "INSIDE", 1000)
    proto = onnx.load(exported[0] / "model.onnx")
    graph.save_graph(proto, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 100_000 < (tmp_path / "model.onnx.data").stat().st_size
    inputs = AutoTokenizer.from_pretrained(exported[0])(TEXTS, padding=True, return_tensors="np")
    expected = onnx_logits(exported[0] / "model.onnx", inputs)
    assert np.array_equal(onnx_logits(tmp_path / "model.onnx", inputs), expected)


def no_tokenizer(model):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (model / name).unlink()


def no_head(model):
    BertModel.from_pretrained(model, add_pooling_layer=False).save_pretrained(model)


def other_model(model):
    (model / "config.json").write_text('{"model_type": "roberta"}')


MISTAKES = {
    "no tokenizer": (no_tokenizer, [], EXIT_USAGE, ["it has no tokenizer"]),
    "no head": (no_head, [], EXIT_USAGE, ["it has no MLM head"]),
    "no BERT": (other_model, [], EXIT_USAGE, ["model type 'roberta'"]),
    "no classifier": (None, ["--task", "sst2", "--task-data", "glue"], EXIT_USAGE, ["it has no classifier", "sst2"]),
    "unknown task": (None, ["--task", "sst3", "--task-data", "glue"], EXIT_USAGE, ["'sst3': there is no such task"]),
    "task without data": (None, ["--task", "sst2"], EXIT_USAGE, ["--task and --task-data belong together"]),
    "missing task": (None, ["--task", "rte", "--task-data", "glue"], EXIT_DATA, ["RTE: there is no such folder"]),
    "margin alone": (None, ["--int8-margin", "1"], EXIT_USAGE, ["--int8-margin needs --int8"]),
    "negative margin": (None, ["--int8", "--int8-margin", "-1"], EXIT_USAGE, ["a number of at least 0"]),
    "missing text": (None, ["--data", "lines:nowhere.txt"], EXIT_USAGE, ["nowhere.txt", "no such file"]),
    "little text": (None, ["--data", "lines:little.txt"], EXIT_DATA, ["little.txt: it has 4 tokens where at least"]),
    "missing teacher": (None, ["--teacher", "nowhere"], EXIT_USAGE, ["--teacher nowhere: there is no such directory"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(run_export, one_layer, tmp_path, monkeypatch, mistake):
    breaking, more, code, parts = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(one_layer, tmp_path / "model")
    (tmp_path / "little.txt").write_text("the king of\n")
    write_sst2(tmp_path / "glue", rows=4)
    if breaking:
        breaking(model)
    found, _, err = run_export(model, tmp_path / "out", *more)
    assert_one_sentence(found, err, code, *parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["glue", "little.txt", "model"]


def test_another_classifier_and_one_without_a_task(run_export, tmp_path):
    model, data = make_classifier(tmp_path / "sst2_1"), write_sst2(tmp_path / "glue")
    shutil.copytree(data / "SST-2", data / "CoLA")
    for stem in ("train", "dev"):
        (data / "CoLA" / f"{stem}.tsv").write_text("source\t1\t\tw1 w2 w3\nsource\t0\t*\tw4\n")
    code, _, err = run_export(model, tmp_path / "out", "--task", "cola", "--task-data", data)
    assert_one_sentence(
        code, err, EXIT_USAGE, "its outputs are negative, positive; those of task cola are unacceptable"
    )
    code, _, err = run_export(model, tmp_path / "out", "--int8")
    assert_one_sentence(code, err, EXIT_USAGE, "--int8 of a classifier needs --task and --task-data")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_is_refused(run_export, one_layer, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    for output, part in (
        (tmp_path / "used", "exists and is not an empty directory"),
        (tmp_path / "used" / "thesis.txt", "exists and is not an empty directory"),
        (tmp_path / "used" / "thesis.txt" / "out", "cannot write: File exists"),
    ):
        code, out, err = run_export(one_layer, output)
        assert_one_sentence(code, err, EXIT_USAGE, part)
        assert out == ""
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["thesis.txt"]


def test_a_missing_library_is_said_with_what_brings_it(run_export, one_layer, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    code, _, err = run_export(one_layer, tmp_path / "out")
    assert_one_sentence(code, err, EXIT_USAGE, "onnxruntime, which is not installed: pip install '.[deploy]'")
