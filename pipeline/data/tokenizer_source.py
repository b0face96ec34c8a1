"""Tokenizers that others made: a `vocab.txt`, a directory, a repository of the hub."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from pipeline.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
VOCABULARY_FILE = "vocab.txt"
SOURCE_FILES = (
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    CONFIG_FILE,
)
"""What transformers makes tokenizers of; all but the last hold a vocabulary."""
_SPECIAL_TOKEN = re.compile(r"\[[^\[\]]+\]|<[^<>]+>")
"""[PAD], [unused1], <S>: their capitals are no word's."""
MAX_LENGTH = 512
"""BERT's position table; without it, later tools would never truncate."""


def read_vocabulary(path: Path) -> list[str]:
    """Tokens of a vocab.txt, one a line, in id order.

    Raises:
        UserError: it cannot be BERT's.
    """
    tokens = _read_tokens(path)
    if missing := [token for token in SPECIAL_TOKENS if token not in tokens]:
        raise UserError(f"{path}: not a BERT vocabulary: it lacks {', '.join(missing)}")
    return tokens


def wordpiece_tokenizer(vocabulary: list[str], **options: Any) -> Any:
    """A `BertTokenizer` of transformers over `vocabulary`, the token of each id in order."""
    from transformers import BertTokenizer

    # Given as vocab_file=, transformers 5 would ignore the vocabulary and build one of five tokens.
    return BertTokenizer(vocab=_ids(vocabulary), model_max_length=MAX_LENGTH, **options)


def find_files(source: str | Path, names: Iterable[str] = SOURCE_FILES) -> dict[str, Path]:
    """Files of a directory or hub repository by name; those of a repository come from the cache or are fetched.

    Raises:
        OSError: the hub cannot be reached, and the cache has no vocabulary or none of the other `names`.
        ValueError: this is neither a directory nor a possible name.
    """
    folder = Path(source)
    if folder.is_dir():
        return {name: folder / name for name in names if (folder / name).is_file()}
    found, unreachable = dict[str, Path](), list[OSError]()
    for name in names:
        if try_to_load_from_cache(str(source), name) is _CACHED_NO_EXIST:
            continue
        try:
            found[name] = Path(hf_hub_download(str(source), name))
        except LocalEntryNotFoundError as error:
            unreachable.append(error)
        except EntryNotFoundError:
            continue
    if unreachable and not holds_vocabulary(found):
        raise unreachable[0]
    return found


def holds_vocabulary(files: Iterable[str]) -> bool:
    """Whether a tokenizer can be made of the files of these names."""
    return any(name != CONFIG_FILE for name in files)


def says_case(files: dict[str, Path]) -> bool:
    """Whether these files say how upper case is treated; a vocab.txt does not."""
    if TOKENIZER_FILE in files or VOCABULARY_FILE not in files:
        return True
    try:
        return CONFIG_FILE in files and json.loads(files[CONFIG_FILE].read_bytes()).get("do_lower_case") is not None
    except (ValueError, AttributeError):
        return True  # loading says what is wrong with it


def first_capital(vocabulary: Iterable[str]) -> tuple[int, str] | None:
    """Number (from 1) and text of the first token that lower-casing would put out of reach, if there is one."""
    for number, token in enumerate(vocabulary, 1):
        if token != token.lower() and not _SPECIAL_TOKEN.fullmatch(token):
            return number, token
    return None


def load_source(source: str | Path, files: dict[str, Path], cased: bool | None = None) -> Any:
    """The tokenizer of a directory or hub repository that others made.

    Args:
        source: directory or hub name.
        files: what `find_files` found of it.
        cased: for one that does not say itself how it treats upper case.

    Raises:
        UserError: it cannot be loaded.
    """
    options = dict[str, Any]()
    if VOCABULARY_FILE in files and TOKENIZER_FILE not in files:
        # The library takes a byte-order mark and blank lines for tokens.
        options["vocab"] = _ids(_read_tokens(files[VOCABULARY_FILE]))
        if cased is not None and not says_case(files):
            options["do_lower_case"] = not cased
    return load_auto(source, **options)


def load_auto(source: str | Path, **options: Any) -> Any:
    """What `AutoTokenizer` makes of a directory or hub name.

    Raises:
        UserError: it cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source), local_files_only=Path(source).is_dir(), **options)
    except Exception as error:
        # transformers raises whatever its parsers raise; all of it means the same to the user.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{source}: transformers cannot load this tokenizer: {reason}") from error


def _read_tokens(path: Path) -> list[str]:
    """Lines of a vocab.txt; a byte-order mark, line ends of Windows and blank lines at the end are not in them."""
    try:
        # Not splitlines: Unicode line separators are tokens of real vocabularies.
        tokens = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the vocabulary: {error}") from error
    seen = dict[str, int]()
    for number, token in enumerate(tokens, 1):
        if not token:
            raise UserError(f"{path}, line {number}: expected a token, found a blank line")
        if token in seen:
            raise UserError(f"{path}, line {number}: token {token!r} is already on line {seen[token]}")
        seen[token] = number
    return tokens


def _ids(vocabulary: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(vocabulary)}
