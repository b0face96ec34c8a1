"""The questions of SQuAD: what the two versions are, what a file or the hub must hold, and how much of it is there."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import DataError
from pipeline.evaluation.glue.rows import FULL

HALF = re.compile("[\ud800-\udfff]")
"""What JSON can write and utf-8 cannot."""


@dataclass(frozen=True)
class Version:
    """One of the two data sets; `train` and `dev` are the official numbers of questions."""

    name: str
    number: str
    hub: str
    train: int
    dev: int
    unanswerable: bool


VERSIONS: dict[str, Version] = {
    "squad_v1": Version("squad_v1", "1.1", "rajpurkar/squad", 87599, 10570, unanswerable=False),
    "squad_v2": Version("squad_v2", "2.0", "rajpurkar/squad_v2", 130319, 11873, unanswerable=True),
}
"""By the names that `--tasks` and `results.json` use."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question on a context; `answers` are (first character, text) in it, none where it is unanswerable."""

    name: str
    text: str
    context: str
    answers: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Questions:
    """All questions of one file or hub split; `official` is how many the official one has."""

    rows: list[Question]
    source: str
    official: int

    def describe(self) -> str:
        """`full` for the official number of questions, else the source and both numbers."""
        if len(self.rows) == self.official:
            return FULL
        return f"{self.source}, {len(self.rows):,} questions (official: {self.official:,})"


@dataclass(frozen=True)
class SquadData:
    """What one version is trained and scored on; `choosing` are questions by which the point of a grid is chosen."""

    version: Version
    train: Questions
    dev: Questions
    choosing: Questions | None = None

    def describe(self) -> str:
        """`full`, or `train: ...; dev: ...`."""
        train, dev = self.train.describe(), self.dev.describe()
        return FULL if train == dev == FULL else f"train: {train}; dev: {dev}"

    def fingerprint(self) -> str:
        """SHA-256 over all questions."""
        digest = hashlib.sha256()
        for questions in (self.train, self.dev):
            for row in questions.rows:
                digest.update(json.dumps([row.name, row.text, row.context, row.answers]).encode())
            digest.update(b"\0")
        return digest.hexdigest()


def without_a_tenth(questions: Questions) -> tuple[Questions, Questions]:
    """The questions on nine tenths of the contexts and those on the rest, chosen by chance but always the same.

    Raises:
        DataError: there is one context only.
    """
    contexts = list(dict.fromkeys(row.context for row in questions.rows))
    if len(contexts) < 2:
        raise DataError(f"{questions.source}: --grid split needs two contexts at least")
    held = set(random.Random(0).sample(contexts, max(1, len(contexts) // 10)))
    parts = [[row for row in questions.rows if (row.context in held) is one] for one in (False, True)]
    kept, rest = (replace(questions, rows=rows) for rows in parts)
    return kept, rest


def make_question(
    version: Version, name: str, text: str, context: str, answers: Iterable[tuple[int, str]], where: str
) -> Question:
    """A question that was looked at.

    Raises:
        DataError: an answer is not in the context, there is none though every question of this version has one, or a
            text is blank; the sentence begins with `where`.
    """
    question = Question(name, text, context, tuple(answers))
    for what, content in (("context", context), ("question", text), ("id", name)):
        if not content.strip():
            raise DataError(f"{where}: its {what} is blank")
        if half := HALF.search(content):
            raise DataError(f"{where}: its {what} has {half[0]!r}, half of a pair that makes a character")
    for start, answer in question.answers:
        if not answer.strip():
            raise DataError(f"{where}: an answer is blank")
        if start < 0 or not context.startswith(answer, start):
            raise DataError(f"{where}: the answer {_short(answer)} is not in its context at character {start}")
    if not question.answers and not version.unanswerable:
        raise DataError(f"{where}: it has no answer, and in SQuAD {version.number} every question has one")
    return question


def collect(rows: Iterable[tuple[str, Question]], source: str, official: int) -> Questions:
    """Gather questions, each with where it is from.

    Raises:
        DataError: two have the same id, or there are none.
    """
    found: dict[str, Question] = {}
    for where, question in rows:
        if question.name in found:
            raise DataError(f"{where}: an earlier question has the same id")
        found[question.name] = question
    if not found:
        raise DataError(f"{source}: there are no questions in it")
    return Questions(list(found.values()), source.rsplit("/", 1)[-1], official)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def acceptable(questions: Sequence[Question]) -> dict[str, list[str]]:
    """The texts of the answers by id, as the scorer takes them."""
    return {question.name: [text for _, text in question.answers] for question in questions}


def plain(value: Any, kind: type, where: str, name: str) -> Any:
    """`value[name]`, where it is what it should be.

    Raises:
        DataError: `value` has no such key, or something of another kind there.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: an object with '{name}' was expected")
    if name not in value:
        raise DataError(f"{where}: it has no '{name}'")
    # A bool is an int to Python, but true is no character's number.
    if not isinstance(value[name], kind) or (kind is int and isinstance(value[name], bool)):
        raise DataError(f"{where}: its '{name}' is no {KINDS[kind]}")
    return value[name]


KINDS = {str: "text", list: "list", int: "whole number", bool: "true or false"}
"""What the user reads for a kind."""
