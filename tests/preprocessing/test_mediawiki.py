"""MediaWiki dumps: which pages are articles, and ranges that together give each page once."""

import bz2
import gzip
import lzma
from collections import Counter
from itertools import pairwise
from xml.sax.saxutils import escape

import pytest
import zstandard

from pipeline.errors import DataError
from preprocessing.build.plan import plan_tasks
from preprocessing.readers import mediawiki
from preprocessing.readers.documents import Piece, Tally
from preprocessing.readers.formats import read_piece
from preprocessing.readers.specs import expand_specs

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="de">
  <siteinfo><namespaces>
    <namespace key="6" case="first-letter">Datei</namespace>
    <namespace key="14" case="first-letter">Kategorie</namespace>
  </namespaces></siteinfo>
"""
END = "</mediawiki>\n"


def page(title: str, wikitext: str, ns: int = 0, more: str = "", model: str = "wikitext") -> str:
    revision = f"<model>{model}</model><text xml:space='preserve'>{escape(wikitext)}</text>"
    title = escape(title)
    return f"  <page>\n    <title>{title}</title><ns>{ns}</ns>{more}\n    <revision>{revision}</revision>\n  </page>\n"


PAGES = [
    page("A", "'''A''' is <b>first</b> & [[good]].[[Datei:x.png]]"),
    page("Talk:A", "No.", ns=1),
    page("B", "#REDIRECT [[A]]", more='<redirect title="A" />'),
    page("C", "#redirect [[A]]"),
    page("D (disambiguation)", "* [[A]]"),
    page("E", "* [[A]]\n{{disambig}}"),
    page("F", "{}", model="json"),
    page("G", "Été — 東京."),
    page("H", "== Only ==\n{{templates}}"),
]
TEXTS = ["A is first & good.", "Été — 東京.", ""]
LEFT_OUT = {"namespace": 2, "redirect": 2, "disambiguation": 2}


def read(*pieces: Piece) -> tuple[list[str], Counter[str]]:
    tally = Tally()
    return [document.text for piece in pieces for document in read_piece(piece, tally)], tally.left_out


def write(path, raw: bytes) -> Piece:
    path.write_bytes(raw)
    return Piece("mediawiki", str(path))


@pytest.fixture
def dump() -> bytes:
    return (HEAD + "".join(PAGES) + END).encode()


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("", bytes),
        (".bz2", bz2.compress),
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.ZstdCompressor().compress),
    ],
)
def test_articles_are_read_and_the_rest_is_counted(tmp_path, dump, suffix, pack):
    assert read(write(tmp_path / f"dump.xml{suffix}", pack(dump))) == (TEXTS, LEFT_OUT)


def test_offsets_are_those_of_the_pages(tmp_path, dump):
    for document in read_piece(write(tmp_path / "dump.xml", dump)):
        assert dump[document.offset :].startswith(b"<page>")


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_two_ranges_give_each_page_once_wherever_the_cut_is(tmp_path, dump, monkeypatch, block):
    monkeypatch.setattr(mediawiki, "_BLOCK", block)
    path = write(tmp_path / "dump.xml", dump).path
    for cut in range(1, len(dump), 1 if block > 7 else 50):
        pieces = Piece("mediawiki", path, 0, cut), Piece("mediawiki", path, cut, len(dump))
        assert read(*pieces) == (TEXTS, LEFT_OUT), cut


@pytest.mark.parametrize("size", [97, 300])
def test_ranges_of_a_multistream_bz2_give_each_page_once(tmp_path, dump, size):
    """Also where the streams do not end with pages, as parallel compressors leave them."""
    streams = [bz2.compress(dump[at : at + size]) for at in range(0, len(dump), size)]
    packed = b"".join(streams)
    path = write(tmp_path / "dump.xml.bz2", packed).path
    for cut in range(1, len(packed), 5):
        pieces = Piece("mediawiki", path, 0, cut), Piece("mediawiki", path, cut, len(packed))
        assert read(*pieces) == (TEXTS, LEFT_OUT), cut
    bounds = [len(packed) * i // 7 for i in range(8)]
    pieces = [Piece("mediawiki", path, a, b) for a, b in pairwise(bounds)]
    assert read(*pieces) == (TEXTS, LEFT_OUT)


def test_plain_and_bz2_dumps_are_cut_into_tasks_and_other_forms_are_not(tmp_path, dump):
    for name, raw in (("a.xml", dump), ("a.xml.bz2", bz2.compress(dump)), ("a.xml.xz", lzma.compress(dump))):
        (tmp_path / name).write_bytes(raw)
        tasks = plan_tasks(expand_specs([f"mediawiki:{tmp_path}/{name}"]), shard_tokens=50)
        assert (len(tasks) > 3) == (not name.endswith("xz")), name
        assert read(*(piece for task in tasks for piece in task.pieces)) == (TEXTS, LEFT_OUT)


FAULTS = [
    (lambda raw: raw.replace(b"</page>", b"", 1), r"line 6 \(byte \d+\): expected </page> before the next <page>"),
    (lambda raw: raw[: raw.rindex(b"</page>")], r"line 39 .*expected </page>, the file ended first"),
    (lambda raw: raw.replace(END.encode(), b""), "expected </mediawiki>, the file ended first"),
    (lambda raw: raw.replace(b"</title>", b"</titel>", 1), "line 6 .*expected a well-formed <page>: mismatched tag"),
    (lambda raw: raw.replace("東".encode(), b"\xff"), r"line 37 \(byte \d+\): expected UTF-8, found byte 0xff"),
    (lambda raw: raw.replace(b"<mediawiki", b"<html"), r"line 1 \(byte 0\): expected <mediawiki ...>"),
]


@pytest.mark.parametrize(("damage", "where"), FAULTS)
def test_a_broken_page_is_named_and_costs_itself_only(tmp_path, dump, damage, where, capsys):
    piece = write(tmp_path / "dump.xml", damage(dump))
    with pytest.raises(DataError, match=rf"dump\.xml, .*{where}"):
        read(piece)
    tally = Tally(skip_faults=True)
    texts = [document.text for document in read_piece(piece, tally)]
    assert tally.left_out["malformed"] + tally.left_out["undecodable"] == 1
    assert "skipped: " in capsys.readouterr().err and len(texts) >= 2 and set(texts) <= set(TEXTS)


def test_a_page_without_its_end_costs_itself_only_wherever_the_cut_is(tmp_path, dump):
    torn = dump.replace(b"</page>", b"", 1)
    path = write(tmp_path / "dump.xml", torn).path
    for cut in range(1, len(torn), 3):
        tally = Tally(skip_faults=True)
        pieces = Piece("mediawiki", path, 0, cut), Piece("mediawiki", path, cut, len(torn))
        assert [document.text for piece in pieces for document in read_piece(piece, tally)] == TEXTS[1:], cut
        assert tally.left_out == {**LEFT_OUT, "malformed": 1}, cut


def test_a_torn_bz2_is_named_with_its_stream(tmp_path, dump):
    first, second = bz2.compress(dump[:600]), bz2.compress(dump[600:])
    path = write(tmp_path / "dump.xml.bz2", first + second[:-30]).path
    with pytest.raises(DataError, match=rf"dump\.xml\.bz2, bzip2 stream at {len(first)}, byte \d+: expected whole"):
        read(Piece("mediawiki", path, 10, len(first) + len(second)))
    with pytest.raises(DataError, match=r"dump\.xml\.bz2, byte \d+: expected whole"):
        read(Piece("mediawiki", path))


def test_a_page_that_never_ends_does_not_fill_the_memory(tmp_path, dump, monkeypatch):
    monkeypatch.setattr(mediawiki, "_LARGEST_PAGE", 10_000)
    monkeypatch.setattr(mediawiki, "_BLOCK", 1_000)
    endless = (HEAD + "<page>" + "x" * 50_000).encode() + dump[len(HEAD) :]
    with pytest.raises(DataError, match="expected </page> within 10000 bytes"):
        read(write(tmp_path / "dump.xml", endless))


def test_real_dumps_leave_no_markup(shared_data):
    """The first 60 pages of a real dump, most of them redirects."""
    (path,) = (shared_data / "mediawiki").glob("enwiki-*.bz2")
    tally, texts = Tally(), list[str]()
    for document in read_piece(Piece("mediawiki", str(path)), tally):
        texts.append(document.text)
        if len(texts) == 12:
            break
    assert tally.left_out["redirect"] > 5 and sum(map(len, texts)) > 100_000
    assert texts[0].startswith("Anarchism is a political philosophy that advocates self-governed societies")
    assert not [mark for mark in ("{{", "[[", "<ref", "{|", "|}", "''") if any(mark in text for text in texts)]
