"""Models that are sound but unusual are scored; damaged ones are refused in a sentence that names what is wrong."""

import json
import math
import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from pipeline import evaluate
from pipeline.data.loader import HeldOutData
from pipeline.data.open import open_shards
from pipeline.data.vocabulary import load_tokenizer
from pipeline.evaluation import progress
from tests.support.runs import make_shards, run_main, vocabulary_of

pytestmark = pytest.mark.usefixtures("one_thread")

TABLES = ("sentence\tlabel", "sentence1\tsentence2\tlabel", "sentence1\tsentence2\tscore")
FAST = ("--seeds", "1", "--epochs", "1", "--batch-size", "4", "--max-length", "16")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with shards, SST-2, RTE and STS-B, and the size of its vocabulary."""
    folder = tmp_path_factory.mktemp("data")
    shards = make_shards(folder / "known", words=800)
    texts = ["the quick fox", "a lazy dog sleeps", "seven rivers run", "an old sea"]
    for name, columns, labels in (
        ("SST-2", 1, ("0", "1")),
        ("RTE", 2, ("entailment", "not_entailment")),
        ("STS-B", 2, ("0.5", "4.0")),
    ):
        (folder / name).mkdir()
        rows = ["\t".join([*[texts[i % 4], texts[(i + 1) % 4]][:columns], labels[i % 2]]) for i in range(8)]
        for stem in ("train", "dev"):
            (folder / name / f"{stem}.tsv").write_text(
                "\n".join([TABLES[columns - 1 + (name == "STS-B")], *rows]) + "\n"
            )
    return folder, vocabulary_of(shards)


def make_model(directory, folder, **sizes):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(max_position_embeddings=32, initializer_range=0.3, **shape, **sizes)
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    model.save_pretrained(directory)
    load_tokenizer(folder / "known" / "tokenizer").save_pretrained(directory)
    return directory


@pytest.fixture
def run(monkeypatch, inputs, tmp_path):
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def call(model, tasks, data=inputs[0], output=tmp_path / "out"):
        places = ("--model", model, "--data", data, "--output", output, "--tasks", tasks)
        code, out, err = run_main(monkeypatch, evaluate.main, *places, *FAST)
        tasks = json.loads((output / "results.json").read_text())["tasks"] if code == 0 else None
        return code, out, err, tasks

    return call


def change_weights(directory, change):
    """Replace the tensors of a model directory by what `change` makes of them."""
    path = directory / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path, {"format": "pt"})
    return directory


@pytest.mark.parametrize("segments", [1, 3])
def test_other_numbers_of_segments(run, tmp_path, inputs, segments):
    model = make_model(tmp_path / "model", inputs[0], vocab_size=inputs[1], type_vocab_size=segments)
    code, _, err, tasks = run(model, "sst2,rte,stsb,mlm,latency")
    assert (code, err) == (0, "")
    assert tasks.keys() == {"sst2", "rte", "stsb", "mlm known", "latency"}


def test_one_segment_is_as_two_equal_ones(run, tmp_path, inputs):
    """A second segment that equals the first says nothing, so both models predict the same."""
    one = make_model(tmp_path / "one", inputs[0], vocab_size=inputs[1], type_vocab_size=1)
    two = make_model(tmp_path / "two", inputs[0], vocab_size=inputs[1], type_vocab_size=2)
    table = "bert.embeddings.token_type_embeddings.weight"
    one_row = load_file(one / "model.safetensors")
    change_weights(two, lambda _: {**one_row, table: one_row[table].expand(2, -1)})
    model = json.loads((two / "config.json").read_text())
    assert model["type_vocab_size"] == 2
    losses = [run(path, "mlm", output=tmp_path / path.name / "out")[3]["mlm known"]["loss"] for path in (one, two)]
    assert losses[0] == losses[1]


def reference(directory, folder, vocabulary):
    """Loss and accuracy over the tokenizer's tokens from logits at every position, of which the others are cut off."""
    bert = BertForMaskedLM.from_pretrained(directory).eval()
    source, _ = open_shards(folder / "known", 16)
    ((batch, _),) = HeldOutData(source, torch.arange(source.windows).numpy(), 0.15).batches(source.windows)
    with torch.no_grad():
        logits = bert(input_ids=torch.from_numpy(batch.input_ids)).logits[..., :vocabulary].double()
    picked = torch.stack([row[places] for row, places in zip(logits, batch.positions, strict=True)]).flatten(0, 1)
    labels = torch.from_numpy(batch.labels).flatten()
    return F.cross_entropy(picked, labels).item(), (picked.argmax(-1) == labels).double().mean().item()


