"""Counts of `pipeline.cost` against what torch and DeepSpeed count while small models run."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.baselines.chained import ChainedBert
from pipeline.baselines.distillation import distillation_of
from pipeline.baselines.minilm import minilm_loss
from pipeline.compaction.fold import open_indices
from pipeline.cost import VARIANTS, Batch, compactor_macs, run_cost, sent_elements, step_macs, trained_parameters
from pipeline.models.encoder import GATE, Bert, encode
from pipeline.models.huggingface import shape_of
from pipeline.models.loss import decoder_loss, masked_lm_of
from pipeline.models.plain import PlainBert
from pipeline.recipe import Recipe, load_recipe
from pipeline.shapes import BertShape
from pipeline.teacher_files import resolve_student
from tests.support import ROOT
from tests.support.models import close_random_gates, compacted, random_teacher, token_batch, use_attention

# layers, hidden, heads, intermediate of the teacher; hidden and intermediate of the student.
SIZES = [(1, 24, 3, 96, 12, 48), (3, 20, 5, 60, 10, 24), (2, 16, 2, 64, 6, 62)]
LEARNS = {"kd": "student", "minilm": "student"}
"""What trains in a step, where it is not named like the step."""


def build(layers, hidden, heads, intermediate, student_hidden, student_intermediate):
    """The models of a step: variant -> module, with teacher and student for the distilled ones."""
    teacher = random_teacher(layers, hidden, heads, intermediate=intermediate)
    student = random_teacher(layers, student_hidden, heads, intermediate=student_intermediate)
    wide = compacted(copy.deepcopy(teacher), student_hidden, student_hidden // heads, "dim", student_intermediate)
    narrow = copy.deepcopy(wide)
    close_random_gates(narrow)
    narrow.narrow(open_indices(narrow.gates))
    models = {"teacher": PlainBert(teacher), "student": PlainBert(student)}
    return models | {"composed": wide, "chained": ChainedBert(wide), "narrowed": narrow}


def loss_of(variant, models, tensors, ids, positions, labels):
    """The loss of a micro-batch; `tensors` are those of the model that learns."""
    if variant == "chained":
        chained = models["chained"]
        return decoder_loss(chained.before_decoder(ids, positions), *chained.decoder(), labels)[0]
    batch = {"input_ids": ids, "positions": positions, "labels": labels}
    form, teacher = models[LEARNS.get(variant, variant)].form, models["teacher"]
    if variant == "kd":
        return distillation_of(form, teacher(), teacher.form)(tensors, batch)[0]
    if variant == "minilm":
        return minilm_loss(Bert(tensors, form), Bert(teacher(), teacher.form), ids, relation_heads=2)
    return masked_lm_of(form, training=True)(tensors, batch)[0]


def optimizer_step(variant, models, parts=2):
    """Forward and backward of all micro-batches, on tensors that are composed once."""
    tensors = {} if variant == "chained" else models[LEARNS.get(variant, variant)]()
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    for part in range(parts):
        ids, labels = token_batch(batch=3, seed=part), token_batch(batch=3, tokens=3, seed=part)
        positions = token_batch(vocab=16, batch=3, tokens=3, seed=part + 9)
        loss_of(variant, models, leaves, ids, positions, labels).backward()
    if tensors:
        learnt = [name for name, leaf in leaves.items() if leaf.grad is not None]
        torch.autograd.backward([tensors[name] for name in learnt], [leaves[name].grad for name in learnt])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_does_as_many_products_as_counted(variant, sizes, monkeypatch):
    use_attention(monkeypatch, fused=False)  # torch does not count inside its fused kernels
    models = build(*sizes)
    teacher, student = shape_of(models["teacher"].config), shape_of(models["student"].config)
    with FlopCounterMode(display=False) as counter:
        optimizer_step(variant, models)
    assert counter.get_total_flops() == 2 * step_macs(variant, teacher, student, Batch(6, 16, 3))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("variant", ["teacher", "chained", "composed", "narrowed", "student"])
def test_as_many_parameters_as_counted(variant, sizes):
    models = build(*sizes)
    teacher, student = shape_of(models["teacher"].config), shape_of(models["student"].config)
    held = sum(p.numel() for p in models[variant].parameters())
    assert held == trained_parameters(variant, teacher, student)


def test_bert_base_as_the_design_counts_it():
    """The ratios of 2 layers at 16,384 tokens per step, target 192; 12 d^2 and 42 d^2 per token and layer."""
    teacher = BertShape(2, 768, 12, 3072, 30522)
    student = BertShape(2, 192, 12, 768, 30522)
    batch = Batch(128, 128, 19)
    assert (
        compactor_macs(teacher, batch) == 2 * batch.tokens * 42 * 768**2 + batch.tokens * 768**2 + 128 * 19 * 3 * 768**2
    )
    chained, composed, narrowed, plain = (
        step_macs(v, teacher, student, batch) for v in ("chained", "composed", "narrowed", "student")
    )
    assert chained / composed == pytest.approx(3.97, abs=0.01)
    assert narrowed / plain == pytest.approx(1.38, abs=0.01)
    assert chained / narrowed == pytest.approx(32.4, abs=0.1)


def test_communication_follows_the_stages():
    assert sent_elements(100, stage=0, ranks=1) == 0
    assert [sent_elements(100, stage, ranks=4) for stage in range(4)] == [150, 225, 225, 225]


@pytest.mark.slow
def test_deepspeed_sends_what_is_counted():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "tests" / "engine" / "communication_worker.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["stage"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        expected = 4 * sent_elements(line["parameters"], line["stage"], 2)
        # Norms and overflow flags are a few bytes.
        assert expected <= line["sent_bytes"] <= expected + 64, line


def test_a_run_is_its_two_phases_and_gpu_hours_follow():
    models = build(*SIZES[0])
    teacher, student = shape_of(models["teacher"].config), shape_of(models["student"].config)
    batch = Batch(windows=4, seq_len=16, predicted=2)
    cost = run_cost(teacher, student, steps=10, end_step=3, batch=batch)
    assert cost.full_width == 3 * 2 * step_macs("composed", teacher, student, batch)
    assert cost.narrowed == 7 * 2 * step_macs("narrowed", teacher, student, batch)
    assert cost.gpu_hours(peak=1e6, utilisation=0.5) == pytest.approx((cost.full_width + cost.narrowed) / 5e5 / 3600)
    # Two ranks share the tokens, but each composes for itself.
    half = run_cost(teacher, student, steps=10, end_step=3, batch=Batch(2, 16, 2), ranks=2)
    assert cost.full_width < half.full_width < 2 * cost.full_width


PEAK, UTILISATION = 989e12, 0.35
"""Of docs/cost.md."""


def documented(document: str, table: int = 0) -> dict[str, list[str]]:
    """A table of docs/DOCUMENT.md that counts operations: first cell -> the others."""
    lines = (ROOT / "docs" / f"{document}.md").read_text(encoding="utf-8").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("|") and "10^18" in line]
    rows = {}
    for line in lines[starts[table] + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.strip("`")] = cells
    return rows


def shapes_of(name: str) -> tuple[BertShape, BertShape, Recipe]:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", [])
    teacher = BertShape(12, 768, 12, 3072, 30522)
    return teacher, resolve_student(recipe, teacher), recipe


@pytest.mark.parametrize("name", documented("cost"))
def test_the_documented_cost_of_a_recipe_is_what_is_counted(name):
    teacher, student, recipe = shapes_of(name)
    windows = recipe.train.global_batch
    one, eight = (
        run_cost(teacher, student, recipe.train.steps, recipe.compaction.end_step, batch, ranks)
        for batch, ranks in ((Batch(windows, 128, 19), 1), (Batch(windows // 8, 128, 19), 8))
    )
    expected = [f"{one.full_width / 1e18:.2f}", f"{one.narrowed / 1e18:.2f}"]
    expected += [f"{one.gpu_hours(PEAK, UTILISATION):.1f}", f"{eight.gpu_hours(PEAK, UTILISATION) / 8:.2f}"]
    assert documented("cost")[name] == expected


def test_every_recipe_for_bert_base_has_its_documented_cost():
    assert documented("cost").keys() == {path.stem for path in (ROOT / "recipes").glob("*bert_base_to_*.yaml")}


@pytest.mark.parametrize("variant", documented("decisions"))
def test_the_documented_cost_of_the_alternatives_is_what_is_counted(variant):
    expected = []
    for name in ("bert_base_to_11m", "bert_base_to_55m"):
        teacher, student, recipe = shapes_of(name)
        batch = Batch(recipe.train.global_batch, 128, 19)
        operations = 2 * recipe.train.steps * step_macs(variant, teacher, student, batch)
        expected += [f"{operations / 1e18:.1f}", f"{operations / PEAK / UTILISATION / 3600:.1f}"]
    assert documented("decisions")[variant] == expected


@pytest.mark.parametrize("times", [2, 4, 16])
def test_what_narrowing_several_times_would_save_is_counted(times):
    """Of a run of the `fast_` recipes: narrowed after every 16 / times increments."""
    expected = []
    for name in ("fast_bert_base_to_11m", "fast_bert_base_to_55m"):
        teacher, student, recipe = shapes_of(name)
        schedule, batch = recipe.compaction, Batch(recipe.train.global_batch, 128, 19)
        apart = schedule.increments / times * schedule.interval_steps
        saved = 0.0
        for part in range(1, times):
            gone = (teacher.hidden - student.hidden) * part // times
            head = (teacher.hidden - gone) // 12
            between = BertShape(12, 12 * head, 12, 48 * head, 30522)
            wide = step_macs("composed", teacher, student, batch)
            saved += 2 * apart * (wide - step_macs("narrowed", teacher, between, batch))
        whole = run_cost(teacher, student, recipe.train.steps, schedule.end_step, batch)
        expected.append(f"{100 * saved / (whole.full_width + whole.narrowed):.1f} %")
    assert documented("decisions", 1)[str(times)] == expected


def kept_for_backward(layers: int, windows: int, form: str) -> int:
    """Bytes of all memory that autograd keeps of a micro-batch's forward pass at BERT-base's width in bf16.

    The composed tensors, which are there once in a step, are not counted.
    """
    teacher = random_teacher(layers, 768, 12, vocab=61)
    teacher.bert.embeddings.position_embeddings.weight.data = torch.zeros(128, 768)
    teacher.config.max_position_embeddings = 128
    model = compacted(teacher, 192, 16, "dim").to(torch.bfloat16)
    close_random_gates(model)
    if form == "narrowed":
        model.narrow(open_indices(model.gates))
    tensors = {name: tensor.detach().requires_grad_() for name, tensor in model().items() if name != GATE}
    if form == "gates closing":
        tensors[GATE] = model.gates.of("residual")[0]
    # No dropout of attention: the fused kernels of GPUs keep nothing of it, those of CPUs cannot.
    running = replace(model.form, dropout=0.1)
    kept, own = {}, {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), (storage.nbytes(), tensor))  # the tensor, so that its address stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids, positions = token_batch(batch=windows, tokens=128), token_batch(vocab=128, batch=windows, tokens=1)
        encode(tensors, running, ids, positions, training=True)
    return sum(size for address, (size, _) in kept.items() if address not in own)


@pytest.mark.parametrize("form,documented_bytes", [("gates closing", 30_776), ("narrowed", 6_968)])
def test_the_documented_memory_of_a_micro_batch_is_what_autograd_keeps(form, documented_bytes, monkeypatch):
    use_attention(monkeypatch, fused=True)
    per_window = [kept_for_backward(layers, 2, form) - kept_for_backward(layers, 1, form) for layers in (1, 2)]
    assert (per_window[1] - per_window[0]) / 128 == pytest.approx(documented_bytes, rel=0.02)
    rows = [line for line in (ROOT / "docs" / "cost.md").read_text(encoding="utf-8").splitlines() if form in line]
    assert any(f"| {documented_bytes:,} |" in row for row in rows)
