"""Readers: what is a document, where faults are, and byte ranges that together give each document once."""

import bz2
import gzip
import lzma

import pytest
import zstandard

from pipeline.errors import DataError, UserError
from preprocessing.build.plan import plan_tasks
from preprocessing.readers.documents import Piece, Tally
from preprocessing.readers.formats import read_piece
from preprocessing.readers.specs import expand_specs, read_documents

WIKI = """<doc id="12" url="https://x/?curid=12" title="Anarchism">
Anarchism

Anarchism is a philosophy.

It has a history.
</doc>

<doc id="25" url="https://x/?curid=25" title="A &amp; B &quot;so&quot;">
A & B "so"

Été.
</doc>
<doc id="26" title="Other">
Its first line is no title.
</doc>
<doc id="27" title="Empty">
Empty

</doc>
"""
WIKI_TEXTS = ["Anarchism is a philosophy.\n\nIt has a history.", "Été.", "Its first line is no title.", ""]


def texts(piece: Piece) -> list[str]:
    return [document.text for document in read_piece(piece)]


def test_text_is_one_document_per_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf one\r\ntwo \n")
    (document,) = read_piece(Piece("text", str(tmp_path / "a.txt")))
    assert (document.text, document.offset) == ("one\r\ntwo", 3)


def test_lines_is_one_document_per_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\n  two\nthree")
    documents = list(read_piece(Piece("lines", str(tmp_path / "a.txt"))))
    assert [(d.text, d.offset) for d in documents] == [("one", 3), ("", 8), ("two", 9), ("three", 15)]


def test_wikiextractor_drops_the_title_line_only_where_it_repeats_the_title(tmp_path):
    (tmp_path / "a").write_text(WIKI)
    documents = list(read_piece(Piece("wikiextractor", str(tmp_path / "a"))))
    assert [d.text for d in documents] == WIKI_TEXTS
    raw = WIKI.encode()
    assert all(raw[d.offset :].startswith(b"<doc ") for d in documents)


@pytest.mark.parametrize("name", ["lines", "wikiextractor"])
@pytest.mark.parametrize("ending", ["\n", ""])
def test_two_ranges_give_each_document_once_wherever_the_cut_is(tmp_path, name, ending):
    path = tmp_path / "a"
    path.write_text(WIKI.strip() + ending)
    whole = texts(Piece(name, str(path)))
    size = path.stat().st_size
    for cut in range(1, size):
        parts = texts(Piece(name, str(path), 0, cut)) + texts(Piece(name, str(path), cut, size))
        assert parts == whole, cut