@pytest.mark.parametrize("beyond", [1, 29])
def test_embeddings_padded_beyond_the_tokenizer(run, tmp_path, inputs, beyond):
    folder, vocabulary = inputs
    model = make_model(tmp_path / "model", folder, vocab_size=vocabulary + beyond)
    word = load_tokenizer(model).convert_tokens_to_ids("fox")

    def tempt(tensors):
        """A word that wins most predictions, and a padding row that would win all of them, were it a token."""
        tensors["cls.predictions.bias"][[word, vocabulary]] = torch.tensor([25.0, 50.0])
        return tensors

    change_weights(model, tempt)
    code, out, err, tasks = run(model, "rte,mlm,latency")
    assert (code, err) == (0, "")
    assert f"{beyond} of its {vocabulary + beyond} embeddings lie beyond the tokenizer's {vocabulary} tokens" in out
    loss, accuracy = reference(model, folder, vocabulary)
    assert tasks["mlm known"]["loss"]["mean"] == pytest.approx(loss, rel=1e-5)
    assert tasks["mlm known"]["accuracy"]["mean"] == pytest.approx(accuracy) and accuracy > 0


@pytest.mark.parametrize("case", ["fewer rows", "another tokenizer"])
def test_another_vocabulary_is_refused(run, tmp_path, inputs, case):
    folder, vocabulary = inputs
    data = folder
    if case == "fewer rows":
        data = make_shards(tmp_path / "more", words=400, extra=("zebra", "##zz"))
    model = make_model(tmp_path / "model", folder, vocab_size=vocabulary + (case == "another tokenizer") * 29)
    if case == "another tokenizer":  # more rows than the shards have tokens, and a tokenizer of another size
        tokenizer = load_tokenizer(model)
        tokenizer.add_tokens(["zebra"])
        tokenizer.save_pretrained(model)
    code, out, err, _ = run(model, "mlm", data)
    assert (code, out) == (2, "") and err.count("\n") == 1 and "build them with the model's tokenizer" in err
    assert f"{vocabulary} rows" in err if case == "fewer rows" else f"{vocabulary + 1} tokens" in err


@pytest.mark.parametrize("beyond", [0, 29])
def test_equal_sizes_are_no_equal_vocabularies(run, tmp_path, inputs, beyond):
    model = make_model(tmp_path / "model", inputs[0], vocab_size=inputs[1] + beyond)
    text = (model / "tokenizer.json").read_text()
    assert text.count('"fox"') == text.count('"dog"') == 1
    (model / "tokenizer.json").write_text(
        text.replace('"fox"', '"§"').replace('"dog"', '"fox"').replace('"§"', '"dog"')
    )
    code, out, err, _ = run(model, "mlm")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "has another vocabulary than" in err


def as_vocabulary(model, case, beginning="", end="", config=None):
    """Leave of a model's tokenizer a vocab.txt, with words of this case."""
    ids = load_tokenizer(model).get_vocab()
    tokens = [token if token.startswith("[") else case(token) for token in sorted(ids, key=ids.get)]
    for path in model.glob("*token*.json"):
        path.unlink()
    (model / "vocab.txt").write_text(beginning + "\n".join(tokens) + "\n" + end)
    if config:
        (model / "tokenizer_config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize(("beginning", "end"), [("", ""), ("\ufeff", ""), ("", "\n\n")])
def test_a_model_with_a_vocabulary_alone(run, tmp_path, inputs, beginning, end):
    whole = make_model(tmp_path / "whole", inputs[0], vocab_size=inputs[1])
    model = as_vocabulary(make_model(tmp_path / "model", inputs[0], vocab_size=inputs[1]), str, beginning, end)
    code, _, err, tasks = run(model, "sst2,mlm")
    assert (code, err) == (0, "")
    expected = run(whole, "sst2,mlm", output=tmp_path / "expected")[3]
    assert tasks == expected


@pytest.mark.parametrize("lowers", [None, True, False])
def test_capitals_without_a_word_on_case_are_refused(run, tmp_path, inputs, lowers):
    config = None if lowers is None else {"do_lower_case": lowers}
    model = as_vocabulary(make_model(tmp_path / "model", inputs[0], vocab_size=inputs[1]), str.upper, config=config)
    code, out, err, _ = run(model, "sst2")
    if lowers is None:
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert "its vocab.txt has capitals, as in 'A', and nothing says" in err
    else:
        assert (code, err) == (0, "")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("tasks", "name"),
    [
        ("sst2", "encoder.layer.0.output.dense.weight"),
        ("latency", "embeddings.LayerNorm.bias"),
        ("mlm", "cls.predictions.transform.dense.weight"),
    ],
)
def test_a_weight_that_is_no_number_is_named(run, tmp_path, inputs, tasks, name, number):
    model = make_model(tmp_path / "model", inputs[0], vocab_size=inputs[1])

    def spoil(tensors):
        tensors[name if name in tensors else f"bert.{name}"].view(-1)[0] = number
        return tensors

    change_weights(model, spoil)
    code, out, err, _ = run(model, tasks)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"{name} has entries that are NaN or infinite" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
