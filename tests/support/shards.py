"""What the tests of shards and preprocessing share."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.data.indexed import IndexedWriter, ShardInfo
from pipeline.data.manifest import Manifest, tokenizer_fingerprint
from tests.support import ROOT

_SENTENCE = "the quick brown fox jumps over a lazy dog while seven rivers run to an old sea"
WORDS = _SENTENCE.split()


def write_shard(prefix: Path, documents: list[list[int]], vocab_size: int = 1000) -> ShardInfo:
    writer = IndexedWriter(prefix, vocab_size)
    for document in documents:
        writer.add(np.array(document, dtype=np.int64))
    return writer.finish()


def write_shard_directory(directory: Path, vocab_size: int = 1000) -> Manifest:
    """Two shards with different sizes, a manifest, and a file that counts as tokenizer."""
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "tokenizer" / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    shards = (
        write_shard(directory / "a", [[1, 2, 3], [4, 5]], vocab_size),
        write_shard(directory / "b", [[6], [7, 8, 999]], vocab_size),
    )
    fingerprint = tokenizer_fingerprint(directory / "tokenizer")
    manifest = Manifest("0" * 64, fingerprint, vocab_size, {"empty": 1}, shards)
    manifest.write(directory)
    return manifest


def flip_bit(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def write_vocabulary(path: Path) -> Path:
    """A small BERT vocabulary: words of `WORDS` and single letters, so that any lower-case word has ids."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    marks = list(".,-!?'\"()[]0123456789")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word for word in WORDS if len(word) > 1]
    path.write_text("\n".join([*special, *marks, *letters, *(f"##{c}" for c in letters), *words]) + "\n")
    return path


def sentences(count: int, seed: int = 0) -> list[str]:
    """Made-up lines of 5 to 40 words."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, int(draw.integers(5, 40)))) for _ in range(count)]


def run_script(name: str, *arguments: object, module: bool = False) -> subprocess.CompletedProcess[str]:
    """Run an entry point of preprocessing from another directory than the repository, unless as a module."""
    how = ["-m", f"preprocessing.{name}"] if module else [str(ROOT / "preprocessing" / f"{name}.py")]
    command = [sys.executable, *how, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT if module else "/", capture_output=True, text=True)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` by its relative name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def tiny_shards(directory: Path, words: int = 800, seed: int = 0) -> Path:
    """A shard directory that build_shards.py made of made-up lines, with a BERT tokenizer of an odd vocabulary."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    text = directory.parent / f"{directory.name}.txt"
    text.write_text("\n".join(sentences(words // 20, seed)) + "\n")
    vocabulary = write_vocabulary(directory.parent / "vocab.txt")
    pieces = vocabulary.read_text().splitlines()
    vocabulary.write_text("\n".join(pieces if len(pieces) % 2 else pieces[:-1]) + "\n")
    result = run_script("build_shards", "--input", f"lines:{text}", "--tokenizer", vocabulary, "--output", directory)
    assert result.returncode == 0, result.stderr
    return directory
