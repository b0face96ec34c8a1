"""The methods kd and minilmv2: a teacher that stays as it is, a student that learns from it, resumes and folds.

Losses are compared with Hugging Face's models in float64.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from pipeline import fold as fold_door
from pipeline.config import DistillationConfig
from pipeline.engine import session
from pipeline.engine.run_directory import resume_point
from pipeline.engine.student import fold_run
from pipeline.errors import UserError
from pipeline.methods import METHODS
from pipeline.models.huggingface import tensors_of
from pipeline.parsing import build
from pipeline.recipe import CHECKS, DISTILLATIONS, MethodName, Recipe, load_recipe
from pipeline.train import faults_here
from slurm.checks import refuse_another_recipe
from tests.support import ROOT
from tests.support.methods import build_method
from tests.support.models import random_teacher
from tests.support.runs import (
    make_shards,
    recipe_values,
    run_main,
    run_train_worker,
    train_command,
    vocabulary_of,
    write_deepspeed,
    write_recipe,
)

VOCAB = 61
TARGET = {"layers": 2, "hidden": 12, "head_size": 4, "intermediate": 31}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("teacher")
    random_teacher(3, 24, 3, vocab=VOCAB).save_pretrained(path)
    return path


def recipe(teacher: Path, method: str, shards: Path = Path("shards"), **sections) -> Recipe:
    distillation = sections.pop("distillation", {})
    values = recipe_values(shards, teacher, method, **{"target": TARGET, "compaction": None, **sections})
    values["distillation"] = distillation
    return build(Recipe, values, "test")


def ready(teacher: Path, method: str, **sections):
    """A method before its first step, teacher and student in float64, and a batch."""
    made = build_method(recipe(teacher, method, train={"dropout": 0.0}, **sections), VOCAB)
    made.get_ready()
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(5, VOCAB, (3, 16), generator=draw)
    positions = torch.tensor([[1, 4], [2, 9], [3, 14]])
    batch = {"input_ids": ids, "positions": positions, "labels": torch.randint(5, VOCAB, (3, 2), generator=draw)}
    made.teacher = {name: tensor.double() for name, tensor in tensors_in_file(teacher).items()}
    made.model.double()
    return made, batch


def tensors_in_file(teacher: Path) -> dict[str, torch.Tensor]:
    return tensors_of(BertForMaskedLM.from_pretrained(teacher))


def plain(made, teacher: Path) -> tuple[BertForMaskedLM, BertForMaskedLM]:
    """Student and teacher as Hugging Face has them, in float64, without dropout."""
    return made.model.bert().double().eval(), BertForMaskedLM.from_pretrained(teacher).double().eval()


@pytest.mark.parametrize("method", DISTILLATIONS)
def test_the_teacher_is_frozen_in_bf16_and_no_part_of_the_model(teacher, method):
    made = build_method(recipe(teacher, method), VOCAB)
    made.get_ready()
    assert {tensor.dtype for tensor in made.teacher.values()} == {torch.bfloat16}
    assert not any(tensor.requires_grad for tensor in made.teacher.values())
    assert made.shape.hidden == 12 and made.shape.layers == 2 and made.teacher_shape.hidden == 24
    assert sum(p.numel() for p in made.model.parameters()) < sum(t.numel() for t in made.teacher.values()) / 2


def test_the_loss_of_kd_is_the_mixture_it_says(teacher):
    made, batch = ready(teacher, "kd", distillation={"temperature": 1.7, "mlm_share": 0.4})
    got, accuracy = made.loss_of()(made.model(), batch)
    rows = torch.arange(3)[:, None]
    ours, theirs = (
        model(input_ids=batch["input_ids"]).logits[rows, batch["positions"]] for model in plain(made, teacher)
    )
    target, log_student = (theirs / 1.7).softmax(-1), (ours / 1.7).log_softmax(-1)
    soft = 1.7**2 * (target * (target.log() - log_student)).sum(-1).mean()
    hard = F.cross_entropy(ours.flatten(0, 1), batch["labels"].flatten())
    assert float(got.detach()) == pytest.approx(float((0.6 * soft + 0.4 * hard).detach()), abs=1e-10)
    assert float(accuracy) == float((ours.argmax(-1) == batch["labels"]).float().mean())
    measured = dict(zip(made.measures, made.measure(made.model(), batch), strict=True))
    assert float(measured["heldout_loss"].detach()) == pytest.approx(float(hard.detach()), abs=1e-10)


@pytest.mark.parametrize("layer,heads", [(None, None), (2, 6), (1, 1)])
def test_the_loss_of_minilmv2_compares_the_layers_it_says(teacher, layer, heads):
    made, batch = ready(teacher, "minilmv2", distillation={"teacher_layer": layer, "relation_heads": heads})
    got, accuracy = made.loss_of()(made.model(), batch)
    student, known = plain(made, teacher)
    expected = 0.0
    for name in ("query", "key", "value"):
        log_relations = []
        for model, number in ((student, 2), (known, layer or 3)):
            hidden = model.bert(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[number - 1]
            vectors = getattr(model.bert.encoder.layer[number - 1].attention.self, name)(hidden)
            parts = vectors.unflatten(-1, (heads or 3, -1)).transpose(1, 2)
            log_relations.append((parts @ parts.mT / parts.shape[-1] ** 0.5).log_softmax(-1))
        ours, theirs = log_relations
        expected += float((theirs.exp() * (theirs - ours)).sum(-1).mean().detach())
    assert float(got.detach()) == pytest.approx(expected, abs=1e-10) and expected > 1e-3
    assert accuracy.isnan()
    assert made.measures == ("heldout_relation_loss",)
    assert float(made.measure(made.model(), batch)[0]) == pytest.approx(expected, abs=1e-10)


def double(tables: torch.Tensor) -> torch.Tensor:
    """Word, position and segment tables in which the positions from 8 on are those from 0 on."""
    tables = tables.clone()
    tables[VOCAB + 8 : VOCAB + 16] = tables[VOCAB : VOCAB + 8]
    return tables


@pytest.mark.parametrize("method", DISTILLATIONS)
def test_two_documents_in_a_window_give_what_each_gives_alone(teacher, method):
    """In the teacher and in the student; seen together, they give something else."""
    made, batch = ready(teacher, method)
    made.teacher["tables"] = double(made.teacher["tables"])
    tensors = dict(made.model()) | {"tables": double(made.model()["tables"])}
    ids, labels, loss_of = batch["input_ids"], batch["labels"], made.loss_of()
    halves = [
        {"input_ids": part, "positions": torch.full((3, 1), 2), "labels": labels[:, number : number + 1]}
        for number, part in enumerate((ids[:, :8], ids[:, 8:]))
    ]
    packed = {"input_ids": ids, "positions": torch.tensor([[2, 10]] * 3), "labels": labels}
    apart = packed | {"documents": (torch.arange(16) >= 8).long().expand(3, -1)}
    alone = sum(float(loss_of(tensors, half)[0].detach()) for half in halves) / 2
    assert float(loss_of(tensors, apart)[0].detach()) == pytest.approx(alone, abs=1e-10)
    assert float(loss_of(tensors, packed)[0].detach()) != pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("method", DISTILLATIONS)
def test_dropout_is_the_students_alone(teacher, method, monkeypatch):
    made = build_method(recipe(teacher, method, train={"dropout": 0.5}), VOCAB)
    made.get_ready()
    assert made.model.form.dropout == made.model.form.attention_dropout == 0.5
    assert made.teacher_form.dropout == made.teacher_form.attention_dropout == 0
    _, batch = ready(teacher, method)
    made.teacher = {name: tensor.float() for name, tensor in made.teacher.items()}
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(made.loss_of()(made.model(), batch)[0].detach()))
    assert losses[0] == losses[1] != losses[2]
    measured = [made.measure(made.model(), batch)[0].detach() for _ in range(2)]
    assert torch.equal(*measured)


@pytest.mark.parametrize(
    "method,sections,message",
    [
        ("kd", {"distillation": {"relation_heads": 2}}, "distillation.relation_heads is not for method kd"),
        ("kd", {"distillation": {"teacher_layer": 2}}, "distillation.teacher_layer is not for method kd"),
        ("minilmv2", {"distillation": {"mlm_share": 0.5}}, "distillation.mlm_share is not for method minilmv2"),
        (
            "scratch",
            {"distillation": {"mlm_share": 0.5}, "teacher": None},
            "is for methods kd and minilmv2, not s",
        ),
        ("wid", {"distillation": {"temperature": 3.0}}, "is for methods kd and minilmv2, not wid"),
        ("kd", {"teacher": None}, "method kd needs a teacher"),
    ],
)
def test_what_does_not_go_together_is_refused_when_the_recipe_is_read(teacher, method, sections, message):
    distillation = sections.pop("distillation", {})
    values = recipe_values(Path("s"), teacher, method, **sections) | {"distillation": distillation}
    assert any(message in sentence for sentence in build(Recipe, values, "test").problems())


def test_the_recipe_in_the_documents_is_one():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    values = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    wanted = build(Recipe, values, "docs/method.md")
    assert list(wanted.problems()) == [] and wanted.distillation == DistillationConfig()


@pytest.mark.parametrize(
    "values,message",
    [
        ({"temperature": 0.0}, "distillation.temperature must lie between 0.01 and 1000"),
        ({"mlm_share": 1.0}, r"distillation.mlm_share must lie in \[0, 1\)"),
        ({"teacher_layer": 0}, "distillation.teacher_layer must be at least 1"),
        ({"relation_heads": 0}, "distillation.relation_heads must be at least 1"),
    ],
)
def test_single_values_that_cannot_be(teacher, values, message):
    with pytest.raises(UserError, match=message):
        recipe(teacher, "kd", distillation=values)


@pytest.mark.parametrize(
    "method,sections,message",
    [
        (
            "minilmv2",
            {"distillation": {"teacher_layer": 4}},
            "teacher_layer is 4 and teacher .* has 3 layers",
        ),
        (
            "minilmv2",
            {"distillation": {"relation_heads": 5}},
            "5 relation heads do not divide the 24 hidden dim",
        ),
        (
            "minilmv2",
            {"distillation": {"relation_heads": 8}},
            "8 relation heads do not divide the 12 hidden dim",
        ),
        ("kd", {"data": {"seq_len": 33}}, "data.seq_len 33 is longer than the teacher's 32 positions"),
    ],
)
def test_teachers_that_do_not_fit(teacher, method, sections, message):
    made = build_method(recipe(teacher, method, **sections), VOCAB)
    with pytest.raises(UserError, match=message):
        made.get_ready()


def test_kd_wants_a_teacher_with_a_head_and_minilmv2_does_not(tmp_path):
    random_teacher(vocab=VOCAB).bert.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no MLM head, whose predictions method kd learns"):
        build_method(recipe(tmp_path, "kd"), VOCAB).get_ready()
    build_method(recipe(tmp_path, "minilmv2"), VOCAB).get_ready()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of each method, made in one go and made again from its middle, in bf16 at ZeRO 1 and 3."""
    directory = tmp_path_factory.mktemp("runs")
    shards = make_shards(directory / "shards")
    known = random_teacher(3, 24, 3, vocab=vocabulary_of(shards))
    known.save_pretrained(directory / "kd_teacher")
    known.bert.save_pretrained(directory / "minilmv2_teacher")  # a new head would be another one at every start
    commands = {}
    for method, stage in (("kd", 1), ("minilmv2", 3)):
        how = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}, "gradient_clipping": 1.0}
        deepspeed = write_deepspeed(directory / f"{method}.json", **how)
        values = recipe_values(shards, directory / f"{method}_teacher", method, target=TARGET, compaction=None)
        inputs = {"recipe": write_recipe(directory / f"{method}.yaml", values), "deepspeed": deepspeed}
        commands[method] = (
            train_command(inputs, directory / method),
            train_command(inputs, directory / f"{method}_again"),
        )
    said = run_train_worker(directory, *(first for first, _ in commands.values()))
    for method in DISTILLATIONS:
        again = shutil.copytree(directory / method, directory / f"{method}_again")
        shutil.rmtree(again / "checkpoints" / "step_4")
    run_train_worker(directory, *(second for _, second in commands.values()))
    return directory, said


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", DISTILLATIONS)
def test_a_run_resumes_bit_for_bit(trained, method):
    directory, said = trained
    for kind in ("parameters", "exp_avg", "exp_avg_sq"):
        straight, resumed = (
            load_file(directory / name / "checkpoints" / "step_4" / f"{kind}.safetensors")
            for name in (method, f"{method}_again")
        )
        assert straight.keys() == resumed.keys()
        assert [name for name, value in straight.items() if not torch.equal(value, resumed[name])] == []
    lines = records(directory / method)
    assert [line["loss"] for line in lines] == [line["loss"] for line in records(directory / f"{method}_again")]
    assert "student, from scratch: " in said


