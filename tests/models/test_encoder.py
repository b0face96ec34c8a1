"""The one BERT against transformers': logits, gradients, segments, documents apart, positions, dropout, all sizes."""

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM

from pipeline.models.encoder import SHAPES, encode
from pipeline.models.huggingface import bert_of, form_of, tensors_of
from pipeline.models.loss import masked_lm_loss
from pipeline.models.plain import PlainBert
from tests.support.models import random_teacher, token_batch, use_attention

ACTIVATIONS = ["gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh", "quick_gelu", "tanh"]


def configured(**changes) -> BertForMaskedLM:
    """A random BERT in which every tensor matters."""
    model = random_teacher(2)
    values = {**model.config.to_dict(), **changes}
    torch.manual_seed(1)
    made = BertForMaskedLM(BertConfig.from_dict(values))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    model, ids = configured(hidden_act=activation), token_batch()
    expected = model(input_ids=ids).logits
    assert worst(encode(tensors_of(model), form_of(model.config), ids), expected) <= 1e-5


@pytest.mark.parametrize("heads,head_size", [(2, 16), (3, 43), (1, 64), (2, 64), (12, 16)])
@pytest.mark.parametrize("fused", [True, False])
def test_every_head_size_and_both_kernels(heads, head_size, fused, monkeypatch):
    model = configured(hidden_size=heads * head_size, num_attention_heads=heads, intermediate_size=70)
    use_attention(monkeypatch, fused)
    form = form_of(model.config)
    ids = token_batch()
    assert worst(encode(tensors_of(model), form, ids), model(input_ids=ids).logits) <= 1e-5


def test_all_gradients_are_those_of_transformers():
    model, labels = configured(layer_norm_eps=1e-3).double(), token_batch(seed=9)
    ids = token_batch().clamp(min=1)  # transformers gives the row of padding, 0, no gradient as an input
    F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), labels.flatten()).backward()
    plain = PlainBert(model)
    loss, _ = masked_lm_loss(encode(plain(), plain.form, ids), labels)
    loss.backward()
    theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
    with torch.no_grad():
        ours = bert_of({name: parameter.grad for name, parameter in plain.named_parameters()}, model.config)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("apart", [False, True])
def test_positions_pick_logits_and_their_gradients(apart, fused, monkeypatch):
    use_attention(monkeypatch, fused)
    model, ids = configured(num_hidden_layers=3).double(), token_batch()
    documents = (torch.arange(16) >= torch.tensor([[4], [9], [2], [16]])).long() if apart else None
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors_of(model).items()}
    positions = torch.tensor([[0, 3, 15], [7, 7, 2], [1, 2, 3], [15, 0, 8]])
    everywhere = encode(tensors, form_of(model.config), ids, documents=documents)
    whole = everywhere.gather(1, positions[..., None].expand(-1, -1, everywhere.shape[-1]))
    picked = encode(tensors, form_of(model.config), ids, positions, documents=documents)
    torch.testing.assert_close(picked, whole, rtol=0, atol=1e-12)
    direction = torch.randn_like(picked)
    for one, other in zip(
        torch.autograd.grad(picked, list(tensors.values()), direction),
        torch.autograd.grad(whole, list(tensors.values()), direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_one_layer_and_segments():
    model, ids = configured(num_hidden_layers=1), token_batch()
    segments = (torch.arange(ids.shape[1]) >= 7).long().expand_as(ids)
    expected = model(input_ids=ids, token_type_ids=segments).logits
    assert worst(encode(tensors_of(model), form_of(model.config), ids, segment_ids=segments), expected) <= 1e-5


@pytest.mark.parametrize("fused", [True, False])
def test_documents_apart_see_nothing_of_each_other(fused, monkeypatch):
    model, ids = configured().double(), token_batch(batch=2)
    use_attention(monkeypatch, fused)
    tensors, form = tensors_of(model), form_of(model.config)
    documents = (torch.arange(16) >= 6).long().expand_as(ids)
    apart = encode(tensors, form, ids, documents=documents)
    first = encode(tensors, form, ids[:, :6])
    torch.testing.assert_close(apart[:, :6], first, rtol=0, atol=1e-12)
    other = ids.clone()
    other[:, :6] = (other[:, :6] + 5) % 61
    assert torch.equal(encode(tensors, form, other, documents=documents)[:, 6:], apart[:, 6:])
    assert not torch.equal(encode(tensors, form, other)[:, 6:], encode(tensors, form, ids)[:, 6:])


def test_dropout_is_on_in_training_alone():
    model, ids = configured(hidden_dropout_prob=0.03, attention_probs_dropout_prob=0.03), token_batch()
    tensors, form = tensors_of(model), form_of(model.config)
    torch.manual_seed(3)
    first, second = (encode(tensors, form, ids, training=True) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(encode(tensors, form, ids, training=True), first) and not torch.equal(first, second)
    assert torch.equal(encode(tensors, form, ids), encode(tensors, form, ids))
    # Its mean over many draws is what the model computes without: nothing is scaled twice or not at all.
    linear = encode(tensors, form, ids)
    mean = torch.stack([encode(tensors, form, ids, training=True) for _ in range(200)]).mean(0)
    assert float((mean - linear).norm() / linear.norm()) < 0.05


def test_the_way_to_transformers_and_back():
    model = configured(type_vocab_size=3)
    tensors = tensors_of(model)
    assert list(tensors) == list(SHAPES)
    back = bert_of(tensors, model.config)
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())
    assert back.cls.predictions.decoder.weight is back.bert.embeddings.word_embeddings.weight
    again = PlainBert(model).bert()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
