"""A tokenizer trained on text, as a directory that appears when it is whole."""

import os
import shutil
from pathlib import Path

from pipeline.files import temporary_folder, temporary_name, writing, writing_temporary
from preprocessing.tokenizing.cutting import BETWEEN_WORDS
from preprocessing.tokenizing.sentencepiece_training import train_sentencepiece
from preprocessing.tokenizing.tokenizer import load_encoder, save_tokenizer
from preprocessing.tokenizing.wordpiece_training import train_wordpiece

_PART_CHARACTERS = 1 << 16


def train_and_save(texts: list[str], kind: str, vocab_size: int, cased: bool, output: Path) -> int:
    """Train, make the tokenizer directory appear whole, and return the number of its tokens."""
    with temporary_folder() as folder:
        if kind == "wordpiece":
            trained = folder / "vocab.txt"
            # The trainer counts words, the same in parts, and takes fifty times the memory of what it sees at once.
            parts = [part for text in texts for part in BETWEEN_WORDS.parts(text, _PART_CHARACTERS)]
            content = "".join(f"{token}\n" for token in train_wordpiece(parts, vocab_size, cased)).encode()
        else:
            trained = folder / "trained.model"
            content = train_sentencepiece(texts, kind, vocab_size, cased)
        with writing_temporary(folder):
            trained.write_bytes(content)
        temporary = temporary_name(output)
        with writing(output):
            temporary.mkdir(parents=True)
            try:
                save_tokenizer(trained, temporary, cased if kind == "wordpiece" else None)
                size = load_encoder(temporary).vocab_size
                os.replace(temporary, output)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return size