def test_each_method_records_what_it_measures(trained):
    directory, _ = trained
    kd, relations = records(directory / "kd"), records(directory / "minilmv2")
    assert kd[-1]["heldout_loss"] > 0 and 0 <= kd[-1]["accuracy"] <= 1
    assert relations[-1]["heldout_relation_loss"] > 0
    assert relations[-1]["accuracy"] is None and "heldout_loss" not in relations[-1]
    assert all(line["kept"] == {} for line in (*kd, *relations))


def test_minilmv2_moves_what_its_loss_reaches_and_no_more(trained):
    """What lies behind the projections of the last layer decays, and learns nothing."""
    directory, _ = trained
    moments = load_file(directory / "minilmv2" / "checkpoints" / "step_4" / "exp_avg_sq.safetensors")
    assert moments["qkv"][1].any() and moments["tables"].any() and moments["ffn_out"][0].any()
    assert not moments["ffn_out"][1].any()
    assert not any(moments[name].any() for name in ("transform", "transform_norm_gain", "decoder_bias"))


@pytest.mark.parametrize("method", DISTILLATIONS)
def test_it_folds_to_a_bert_that_everybody_loads(trained, tmp_path, method):
    directory, _ = trained
    fold_run(directory / method, tmp_path / "student")
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert student.config.hidden_size == 12 and student.config.num_hidden_layers == 2
    details, card = json.loads((tmp_path / "student" / "fold.json").read_text()), (tmp_path / "student" / "README.md")
    assert details["method"] == method
    assert ("MLM head" in card.read_text()) == (method == "minilmv2")
    tables = load_file(directory / method / "checkpoints" / "step_4" / "parameters.safetensors")["tables"]
    assert torch.equal(student.bert.embeddings.word_embeddings.weight, tables[: student.config.vocab_size])


