"""The files of a tokenizer: a `vocab.txt` is read, `AutoTokenizer` loads a directory, `write_tokenizer` writes one."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENIZER_FILE = "tokenizer.json"
MODEL_FILE = "shards.model"
"""A SentencePiece model lies in a tokenizer directory under this name: it, not `TOKENIZER_FILE`, makes the ids."""
MAX_LENGTH = 512
"""BERT's position table; without it, later tools would never truncate."""
_LOADING_NOTES = ("is_local", "local_files_only", "name_or_path")
"""What transformers remembers of how it loaded a tokenizer; written along, it would change the fingerprint."""
_PROBE = "Ångström's 2nd naïve test: 東京, don't ①②③ -- https://a.b/c_d?e=f\n\t\u03a3\u03c2 [UNK] 🙂 e\u0301"


def read_vocabulary(path: Path) -> list[str]:
    """Tokens of a vocab.txt, one a line, in id order.

    Raises:
        UserError: it cannot be BERT's.
    """
    try:
        # Not splitlines: Unicode line separators are tokens of real vocabularies.
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the vocabulary: {error}") from error
    if missing := [token for token in SPECIAL_TOKENS if token not in tokens]:
        raise UserError(f"{path}: not a BERT vocabulary: it lacks {', '.join(missing)}")
    seen = dict[str, int]()
    for number, token in enumerate(tokens, 1):
        if token in seen:
            raise UserError(f"{path}, line {number}: token {token!r} is already on line {seen[token]}")
        seen[token] = number
    return tokens


def wordpiece_tokenizer(vocabulary: list[str], cased: bool) -> Any:
    """A `BertTokenizer` of transformers over `vocabulary`, the token of each id in order."""
    from transformers import BertTokenizer

    # Given as vocab_file=, transformers 5 would ignore the vocabulary and build one of five tokens.
    ids = {token: index for index, token in enumerate(vocabulary)}
    return BertTokenizer(vocab=ids, do_lower_case=not cased, model_max_length=MAX_LENGTH)


def write_tokenizer(tokenizer: Any, output: Path) -> None:
    """Write a transformers tokenizer to `output`, with a vocab.txt for WordPiece, and check what loads from it.

    Raises:
        UserError: it is not fit for masked-language modelling, or `AutoTokenizer` gives other ids from `output`.
    """
    absent = [name for name in ("pad", "unk", "cls", "sep", "mask") if getattr(tokenizer, f"{name}_token") is None]
    if absent:
        raise UserError(f"the tokenizer has no {', '.join(absent)} token, which masked-language modelling needs")
    for note in _LOADING_NOTES:
        tokenizer.init_kwargs.pop(note, None)
    tokenizer.save_pretrained(output)
    if not (output / TOKENIZER_FILE).is_file():
        raise UserError(f"the tokenizer ({type(tokenizer).__name__}) has no fast version ({TOKENIZER_FILE})")
    fast = load_fast(output)
    if vocabulary_size(fast) != fast.get_vocab_size():
        raise UserError(f"the tokenizer's {fast.get_vocab_size()} ids are not 0 to {fast.get_vocab_size() - 1}")
    if type(fast.model).__name__ == "WordPiece":
        vocabulary = sorted(fast.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
        text = "".join(f"{token}\n" for token, _ in vocabulary)
        (output / "vocab.txt").write_text(text, encoding="utf-8")
    loaded = load_auto(output)
    # The shards get their ids from the fast tokenizer, everyone else from AutoTokenizer.
    if loaded(_PROBE, add_special_tokens=False)["input_ids"] != fast.encode(_PROBE, add_special_tokens=False).ids:
        raise UserError(f"the tokenizer ({type(tokenizer).__name__}) gives other ids once AutoTokenizer has loaded it")


def load_auto(directory: Path) -> Any:
    """What `AutoTokenizer` makes of a directory.

    Raises:
        UserError: it cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        # transformers raises whatever its parsers raise; all of it means the same to the user.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{directory}: transformers cannot load this tokenizer: {reason}") from error


def load_fast(directory: Path) -> Tokenizer:
    """The tokenizer of a directory that `write_tokenizer` wrote, as the Rust object that encodes batches."""
    tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
