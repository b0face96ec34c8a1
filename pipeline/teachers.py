"""Teachers: BERTs that others have trained, read from a directory or the hub, and what makes a BERT a teacher."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, BertForMaskedLM
from transformers.utils import logging as library_logging

from pipeline.errors import UserError


def attention_kernel() -> str:
    """The attention implementation that trains fastest here, in transformers' terms.

    On CPUs the backward pass of torch's fused kernel is slow: with 4 layers of 192 in bf16 at 128 tokens, plain matrix
    products train 1.4 times as fast, and at width 768 they are between 0.88 (fp32) and 1.12 (bf16) times as fast.
    """
    return "sdpa" if torch.cuda.is_available() else "eager"


def load_teacher(path: str, dropout: float) -> tuple[BertForMaskedLM, bool, list[str]]:
    """Load a BERT; returns the model, whether its MLM head is new, and notices for the user.

    Raises:
        UserError: it is missing, no BERT, or a BERT of a kind that cannot be compacted.
    """
    if not Path(path).is_dir() and (path.count("/") > 1 or path.startswith((".", "/", "~"))):
        raise UserError(f"teacher {path} does not exist: set teacher.path to a BERT directory or hub name")
    library_logging.set_verbosity_error()  # its load report would be said once per rank; what matters follows here
    library_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path)
        _check_teacher(path, config)
        model, info = BertForMaskedLM.from_pretrained(
            path,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            attn_implementation=attention_kernel(),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"teacher {path} cannot be loaded from disk or from the hub: {reason}") from error
    missing = set(info["missing_keys"])
    _check_weights(path, missing, set(info["unexpected_keys"]), [key for key, *_ in info["mismatched_keys"]])
    for parameter in model.parameters():
        # Loaded ones lie where the file has them, and kernels round differently on memory of other alignment.
        parameter.data = parameter.data.clone()
    head_is_new = any(key.startswith("cls.predictions.transform") for key in missing)
    notices = []
    if any("pooler" in key for key in info["unexpected_keys"]):
        notices.append("the teacher's pooler is dropped: MLM does not train it, fine-tuning makes a new one")
    if head_is_new:
        notices.append("the teacher has no MLM head: a new one is initialised and warmed up with the rest frozen")
    return model, head_is_new, notices


def _check_teacher(path: str, config: Any) -> None:
    if config.model_type != "bert":
        raise UserError(f"teacher {path} is a {config.model_type} model; only model_type bert can be compacted")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise UserError(f"teacher {path} uses {config.position_embedding_type} positions; only absolute ones work")
    if not config.tie_word_embeddings:
        raise UserError(f"teacher {path} has an untied MLM decoder; only tied ones can be compacted")
    if config.is_decoder or config.add_cross_attention:
        raise UserError(f"teacher {path} is a decoder; only BERT encoders can be compacted")


def _check_weights(path: str, missing: set[str], unexpected: set[str], mismatched: list[str]) -> None:
    """Refuse weights that are not those of the configuration: transformers fills such gaps with random numbers."""
    if mismatched:
        raise UserError(f"teacher {path}: {sorted(mismatched)[0]} has another size than its config.json says")
    if any(key.startswith("bert.") for key in missing):
        raise UserError(f"teacher {path} lacks the weights of {sorted(missing)[0]}: it is no complete BERT")
    surplus = [key for key in unexpected if "encoder.layer." in key]
    if surplus:
        raise UserError(f"teacher {path} has weights of {sorted(surplus)[0]}, which its config.json knows nothing of")
