"""What a file is, its content says: compression under any name, byte-order marks; and faults that give their line."""

import bz2
import gzip
import lzma
import re

import pytest
import zstandard

from pipeline.errors import DataError
from preprocessing.build.plan import plan_tasks, source_hash
from preprocessing.readers.compressed import open_text
from preprocessing.readers.documents import Piece, Tally
from preprocessing.readers.formats import FORMATS, read_piece
from preprocessing.readers.specs import Source, expand_specs
from tests.preprocessing.test_mediawiki import END, HEAD, page

PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}
RAW = {
    "text": "été\n",
    "lines": "été\n",
    "jsonl": '{"text": "été"}\n',
    "wikiextractor": "<doc id='1'>\nété\n</doc>\n",
    "mediawiki": HEAD + page("A", "été") + END,
}


def read(kind: str, path: object, start: int = 0, end: int | None = None) -> tuple[list[str], dict[str, int]]:
    tally = Tally(skip_faults=True)
    return [document.text for document in read_piece(Piece(kind, str(path), start, end), tally)], dict(tally.left_out)


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("how", PACKERS)
def test_compression_is_told_by_content(tmp_path, how, kind):
    """Upper case, no suffix, one that says nothing, and that of another compression."""
    for name in (f"a.{how.upper()}", "a", "a.txt", "b.bz2", "b.gz"):
        (tmp_path / name).write_bytes(PACKERS[how](RAW[kind].encode()))
        assert read(kind, tmp_path / name) == (["été"], {})


def test_plain_text_under_the_name_of_a_compression_is_damage(tmp_path):
    """So is a compressed file whose first bytes are gone: better said than read as text."""
    (tmp_path / "a.GZ").write_bytes(b"plain\n")
    with pytest.raises(DataError, match=r"a\.GZ, byte 0: expected whole, undamaged data"):
        list(read_piece(Piece("lines", str(tmp_path / "a.GZ"))))


