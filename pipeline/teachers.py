"""Teachers: BERTs that others have trained, read from a directory or the hub, and what makes a BERT a teacher."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, BertForMaskedLM
from transformers.utils import logging as library_logging

from pipeline.data.tokenizer_source import find_files, holds_vocabulary, load_source
from pipeline.errors import UserError

NEW_HEAD = "the teacher has no MLM head: a new one is initialised and warmed up with the rest frozen"
"""What the user is told of such a teacher."""
_WORDS = "embeddings.word_embeddings.weight"
_BIAS = "cls.predictions.bias"
_TRANSFORM = {
    f"cls.predictions.transform.{layer}.{kind}" for layer in ("dense", "LayerNorm") for kind in ("weight", "bias")
}
"""What an MLM head consists of besides the tied decoder and its bias."""


def quiet_transformers() -> None:
    """No warnings, load reports and progress bars from transformers, for the rest of the process.

    Every rank would say them, and what matters of them is said here in a sentence.
    """
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()


def load_teacher(path: str, dropout: float) -> tuple[BertForMaskedLM, bool, list[str]]:
    """Load a BERT; returns the model, whether its MLM head is new, and notices for the user.

    Raises:
        UserError: it is missing, no BERT, a BERT of a kind that cannot be compacted, or not whole.
    """
    if not Path(path).is_dir() and (path.count("/") > 1 or path.startswith((".", "/", "~"))):
        raise UserError(f"teacher {path} does not exist: set teacher.path to a BERT directory or hub name")
    notices = []
    generator = torch.get_rng_state()
    model, info = _read(path, dropout)
    if prefix := _wrapper_prefix(info):
        notices.append(f"the teacher's weights have names that begin with {prefix}, as a wrapper leaves them: cut off")
        torch.set_rng_state(generator)
        model, info = _read(path, dropout, {f"^{re.escape(prefix)}": ""})
    _check_names(path, info)
    _check_values(path, model)
    for parameter in model.parameters():
        # Loaded ones lie where the file has them, and kernels round differently on memory of other alignment.
        parameter.data = parameter.data.clone()
    if any("pooler" in key for key in info["unexpected_keys"]):
        notices.append("the teacher's pooler is dropped: MLM does not train it, fine-tuning makes a new one")
    head_is_new = info["missing_keys"] >= _TRANSFORM
    if head_is_new:
        notices.append(NEW_HEAD)
    elif _BIAS in info["missing_keys"]:
        notices.append("the teacher's MLM head has no bias over the vocabulary: it starts at zero")
    return model, head_is_new, notices


def fit_vocabulary(teacher: BertForMaskedLM, path: str, vocab_size: int) -> list[str]:
    """Cut off the rows of padding that many BERTs have beyond their tokenizer's ids; notices for the user.

    They are rows of the embeddings, and of the tied decoder with its bias. No token has their ids, so no input meets
    them; the student need not carry them, and its tokenizer would not know them.

    Args:
        teacher: as `load_teacher` gives it.
        path: its directory or hub name.
        vocab_size: of the shards.

    Raises:
        UserError: the shards have more tokens, or the teacher's own tokenizer has not just as many.
    """
    rows = teacher.config.vocab_size
    if rows == vocab_size:
        return []
    if rows < vocab_size or _tokenizer_size(path) != vocab_size:
        raise UserError(
            f"teacher {path} has {rows} tokens and the shards have {vocab_size}: "
            "build the shards with the teacher's tokenizer"
        )
    teacher.resize_token_embeddings(vocab_size, mean_resizing=False)
    return [f"the teacher's embeddings have {rows} rows for {vocab_size} tokens: the rows of padding are cut off"]


def _tokenizer_size(path: str) -> int | None:
    """One more than the largest id of the teacher's own tokenizer; None without one."""
    try:
        files = find_files(path)
    except (OSError, ValueError):
        return None
    return max(load_source(path, files).get_vocab().values()) + 1 if holds_vocabulary(files) else None


def _read(path: str, dropout: float, renaming: dict[str, str] | None = None) -> tuple[BertForMaskedLM, dict[str, Any]]:
    """The model, new where the file has no weights, and what transformers says of the names of the weights.

    Args:
        path: directory or hub name.
        dropout: for hidden states and attention alike.
        renaming: regular expressions for parts of names in the file, and what is to stand there.
    """
    try:
        config = AutoConfig.from_pretrained(path)
        _check_config(path, config)
        model, info = BertForMaskedLM.from_pretrained(
            path,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            key_mapping=renaming,
        )
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"teacher {path} cannot be loaded from disk or from the hub: {reason}") from error
    return model, info


def _check_config(path: str, config: Any) -> None:
    if config.model_type != "bert":
        raise UserError(f"teacher {path} is a {config.model_type} model; only model_type bert can be compacted")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise UserError(f"teacher {path} uses {config.position_embedding_type} positions; only absolute ones work")
    if not config.tie_word_embeddings:
        raise UserError(f"teacher {path} has an untied MLM decoder; only tied ones can be compacted")
    if config.is_decoder or config.add_cross_attention:
        raise UserError(f"teacher {path} is a decoder; only BERT encoders can be compacted")


def _wrapper_prefix(info: dict[str, Any]) -> str:
    """What stands before every name in a file that was saved from inside a wrapper; empty if nothing does.

    Data-parallel training leaves `module.`, torch.compile `_orig_mod.`.
    """
    if f"bert.{_WORDS}" not in info["missing_keys"]:
        return ""
    tables = [key.removesuffix(_WORDS) for key in info["unexpected_keys"] if key.endswith(f".{_WORDS}")]
    return tables[0].removesuffix("bert.") if len(tables) == 1 else ""


def _check_names(path: str, info: dict[str, Any]) -> None:
    """Refuse weights that are not those of the configuration: transformers fills such gaps with random numbers."""
    missing = info["missing_keys"]
    if info["mismatched_keys"]:
        name = min(key for key, *_ in info["mismatched_keys"])
        raise UserError(f"teacher {path}: {name} has another size than its config.json says")
    if any(key.startswith("bert.") for key in missing):
        raise UserError(f"teacher {path} lacks the weights of {min(missing)}: it is no complete BERT")
    if (lost := _TRANSFORM & missing) and lost != _TRANSFORM:
        raise UserError(
            f"teacher {path} has an MLM head without {min(lost)}: take a whole copy, or remove the rest of the head "
            "(cls.predictions), and a new one is trained"
        )
    surplus = [key for key in info["unexpected_keys"] if "encoder.layer." in key]
    if surplus:
        raise UserError(f"teacher {path} has weights of {min(surplus)}, which its config.json knows nothing of")


def _check_values(path: str, model: BertForMaskedLM) -> None:
    """Refuse weights that no training can start from, and a decoder of its own where the configuration says tied.

    transformers ties what is equal in the file, or there only once, and leaves apart what differs.
    """
    if name := first_not_finite(dict(model.named_parameters())):
        raise UserError(f"teacher {path} holds NaN or infinity in {name}: no loss would be a number; take a sound copy")
    head = model.cls.predictions
    for own, other, what in (
        (head.decoder.weight, model.bert.embeddings.word_embeddings.weight, "weight, which is not the word embeddings"),
        (head.decoder.bias, head.bias, "bias, which is not cls.predictions.bias"),
    ):
        if own is not other:
            raise UserError(
                f"teacher {path} has an untied MLM decoder (its file holds a cls.predictions.decoder.{what}); only "
                "tied ones can be compacted"
            )


def first_not_finite(parameters: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, with which no loss is ever a number; None if none."""
    return next((name for name, values in parameters.items() if not values.isfinite().all()), None)
