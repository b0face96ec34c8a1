"""The model under evaluation: what a model directory must hold, and classifiers that start from its encoder.

Pooler and classifier are always new: masked-language modelling does not train a pooler, and one that a
checkpoint happens to carry would favour that checkpoint over others.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.data.tokenizer_source import (
    CONFIG_FILE,
    SOURCE_FILES,
    VOCABULARY_FILE,
    find_files,
    first_capital,
    holds_vocabulary,
    load_source,
    says_case,
)
from pipeline.errors import UserError, first_line
from pipeline.files import sha256_of
from pipeline.teachers import first_not_finite, quiet_transformers

MODEL_FILES = (".json", ".txt", ".model", ".safetensors", ".bin")
"""Endings of the files that make a model what it is."""
POOLER = "pooler."
MLM_BIAS = ("cls.predictions.bias", "cls.predictions.decoder.bias")
"""Two names of one tensor."""


@dataclass(frozen=True)
class Encoder:
    """A BERT encoder in memory: configuration, weights without pooler (fp32, on the CPU) and tokenizer."""

    config: Any
    weights: dict[str, torch.Tensor]
    tokenizer: Any


def silence_libraries() -> None:
    """No load reports, warnings and progress bars from the libraries, for the rest of the process.

    The load report lists the masked-LM head as unexpected, which is meant here; the Trainer imports DeepSpeed,
    which says on stdout that it found no GPU.
    """
    quiet_transformers()
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


def device() -> str:
    """Where the evaluation computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fingerprint(directory: Path) -> str:
    """SHA-256 over names and contents of the files that make the model: configuration, weights, tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.suffix in MODEL_FILES:
            digest.update(path.name.encode() + b"\0" + bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def check_directory(directory: Path) -> None:
    """Look whether this is a Hugging Face BERT with its tokenizer, without loading anything.

    Raises:
        UserError: it is not.
    """
    if not directory.is_dir():
        raise UserError(f"--model {directory}: there is no such directory")
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--model {directory}: it has no config.json, so it is no Hugging Face model") from None
    except ValueError:
        raise UserError(f"--model {directory}: its config.json is not readable as JSON") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "bert":
        raise UserError(f"--model {directory}: model type '{kind}' where 'bert' was expected")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UserError(f"--model {directory}: it has {positions} positions; only absolute ones can be evaluated")
    if not holds_vocabulary(find_files(directory)):
        # The library would quietly make a tokenizer of five tokens from the configuration alone.
        raise UserError(f"--model {directory}: it has no tokenizer (none of {', '.join(SOURCE_FILES[:-1])})")


def load_encoder(directory: Path) -> Encoder:
    """Read encoder and tokenizer from a model directory, whatever head or pooler the checkpoint carries.

    Raises:
        UserError: what `check_directory` refuses, files that cannot be loaded, encoder weights that are missing or
            unsound, or a tokenizer that does not fit the model.
    """
    from transformers import AutoModel

    silence_libraries()
    check_directory(directory)
    tokenizer = _load_tokenizer(directory)
    model, missing = _load_model(AutoModel, directory, add_pooling_layer=False)
    if missing:
        raise UserError(f"--model {directory}: {len(missing)} encoder weights are missing, such as {missing[0]}")
    if len(tokenizer) > model.config.vocab_size:
        sizes = f"{len(tokenizer):,} entries, the model's embeddings {model.config.vocab_size:,}"
        raise UserError(f"--model {directory}: its tokenizer has {sizes}")
    return Encoder(model.config, model.state_dict(), tokenizer)


def _load_tokenizer(directory: Path) -> Any:
    files = find_files(directory)
    tokenizer = load_source(directory, files)
    found = None if says_case(files) else first_capital(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    if found:
        raise UserError(
            f"--model {directory}: its {VOCABULARY_FILE} has capitals, as in {found[1]!r}, and nothing says how upper "
            f"case is treated: write do_lower_case, true or false, into its {CONFIG_FILE}"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(f"--model {directory}: its tokenizer has no padding token")
    return tokenizer


def load_masked_lm(directory: Path) -> tuple[Any, list[str]]:
    """Read a model directory as `BertForMaskedLM`; returns it with what the user should know.

    Raises:
        UserError: it cannot be loaded, its weights are unsound, or it has no MLM head.
    """
    from transformers import BertForMaskedLM

    model, missing = _load_model(BertForMaskedLM, directory)
    beyond_bias = [name for name in missing if name not in MLM_BIAS]
    if beyond_bias:
        raise UserError(f"--model {directory}: it has no MLM head (no {beyond_bias[0]})")
    notices = [f"--model {directory}: it has no MLM bias ({MLM_BIAS[0]}), zeros stand in its place"] if missing else []
    return model, notices


def load_classifier(directory: Path) -> Any:
    """Read a model directory as `BertForSequenceClassification`, with the head that it has.

    Raises:
        UserError: it cannot be loaded, its weights are unsound, or it has no classifier.
    """
    from transformers import BertForSequenceClassification

    model, missing = _load_model(BertForSequenceClassification, directory)
    if missing:
        raise UserError(f"--model {directory}: it has no classifier (no {missing[0]})")
    return model


def _load_model(kind: Any, directory: Path, **options: Any) -> tuple[Any, list[str]]:
    """The model in fp32 and the names of the weights that the checkpoint does not have.

    Raises:
        UserError: it cannot be loaded, or it holds other tensors than its configuration says, or no numbers.
    """
    model, info = _load(kind, directory, dtype=torch.float32, output_loading_info=True, **options)
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    wrapped = next((name for name in unexpected if missing and name.endswith(f".{missing[0]}")), None)
    if wrapped:
        prefix = wrapped.removesuffix(missing[0]).removesuffix("bert.")
        raise UserError(
            f"--model {directory}: its tensors have '{prefix}' before their names, as {wrapped}: save the model inside "
            "the wrapper, or rename the tensors"
        )
    for name in unexpected:
        if "encoder.layer." in name:
            raise UserError(f"--model {directory}: it has weights of {name}, which its config.json knows nothing of")
    if name := first_not_finite(model.state_dict()):
        raise UserError(f"--model {directory}: {name} has entries that are NaN or infinite")
    return model, missing


def _load(kind: Any, directory: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(directory, local_files_only=True, **options)
    except Exception as error:  # on damaged files the libraries fail in every way there is
        raise UserError(f"--model {directory}: it cannot be loaded ({first_line(error)})") from error


def fresh_classifier(encoder: Encoder, outputs: int, seed: int) -> torch.nn.Module:
    """A sequence classifier with the encoder's weights and a pooler and classifier drawn from `seed` alone.

    `outputs` is the number of classes, or 1 for regression. Both new layers start as the library would start
    them: normal with the configuration's `initializer_range`, biases 0.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(encoder.config)
    config.num_labels = outputs
    config.problem_type = "regression" if outputs == 1 else "single_label_classification"
    model = _around(encoder, config, AutoModelForSequenceClassification)
    _draw([model.base_model.pooler.dense, model.classifier], config.initializer_range, seed)
    return model


