"""Which teachers are taken and refused, what a new BERT looks like, and how a new MLM head is warmed up.

The warm-up is a real run: while it lasts, nothing but the head moves, bit for bit.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from pipeline.engine.optimizer import parameter_role
from pipeline.engine.student import fold_run
from pipeline.errors import UserError
from pipeline.methods import METHODS
from pipeline.methods.method import load_parameters
from pipeline.models.huggingface import save_config, shape_of
from pipeline.parsing import build
from pipeline.recipe import Recipe
from pipeline.teachers import load_teacher
from tests.support.methods import build_method
from tests.support.models import logits, random_teacher
from tests.support.runs import (
    make_shards,
    recipe_values,
    run_train_worker,
    train_command,
    vocabulary_of,
    write_deepspeed,
    write_recipe,
)

VOCAB = 61


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A saved BertForMaskedLM. Tests that change its files copy it."""
    path = tmp_path_factory.mktemp("models") / "teacher"
    random_teacher(vocab=VOCAB).save_pretrained(path)
    return path


@pytest.fixture
def copied(teacher, tmp_path):
    return shutil.copytree(teacher, tmp_path / "teacher")


def configure(directory, **changes) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(directory)


def recipe(path=None, **sections) -> Recipe:
    """A recipe for the teacher at `path`, or for a new BERT without one."""
    if path is None:
        shape = {"layers": 2, "hidden": 24, "head_size": 8, "intermediate": None}
        sections["target"] = {**shape, **sections.get("target", {})}
    values = recipe_values(Path("shards"), path, "wid" if path else "scratch", **sections)
    return build(Recipe, values, "test")


def test_a_teacher_is_loaded_whole_with_the_recipes_dropout(teacher):
    model, head_is_new, notices = load_teacher(str(teacher), dropout=0.25)
    original = BertForMaskedLM.from_pretrained(teacher).state_dict()
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.25
    assert not head_is_new and notices == []


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"model_type": "roberta"}, "is a roberta model; only model_type bert"),
        ({"model_type": "distilbert"}, "is a distilbert model; only model_type bert"),
        ({"tie_word_embeddings": False}, "untied MLM decoder"),
        ({"is_decoder": True}, "is a decoder"),
        ({"position_embedding_type": "relative_key"}, "relative_key positions; only absolute"),
        ({"model_type": "no-such-model"}, "cannot be loaded"),
        ({"hidden_size": 48}, "has another size than its config.json says"),
        ({"num_hidden_layers": 3}, "lacks the weights of bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "has weights of bert.encoder.layer.1"),
    ],
)
def test_teachers_of_another_kind_are_refused(copied, changes, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as refused:
        load_teacher(configure(copied, **changes), 0.1)
    assert str(copied) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["missing", "./missing", "runs/some/teacher/step", "~/teacher"])
def test_a_path_without_a_teacher_is_said_to_be_missing(tmp_path, name):
    with pytest.raises(UserError, match="does not exist"):
        load_teacher(str(tmp_path / name) if name == "missing" else name, 0.1)


def test_a_directory_without_a_model_and_a_hub_name_out_of_reach(tmp_path):
    for name in (str(tmp_path), "no-such-owner/no-such-model"):
        with pytest.raises(UserError, match="cannot be loaded from disk or from the hub"):
            load_teacher(name, 0.1)


@pytest.mark.parametrize("size", [0, 5, 5000])
def test_damaged_weights_are_one_sentence(copied, size):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(UserError, match="cannot be loaded") as refused:
        load_teacher(str(copied), 0.1)
    assert "\n" not in str(refused.value)


def test_an_encoder_with_pooler_gets_a_new_head_and_says_so(tmp_path):
    plain, with_pooler = tmp_path / "plain", tmp_path / "with_pooler"
    encoder = random_teacher(vocab=VOCAB).bert
    encoder.save_pretrained(plain)
    BertModel(encoder.config).save_pretrained(with_pooler)
    for path, words in ((plain, ["no MLM head"]), (with_pooler, ["pooler is dropped", "no MLM head"])):
        torch.manual_seed(3)
        model, head_is_new, notices = load_teacher(str(path), 0.1)
        assert head_is_new and len(notices) == len(words)
        assert all(word in notice for word, notice in zip(words, notices, strict=True))
        head = model.cls.predictions
        assert 0.01 < float(head.transform.dense.weight.detach().std()) < 0.03
        assert not head.decoder.bias.any() and head.transform.LayerNorm.weight.eq(1).all()
    assert torch.equal(
        load_teacher(str(plain), 0.1)[0].bert.state_dict()["embeddings.LayerNorm.bias"],
        encoder.embeddings.LayerNorm.bias,
    )


