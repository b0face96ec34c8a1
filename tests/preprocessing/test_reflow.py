"""Hard-wrapped lines into paragraphs: what is joined, what `auto` leaves alone, and which licence is cut."""

import lzma

import pytest

from preprocessing.build.reflow import is_hard_wrapped, reflow
from preprocessing.readers.documents import Piece
from preprocessing.readers.formats import read_piece

LINE = "a line of some sixty characters, as typists of books wrap them"
PROSE = "\n\n".join("\n".join([LINE] * 4 + ["the end."]) for _ in range(5))
VERSE = "\n".join(["Shall I compare thee to a summer's day?", "Thou art more lovely"] * 10)
ARTICLE = "\n".join([LINE * 5, "A short one."] * 10)


def test_lines_are_joined_up_to_a_blank_or_indented_one():
    text = "One goes\non here,  \nand here.\n\n\nTwo.\n  indented verse\n  more of it\nThree is well-\nknown--\nor not."
    joined = "One goes on here,   and here.\n\nTwo.\nindented verse\nmore of it Three is well-known--or not."
    assert reflow(text, "on") == joined
    assert reflow(text.replace("\n", "\r\n"), "on") == joined
    assert reflow(text, "off") == reflow(text, "auto") == text


def test_auto_joins_prose_and_leaves_verse_articles_and_fragments():
    assert is_hard_wrapped(PROSE) and reflow(PROSE, "auto") == reflow(PROSE, "on")
    assert reflow(PROSE, "auto").count("\n") == 8
    for text in (VERSE, ARTICLE, LINE, "", f"{LINE}\n" * 9):
        assert not is_hard_wrapped(text) and reflow(text, "auto") == text


NEW = ("*** START OF THE PROJECT GUTENBERG EBOOK A LONG\nTITLE ***", "*** END OF THE PROJECT GUTENBERG EBOOK A ***")
OLDER = (
    "***START OF THIS PROJECT GUTENBERG EBOOK A***\n",
    "End of the Project Gutenberg EBook of A, by B\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A ***",
)
OLDEST = ("*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*", "End of Project Gutenberg's Etext of A")


@pytest.mark.parametrize(("header", "footer"), [NEW, OLDER, OLDEST])
@pytest.mark.parametrize("mode", ["auto", "on"])
def test_licence_is_cut(header, footer, mode):
    text = f"The Project Gutenberg EBook of A\nterms\n\n{header}\n\nThe text.\n\n{footer}\n\nmore terms"
    assert reflow(text, mode) == "The text."
    assert reflow(text, "off") == text


def test_a_text_that_only_names_the_project_is_whole():
    text = "It is at Project Gutenberg.\n\nThe end of Project Gutenberg is not near."
    assert reflow(text, "auto") == text


def test_auto_on_real_books_and_articles(shared_data, tmp_path):
    """Novels are re-flowed, a book of verse and all articles are not."""
    found = {}
    for name in ("books/books_04", "wiki/wiki_07"):
        with lzma.open(shared_data / "corpus" / f"{name}.txt.xz") as stream:
            raw = stream.read(1_500_000)
        path = tmp_path / name[:4]
        path.write_bytes(raw[: raw.rindex(b"</doc>")] + b"</doc>\n")
        found[name[:4]] = [document.text for document in read_piece(Piece("wikiextractor", str(path)))]
    assert not any(is_hard_wrapped(text) for text in found["wiki"])
    books = found["book"]
    assert sum(map(is_hard_wrapped, books)) >= len(books) - 1 > 0
    paragraphs = reflow(max(books, key=len), "auto").split("\n\n")
    assert sorted(map(len, paragraphs))[len(paragraphs) // 2] > 80