def fresh_span_head(encoder: Encoder, seed: int) -> torch.nn.Module:
    """A model for question answering with the encoder's weights and a span head drawn from `seed` alone.

    The head starts as those of `fresh_classifier` do.
    """
    from transformers import AutoModelForQuestionAnswering

    config = copy.deepcopy(encoder.config)
    config.num_labels = 2  # the logit of being the first token, and that of being the last one
    model = _around(encoder, config, AutoModelForQuestionAnswering)
    _draw([model.qa_outputs], config.initializer_range, seed)
    return model


def _around(encoder: Encoder, config: Any, kind: Any) -> Any:
    """A model of this kind with the encoder's weights, and whatever the library starts the other ones with."""
    # Fused attention kernels have no deterministic backward on GPUs.
    model = kind.from_config(config, attn_implementation="eager", dtype=torch.float32)
    missing, unexpected = model.base_model.load_state_dict(encoder.weights, strict=False)
    if unexpected or any(not name.startswith(POOLER) for name in missing):
        raise RuntimeError(f"encoder and new model do not fit: missing {missing}, unexpected {unexpected}")
    return model


def _draw(layers: Sequence[torch.nn.Linear], spread: float, seed: int) -> None:
    """Draw weights (normal, of this standard deviation) from `seed` alone, layer by layer; biases are 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(0.0, spread, generator=generator)
            layer.bias.zero_()
