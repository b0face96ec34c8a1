"""From and to Hugging Face's BERT."""

import copy
import json
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM
from transformers.activations import ACT2FN

from pipeline.models.encoder import Form, Tensors
from pipeline.shapes import BertShape


def shape_of(config: BertConfig) -> BertShape:
    """The sizes in a Hugging Face BERT configuration."""
    return BertShape.from_config(config.to_dict())


def save_config(config: BertConfig) -> dict[str, Any]:
    """A configuration as plain JSON values, for a checkpoint."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return values


def form_of(config: BertConfig) -> Form:
    """What the configuration says of a BERT besides its sizes."""
    activation = config.hidden_act
    return Form(
        tables=(config.vocab_size, config.max_position_embeddings, config.type_vocab_size),
        heads=config.num_attention_heads,
        score_scale=1 / math.sqrt(config.hidden_size // config.num_attention_heads),
        epsilon=config.layer_norm_eps,
        activation=ACT2FN[activation] if isinstance(activation, str) else activation,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
    )


@torch.no_grad()
def tensors_of(model: BertForMaskedLM) -> dict[str, Tensor]:
    """The tensors of a BERT as the encoder wants them; copies."""
    embeddings, head = model.bert.embeddings, model.cls.predictions
    tables = (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings)
    norms = _norms(model)
    tensors = {
        "tables": torch.cat([table.weight for table in tables]),
        "norm_gain": torch.stack([norm.weight for norm in norms]),
        "norm_bias": torch.stack([norm.bias for norm in norms]),
    }
    for name, layers in _linears(model).items():
        tensors[name] = torch.stack([torch.cat([part.weight for part in parts]) for parts in layers])
        tensors[f"{name}_bias"] = torch.stack([torch.cat([part.bias for part in parts]) for parts in layers])
    transform_norm = head.transform.LayerNorm
    tensors["transform_norm_gain"] = transform_norm.weight.clone()
    tensors["transform_norm_bias"] = transform_norm.bias.clone()
    tensors["decoder_bias"] = head.decoder.bias.clone()
    return {name: tensor.detach() for name, tensor in tensors.items()}


@torch.no_grad()
def bert_of(tensors: Tensors, config: BertConfig) -> BertForMaskedLM:
    """A Hugging Face BERT that holds these tensors, in their type, in evaluation mode.

    Args:
        tensors: those of `encoder.SHAPES`.
        config: of their sizes.
    """
    model = BertForMaskedLM(copy.deepcopy(config)).to(tensors["tables"].dtype)
    embeddings, head = model.bert.embeddings, model.cls.predictions
    tables = (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings)
    for table, values in zip(tables, tensors["tables"].split(form_of(config).tables), strict=True):
        table.weight.copy_(values)
    for norm, gain, bias in zip(_norms(model), tensors["norm_gain"], tensors["norm_bias"], strict=True):
        norm.weight.copy_(gain)
        norm.bias.copy_(bias)
    for name, layers in _linears(model).items():
        for parts, weight, bias in zip(layers, tensors[name], tensors[f"{name}_bias"], strict=True):
            sizes = [len(part.weight) for part in parts]
            for part, rows, values in zip(parts, weight.split(sizes), bias.split(sizes), strict=True):
                part.weight.copy_(rows)
                part.bias.copy_(values)
    head.transform.LayerNorm.weight.copy_(tensors["transform_norm_gain"])
    head.transform.LayerNorm.bias.copy_(tensors["transform_norm_bias"])
    head.decoder.bias.copy_(tensors["decoder_bias"])
    return model.eval()


def _norms(model: BertForMaskedLM) -> list[nn.LayerNorm]:
    """The LayerNorms of the encoder, in the order of the stack."""
    layers = model.bert.encoder.layer
    pairs = [(layer.attention.output.LayerNorm, layer.output.LayerNorm) for layer in layers]
    return [model.bert.embeddings.LayerNorm, *(norm for pair in pairs for norm in pair)]


def _linears(model: BertForMaskedLM) -> dict[str, list[list[nn.Linear]]]:
    """For each stack of linear layers what lies in it: for every layer the parts that stand below one another."""
    layers = model.bert.encoder.layer
    heads = [layer.attention.self for layer in layers]
    return {
        "qkv": [[h.query, h.key, h.value] for h in heads],
        "attention_out": [[layer.attention.output.dense] for layer in layers],
        "ffn_in": [[layer.intermediate.dense] for layer in layers],
        "ffn_out": [[layer.output.dense] for layer in layers],
        "transform": [[model.cls.predictions.transform.dense]],
    }
