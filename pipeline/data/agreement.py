"""Whether a teacher and a directory of shards give text the same ids."""

from pathlib import Path
from typing import Any

from pipeline.data.probe import ids_of, probe_texts
from pipeline.data.tokenizer_source import find_files, holds_vocabulary, load_source, says_case
from pipeline.errors import UserError


def check_same_tokenizer(teacher: str, shards: Path, tokenizer: Any, role: str = "teacher") -> None:
    """Refuse a teacher, or another model, whose own tokenizer gives other ids than that of the shards.

    A teacher without tokenizer files passes; the sizes of the vocabularies are compared elsewhere. So does one that
    cannot be found at all: loading its weights says so.

    Args:
        teacher: directory or hub name.
        shards: where the shards lie, for the sentence.
        tokenizer: that of the shards.
        role: what the model is called in the sentence.

    Raises:
        UserError: the ids differ, or the teacher's tokenizer cannot be loaded.
    """
    files = _files_of(teacher)
    if not holds_vocabulary(files):
        return
    own = load_source(teacher, files)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{role} {teacher} has another vocabulary than {shards}: build the shards with its tokenizer")
    difference = _difference(own, tokenizer)
    if difference and not says_case(files):
        # transformers then lower-cases, whatever the teacher did: what the shards' builder said decides.
        difference = _difference(load_source(teacher, files, cased=True), tokenizer)
    if difference:
        raise UserError(
            f"{role} {teacher} and {shards} give text different ids: {difference}; build the shards with the "
            "model's tokenizer directory, or with its vocab.txt and the right one of --cased and --uncased"
        )


def _files_of(teacher: str) -> dict[str, Path]:
    """The teacher's tokenizer files, none if there is no such teacher."""
    if not Path(teacher).is_dir():
        try:
            find_files(teacher, ["config.json"])
        except (OSError, ValueError):
            return {}
    try:
        return find_files(teacher)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the tokenizer of teacher {teacher} cannot be loaded from disk or from the hub: {reason}"
        ) from error


def _difference(own: Any, tokenizer: Any) -> str | None:
    """The first probe text with different ids, and what is done to it."""
    for treatment, texts in probe_texts(own.get_vocab()).items():
        for text, theirs, ours in zip(texts, ids_of(own, texts), ids_of(tokenizer, texts), strict=True):
            if theirs != ours:
                at = next((i for i, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), 0)
                first, second = (" ".join(own.convert_ids_to_tokens(ids[at : at + 5])) for ids in (theirs, ours))
                example = f"{text[:20]!r} is {first} to the model and {second} to the shards"
                return f"they differ in {treatment} ({example})"
    return None
