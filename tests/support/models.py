"""Small random BERTs for the tests."""

import torch
from transformers import BertConfig, BertForMaskedLM

from pipeline.compaction.model import CompactedBert
from pipeline.models import attention
from pipeline.models.encoder import encode
from pipeline.models.plain import PlainBert
from pipeline.shapes import BertShape, Strategy


def random_teacher(
    layers: int = 2, hidden: int = 24, heads: int = 3, vocab: int = 61, intermediate: int | None = None, seed: int = 0
) -> BertForMaskedLM:
    """A BERT without dropout whose biases and gains are random too, so that a forgotten one shows."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate or 4 * hidden,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embeddings" not in name:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    return model


def use_attention(monkeypatch, fused: bool) -> None:
    """Attention through the fused kernel, or as plain products, whatever is faster here."""
    monkeypatch.setattr(attention, "fused_is_faster", lambda query, dropout: fused)


def compacted(
    teacher: BertForMaskedLM, hidden: int, head_size: int, strategy: Strategy, intermediate: int | None = None
) -> CompactedBert:
    config = teacher.config
    target = BertShape(
        layers=config.num_hidden_layers,
        hidden=hidden,
        heads=hidden // head_size,
        intermediate=intermediate or 4 * hidden,
        vocab_size=config.vocab_size,
        positions=config.max_position_embeddings,
    )
    return CompactedBert(teacher, target, strategy)


def randomise_compactors(model: CompactedBert, scale: float = 0.3, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_delta"):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(noise * scale / parameter.shape[-1] ** 0.5)


def close_random_gates(model: CompactedBert, seed: int = 2) -> None:
    """Retire random dimensions, as many as the target asks for, at once."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.empty_like(model.gates.value)
    for name, part in model.gates.split(value).items():
        group = model.gates.groups[name]
        blocks = torch.zeros(group.blocks, group.size // group.blocks // group.unit, group.unit)
        for block in blocks:
            block[torch.randperm(len(block), generator=generator)[: len(block) - group.units_to_retire]] = 1.0
        part.copy_(blocks.flatten())
    model.gates.set(value, value == 0)


def set_gate(model: CompactedBert, group: str, values: torch.Tensor) -> None:
    """Set the gates of one group; what is below 1 counts as retired."""
    value = model.gates.value.detach().clone()
    model.gates.split(value)[group].copy_(values)
    model.gates.set(value, value < 1)


def logits(model: CompactedBert | PlainBert, ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Composed anew, everywhere, in training mode as the module says."""
    return encode(model(), model.form, ids, training=model.training, **inputs)


def token_batch(vocab: int = 61, batch: int = 4, tokens: int = 16, seed: int = 3) -> torch.Tensor:
    return torch.randint(vocab, (batch, tokens), generator=torch.Generator().manual_seed(seed))
