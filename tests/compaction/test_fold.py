"""Identity at the start, exactness of the gates, and the fold: the equalities the whole project rests on."""

import copy
import subprocess
import sys

import pytest
import torch

from pipeline.compaction.fold import compare, fold
from pipeline.errors import UserError
from pipeline.models.encoder import Bert
from pipeline.shapes import BertShape
from tests.support.models import (
    close_random_gates,
    compacted,
    logits,
    random_teacher,
    randomise_compactors,
    set_gate,
    token_batch,
)

CASES = [
    # strategy, teacher hidden, heads, target hidden, target head size, target intermediate
    ("dim", 24, 3, 15, 5, None),
    ("head", 24, 3, 16, 8, None),
    ("dim", 128, 2, 86, 43, None),  # odd head size, as in the published 516 = 12 x 43
    ("dim", 24, 3, 6, 2, 31),
    ("head", 24, 6, 4, 4, 7),
]


@pytest.mark.parametrize("layers,hidden,heads", [(2, 128, 2), (4, 256, 4), (12, 768, 12)])
def test_wrapping_a_teacher_changes_no_logit(layers, hidden, heads):
    teacher = random_teacher(layers, hidden, heads, vocab=211).eval()
    ids = token_batch(211, batch=2, tokens=32)
    with torch.no_grad():
        expected = teacher(input_ids=ids).logits
        got = logits(compacted(teacher, hidden // 2, hidden // heads // 2, "dim").eval(), ids)
    assert float((got - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_wrapping_reads_segments_like_the_teacher():
    teacher = random_teacher().eval()
    ids = token_batch()
    segments = (torch.arange(ids.shape[1]) >= 7).long().expand_as(ids)
    with torch.no_grad():
        expected = teacher(input_ids=ids, token_type_ids=segments).logits
        got = logits(compacted(teacher, 12, 4, "dim").eval(), ids, segment_ids=segments)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy,hidden,heads,target,head_size,intermediate", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_fold_is_exact(strategy, hidden, heads, target, head_size, intermediate, seed):
    model = compacted(random_teacher(3, hidden, heads, seed=seed), target, head_size, strategy, intermediate)
    randomise_compactors(model, seed=seed + 10)
    close_random_gates(model, seed=seed + 20)
    student, _ = fold(model.eval())
    report = compare(model, student, [token_batch(seed=seed), token_batch(tokens=9, seed=seed + 1)])
    assert report.max_logit_diff_fp64 <= 1e-10
    assert report.max_abs_logit > 0.1
    assert report.passes
    assert student.config.hidden_size == target and student.config.intermediate_size == (intermediate or 4 * target)
    assert student.cls.predictions.decoder.weight is student.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("strategy,head_size", [("dim", 5), ("head", 8)])
def test_hidden_states_of_the_folded_encoder(strategy, head_size):
    model = compacted(random_teacher(3), 15 if strategy == "dim" else 16, head_size, strategy).double().eval()
    randomise_compactors(model)
    close_random_gates(model)
    ids = token_batch()
    with torch.no_grad():
        bert = Bert(model(), model.form)
        states = [bert.embed(ids)]
        for number in range(bert.layers):
            states.append(bert.layer(number, states[-1]))
        folded = fold(model)[0].bert(input_ids=ids, output_hidden_states=True).hidden_states
    residual = model.gates.of("residual")[0]
    kept, retired = residual.nonzero().squeeze(1), (residual == 0).nonzero().squeeze(1)
    assert len(states) == len(folded) == 4
    for wrapped, student in zip(states, folded, strict=True):
        assert float((wrapped[..., kept] - student).abs().max()) <= 1e-10
        assert float(wrapped[..., retired].abs().max()) == 0.0


def test_fold_sees_a_wrong_student():
    """The measurement itself can fail: one changed weight is noticed."""
    model = compacted(random_teacher(), 15, 5, "dim").eval()
    close_random_gates(model)
    student, _ = fold(model)
    with torch.no_grad():
        student.bert.encoder.layer[1].attention.self.query.weight[3, 2] += 1e-3
    assert not compare(model, student, [token_batch()]).passes


def test_fold_refuses_an_unfinished_schedule():
    model = compacted(random_teacher(), 15, 5, "dim")
    with pytest.raises(UserError, match="schedule has not ended"):
        fold(model)
    close_random_gates(model)
    set_gate(
        model, "ffn.1", model.gates.split(model.gates.value)["ffn.1"].clone().index_fill(0, torch.tensor([0]), 0.5)
    )
    with pytest.raises(UserError, match=r"ffn\.1"):
        fold(model)


def test_fold_leaves_the_model_as_it_was():
    model = compacted(random_teacher(), 15, 5, "dim")
    close_random_gates(model)
    before = copy.deepcopy(model.state_dict())
    compare(model, fold(model)[0], [token_batch()])
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])


def test_student_loads_where_this_project_cannot_be_imported(tmp_path):
    model = compacted(random_teacher(), 15, 5, "dim").eval()
    randomise_compactors(model)
    close_random_gates(model)
    student = fold(model)[0].float()
    student.save_pretrained(tmp_path / "student")
    ids = token_batch()
    torch.save({"ids": ids, "logits": student(input_ids=ids).logits.detach()}, tmp_path / "expected.pt")
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForMaskedLM\n"
        "try:\n    import pipeline.compaction\n    sys.exit('the project is importable here')\n"
        "except ImportError:\n    pass\n"
        "expected = torch.load('expected.pt')\n"
        "model = AutoModelForMaskedLM.from_pretrained('student').eval()\n"
        "assert torch.equal(model(input_ids=expected['ids']).logits, expected['logits'])\n"
    )
    # -S would hide site-packages; -I hides the working directory, and an editable install is masked by hand.
    block = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    (tmp_path / "load.py").write_text(block + script)
    result = subprocess.run([sys.executable, "load.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "layers,hidden,heads,intermediate,millions,gflops",
    [
        (12, 768, 12, 3072, 108.9, 22.35),
        (12, 516, 12, 2064, 54.4, 10.22),
        (12, 512, 8, 2048, 53.7, 10.07),
        (12, 192, 12, 768, 11.3, 1.51),
    ],
)
def test_published_sizes(layers, hidden, heads, intermediate, millions, gflops):
    shape = BertShape(layers, hidden, heads, intermediate, vocab_size=30522)
    assert round(shape.parameters / 1e6, 1) == millions
    assert round(shape.encoder_flops(128) / 1e9, 2) == gflops