@pytest.mark.parametrize("tasks", ["sst2", "mlm"])
def test_a_wrapper_before_the_names_is_named(run, tmp_path, inputs, prefix, tasks):
    model = make_model(tmp_path / "model", inputs[0], vocab_size=inputs[1])
    change_weights(model, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    code, out, err, _ = run(model, tasks)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"its tensors have '{prefix}' before their names" in err and "rename the tensors" in err


def test_a_missing_mlm_bias_is_said_and_is_zero(run, tmp_path, inputs):
    model = make_model(tmp_path / "model", inputs[0], vocab_size=inputs[1])
    change_weights(model, lambda tensors: {n: t for n, t in tensors.items() if n != "cls.predictions.bias"})
    code, out, err, tasks = run(model, "mlm")
    assert (code, err) == (0, "") and "it has no MLM bias (cls.predictions.bias), zeros stand in its place" in out
    assert tasks["mlm known"]["loss"]["mean"] == pytest.approx(reference(model, *inputs)[0], rel=1e-5)


def test_a_bias_under_the_decoders_name_is_the_bias(run, tmp_path, inputs):
    model = make_model(tmp_path / "model", inputs[0], vocab_size=inputs[1])
    expected = reference(model, *inputs)[0]
    change_weights(
        model, lambda t: {n.replace("predictions.bias", "predictions.decoder.bias"): v for n, v in t.items()}
    )
    code, out, _, tasks = run(model, "mlm")
    assert code == 0 and "MLM bias" not in out
    assert tasks["mlm known"]["loss"]["mean"] == pytest.approx(expected, rel=1e-5)


def damage(model, case):
    """Spoil one thing in a model directory."""
    if case == "no head":
        change_weights(model, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("cls.")})
    elif case == "another head":
        name = "cls.predictions.transform.dense.weight"
        change_weights(model, lambda tensors: {**tensors, name: torch.zeros(3, 3)})
    elif case == "more layers":
        more = "encoder.layer.2."
        change_weights(model, lambda t: {**t, **{n.replace("encoder.layer.1.", more): v.clone() for n, v in t.items()}})
    elif case == "relative positions":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "position_embedding_type": "relative_key"}))
    elif case == "tokenizer":
        (model / "tokenizer.json").write_text("[]")
    else:
        (model / "model.safetensors").unlink()
        (model / "pytorch_model.bin").write_bytes(b"junk" * 10)
    return model


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("no head", "it has no MLM head (no cls.predictions.transform"),
        ("another head", "it cannot be loaded"),
        ("more layers", "encoder.layer.2.attention.output.LayerNorm.bias, which its config.json knows nothing of"),
        ("relative positions", "it has relative_key positions"),
        ("tokenizer", "transformers cannot load this tokenizer"),
        ("pickle", "it cannot be loaded"),
    ],
)
def test_damaged_models_get_one_sentence(run, tmp_path, inputs, case, expected):
    model = damage(make_model(tmp_path / "model", inputs[0], vocab_size=inputs[1]), case)
    code, out, err, _ = run(model, "mlm")
    assert (code, out) == (2, "") and err.count("\n") == 1 and expected in err
    assert not err.rstrip().endswith(".") and not (tmp_path / "out").exists()


def test_every_task_says_what_it_does_and_how_far_it_is(run, monkeypatch, tmp_path, inputs):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    model = make_model(tmp_path / "model", inputs[0], vocab_size=inputs[1])
    _, out, _, _ = run(model, "mlm,latency,rte")
    lines = out.splitlines()
    assert any(
        line.startswith("mlm known: predicting in ") and line.endswith("windows of 16 tokens ...") for line in lines
    )
    assert any(line.startswith("mlm known: ") and " windows, 0:00:00 left" in line for line in lines)
    assert any(line.startswith("latency: 5 x 40 passes, batch 1, 16 tokens") for line in lines)
    assert [line for line in lines if " steps, " in line][-1].startswith("rte, seed 1: 2 of 2 steps, 0:00:00 left")
    _, out, _, _ = run(model, "mlm,latency,rte")
    assert [line for line in out.splitlines() if "already done" in line] == [
        "latency: already done",
        "mlm known: already done",
        "rte, seed 1: already done",
    ]


@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
@pytest.mark.parametrize("option", ["--epochs", "--learning-rate"])
def test_settings_that_no_run_can_have(monkeypatch, tmp_path, option, value):
    places = ("--model", "absent", "--data", tmp_path, "--output", tmp_path / "out", "--tasks", "rte")
    code, out, err = run_main(monkeypatch, evaluate.main, *places, f"{option}={value}")
    assert (code, out) == (2, "") and err == f"error: {option} must be greater than 0, not {float(value)}\n"
