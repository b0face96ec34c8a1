"""The one way to write a tokenizer, and how it is read from there.

A directory that `write_tokenizer` wrote holds

    tokenizer.json          what the tokenizers library reads, without truncation and padding
    tokenizer_config.json   what transformers reads beside it, the same on every machine
    vocab.txt               WordPiece: for tools that read nothing else, if they can get the same ids from it
    shards.model            SentencePiece: the model that makes the ids, where there is one
    vocab.json, merges.txt  other BPE
"""

import json
import os
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.data.probe import ids_of, probe_texts
from pipeline.data.tokenizer_source import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    load_auto,
    wordpiece_tokenizer,
)
from pipeline.errors import UserError

MODEL_FILE = "shards.model"
"""A SentencePiece model lies in a tokenizer directory under this name: it, not `TOKENIZER_FILE`, makes the ids."""
_LOADING_NOTES = ("is_local", "local_files_only", "name_or_path", "cache_dir", "token", "use_auth_token")
"""What transformers remembers of how it loaded a tokenizer; it differs between machines."""
_BATCH_NOTES = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id")
"""What transformers copies from truncation and padding in `TOKENIZER_FILE`."""
_ROLES = ("pad", "unk", "cls", "sep", "mask")


def load_fast(directory: Path) -> Tokenizer:
    """The tokenizer of a directory that `write_tokenizer` wrote, as the Rust object that encodes batches."""
    tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def write_tokenizer(tokenizer: Any, output: Path, sentencepiece_model: Path | None = None) -> None:
    """Write a transformers tokenizer to the directory `output`, and check what loads from there.

    Args:
        tokenizer: to write.
        output: directory that exists.
        sentencepiece_model: what makes the ids, if `tokenizer` was not loaded from a directory with a `MODEL_FILE`.

    Raises:
        UserError: it is not fit for masked-language modelling, or `AutoTokenizer` gives other ids from `output`.
    """
    absent = [role for role in _ROLES if getattr(tokenizer, f"{role}_token") is None]
    if absent:
        raise UserError(f"the tokenizer has no {', '.join(absent)} token, which masked-language modelling needs")
    tokenizer.save_pretrained(output)
    if not (output / TOKENIZER_FILE).is_file():
        raise UserError(f"the tokenizer ({type(tokenizer).__name__}) has no fast version ({TOKENIZER_FILE})")
    fast = _without_truncation(output / TOKENIZER_FILE)
    if vocabulary_size(fast) != fast.get_vocab_size():
        raise UserError(f"the tokenizer's {fast.get_vocab_size()} ids are not 0 to {fast.get_vocab_size() - 1}")
    options = _write_native_files(tokenizer, fast, output, sentencepiece_model)
    _rewrite_config(output / CONFIG_FILE, options)
    # The shards get their ids from the fast tokenizer, everyone else from AutoTokenizer.
    if not _same_ids(load_auto(output), fast):
        raise UserError(f"the tokenizer ({type(tokenizer).__name__}) gives other ids once AutoTokenizer has loaded it")


def _without_truncation(path: Path) -> Tokenizer:
    """Drop truncation and padding from a tokenizer.json: they are a matter of batches, and not all tools undo them."""
    tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.truncation or tokenizer.padding:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.save(str(path))
    return tokenizer


def _write_native_files(tokenizer: Any, fast: Tokenizer, output: Path, sentencepiece_model: Path | None) -> dict:
    """Write what tools read that know no tokenizer.json; returns the options that they need in the configuration."""
    kind = type(fast.model).__name__
    own = Path(getattr(tokenizer, "vocab_file", None) or "")
    if sentencepiece_model is None and tokenizer.name_or_path:
        beside = Path(tokenizer.name_or_path) / MODEL_FILE
        sentencepiece_model = beside if beside.is_file() else None
    if sentencepiece_model:
        shutil.copyfile(sentencepiece_model, output / MODEL_FILE)
    elif own.suffix == ".model" and own.is_file():
        shutil.copyfile(own, output / own.name)
    elif kind == "BPE":
        fast.model.save(str(output))
    elif kind == "WordPiece":
        return _write_vocabulary(tokenizer, fast, output)
    return {}


def _write_vocabulary(tokenizer: Any, fast: Tokenizer, output: Path) -> dict:
    """Write a vocab.txt if `BertTokenizer` gets the same ids from it; returns the options that it does so with."""
    normalizer = json.loads((output / TOKENIZER_FILE).read_bytes())["normalizer"] or {}
    ids = fast.get_vocab(with_added_tokens=True)
    vocabulary = sorted(ids, key=ids.__getitem__)
    if normalizer.get("type") != "BertNormalizer" or any("\n" in token or "\r" in token for token in vocabulary):
        return {}
    options = {
        "do_lower_case": normalizer["lowercase"],
        "strip_accents": normalizer["strip_accents"],
        "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
    }
    special = {f"{role}_token": str(getattr(tokenizer, f"{role}_token")) for role in _ROLES}
    if not _same_ids(wordpiece_tokenizer(vocabulary, **options, **special), fast):
        return {}
    (output / VOCABULARY_FILE).write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    return options


def _rewrite_config(path: Path, options: dict) -> None:
    """Take what depends on the machine out of a tokenizer_config.json, and use the words of transformers 4."""
    config = {name: value for name, value in json.loads(path.read_bytes()).items() if not _is_note(name, value)}
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    text = json.dumps(config | options, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _is_note(name: str, value: Any) -> bool:
    is_path = isinstance(value, str) and os.path.isabs(value) and not name.endswith("_token")
    return is_path or name.endswith("_file") or name in _LOADING_NOTES or name in _BATCH_NOTES


def _same_ids(tokenizer: Any, fast: Tokenizer) -> bool:
    texts = list(chain.from_iterable(probe_texts(fast.get_vocab()).values()))
    encodings = fast.encode_batch_fast(texts, add_special_tokens=False)
    return ids_of(tokenizer, texts) == [encoding.ids for encoding in encodings]
