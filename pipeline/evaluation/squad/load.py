"""SQuAD from its official JSON files, in the folder `squad` of the data or in the data itself, or from the hub.

A file is `{"data": [{"paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ..., "answers": [{"text": ...,
"answer_start": ...}]}]}]}]}`; 2.0 says `is_impossible` beside it. What else there is, is passed over.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, first_line
from pipeline.evaluation.glue.load import HUB
from pipeline.evaluation.squad.questions import Question, Questions, SquadData, Version, collect, make_question, plain

FOLDER = "squad"


def load_squad(version: Version, source: str) -> SquadData:
    """Read a version from the directory `source`, or from the hub when `source` is `hub`.

    Raises:
        DataError: something is missing or malformed; the sentence names the file and the place.
    """
    if source == HUB:
        return _load_hub(version)
    train, dev = (find_file(version, Path(source), stem) for stem in ("train", "dev"))
    return SquadData(version, read_file(version, train, version.train), read_file(version, dev, version.dev))


def find_file(version: Version, root: Path, stem: str) -> Path:
    """The file with the official name.

    Raises:
        DataError: there is none.
    """
    name = f"{stem}-v{version.number}.json"
    for path in (root / FOLDER / name, root / name):
        if path.is_file():
            return path
    raise DataError(f"{root / FOLDER / name}: there is no such file, and no {name} in {root}; {version.name} needs it")


def read_file(version: Version, path: Path, official: int) -> Questions:
    """All questions of one file; `official` is how many the official one has.

    Raises:
        DataError: it is no utf-8 or no JSON, or has not what a SQuAD file has.
    """
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: it cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not utf-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: it is no JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise DataError(f"{path}: it cannot be read as JSON ({first_line(error)})") from None
    return collect(_questions(version, document, str(path)), str(path), official)


def _questions(version: Version, document: Any, path: str) -> Iterator[tuple[str, Question]]:
    """Every question with the words that say where it is."""
    for number, article in enumerate(plain(document, list, path, "data")):
        where = f"{path}, data[{number}]"
        for below, paragraph in enumerate(plain(article, list, where, "paragraphs")):
            place = f"{where}.paragraphs[{below}]"
            context = plain(paragraph, str, place, "context")
            for last, entry in enumerate(plain(paragraph, list, place, "qas")):
                yield _question(version, entry, context, path, f"{place}.qas[{last}]")


def _question(version: Version, entry: Any, context: str, path: str, place: str) -> tuple[str, Question]:
    name = plain(entry, str, place, "id")
    where = f"{path}, question {name}"
    listed = plain(entry, list, where, "answers")
    answers = [(plain(answer, int, where, "answer_start"), plain(answer, str, where, "text")) for answer in listed]
    if "is_impossible" in entry and plain(entry, bool, where, "is_impossible") == bool(answers):
        said = "it has answers, and is_impossible is true" if answers else "no answers, and is_impossible is false"
        raise DataError(f"{where}: {said}")
    return where, make_question(version, name, plain(entry, str, where, "question"), context, answers, where)


def _load_hub(version: Version) -> SquadData:
    import datasets

    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(version.hub)
    except (OSError, ValueError) as error:
        raise DataError(f"hub: {version.hub} could not be loaded ({first_line(error)})") from error
    train, dev = (convert(version, splits[name], name) for name in ("train", "validation"))
    return SquadData(version, train, dev)


def convert(version: Version, split: Any, name: str) -> Questions:
    """The questions of one hub split, which has answers as lists of texts and of starts.

    Raises:
        DataError: a row is not as a row of SQuAD must be.
    """

    def rows() -> Iterator[tuple[str, Question]]:
        for row in split:
            where = f"hub: {version.hub}, {name}, question {row['id']}"
            answers = zip(row["answers"]["answer_start"], row["answers"]["text"], strict=True)
            yield where, make_question(version, row["id"], row["question"], row["context"], answers, where)

    return collect(rows(), f"hub split {name}", version.train if name == "train" else version.dev)
