"""The kept dimensions in fold.json, and the untrained slice that is rebuilt from them."""

import copy
import json
import math

import pytest
import torch

from pipeline.compaction.fold import fold, open_indices
from pipeline.compaction.slice import slice_teacher
from pipeline.engine.student import _readable
from pipeline.errors import UserError
from tests.support.models import close_random_gates, compacted, random_teacher, randomise_compactors

CASES = [("dim", 15, 5, 31), ("head", 16, 8, 40)]


def gated(strategy: str, hidden: int, head_size: int, intermediate: int):
    model = compacted(random_teacher(), hidden, head_size, strategy, intermediate).eval()
    close_random_gates(model)
    return model


@pytest.mark.parametrize("strategy,hidden,head_size,intermediate", CASES)
def test_a_slice_has_the_teachers_rows_and_columns(strategy, hidden, head_size, intermediate):
    teacher = random_teacher()
    model = gated(strategy, hidden, head_size, intermediate)
    randomise_compactors(model)  # what was trained leaves no trace
    kept = fold(model)[1]
    sliced = slice_teacher(copy.deepcopy(teacher), hidden, hidden // head_size, intermediate, strategy, kept)
    residual = kept["residual"]
    for index, (ours, theirs) in enumerate(zip(sliced.bert.encoder.layer, teacher.bert.encoder.layer, strict=True)):
        attention, ffn = kept[f"attention.{index}"], kept[f"ffn.{index}"]
        for name, scale in (("query", math.sqrt(head_size / 8)), ("key", 1.0), ("value", 1.0)):
            weight = getattr(theirs.attention.self, name).weight[attention][:, residual].double() * scale
            assert torch.equal(getattr(ours.attention.self, name).weight, weight)
        assert torch.equal(ours.output.dense.weight, theirs.output.dense.weight[residual][:, ffn].double())
    words = teacher.bert.embeddings.word_embeddings.weight[:, residual].double()
    assert torch.equal(sliced.bert.embeddings.word_embeddings.weight, words)


@pytest.mark.parametrize("strategy,hidden,head_size,intermediate", CASES)
def test_a_narrowed_model_names_the_teachers_dimensions(strategy, hidden, head_size, intermediate):
    model = gated(strategy, hidden, head_size, intermediate)
    folded, kept = fold(model)
    model.narrow(open_indices(model.gates))
    assert fold(model)[1] == kept
    rebuilt = slice_teacher(random_teacher(), hidden, hidden // head_size, intermediate, strategy, kept)
    for name, weight in folded.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], weight), name


@pytest.mark.parametrize("strategy,hidden,head_size,intermediate", CASES)
@pytest.mark.parametrize("group", ["residual", "attention.1", "ffn.0"])
def test_other_dimensions_than_a_students_are_refused(strategy, hidden, head_size, intermediate, group):
    kept = fold(gated(strategy, hidden, head_size, intermediate))[1]

    def rebuild(changed: dict) -> None:
        slice_teacher(random_teacher(), hidden, hidden // head_size, intermediate, strategy, {**kept, **changed})

    free = max(set(range(96 if group == "ffn.0" else 24)) - set(kept[group]))
    wrong = [kept[group][:-1], [*kept[group], free], [*kept[group][:-1], 1000], [*kept[group][:-1], -1]]
    if group == "attention.1":  # right in number, but not a quota of every head, or not whole heads
        wrong.append(list(range(len(kept[group]))) if strategy == "dim" else list(range(4, 20)))
    for indices in wrong:
        with pytest.raises(UserError, match=group.replace(".", r"\.")):
            rebuild({group: indices})
    with pytest.raises(UserError, match="groups"):
        slice_teacher(random_teacher(), hidden, hidden // head_size, intermediate, strategy, {})


def test_fold_json_has_a_line_for_every_group():
    details = {"kept": {"residual": list(range(40)), "ffn.0": [3]}, "target": {"hidden": 40}, "step": 1}
    text = _readable(details)
    assert json.loads(text) == details and len(text.splitlines()) == 10
    assert text.index("target") < text.index("kept")
