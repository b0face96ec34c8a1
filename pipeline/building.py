"""The models a run can train: a teacher with its compactors, a teacher as it is, or a new BERT."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from pipeline.compaction.model import CompactedBert
from pipeline.config import Recipe, TargetConfig
from pipeline.data.cooccurrence import TokenStatistics, ppmi_embeddings
from pipeline.errors import UserError
from pipeline.models.huggingface import shape_of
from pipeline.models.plain import PlainBert
from pipeline.shapes import BertShape
from pipeline.teacher_files import head_warmup_fault, resolve_student
from pipeline.teachers import attention_kernel, fit_vocabulary, load_teacher

DEFAULT_POSITIONS = 512
BERT_BASE_HIDDEN, BERT_BASE_RANGE = 768, 0.02
"""BERT's standard deviation of initial weights is right for its width; other widths are scaled to equal outputs."""


@dataclass
class BuiltModel:
    """A model to train, the Hugging Face configuration it was built from, and what the user should know."""

    module: PlainBert | CompactedBert
    bert_config: BertConfig
    head_is_new: bool
    notices: list[str]


def build_model(recipe: Recipe, vocab_size: int) -> BuiltModel:
    """The model that a new run starts from.

    Raises:
        UserError: the teacher cannot be used, or the target is no BERT that it can become.
    """
    torch.manual_seed(recipe.train.seed)
    if recipe.method == "scratch":
        config = _scratch_config(recipe, vocab_size)
        model = BertForMaskedLM(config)
        _start_positions(model.bert.embeddings.position_embeddings.weight, config.initializer_range)
        return _built(recipe, PlainBert(model), head_is_new=False, notices=[])
    teacher, head_is_new, notices = load_teacher(str(recipe.teacher.path), recipe.train.dropout)
    notices += fit_vocabulary(teacher, str(recipe.teacher.path), vocab_size)
    if recipe.data.seq_len > teacher.config.max_position_embeddings:
        raise UserError(
            f"data.seq_len {recipe.data.seq_len} is longer than the teacher's "
            f"{teacher.config.max_position_embeddings} positions"
        )
    if recipe.method == "continue":
        return _built(recipe, PlainBert(teacher), head_is_new, notices)
    if head_is_new and (fault := head_warmup_fault(recipe)):
        raise UserError(fault)
    return _built(recipe, compact(recipe, teacher), head_is_new, notices)


def _built(recipe: Recipe, module: PlainBert | CompactedBert, head_is_new: bool, notices: list[str]) -> BuiltModel:
    return BuiltModel(module, module.config, head_is_new, [*notices, *describe_model(recipe, module)])


def describe_model(recipe: Recipe, module: PlainBert | CompactedBert) -> list[str]:
    """What the user should know of every model: the sizes it has and those it is to get."""
    if recipe.method == "scratch":
        return [f"training from scratch: {shape_of(module.config)}"]
    sentences = [f"teacher: {shape_of(module.config)}"]
    if isinstance(module, CompactedBert):
        params = recipe.target.params
        word = "student" if params is None else f"target.params {params}: the nearest legal student has"
        sentences.append(f"{word}: {module.target}")
    return sentences


@torch.no_grad()
def start_from_counts(module: PlainBert, statistics: TokenStatistics) -> None:
    """Set the word embeddings to PPMI factors and the decoder bias to the log frequencies of the training text."""
    word = module.get_parameter("tables")[: module.config.vocab_size]
    word.copy_(ppmi_embeddings(statistics, word.shape[1], scale=module.config.initializer_range))
    share = torch.from_numpy(statistics.frequencies / statistics.frequencies.sum())
    module.get_parameter("decoder_bias").copy_(share.log())


def rebuild_model(recipe: Recipe, bert_config: dict[str, Any]) -> PlainBert | CompactedBert:
    """The same model as `build_model` made, without weights to start from: a checkpoint brings them."""
    config = BertConfig.from_dict(bert_config)
    model = BertForMaskedLM._from_config(config, attn_implementation=attention_kernel())
    return compact(recipe, model) if recipe.method == "wid" else PlainBert(model)


@torch.no_grad()
def load_parameters(module: nn.Module, parameters: dict[str, Tensor]) -> None:
    """Copy a checkpoint's parameters in. Tied ones have one name there, which `load_state_dict` would not accept.

    Raises:
        UserError: the names are not those of this model.
    """
    own = dict(module.named_parameters())
    if own.keys() != parameters.keys():
        odd = sorted(own.keys() ^ parameters.keys())[0]
        raise UserError(f"the checkpoint does not fit the recipe's model: {odd} is in one of them only")
    for name, parameter in own.items():
        parameter.copy_(parameters[name])


def compact(recipe: Recipe, teacher: BertForMaskedLM) -> CompactedBert:
    """Wrap a teacher as the recipe says."""
    target = resolve_student(recipe, shape_of(teacher.config))
    penalty = recipe.compaction.decay == "penalty"
    return CompactedBert(teacher, target, recipe.compaction.strategy, stops_gradient=penalty)


def _scratch_config(recipe: Recipe, vocab_size: int) -> BertConfig:
    shape = _scratch_shape(recipe.target, vocab_size, max(DEFAULT_POSITIONS, recipe.data.seq_len))
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        initializer_range=BERT_BASE_RANGE * math.sqrt(BERT_BASE_HIDDEN / shape.hidden),
        max_position_embeddings=shape.positions,
        hidden_dropout_prob=recipe.train.dropout,
        attention_probs_dropout_prob=recipe.train.dropout,
        attn_implementation=attention_kernel(),
    )


@torch.no_grad()
def _start_positions(table: Tensor, scale: float) -> None:
    """Set position embeddings (positions, hidden) to sines and cosines of standard deviation `scale`.

    They train on from there. The waves are those of Vaswani et al. 2017, section 3.5. With random ones, attention has
    to learn every pair of positions before it finds out about neighbours.
    """
    positions, hidden = table.shape
    column = torch.arange(hidden)
    angles = torch.arange(positions)[:, None] * 10000.0 ** (-(column - column % 2) / hidden)
    table.copy_(torch.where(column % 2 == 0, angles.sin(), angles.cos()) * scale * math.sqrt(2))


def _scratch_shape(target: TargetConfig, vocab_size: int, positions: int) -> BertShape:
    """The shape in the target section; `params` picks the nearest hidden size for the given layers."""
    layers, head_size = target.layers or 12, target.head_size or 64

    def shape(heads: int) -> BertShape:
        hidden = heads * head_size
        return BertShape(layers, hidden, heads, target.intermediate or 4 * hidden, vocab_size, positions)

    params = target.parameter_count()
    if params is not None:
        if target.hidden is not None:
            raise UserError("give either target.params or target.hidden, not both")
        return min((shape(heads) for heads in range(1, 129)), key=lambda s: abs(s.parameters - params))
    if target.hidden is None or target.hidden % head_size:
        raise UserError(
            f"method scratch needs target.hidden as a multiple of target.head_size {head_size} (or target.params), "
            f"not {target.hidden}"
        )
    return shape(target.hidden // head_size)
