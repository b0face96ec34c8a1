"""Documents kept apart: attention against a naive one in float64, and a real run that is interrupted."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from pipeline.models.encoder import encode
from pipeline.models.plain import PlainBert
from tests.support.models import compacted, random_teacher, token_batch, use_attention
from tests.support.runs import prepare, recipe_values, run_train_worker, train_command, write_recipe

DOCUMENTS = torch.tensor([[0] * 6 + [1] * 7 + [2] * 3, [0] * 16, [0] + [1] * 15, list(range(16))])


def naive_logits(bert, ids):
    """BERT from its definition, each token with a softmax over the tokens of its own document and no other."""
    embeddings, heads = bert.bert.embeddings, bert.config.num_attention_heads
    hidden = embeddings.word_embeddings.weight[ids] + embeddings.position_embeddings.weight[: ids.shape[1]]
    hidden = embeddings.LayerNorm(hidden + embeddings.token_type_embeddings.weight[0])
    for layer in bert.bert.encoder.layer:
        own = layer.attention.self
        q, k, v = (linear(hidden).unflatten(-1, (heads, -1)) for linear in (own.query, own.key, own.value))
        context = torch.zeros_like(q)
        for row, numbers in enumerate(DOCUMENTS):
            for token, number in enumerate(numbers):
                mine = numbers == number
                scores = torch.einsum("hd,thd->ht", q[row, token], k[row, mine]) / math.sqrt(q.shape[-1])
                context[row, token] = torch.einsum("ht,thd->hd", scores.softmax(-1), v[row, mine])
        attended = layer.attention.output.dense(context.flatten(-2))
        hidden = layer.attention.output.LayerNorm(hidden + attended)
        inner = F.gelu(layer.intermediate.dense(hidden))
        hidden = layer.output.LayerNorm(hidden + layer.output.dense(inner))
    return bert.cls(hidden)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["plain", "compacted"])
@torch.no_grad()
def test_attention_stays_within_documents(fused, kind, monkeypatch):
    bert, ids = random_teacher().double().eval(), token_batch()
    expected = naive_logits(bert, ids)
    together = bert(input_ids=ids).logits
    use_attention(monkeypatch, fused)
    model = PlainBert(bert) if kind == "plain" else compacted(bert, 12, 4, "dim").eval()
    apart = encode(model(), model.form, ids, documents=DOCUMENTS)
    assert float((apart - expected).abs().max()) <= 1e-12
    assert float((apart[1] - together[1]).abs().max()) <= 1e-12  # one document: nothing to keep apart
    assert all(float((apart[row] - together[row]).abs().max()) > 0.1 for row in (0, 2, 3))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_leaks_in_any_precision(fused, dtype, monkeypatch):
    """Another neighbour changes not a bit of a document, nor of the gradient of its loss."""
    bert = random_teacher()
    use_attention(monkeypatch, fused)
    model = compacted(bert, 12, 4, "dim").to(dtype)
    found = []
    for seed in (1, 2):
        ids = token_batch(seed=3)
        ids[0, 6:13] = token_batch(seed=seed)[0, 6:13]
        model.zero_grad()
        logits = encode(model(), model.form, ids[:1], documents=DOCUMENTS[:1])[0]
        logits[:6].float().square().sum().backward()
        found.append((logits.detach(), model.qkv_row_delta.grad[2]))
    (first, gradient), (second, other_gradient) = found
    assert torch.equal(first[:6], second[:6]) and torch.equal(first[13:], second[13:])
    assert not torch.equal(first[6:13], second[6:13])
    assert torch.equal(gradient, other_gradient) and bool(gradient.isfinite().all()) and bool(gradient.any())


def test_a_run_with_documents_apart_resumes_bit_for_bit(tmp_path):
    inputs = prepare(tmp_path)
    recipes = {}
    for name, apart in (("together", False), ("apart", True)):
        sections = {"data": {"separate_documents": apart}, "train": {"evaluate_every": 1}}
        values = recipe_values(inputs["shards"], inputs["teacher"], **sections)
        recipes[name] = write_recipe(tmp_path / f"{name}.yaml", values)
    jobs = [train_command(inputs, tmp_path / name, config=recipe) for name, recipe in recipes.items()]
    run_train_worker(tmp_path, *jobs)
    shutil.copytree(tmp_path / "apart", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_4")
    run_train_worker(tmp_path, train_command(inputs, tmp_path / "resumed", config=recipes["apart"]))

    def records(name: str) -> list[tuple[float, float]]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [(record["loss"], record["heldout_loss"]) for record in map(json.loads, lines)]

    assert records("resumed") == records("apart")
    for (loss, heldout), (other_loss, other_heldout) in zip(records("apart"), records("together"), strict=True):
        assert loss != other_loss and heldout != other_heldout
    weights = [
        load_file(tmp_path / name / "checkpoints" / "step_4" / "parameters.safetensors")
        for name in ("apart", "resumed")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