@pytest.mark.parametrize("method", DISTILLATIONS)
def test_another_teacher_on_the_way_is_refused(trained, tmp_path, method):
    directory, _ = trained
    wanted = load_recipe(directory / method / "config.yaml", [])
    path = directory / method / "checkpoints" / "step_2"
    session.prepare(wanted, directory / f"{method}.json", 1, path)
    moved = shutil.copytree(wanted.teacher.path, tmp_path / "moved")
    assert resume_point(directory / method, replace(wanted, teacher=replace(wanted.teacher, path=str(moved))))[0]
    wanted.teacher = replace(wanted.teacher, path=str(tmp_path / "teacher"))
    random_teacher(3, 24, 3, seed=7, vocab=vocabulary_of(directory / "shards")).save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="is not the one that this run learned from so far"):
        session.prepare(wanted, directory / f"{method}.json", 1, path)


def test_ranks_that_read_different_teachers_are_told(teacher):
    made = build_method(wanted := recipe(teacher, "kd"), VOCAB)
    made.get_ready()
    others = [made.facts(), {**made.facts(), "teacher_sha256": "0" * 64}]
    world = SimpleNamespace(gather=lambda own: others, said_once=lambda error: error)
    with pytest.raises(UserError, match="rank 1 has read another teacher from"):
        session.check_same_on_all(made, wanted, world)
    session.check_same_on_all(made, wanted, SimpleNamespace(gather=lambda own: [own, own]))


