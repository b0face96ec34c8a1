"""Checkpoints of format 1, by the names that docs and `conversion` say it had."""

import json

import pytest
import torch

from pipeline.engine import checkpoint as checkpoint_module
from pipeline.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.engine.conversion import from_format_1
from pipeline.models.plain import PlainBert
from tests.support.models import compacted, random_teacher

LAYERS, HIDDEN, KEPT, INNER, INNER_KEPT = 2, 24, 15, 96, 31
SIZES = {
    "attention.self.query": (HIDDEN, KEPT, HIDDEN, KEPT),
    "attention.self.key": (HIDDEN, KEPT, HIDDEN, KEPT),
    "attention.self.value": (HIDDEN, KEPT, HIDDEN, KEPT),
    "attention.output.dense": (HIDDEN, KEPT, HIDDEN, KEPT),
    "intermediate.dense": (HIDDEN, KEPT, INNER, INNER_KEPT),
    "output.dense": (INNER, INNER_KEPT, HIDDEN, KEPT),
}
"""Of each linear layer: in, kept in, out, kept out."""


def old_plain(bert) -> dict[str, torch.Tensor]:
    """As the module that held transformers' model named its parameters."""
    return {f"bert.{name}": parameter.detach() for name, parameter in bert.named_parameters()}


def old_compacted(bert, narrowed: bool) -> dict[str, torch.Tensor]:
    """The teacher's tensors under their old names, with random compactors; LayerNorms are cut once narrowed."""
    draw = torch.Generator().manual_seed(5)
    width = KEPT if narrowed else HIDDEN
    old = {}
    for name, tensor in bert.state_dict().items():
        name = name.removeprefix("bert.").replace("encoder.layer.", "layers.")
        name = name.replace("cls.predictions.transform.dense", "transform")
        name = name.replace("cls.predictions.transform.LayerNorm", "transform_norm")
        for table in ("word", "position", "token_type"):
            short = table.replace("token_type", "segment")
            name = name.replace(f"embeddings.{table}_embeddings.weight", f"embeddings.{short}")
        name = name.replace("embeddings.LayerNorm", "embeddings.norm")
        if name == "cls.predictions.bias":
            old["decoder.bias"] = tensor
        elif not name.startswith("cls."):
            old[name] = tensor[:width] if "norm" in name.lower() else tensor
    linear = {f"layers.{n}.{name}": sizes for n in range(LAYERS) for name, sizes in SIZES.items()}
    linear["transform"] = (HIDDEN, KEPT, HIDDEN, KEPT)
    for name, (into, kept_in, out, kept_out) in linear.items():
        old[f"{name}.row_delta"] = torch.randn(into, kept_in if narrowed else into, generator=draw)
        old[f"{name}.column_delta"] = torch.randn(kept_out if narrowed else out, out, generator=draw)
    old["embeddings.column_delta"] = torch.randn(width, HIDDEN, generator=draw)
    return old


def test_a_plain_bert_is_the_same_bert():
    bert = random_teacher(LAYERS, HIDDEN)
    new, expected = from_format_1(old_plain(bert)), dict(PlainBert(bert).named_parameters())
    assert new.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(new[name], tensor)] == []


@pytest.mark.parametrize("narrowed", [False, True])
def test_every_compactor_lies_where_its_weight_does(narrowed):
    bert = random_teacher(LAYERS, HIDDEN)
    old = old_compacted(bert, narrowed)
    new, model = from_format_1(old), compacted(bert, KEPT, 5, "dim", INNER_KEPT)
    if narrowed:
        sizes = {"residual": (1, KEPT), "attention": (LAYERS, KEPT), "ffn": (LAYERS, INNER_KEPT)}
        model.narrow({kind: torch.arange(size).expand(groups, -1) for kind, (groups, size) in sizes.items()})
    own = dict(model.named_parameters())
    assert {name: tensor.shape for name, tensor in new.items()} == {name: p.shape for name, p in own.items()}
    weights = [name for name in own if not name.endswith("_delta")]
    assert [name for name in weights if not torch.equal(new[name], own[name])] == []
    assert torch.equal(new["tables_column_delta"], old["embeddings.column_delta"])
    for side in ("row_delta", "column_delta"):
        for n in range(LAYERS):
            for place, part in enumerate(("query", "key", "value")):
                assert torch.equal(new[f"qkv_{side}"][3 * n + place], old[f"layers.{n}.attention.self.{part}.{side}"])
            assert torch.equal(new[f"attention_out_{side}"][n], old[f"layers.{n}.attention.output.dense.{side}"])
            assert torch.equal(new[f"ffn_in_{side}"][n], old[f"layers.{n}.intermediate.dense.{side}"])
            assert torch.equal(new[f"ffn_out_{side}"][n], old[f"layers.{n}.output.dense.{side}"])
        assert torch.equal(new[f"transform_{side}"][0], old[f"transform.{side}"])


def test_a_checkpoint_of_format_1_is_read_as_one_of_today(tmp_path, monkeypatch):
    old = old_plain(random_teacher(LAYERS, HIDDEN))
    moments = {name: tensor + 1 for name, tensor in old.items()}
    selected = {"selected_at.residual": torch.arange(4)}
    tensors = {"parameters": old, "exp_avg": moments, "exp_avg_sq": {}, "compaction": selected}
    monkeypatch.setattr(checkpoint_module, "FORMAT", 1)
    path = save_checkpoint(tmp_path, Checkpoint(tensors, {"step": 3, "judge": {"seen": 1}}, {"vocab_size": 61}), keep=1)
    assert json.loads((path / "trainer.json").read_text())["format"] == 1
    monkeypatch.undo()
    found = load_checkpoint(path)
    assert found.trainer == {"step": 3, "anomalies": {"seen": 1}} and found.tensors["exp_avg_sq"] == {}
    assert torch.equal(found.tensors["compaction"]["selected_at.residual"], torch.arange(4))
    for kind, expected in (("parameters", old), ("exp_avg", moments)):
        assert all(torch.equal(found.tensors[kind][name], t) for name, t in from_format_1(expected).items())
    assert "qkv" in found.tensors["exp_avg"]