def test_jsonl_is_one_document_per_object_in_any_two_ranges(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": " one\\ntwo ", "id": 5}\n\n{"id": 6, "text": "\\u00e9"}\n{"text": ""}')
    whole = texts(Piece("jsonl", str(path)))
    assert whole == ["one\ntwo", "é", ""]
    for cut in range(1, path.stat().st_size):
        parts = Piece("jsonl", str(path), 0, cut), Piece("jsonl", str(path), cut)
        assert texts(parts[0]) + texts(parts[1]) == whole, cut


PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_are_read_as_they_are_and_damage_is_named(tmp_path, suffix):
    raw = "".join(f"{i * i} été\n" for i in range(50_000)).encode()
    middle = raw.index(b"\n", len(raw) // 2) + 1
    packed = PACKERS[suffix](raw[:middle]) + PACKERS[suffix](raw[middle:])  # two streams in one file
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed)
    assert texts(Piece("lines", str(path))) == raw.decode().splitlines()
    assert texts(Piece("text", str(path))) == [raw.decode().strip()]
    for damaged in (packed[:-20], packed[: len(packed) // 3], b"nothing of the kind" * 9):
        path.write_bytes(damaged)
        for name in ("lines", "text"):
            with pytest.raises(DataError, match=f"a{suffix}"):
                texts(Piece(name, str(path)))
        tally = Tally(skip_faults=True)
        found = [document.text for document in read_piece(Piece("lines", str(path)), tally)]
        assert tally.left_out["damaged"] == 1 and found == raw.decode().splitlines()[: len(found)]


FAULTS = [
    ("lines", b"one\ntwo\nthr\xffee\n", r"line 3 \(byte 11\): expected UTF-8, found byte 0xff"),
    ("text", b"one\ntwo\nthr\xffee\n", r"line 3 \(byte 11\): expected UTF-8"),
    ("jsonl", b'{"text": "a"}\nb\n', r"line 2 \(byte 14\): expected a JSON object with a string .text., found 'b'"),
    ("jsonl", b'["text"]\n', r"line 1 \(byte 0\): expected a JSON object"),
    ("jsonl", b'{"text": "\\ud800"}\n', r"line 1 \(byte 0\): expected a JSON object"),
    ("jsonl", b"\xff\n", r"line 1 \(byte 0\): expected UTF-8"),
    ("wikiextractor", b'<doc title="a">\nb\n\xc3\n</doc>\n', r"line 3 \(byte 18\): expected UTF-8"),
    ("wikiextractor", b'<doc title="a">\nb\n', r"line 1 \(byte 0\): expected </doc>"),
    (
        "wikiextractor",
        b'<doc title="a">\n<doc title="b">\n',
        r"line 2 \(byte 16\): expected </doc> .* byte 0, found '<doc",
    ),
    ("wikiextractor", b"\nplain text\n", r"line 2 \(byte 1\): expected <doc ...>, found 'plain text'"),
    ("wikiextractor", b'<doc title="a">\nb\n</doc>\n</doc>\n', r"line 4 \(byte 25\): expected <doc ...>"),
]


@pytest.mark.parametrize(("name", "raw", "where"), FAULTS)
def test_malformed_records_are_named_with_line_and_byte(tmp_path, name, raw, where):
    path = tmp_path / "bad"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"{path}, {where}"):
        texts(Piece(name, str(path)))


def test_specs_keep_their_order_and_globs_are_sorted(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", "z[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    specs = [f"text:{tmp_path}/z[1].txt", f"lines:{tmp_path}/**/*.txt"]
    assert [d.text for d in read_documents(specs)] == ["z[1].txt", "a.txt", "b.txt", "sub/c.txt", "z[1].txt"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("text:{}/nothing.txt", "no such file"),
        ("text:{}/*.nothing", "no such file"),
        ("text:{}", "directory; name its files"),
        ("pdf:{}/a", "known are text:PATH, lines:PATH, jsonl:PATH, wikiextractor:PATH, mediawiki:PATH, hub:PATH"),
        ("a.txt", "is not FORMAT:PATH"),
    ],
)
def test_wrong_specs_are_the_users_mistake(tmp_path, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        expand_specs([spec.format(tmp_path)])
    assert caught.value.exit_code == 2


def test_tasks_cut_big_plain_files_and_gather_small_ones(tmp_path):
    (tmp_path / "big").write_bytes(b"a line\n" * 1000)
    (tmp_path / "big.gz").write_bytes(gzip.compress(b"a line\n" * 1000, 0))
    for index in range(10):
        (tmp_path / f"small{index}").write_bytes(b"x" * 100)
    specs = [f"lines:{tmp_path}/big", f"lines:{tmp_path}/big.gz", f"text:{tmp_path}/big", f"text:{tmp_path}/small*"]
    tasks = plan_tasks(expand_specs(specs), shard_tokens=500)  # 2,000 bytes of text
    assert [task.index for task in tasks] == list(range(len(tasks)))
    shapes = [[(piece.format, piece.start, piece.end) for piece in task.pieces] for task in tasks]
    assert shapes[:4] == [[("lines", 1750 * i, 1750 * (i + 1))] for i in range(4)]
    assert shapes[4:6] == [[("lines", 0, None)], [("text", 0, None)]]
    assert shapes[6:] == [[("text", 0, None)] * 10]


THIRD = '<doc id="3" title="C">\nC\nthree\n</doc>\n'
LOST = '<doc id="1" title="A">\nA\none\n<doc id="2" title="B">\nB\ntwo\n</doc>\n' + THIRD
NESTED = '<doc id="1" title="A">\nA\none\n<doc id="2" title="B">\nB\ntwo\n</doc>\nrest\n</doc>\n'


@pytest.mark.parametrize(
    "text,kept,malformed",
    [
        (LOST, ["two", "three"], 1),
        (LOST + "stray\n", ["two", "three"], 2),
        (LOST + "stray\n" + LOST, ["two", "three", "two", "three"], 3),
        (NESTED + THIRD, ["two", "three"], 1),
        (NESTED + "stray\n", ["two"], 2),
    ],
)
def test_text_behind_a_lost_end_is_counted_and_the_rest_of_an_outer_article_is_not(tmp_path, text, kept, malformed):
    (tmp_path / "a").write_text(text)
    tally = Tally(skip_faults=True)
    found = [document.text for document in read_piece(Piece("wikiextractor", str(tmp_path / "a")), tally)]
    assert found == kept and tally.left_out["malformed"] == malformed