@pytest.mark.parametrize(
    "method,sections,message",
    [
        ("kd", {"target": None}, "method kd needs target.hidden as a multiple of target.head_size 64"),
        ("minilmv2", {"distillation": {"teacher_layer": 9}}, "teacher_layer is 9 and teacher"),
        ("minilmv2", {"distillation": {"relation_heads": 5}}, "5 relation heads do not divide the 24 hidden dim"),
    ],
)
def test_it_is_refused_before_anything_is_loaded(teacher, tmp_path, method, sections, message):
    sentences = faults_here(recipe(teacher, method, **sections), write_deepspeed(tmp_path / "how.json"), 1)
    assert len(sentences) == 1 and message in sentences[0]


def test_a_teacher_without_a_head_is_refused_before_it_is_loaded(tmp_path):
    random_teacher(vocab=VOCAB).bert.save_pretrained(tmp_path)
    (sentence,) = faults_here(recipe(tmp_path, "kd"), write_deepspeed(tmp_path / "how.json"), 1)
    assert "has no MLM head, whose predictions method kd learns" in sentence


def test_a_run_of_another_method_is_named_as_such(trained, tmp_path):
    directory, _ = trained
    run = shutil.copytree(directory / "kd", tmp_path / "run")
    (run / "slurm").mkdir()
    shutil.copy(run / "config.yaml", run / "slurm" / "recipe.yaml")
    values = recipe_values(directory / "shards", None, "scratch", target=TARGET, compaction=None)
    other = build(Recipe, values, "test")
    for refuse in (lambda: resume_point(run, other), lambda: refuse_another_recipe(run, other)):
        with pytest.raises(UserError, match="holds another run: its method is 'kd', not 'scratch'"):
            refuse()


def test_every_name_has_its_check_and_its_class():
    assert METHODS.keys() == CHECKS.keys() == set(get_args(MethodName))


def test_a_fold_needs_no_teacher(trained, tmp_path, monkeypatch):
    directory, _ = trained
    monkeypatch.setattr("pipeline.methods.teacher.load_teacher", None)
    code, said, _ = run_main(monkeypatch, fold_door.main, "--run", directory / "kd", "--output", tmp_path / "student")
    assert code == 0 and "student: " in said