@pytest.mark.parametrize(
    "frame", [b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd", zstandard.ZstdCompressor().compress(b"zero\n")]
)
def test_zstd_frames_that_hold_no_text_are_skipped(tmp_path, frame):
    (tmp_path / "a").write_bytes(frame + zstandard.ZstdCompressor().compress(b"one\n"))
    assert read("lines", tmp_path / "a")[0][-1] == "one"


@pytest.mark.parametrize("name", ["dump", "dump.BZ2", "dump.xml.bz2"])
def test_a_multistream_dump_is_cut_whatever_its_name(tmp_path, name):
    streams = [page(f"P{index}", f"text {index}") for index in range(40)]
    packed = b"".join(bz2.compress(part.encode()) for part in (HEAD, *streams, END))
    (tmp_path / name).write_bytes(packed)
    tasks = plan_tasks(expand_specs([f"mediawiki:{tmp_path}/{name}"]), 100)
    pieces = [piece for task in tasks for piece in task.pieces]
    found = [read(piece.format, piece.path, piece.start, piece.end) for piece in pieces]
    assert len(pieces) > 10 and [text for texts, _ in found for text in texts] == [f"text {i}" for i in range(40)]


HASHES = {
    "a.txt": (b"a line\n", "4a4a2c4815a1e91b"),
    "a.txt.gz": (b"\x1f\x8b\x08", "6689a869431941ee"),
    "a.bz2": (b"BZh91AY&SY", "e8c23201d7a70589"),
    "a.xz": (b"\xfd7zXZ\x00", "78d44a666fd5826d"),
    "a.zst": (b"\x28\xb5\x2f\xfd", "d99e113126ba2bb3"),
}


@pytest.mark.parametrize("name", HASHES)
def test_hashes_and_estimates_are_what_they_were(tmp_path, name):
    """A build that was begun before goes on."""
    raw, expected = HASHES[name]
    (tmp_path / name).write_bytes(raw * 20_000)
    source = Source("lines", tmp_path / name)
    assert source.text_bytes == len(raw) * 20_000 * (1 if name == "a.txt" else 4)
    assert source_hash([source], "settings")[:16] == expected


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_mark_of_utf8_is_no_text(tmp_path, kind, pack):
    (tmp_path / "a").write_bytes(pack(b"\xef\xbb\xbf" + RAW[kind].encode()))
    assert read(kind, tmp_path / "a") == (["été"], {})


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("pack", [bytes, lzma.compress])
def test_the_mark_of_another_encoding_is_said_and_costs_the_file(tmp_path, kind, encoding, pack):
    mark = "\ufeff" if encoding.endswith("be") else ""
    (tmp_path / "a").write_bytes(pack((mark + RAW[kind]).encode(encoding)))
    name = encoding[:6].upper()
    sentence = rf"a, line 1 \(byte 0\): expected UTF-8, found the byte-order mark of a {name} file; convert it"
    with pytest.raises(DataError, match=sentence):
        list(read_piece(Piece(kind, str(tmp_path / "a"))))
    assert read(kind, tmp_path / "a") == ([], {"undecodable": 1})
    if pack is bytes and FORMATS[kind].splittable:
        # ASCII in UTF-16 is UTF-8 with NULs: a range in the middle must not take it for text.
        size = (tmp_path / "a").stat().st_size
        parts = [read(kind, tmp_path / "a", *bounds) for bounds in ((0, 9), (9, 20), (20, size))]
        assert parts == [([], {"undecodable": 1}), ([], {}), ([], {})]


LINES = [f"line {index}" for index in range(1, 3001)]
BAD = {50: b"\xff", 1200: b"x\xff", 2900: b"\xfe\xff"}


@pytest.mark.parametrize("pack", [bytes, *PACKERS.values()])
def test_skipped_faults_give_their_line_as_those_that_stop_do(tmp_path, pack, capsys):
    """In a whole file and in ranges that begin in its middle."""
    raw = b"".join(BAD.get(number, line.encode()) + b"\n" for number, line in enumerate(LINES, 1))
    (tmp_path / "a").write_bytes(pack(raw))
    read("lines", tmp_path / "a")
    whole = capsys.readouterr().err.splitlines()
    assert [int(re.search(r"a, line (\d+) \(byte \d+\): expected UTF-8", said)[1]) for said in whole] == list(BAD)
    with pytest.raises(DataError) as caught:
        list(read_piece(Piece("lines", str(tmp_path / "a"))))
    assert whole[0] == f"skipped: {caught.value}"
    if pack is bytes:
        for bounds in ((0, 9000), (9000, 20_000), (20_000, len(raw))):
            read("lines", tmp_path / "a", *bounds)
        assert capsys.readouterr().err.splitlines() == whole


def test_the_lines_of_many_faults_cost_one_more_reading(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(gzip.compress(b"\xff\n" * 90 + b"fine\n"))
    opened = []
    counted = lambda path: opened.append(path) or open_text(path)  # noqa: E731
    monkeypatch.setattr("preprocessing.readers.documents.open_text", counted)
    assert read("lines", tmp_path / "a") == (["fine"], {"undecodable": 90}) and len(opened) == 1


def test_faults_out_of_order_and_in_another_file_have_the_right_lines(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).write_text("x\n" * 100)
    tally = Tally(skip_faults=True)
    for name, offset, line in (("a", 20, 11), ("a", 6, 4), ("b", 8, 5), ("a", 199, 100)):
        tally.fault("malformed", str(tmp_path / name), offset, "expected more")
        assert f"{name}, line {line} (byte {offset})" in capsys.readouterr().err
    tally.close()


def nested(*inner: str, closed: bool = True) -> str:
    """An article of two lines with the given articles within."""
    return f'<doc title="o">\nouter\n{"".join(inner)}\nmore\n{"</doc>" if closed else ""}\n'


def article(text: str) -> str:
    return f'<doc title="t">\n{text}\n</doc>\n'


NESTED = {
    "one in one": (nested(article("a")), ["a"], 1),
    "text and another behind": (nested(article("a")) + article("b"), ["a", "b"], 1),
    "two in one": (nested(article("a"), "between\n", article("b")) + article("c"), ["a", "b", "c"], 1),
    "three deep": (nested(nested(article("a"))) + article("b"), ["a", "b"], 2),
    "an end that is missing": ('<doc title="o">\nouter\n' + article("a") + article("b"), ["a", "b"], 1),
    "no end at all": ('<doc title="o">\n<doc title="p">\n<doc title="q">\n', [], 3),
}


@pytest.mark.parametrize("case", NESTED)
def test_nested_documents_add_up(tmp_path, case):
    """Kept and left out are together as many as there were."""
    raw, kept, left_out = NESTED[case]
    (tmp_path / "a").write_text(raw)
    assert read("wikiextractor", tmp_path / "a") == (kept, {"malformed": left_out})
    assert len(kept) + left_out == raw.count("<doc ")
    for cut in range(1, len(raw)):
        parts = [read("wikiextractor", tmp_path / "a", *bounds)[0] for bounds in ((0, cut), (cut, len(raw)))]
        assert parts[0] + parts[1] == kept, cut


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_pages_that_lost_their_ends_add_up(tmp_path, lost):
    """Several in a row, in the middle and at the end of the file, in the whole file and in two ranges."""
    pages = [page(f"P{index}", f"text {index}") for index in range(6)]
    for first in (1, 6 - lost):
        torn = [p.replace("</page>", "") if first <= i < first + lost else p for i, p in enumerate(pages)]
        raw = (HEAD + "".join(torn) + END).encode()
        (tmp_path / "a").write_bytes(raw)
        kept = [f"text {index}" for index in range(6) if not first <= index < first + lost]
        assert read("mediawiki", tmp_path / "a") == (kept, {"malformed": lost})
        for cut in range(1, len(raw), 7):
            (before, faults), (behind, more) = (
                read("mediawiki", tmp_path / "a", *b) for b in ((0, cut), (cut, len(raw)))
            )
            total = faults.get("malformed", 0) + more.get("malformed", 0)
            assert (before + behind, total) == (kept, lost), cut
