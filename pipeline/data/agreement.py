"""Whether a teacher and a directory of shards read text alike."""

from pathlib import Path
from typing import Any

from pipeline.data.tokenizer_files import load_auto
from pipeline.errors import UserError


def check_same_tokenizer(teacher: str, shards: Path, tokenizer: Any) -> None:
    """Refuse a teacher directory whose own tokenizer gives other ids than that of the shards.

    A teacher without tokenizer files passes; the sizes of the vocabularies are compared elsewhere.

    Raises:
        UserError: the vocabularies differ.
    """
    if not any((Path(teacher) / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return
    if load_auto(Path(teacher)).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"teacher {teacher} has another vocabulary than {shards}: build the shards with its tokenizer")