def test_a_new_head_is_the_same_in_every_process(tmp_path):
    """It is drawn from the recipe's seed, so ranks agree and a run can be repeated."""
    random_teacher(vocab=VOCAB).bert.save_pretrained(tmp_path)
    sections = {"teacher": {"head_warmup_steps": 1}}
    first, second = (build_method(recipe(tmp_path, **sections), VOCAB) for _ in range(2))
    other = build_method(recipe(tmp_path, **sections, train={"seed": 2}), VOCAB)
    weights = [built.model.get_parameter("transform") for built in (first, second, other)]
    assert first.head_is_new and torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "sections,vocab,message",
    [
        ({}, 62, "has 61 tokens and the shards have 62: build the shards with the teacher's tokenizer"),
        ({"data": {"seq_len": 33}}, VOCAB, "data.seq_len 33 is longer than the teacher's 32 positions"),
        ({"target": {"hidden": 16, "head_size": 8}}, VOCAB, "strategy dim keeps the teacher's 3 heads"),
        ({"target": {"hidden": 48, "head_size": 16}}, VOCAB, "wider than the teacher"),
        (
            {"target": {"hidden": 24, "head_size": 8, "intermediate": 97}},
            VOCAB,
            "target 24/97 is wider than the teacher",
        ),
        ({"target": {"hidden": 16}}, VOCAB, "not a multiple of target.head_size"),
        ({"target": {"params": "11M"}}, VOCAB, "either target.params or target.hidden"),
        ({"target": {"hidden": None, "head_size": None}}, VOCAB, "names no target"),
    ],
)
def test_recipes_that_do_not_fit_the_teacher(teacher, sections, vocab, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        build_method(recipe(teacher, **sections), vocab)


def test_compaction_must_not_begin_before_a_new_head_is_warm(tmp_path):
    random_teacher(vocab=VOCAB).bert.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"set compaction\.start_step to at least 2, or teacher\.head_warmup_steps"):
        build_method(recipe(tmp_path, teacher={"head_warmup_steps": 2}), VOCAB)


def test_a_parameter_target_is_resolved_and_said(teacher):
    built = build_method(
        recipe(teacher, target={"hidden": None, "head_size": None, "params": "10k", "intermediate": 40}), VOCAB
    )
    assert any("nearest legal student" in notice and str(built.model.target) in notice for notice in built.describe())
    assert abs(built.model.target.parameters - 10_000) < 2000
    assert shape_of(built.model.config).hidden == 24


@pytest.mark.parametrize(
    "target,shape",
    [
        ({"layers": 3, "hidden": 48, "head_size": 16}, (3, 48, 3, 192)),
        ({"layers": 2, "hidden": 128, "head_size": None, "intermediate": 100}, (2, 128, 2, 100)),
        ({"layers": 12, "hidden": None, "head_size": 64, "params": "1M"}, (12, 64, 1, 256)),
    ],
)
def test_shapes_of_a_new_bert(target, shape):
    built = build_method(recipe(target=target, train={"dropout": 0.0}), VOCAB)
    found = shape_of(built.model.config)
    assert (found.layers, found.hidden, found.heads, found.intermediate) == shape
    assert found.vocab_size == VOCAB and found.positions == 512 and not built.head_is_new
    picked = logits(built.model, torch.zeros(2, 16, dtype=torch.long), positions=torch.tensor([[3, 5], [1, 2]]))
    assert picked.shape == (2, 2, VOCAB)


@pytest.mark.parametrize("target", [{"hidden": 50}, {"hidden": None}, {"params": "1M"}])
def test_shapes_that_are_no_bert(target):
    with pytest.raises(UserError, match=r"target\.hidden"):
        build_method(recipe(target=target), VOCAB)


def test_a_new_bert_starts_at_the_scale_of_its_width_with_sinusoidal_positions():
    model = build_method(recipe(target={"hidden": 48}), VOCAB).model.bert()
    assert float(model.bert.encoder.layer[0].intermediate.dense.weight.detach().std()) == pytest.approx(0.08, rel=0.05)
    table = model.bert.embeddings.position_embeddings.weight.detach().double()
    assert torch.allclose(table.norm(dim=1), torch.full((512,), 0.08 * 48**0.5, dtype=torch.float64), rtol=1e-5)
    products = table @ table.T  # of sinusoids they depend on the distance alone
    for distance in (1, 2, 7, 100):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5)
    assert products.diagonal(1)[0] > products.diagonal(2)[0] > products.diagonal(7)[0]


def test_long_windows_get_positions():
    built = build_method(recipe(data={"seq_len": 600}), VOCAB)
    assert built.model.config.max_position_embeddings == 600


@pytest.mark.parametrize("method", ["wid", "scratch"])
def test_a_checkpoint_rebuilds_the_model(teacher, method):
    wanted = recipe(teacher if method == "wid" else None)
    built = build_method(wanted, VOCAB)
    parameters = {name: torch.randn_like(value) for name, value in built.model.named_parameters()}
    again = METHODS[method].rebuild(wanted, BertConfig.from_dict(save_config(built.model.config)), False).model
    load_parameters(again, parameters)
    assert all(torch.equal(value, parameters[name]) for name, value in again.named_parameters())
    parameters.pop(next(iter(parameters)))
    with pytest.raises(UserError, match="is in one of them only"):
        load_parameters(again, parameters)


# A new head's warm-up


