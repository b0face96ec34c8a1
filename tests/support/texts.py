"""Text to try tokenizers on: real paragraphs, and every kind of odd character."""

import lzma
import random
import unicodedata
from pathlib import Path

RANGES = {
    "controls": (0x00, 0x20),
    "latin": (0x20, 0x250),
    "combining": (0x300, 0x370),
    "arabic": (0x600, 0x700),
    "indic": (0x900, 0xE00),
    "jamo": (0x1100, 0x1200),
    "punctuation": (0x2000, 0x2100),
    "cjk": (0x4E00, 0xA000),
    "compatibility": (0xF900, 0xFB50),
    "half-width": (0xFF00, 0xFFF0),
    "emoji": (0x1F300, 0x1FA00),
    "anything": (0, 0x110000),
}
WRITTEN = [
    "\U0001f469\u200d\U0001f4bb \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u263a\ufe0f",
    "\u6771\u4eac\u30bf\u30ef\u30fc 3.14 \ud55c\uad6d\uc5b4",
    " \t tabs\r\nand\x0b lines \u2028 \u00a0 ends \u3000",
    unicodedata.normalize("NFD", "\u00dcn\u00efc\u00f6d\u00e9 \ud55c\uad6d\uc5b4 Ti\u1ebfng Vi\u1ec7t"),
    "\ufeff\u200b\u00ad \ufffd \x00 \x7f",
    "\u2581a \u2581\u2581 b##c ## \u0120",
    "\ufb01ne \ufb03 \u2460\u2461 \u00bd x\u00b2 \uff21\uff22 \u2126",
    "A" * 3000,
    "",
    "   ",
]


def odd_texts(count: int, seed: int = 0) -> list[str]:
    """`count` made-up texts of each range, some random bytes, and the written ones; the same for a seed."""
    draw = random.Random(seed)
    made = [_mixture(draw, *bounds) for bounds in RANGES.values() for _ in range(count)]
    return made + [draw.randbytes(60).decode("utf-8", "replace") for _ in range(count)] + WRITTEN


def real_paragraphs(shared: Path, size: int) -> list[str]:
    """Paragraphs of the first `size` bytes of an encyclopedia and of a library, as they stand in the files."""
    texts = list[str]()
    for name in ("wiki/wiki_07.txt.xz", "books/books_04.txt.xz"):
        with lzma.open(shared / "corpus" / name) as stream:
            texts += stream.read(size).decode(errors="ignore").split("\n\n")
    return texts


def _mixture(draw: random.Random, low: int, high: int) -> str:
    return "".join(_character(draw, low, high) if draw.random() < 0.6 else draw.choice("abcdeE .") for _ in range(30))


def _character(draw: random.Random, low: int, high: int) -> str:
    code = draw.randrange(low, high)
    return "?" if 0xD800 <= code < 0xE000 else chr(code)
