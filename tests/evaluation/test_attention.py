"""Task attention: divergences against an independent reference, matched heads, controls, records and refusals."""

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax
from transformers import BertForMaskedLM, BertModel

from pipeline import evaluate
from pipeline.compaction.fold import fold
from pipeline.data.open import open_shards
from pipeline.data.vocabulary import load_tokenizer
from pipeline.engine.student import write_student
from pipeline.evaluation.attention.divergences import divergences, probabilities, relation_divergences
from pipeline.evaluation.attention.forward import Looker, relation_heads
from pipeline.evaluation.attention.matching import by_assignment, by_identity, shuffled
from pipeline.evaluation.attention.observe import Condition
from pipeline.evaluation.attention.verdict import conclude, no_verdict
from tests.support.models import close_random_gates, compacted, random_teacher, randomise_compactors, token_batch
from tests.support.runs import make_shards, run_main, vocabulary_of

TOKENS = 16


def all_of(ids: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(ids, dtype=torch.bool)


def looker(model: BertForMaskedLM) -> Looker:
    weights = {name: value for name, value in model.bert.state_dict().items() if not name.startswith("pooler.")}
    return Looker(model.config, weights)


def test_divergences_are_those_of_scipy():
    draw = np.random.default_rng(0)
    scores = draw.normal(scale=4.0, size=(2, 3, 2, 7, 7))
    theirs, ours = softmax(scores, axis=-1)
    columns = draw.random((3, 7)) < 0.7
    columns[:, 3] = True
    for kept in (np.ones_like(columns), columns):
        js, kl = divergences(*(probabilities(torch.tensor(x), torch.tensor(kept)) for x in (theirs, ours)))
        for window in range(3):
            p, q = (x[window][..., kept[window]] for x in (theirs, ours))
            p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
            expected = (jensenshannon(p, q, axis=-1) ** 2).mean(-1)
            np.testing.assert_allclose(js[window], expected, rtol=1e-12)
            np.testing.assert_allclose(kl[window], rel_entr(p, q).sum(-1).mean(-1), rtol=1e-12)


def test_divergences_at_their_bounds():
    apart = torch.zeros(1, 1, 2, 4)
    apart[..., :2] = 0.5
    p, q = (probabilities(x, torch.ones(1, 4, dtype=torch.bool)) for x in (apart, apart.flip(-1)))
    js, kl = divergences(p, q)
    assert js.item() == pytest.approx(math.log(2), rel=1e-12) and js.item() <= math.log(2) and kl.isfinite().all()
    assert [float(value) for value in divergences(p, p.clone())] == [0.0, 0.0]
    none = probabilities(apart, torch.zeros(1, 4, dtype=torch.bool))  # a window of nothing but [SEP]
    assert [float(value) for value in divergences(none, none)] == [0.0, 0.0]


def test_attention_and_relations_are_the_models_own():
    model = random_teacher().eval()
    ids = token_batch()
    looked = looker(model).look(ids)
    hidden = model.bert(input_ids=ids, output_hidden_states=True).hidden_states
    for number, layer in enumerate(model.bert.encoder.layer):
        heads = layer.attention.self
        q, k, v = (part(hidden[number]).detach() for part in (heads.query, heads.key, heads.value))
        split = [x.view(4, TOKENS, 3, 8).transpose(1, 2) for x in (q, k)]
        expected = torch.softmax(split[0] @ split[1].transpose(2, 3) / 8**0.5, -1)
        torch.testing.assert_close(looked[number].attention, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(looked[number].projections, (q, k, v), rtol=1e-4, atol=1e-5)
    first, last = looked[0].projections, looked[1].projections
    got = relation_divergences(first, last, 4)
    for number in range(3):
        pair = [x[number].double().view(4, TOKENS, 4, 6).transpose(1, 2).numpy() for x in (first, last)]
        p, q = (softmax(x @ x.swapaxes(2, 3) / 6**0.5, axis=-1) for x in pair)
        np.testing.assert_allclose(got[:, number], rel_entr(p, q).sum(-1).mean((1, 2)), rtol=1e-9)


def test_relation_heads_divide_every_width():
    widths = [looker(random_teacher(1, hidden, 3)) for hidden in (24, 36, 12)]
    assert relation_heads(widths, 12) == 12 and relation_heads(widths, 5) == 4


def permuted(model: BertForMaskedLM, orders: list[list[int]]) -> BertForMaskedLM:
    """The same function with the heads of every layer in another order, and those left out that have no place."""
    model = copy.deepcopy(model)
    for layer, order in zip(model.bert.encoder.layer, orders, strict=True):
        rows = torch.tensor([head * 8 + i for head in order for i in range(8)])
        for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            part.weight.data, part.bias.data = part.weight.data[rows], part.bias.data[rows]
        layer.attention.output.dense.weight.data = layer.attention.output.dense.weight.data[:, rows]
    return model


def test_heads_in_another_order_are_found_again():
    teacher = random_teacher(2, 32, 4)
    orders = [[2, 0, 3, 1], [3, 2, 1, 0]]
    ids = token_batch()
    pairs = by_assignment(looker(teacher), looker(permuted(teacher, orders)), [(ids, all_of(ids))])
    assert pairs == [[(head, order.index(head)) for head in range(4)] for order in orders]


def test_shuffled_heads_have_no_partner_of_their_own():
    for heads in (2, 3, 12):
        same = by_identity(looker(random_teacher(2, 24, heads))) if heads < 12 else [[(h, h) for h in range(12)]] * 2
        found = shuffled(same)
        assert found == shuffled(same)
        for pairs in found:
            assert sorted(theirs for theirs, _ in pairs) == sorted(ours for _, ours in pairs) == list(range(heads))
            assert all(theirs != ours for theirs, ours in pairs)


def save(model: BertForMaskedLM, shards: Path, directory: Path) -> Path:
    model.save_pretrained(directory)
    load_tokenizer(shards / "tokenizer").save_pretrained(directory)
    return directory


def save_student(teacher: BertForMaskedLM, shards: Path, directory: Path, case: tuple, trained: bool) -> Path:
    """A student as the fold writes it."""
    model = compacted(copy.deepcopy(teacher), *case).eval()
    close_random_gates(model)
    if trained:
        randomise_compactors(model, scale=0.1)
    details = {"method": "wid", "step": 1, "tokens": 1, "trained_seq_len": TOKENS, "strategy": case[2]}
    student, details["kept"] = fold(model)
    write_student(student.float(), load_tokenizer(shards / "tokenizer"), details, directory)
    return directory


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """Shards, a teacher, and students: nothing taken away, dimensions of every head, whole heads; a scratch."""
    folder = tmp_path_factory.mktemp("attention")
    shards = make_shards(folder / "text", words=400)
    teacher = random_teacher(vocab=vocabulary_of(shards))
    return {
        "shards": shards,
        "teacher": save(teacher, shards, folder / "teacher"),
        "whole": save_student(teacher, shards, folder / "whole", (24, 8, "dim"), trained=False),
        "dim": save_student(teacher, shards, folder / "dim", (15, 5, "dim", 31), trained=True),
        "untrained": save_student(teacher, shards, folder / "untrained", (15, 5, "dim", 31), trained=False),
        "head": save_student(teacher, shards, folder / "head", (16, 8, "head", 31), trained=True),
        "scratch": save(random_teacher(2, 15, 3, vocab=vocabulary_of(shards), seed=5), shards, folder / "scratch"),
    }


def run(monkeypatch, inputs: dict[str, Path], model: str | Path, output: Path, *options: object) -> tuple:
    path = inputs[model] if isinstance(model, str) else model
    common = (
        "--tasks",
        "attention",
        "--max-length",
        TOKENS,
        "--data",
        inputs["shards"],
        "--teacher",
        inputs["teacher"],
    )
    code, out, err = run_main(monkeypatch, evaluate.main, "--model", path, "--output", output, *common, *options)
    if code:
        return code, out, err
    tasks = json.loads((output / "results.json").read_text())["tasks"]
    return tasks, json.loads((output / "attention.json").read_text())["texts"]["text"], out


def means(entry: dict) -> dict[str, float]:
    return {metric: value["mean"] for metric, value in entry.items() if isinstance(value, dict)}


def test_a_teacher_that_lost_nothing_has_its_own_attention_exactly(monkeypatch, inputs, tmp_path):
    tasks, text, out = run(monkeypatch, inputs, "whole", tmp_path / "out")
    for name in ("attention text", "attention text teacher"):
        assert set(means(tasks[name]).values()) == {0.0} and len(means(tasks[name])) == 7
    assert tasks["attention text shuffled"]["js"]["mean"] > 0.01
    assert not any(metric.startswith("relation") for metric in tasks["attention text shuffled"])
    assert tasks["attention text"]["verdict"].startswith("no verdict: it takes a model that was trained from scratch")
    assert text["verdict"] is None and text["no_verdict"] in out


def reference(inputs: dict[str, Path], model: str) -> dict[str, np.ndarray]:
    """JS by layer and head of pairs by identity, on the windows that are reported, with other code."""
    source, _ = open_shards(inputs["shards"], TOKENS)
    windows = (np.arange(min(64, source.windows)) * source.windows // min(64, source.windows))[1::2]
    ids = torch.from_numpy(source.read(windows))
    words = ~torch.isin(ids, torch.tensor([source.vocabulary.cls_id, source.vocabulary.sep_id])).numpy()
    looked = []
    for name in ("teacher", model):
        bert = BertModel.from_pretrained(inputs[name], attn_implementation="eager", add_pooling_layer=False).eval()
        with torch.no_grad():
            looked.append(torch.stack(bert(input_ids=ids, output_attentions=True).attentions).double().numpy())
    found = {}
    for metric, kept in (("js", np.ones_like(words)), ("js_no_special", words)):
        p, q = (x * kept[None, :, None, None, :] for x in looked)
        found[metric] = (jensenshannon(p, q, axis=-1) ** 2).mean((1, 3))
    return found


def test_all_controls_and_a_verdict(monkeypatch, inputs, tmp_path):
    controls = f"scratch={inputs['scratch']},slice={inputs['dim']}"
    tasks, text, out = run(monkeypatch, inputs, "dim", tmp_path / "out", "--controls", controls)
    assert [name.removeprefix("attention text").strip() for name in tasks] == [
        *("", "teacher", "shuffled", "scratch", "slice")
    ]
    for metric, expected in reference(inputs, "dim").items():
        np.testing.assert_allclose(text["conditions"]["student"][metric], expected, rtol=1e-4, atol=1e-9)
        assert tasks["attention text"][metric]["mean"] == pytest.approx(expected.mean(), rel=1e-5)
    assert 0 < tasks["attention text"]["js"]["mean"] < math.log(2)
    assert tasks["attention text teacher"]["js"]["mean"] == 0.0
    assert [c["matching"] for c in text["conditions"].values()] == [
        *("identity", "identity", "shuffled", "assignment", "identity")
    ]
    assert (
        "the scratch control over" in tasks["attention text"]["verdict"] == text["verdict"] and text["verdict"] in out
    )
    assert (tmp_path / "out" / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert {"teacher", "student", "scratch"} < text["maps"][0].keys()

    written = (tmp_path / "out" / "results.json").read_text()
    tasks, _, out = run(monkeypatch, inputs, "dim", tmp_path / "out", "--controls", controls)
    assert "already done" in out and (tmp_path / "out" / "results.json").read_text() == written


def test_the_rebuilt_slice_is_the_student_before_training(monkeypatch, inputs, tmp_path):
    tasks, _, _ = run(monkeypatch, inputs, "untrained", tmp_path / "out", "--controls", f"slice={inputs['dim']}")
    assert means(tasks["attention text"]) == means(tasks["attention text slice"])


def test_whole_heads_find_the_teachers(monkeypatch, inputs, tmp_path):
    tasks, text, _ = run(
        monkeypatch,
        inputs,
        "head",
        tmp_path / "out",
        "--controls",
        f"slice={inputs['head']},scratch={inputs['scratch']}",
    )
    kept = json.loads((inputs["head"] / "fold.json").read_text())["kept"]
    of_teacher = [sorted({index // 8 for index in kept[f"attention.{layer}"]}) for layer in range(2)]
    student = text["conditions"]["student"]
    assert student["matching"] == "assignment" and np.shape(student["pairs"]) == (2, 2, 2)
    assert np.shape(student["js"]) == (2, 2) and np.shape(student["relation_keys"]) == (2,)
    sliced = text["conditions"]["slice"]["pairs"]
    assert sliced[0] == [[head, place] for place, head in enumerate(of_teacher[0])]
    assert tasks["attention text"]["verdict"].startswith("no verdict: 2 pairs of heads of the student, 3")


def test_the_verdict_asks_for_both_views_and_more_than_noise():
    def condition(base: float, special: float) -> Condition:
        noise = np.random.default_rng(0).normal(scale=1e-3, size=(20, 1, 1))
        values = {"js": base + noise, "js_no_special": special - noise}
        return Condition("x", "identity", [[(0, 0)]], values)

    def verdict(scratch: Condition) -> str:
        exact = Condition("x", "identity", [[(0, 0)]], {"js": np.zeros((20, 1, 1))})
        conditions = {"student": condition(0.1, 0.2), "scratch": scratch, "teacher": exact}
        assert no_verdict(conditions) is None
        return conclude(conditions)

    assert verdict(condition(0.3, 0.4)).startswith("closer to the teacher than the scratch control over 20 windows: js")
    assert verdict(condition(0.05, 0.1)).startswith("farther from")
    assert verdict(condition(0.3, 0.1)).startswith("not clearly apart")
    assert verdict(condition(0.1, 0.2)).startswith("not clearly apart")
    wrong = {"student": condition(0.1, 0.2), "scratch": condition(0.3, 0.4), "teacher": condition(0.1, 0.1)}
    assert "differs from itself" in no_verdict(wrong)


@pytest.fixture(scope="module")
def odd(inputs, tmp_path_factory) -> dict[str, Path]:
    """Models and records that do not fit."""
    folder = tmp_path_factory.mktemp("odd")
    other = make_shards(folder / "other", words=400, extra=("zebra",))
    tall = random_teacher(3, vocab=vocabulary_of(inputs["shards"]))
    damaged = shutil.copytree(inputs["dim"], folder / "damaged")
    details = json.loads((damaged / "fold.json").read_text())
    (damaged / "fold.json").write_text(json.dumps({**details, "kept": {**details["kept"], "residual": [0, 1]}}))
    return {
        "foreign": save(random_teacher(vocab=vocabulary_of(other)), other, folder / "foreign"),
        "tall": save(tall, inputs["shards"], folder / "tall"),
        "damaged": damaged,
        "none": folder / "none",
    }


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--teacher {foreign}", 2, "--teacher {foreign}: its tokenizer has"),
        ("--controls scratch={foreign}", 2, "--controls scratch={foreign}: its tokenizer has"),
        ("--teacher {tall}", 2, "--teacher {tall} has 3 layers and --model 2"),
        ("--teacher {none}", 2, "--teacher {none}: there is no such directory"),
        ("--controls slice={none}", 2, "--controls slice={none}: there is no such directory"),
        ("--controls slice={tall}", 3, "{tall}/fold.json: kept, strategy and target"),
        ("--controls slice={damaged}", 3, "{damaged}/fold.json: it does not fit the teacher: group residual"),
        ("--controls scratches={tall}", 2, "were expected"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(monkeypatch, inputs, odd, tmp_path, options, code, words):
    got, out, err = run(monkeypatch, inputs, "dim", tmp_path / "out", *options.format(**odd).split())
    assert (got, out) == (code, "") and err.count("\n") == 1 and words.format(**odd) in err
    assert not (tmp_path / "out").exists()


def test_a_student_of_other_tokens_than_the_shards_is_refused(monkeypatch, inputs, odd, tmp_path):
    code, _, err = run(monkeypatch, inputs, odd["foreign"], tmp_path / "out")
    assert code == 2 and err.startswith(f"error: --model {odd['foreign']}: its tokenizer has")


@pytest.mark.parametrize("option", ["--teacher", "--controls"])
def test_its_options_are_for_it_alone(monkeypatch, inputs, tmp_path, option):
    value = inputs["teacher"] if option == "--teacher" else f"scratch={inputs['scratch']}"
    arguments = (
        "--tasks",
        "latency",
        "--model",
        inputs["dim"],
        "--data",
        inputs["shards"],
        "--output",
        tmp_path / "out",
    )
    code, _, err = run_main(monkeypatch, evaluate.main, *arguments, option, value)
    assert code == 2 and err.startswith("error: --teacher and --controls are for task attention")


def test_without_a_teacher_there_is_nothing_to_compare(monkeypatch, inputs, tmp_path):
    arguments = ("--tasks", "attention", "--model", inputs["dim"], "--data", inputs["shards"], "--output", tmp_path)
    code, _, err = run_main(monkeypatch, evaluate.main, *arguments)
    assert code == 2 and err.startswith("error: --tasks attention: it compares with a teacher; give --teacher DIR")
