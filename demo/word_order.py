"""A sentence task made of any text: in which sentences have neighbouring words changed places, three times?

It needs no annotation, and a model that knows only which words are frequent cannot solve it.
"""

import random
import re
from collections.abc import Iterable
from pathlib import Path

from pipeline.files import write_atomically

FOLDER = "word_order"
MINIMUM_WORDS, MAXIMUM_WORDS = 8, 16
EXCHANGES = 3
"""Pairs of words per sentence: a single one, or long sentences, are too hard for small models after some thousand
examples."""
_SENTENCE = re.compile(r"(?<=[.!?] )[A-Z][^.!?]*[.!?](?= |$)")
_WORD = re.compile(r"[A-Za-z][a-z'-]*[,;:]?")


def sentences(documents: Iterable[str]) -> list[str]:
    """Plain sentences of 8 to 16 words, each once, in order of appearance."""
    found: dict[str, None] = {}
    for document in documents:
        for sentence in _SENTENCE.findall(f". {document}"):
            words = sentence[:-1].split()
            if MINIMUM_WORDS <= len(words) <= MAXIMUM_WORDS and all(_WORD.fullmatch(word) for word in words):
                found[sentence] = None
    return list(found)


def exchange_neighbours(sentence: str, draw: random.Random) -> str | None:
    """The sentence with `EXCHANGES` separate pairs of neighbouring words inside it exchanged; None where it has fewer.

    First and last word and words with punctuation stay: the case of a letter or a comma would give it away.
    """
    words = sentence.split()
    places = [
        i
        for i in range(1, len(words) - 2)
        if words[i].isalpha() and words[i + 1].isalpha() and words[i].lower() != words[i + 1].lower()
    ]
    draw.shuffle(places)
    chosen: list[int] = []
    for i in places:
        if len(chosen) < EXCHANGES and all(abs(i - other) > 1 for other in chosen):
            chosen.append(i)
    if len(chosen) < EXCHANGES:
        return None
    for i in chosen:
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def write_task(train: list[str], dev: list[str], directory: Path, rows: tuple[int, int], seed: int = 0) -> None:
    """Write `word_order/train.tsv` and `dev.tsv` under `directory`, with at most `rows` sentences drawn from each list.

    Label 1 for sentences as they were, 0 for exchanged ones, half and half; a dev sentence is never one of `train`.
    """
    draw = random.Random(seed)
    known = set(train)
    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    for name, pool, count in (("train", train, rows[0]), ("dev", [s for s in dev if s not in known], rows[1])):
        usable = [(s, exchanged) for s in pool if (exchanged := exchange_neighbours(s, draw)) is not None]
        chosen = draw.sample(usable, min(count, len(usable)))
        lines = [f"{(exchanged, intact)[i % 2]}\t{i % 2}" for i, (intact, exchanged) in enumerate(chosen)]
        write_atomically(directory / FOLDER / f"{name}.tsv", "\n".join(["sentence\tlabel", *lines, ""]).encode())