@pytest.fixture(scope="module")
def warmed(tmp_path_factory):
    """A run of an encoder-only teacher: 3 steps on the head alone, 5 on everything; a checkpoint at every step."""
    directory = tmp_path_factory.mktemp("warm")
    shards = make_shards(directory / "shards")
    teacher = directory / "teacher"
    random_teacher(vocab=vocabulary_of(shards)).bert.save_pretrained(teacher)
    values = recipe_values(
        shards,
        teacher,
        teacher={"head_warmup_steps": 3, "head_lr": 1e-3},
        compaction={"start_step": 4},
        train={"steps": 8, "checkpoint_every": 1, "keep_checkpoints": 99, "warmup": 0.0},
    )
    inputs = {
        "recipe": write_recipe(directory / "recipe.yaml", values),
        "deepspeed": write_deepspeed(directory / "ds.json", gradient_clipping=1.0),
    }
    run = directory / "run"
    run_train_worker(directory, train_command(inputs, run))
    return run


def parameters_at(run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step}" / "parameters.safetensors")


def test_only_the_head_moves_while_it_warms_up(warmed):
    before = parameters_at(warmed, 1)
    for step in (2, 3):
        after = parameters_at(warmed, step)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        head = {name for name in after if parameter_role(name) == "head"}
        assert changed == head and len(head) == 5  # weight, bias, gain, bias of the transform; bias of the decoder
        before = after
    teacher = BertModel.from_pretrained(warmed.parent / "teacher")
    words = teacher.embeddings.word_embeddings.weight
    assert torch.equal(before["tables"][: len(words)], words)
    assert not any(before[name].any() for name in before if name.endswith("_delta"))


def test_everything_moves_afterwards(warmed):
    before, after = parameters_at(warmed, 3), parameters_at(warmed, 4)
    assert {name for name in after if torch.equal(after[name], before[name])} == set()


def test_the_warmed_up_run_folds(warmed, tmp_path):
    from pipeline.engine.student import fold_run

    fold_run(warmed, tmp_path / "student")
    fold_run(warmed, tmp_path / "earlier", step=7)
    steps = [json.loads((tmp_path / name / "fold.json").read_text())["step"] for name in ("student", "earlier")]
    assert steps == [8, 7]
    report = json.loads((tmp_path / "student" / "fold.json").read_text())
    assert report["max_logit_diff_fp64"] <= 1e-10 and report["target"]["hidden"] == 15
    assert [len(report["kept"][name]) for name in ("residual", "attention.0", "ffn.1")] == [
        *(report["target"][size] for size in ("hidden", "hidden", "intermediate"))
    ]
    losses = [json.loads(line)["loss"] for line in (warmed / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 8 and np.isfinite(losses).all()


def test_a_run_resumed_within_the_warm_up_or_after_the_schedule_ends_alike(warmed, tmp_path):
    """The teacher has no head, the checkpoint has one: the run must still know that it was new.

    And past the last step of the schedule nothing sets the gates any more but the resumption.
    """
    inputs = {"recipe": warmed.parent / "recipe.yaml", "deepspeed": warmed.parent / "ds.json"}
    runs = {first: shutil.copytree(warmed, tmp_path / f"from_{first}") for first in (2, 6)}
    for first, run in runs.items():
        for step in range(first + 1, 9):
            shutil.rmtree(run / "checkpoints" / f"step_{step}")
    run_train_worker(tmp_path, *(train_command(inputs, run) for run in runs.values()))
    for first, run in runs.items():
        for step in (first + 1, 8):
            straight, resumed = parameters_at(warmed, step), parameters_at(run, step)
            assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
        assert (run / "metrics.jsonl").read_text().count("\n") == 8


def test_continue_trains_the_teacher_itself(teacher, tmp_path):
    """Same weights and logits at the start; a real run moves all of them and folds to the teacher's shape."""
    vocab = vocabulary_of(make_shards(tmp_path / "shards"))
    random_teacher(vocab=vocab).save_pretrained(tmp_path / "bert")
    values = recipe_values(tmp_path / "shards", tmp_path / "bert", "continue", target=None)
    built = build_method(build(Recipe, values, "test"), vocab)
    original = BertForMaskedLM.from_pretrained(tmp_path / "bert").eval()
    ids = torch.arange(24).reshape(2, 12)
    torch.testing.assert_close(logits(built.model.eval(), ids), original(input_ids=ids).logits, atol=1e-5, rtol=1e-5)

    inputs = {
        "recipe": write_recipe(tmp_path / "recipe.yaml", values),
        "deepspeed": write_deepspeed(tmp_path / "deepspeed.json"),
    }
    run_train_worker(tmp_path, train_command(inputs, tmp_path / "run"))
    fold_run(tmp_path / "run", tmp_path / "continued")
    after = BertForMaskedLM.from_pretrained(tmp_path / "continued")
    assert shape_of(after.config) == shape_of(original.config)
    changed = {name for name, p in after.named_parameters() if not torch.equal(p, original.get_parameter(name))}
    still = set(dict(after.named_parameters())) - changed
    assert all("segment" in name or "token_type" in name for name in still), still
