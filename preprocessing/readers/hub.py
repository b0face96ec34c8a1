"""The reader of `hub:NAME?config=C&split=S&field=F&revision=R`: a data set of the Hugging Face hub, streamed.

NAME may also be a local directory of parquet, JSON or text files. The pieces of a data set are its files ("shards").
"""

from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

from pipeline.errors import UserError
from preprocessing.readers.documents import Document, Piece, Tally

_DEFAULTS = {"config": "", "split": "train", "field": "text", "revision": ""}


def count_shards(path: str) -> int:
    """Number of files of the data set. UserError if there is no such data set."""
    return int(_open(path)[0].num_shards)


def fingerprint(path: str) -> str:
    """What the data set is: the options and the hash that `datasets` makes of its files' versions."""
    _name, options = _parse(path)
    return f"{_open(path)[1]} {options['split']} {options['field']}"


def read_rows(piece: Piece, tally: Tally) -> Iterator[Document]:
    """The wanted field of every row; the offset of a document is its row in the shard."""
    _name, options = _parse(piece.path)
    field, data = options["field"], _open(piece.path)[0]
    for shard in range(piece.start, data.num_shards if piece.end is None else piece.end):
        for row, record in enumerate(_rows(data.shard(data.num_shards, shard), piece.path)):
            text = record.get(field)
            if isinstance(text, str):
                yield Document(text.strip(), piece.path, row)
            else:
                expected = f"expected text in field {field!r} of shard {shard}, found {type(text).__name__}"
                tally.fault("malformed", piece.path, row, expected, unit="row")


def _rows(shard: Any, path: str) -> Iterator[dict[str, Any]]:
    try:
        yield from shard
    except Exception as error:
        raise _cannot_load(path, error) from error


def _cannot_load(path: str, error: Exception) -> UserError:
    """datasets raises whatever its parsers and its network library raise; to the user it is all the same."""
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return UserError(f"input 'hub:{path}': cannot load this data set: {reason}")


def _parse(path: str) -> tuple[str, dict[str, str]]:
    name, _, query = path.partition("?")
    given = dict(parse_qsl(query))
    if unknown := given.keys() - _DEFAULTS.keys():
        known = ", ".join(_DEFAULTS)
        raise UserError(f"input 'hub:{path}': {min(unknown)!r} is no option of hub:; these are {known}")
    return name, {**_DEFAULTS, **given}


@cache
def _open(path: str) -> tuple[Any, str]:
    """The data set as a stream of rows with no column but the wanted one, and the hash of its builder."""
    name, options = _parse(path)
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(name, options["config"] or None, revision=options["revision"] or None)
        data = builder.as_streaming_dataset(split=options["split"])
        columns = data.column_names or list(next(iter(data), {}))
    except Exception as error:
        raise _cannot_load(path, error) from error
    if options["field"] not in columns:
        raise UserError(f"input 'hub:{path}': no field {options['field']!r}; there are {', '.join(columns)}")
    return data.select_columns([options["field"]]), str(builder.hash)
