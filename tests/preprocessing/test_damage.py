"""Files that break: all that comes before is kept, the place is right, and one damage is counted once."""

import bz2
import gzip
import lzma
import re
import zlib
from itertools import pairwise

import pytest
import zstandard

from pipeline.errors import DataError
from preprocessing import build_shards, train_tokenizer
from preprocessing.readers import compressed
from preprocessing.readers.compressed import DamagedError, open_text
from preprocessing.readers.documents import Piece, Tally
from preprocessing.readers.formats import read_piece
from tests.support.runs import run_main
from tests.support.shards import sentences, write_vocabulary

PACKERS = {
    ".gz": gzip.compress,
    ".bz2": lambda raw: bz2.compress(raw, 1),
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
STARTERS = {
    ".gz": lambda: zlib.decompressobj(31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
TEXTS = [f"{index} été {line}" for index, line in enumerate(sentences(4_000))]
FORMATS = {
    "text": ("", "{}\n", ""),
    "lines": ("", "{}\n", ""),
    "jsonl": ("", '{{"text": "{}"}}\n', ""),
    "wikiextractor": ("", "<doc id='1'>\n{}\n</doc>\n", ""),
    "mediawiki": (
        "<mediawiki>\n",
        "<page><title>A</title><ns>0</ns><revision><text>{}</text></revision></page>\n",
        "</mediawiki>\n",
    ),
}


def written(kind: str, texts: list[str] = TEXTS) -> bytes:
    head, form, end = FORMATS[kind]
    return (head + "".join(form.format(text) for text in texts) + end).encode()


def what_comes_out(suffix: str, packed: bytes) -> bytes:
    """The text before the damage, by the library alone, a byte at a time."""
    stream, text = STARTERS[suffix](), bytearray()
    try:
        for at in range(len(packed)):
            text += stream.decompress(packed[at : at + 1])
    except (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError):
        pass
    return bytes(text)


def read(piece: Piece) -> tuple[list[str], dict[str, int]]:
    tally = Tally(skip_faults=True)
    return [document.text for document in read_piece(piece, tally)], dict(tally.left_out)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("suffix", PACKERS)
def test_of_a_file_cut_in_half_all_before_the_cut_is_kept(tmp_path, suffix, kind, capsys):
    raw = written(kind)
    packed = PACKERS[suffix](raw)
    packed = packed[: len(packed) // 2]
    sound = what_comes_out(suffix, packed)
    assert raw.startswith(sound) and len(sound) > len(raw) // 4
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed)
    texts, left_out = read(Piece(kind, str(path)))
    assert left_out == {"damaged": 1}
    place = f"{path}, byte {len(sound)}: expected whole, undamaged data: the file ends inside a"
    assert f"skipped: {place}" in capsys.readouterr().err
    if kind == "text":
        assert texts == [sound.decode(errors="ignore").strip()]
    else:
        ends = {"lines": b"\n", "jsonl": b"}\n", "wikiextractor": b"</doc>", "mediawiki": b"</page>"}
        assert texts == TEXTS[: sound.count(ends[kind])]
    with pytest.raises(DataError, match=re.escape(place)):
        list(read_piece(Piece(kind, str(path))))


@pytest.mark.parametrize("suffix", PACKERS)
def test_damage_in_the_middle_costs_nothing_of_what_is_before(tmp_path, suffix, monkeypatch):
    """Also where one call of the decompressor meets sound data and damage."""
    raw = written("lines")
    packed = bytearray(PACKERS[suffix](raw))
    middle = len(packed) // 2
    packed[middle : middle + 64] = bytes(64)
    sound = what_comes_out(suffix, bytes(packed))
    assert len(sound) > len(raw) // 4
    path = tmp_path / "a"
    path.write_bytes(packed)
    for block in (compressed._PACKED_BLOCK, 1000):
        monkeypatch.setattr(compressed, "_PACKED_BLOCK", block)
        with open_text(path) as stream:
            found = b""
            with pytest.raises(DamagedError) as caught:
                while part := stream.read1():
                    found += part
        assert found == sound and caught.value.position == len(sound)
    texts, left_out = read(Piece("lines", str(path)))
    assert left_out.pop("damaged") == 1
    # gzip and xz notice damage some way behind it: until then anything may come out, and is judged as text.
    same = next(at for at in range(len(raw), -1, -1) if sound.startswith(raw[:at]))
    whole = raw[:same].count(b"\n")
    assert texts[:whole] == TEXTS[:whole] and whole > len(TEXTS) // 4
    assert len(texts) + sum(left_out.values()) == sound.count(b"\n")
    (text,), left_out = read(Piece("text", str(path)))
    assert left_out == {"damaged": 1} and sound.startswith(text.encode())


@pytest.mark.parametrize("suffix", PACKERS)
def test_data_behind_a_stream_is_never_passed_over(tmp_path, suffix):
    """A second stream whose header is damaged: the libraries of bzip2 and xz take it for padding and say nothing."""
    first, second = PACKERS[suffix](b"one\n"), PACKERS[suffix](b"two\n")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(first + b"x" + second[1:])
    assert read(Piece("lines", str(path))) == (["one"], {"damaged": 1})
    path.write_bytes(first + second)
    assert read(Piece("lines", str(path))) == (["one", "two"], {})
    path.write_bytes(b"")
    assert read(Piece("lines", str(path))) == ([], {"damaged": 1})


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_padding_is_no_damage(tmp_path, suffix):
    first, second = PACKERS[suffix](b"one\n"), PACKERS[suffix](b"two\n")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(first + bytes(512) + second + bytes(1024))
    assert read(Piece("lines", str(path))) == (["one", "two"], {})


def test_a_plain_file_that_the_disk_does_not_give_is_damaged_too(tmp_path):
    """/proc/self/mem opens and cannot be read at 0, as a file on a broken disk."""
    path = "/proc/self/mem"
    for kind in FORMATS:
        assert read(Piece(kind, path)) == ([], {"damaged": 1})
        with pytest.raises(DataError, match="byte 0: expected whole, undamaged data: Input/output error"):
            list(read_piece(Piece(kind, path)))


def test_a_record_that_the_damage_cut_is_counted_once(tmp_path):
    """As damaged; it is not malformed as well."""
    for kind in ("wikiextractor", "mediawiki", "jsonl"):
        raw = written(kind, TEXTS[:3])
        packed = gzip.compress(raw[: raw.index(b"2 ") + 2])
        (tmp_path / kind).write_bytes(packed[:-8])  # all of the text, and no end
        assert read(Piece(kind, str(tmp_path / kind))) == (TEXTS[:2], {"damaged": 1})


def test_a_damaged_stream_is_counted_by_the_range_it_belongs_to(tmp_path):
    """The range before reads on until its last page is whole, and no further."""
    raw = written("mediawiki", TEXTS[:40])
    cuts = [0, *(raw.index(b"<page>", at) for at in (1, len(raw) // 3, 2 * len(raw) // 3)), len(raw)]
    streams = [bytearray(bz2.compress(raw[a:b])) for a, b in pairwise(cuts)]
    at = len(streams[0]) + len(streams[1])
    packed = b"".join(streams)
    damaged = packed[: at + 12] + bytes(20) + packed[at + 32 :]
    (tmp_path / "a").write_bytes(damaged)
    lost = raw[cuts[2] : cuts[3]].count(b"<page>")
    for cut in (5, len(streams[0]) + 5):
        texts, left_out = [], {}
        for start, end in ((0, cut), (cut, at), (at, at + len(streams[2])), (at + len(streams[2]), len(packed))):
            more, counts = read(Piece("mediawiki", str(tmp_path / "a"), start, end))
            texts, left_out = texts + more, {**left_out, **counts}
            assert counts == ({"damaged": 1} if start == at else {}), (start, counts)
        assert len(texts) == 40 - lost


def test_both_doors_say_the_place(tmp_path, monkeypatch):
    packed = zstandard.ZstdCompressor().compress(written("lines"))
    (tmp_path / "a.zst").write_bytes(packed[: len(packed) // 2])
    place = f"{tmp_path}/a.zst, byte {len(what_comes_out('.zst', packed[: len(packed) // 2]))}: expected whole"
    common = ["--input", f"lines:{tmp_path}/a.zst", "--output"]
    building = [*common, tmp_path / "out", "--tokenizer", write_vocabulary(tmp_path / "vocab.txt"), "--workers", 1]
    training = [*common, tmp_path / "tokenizer", "--vocab-size", 90]
    for main, arguments in ((build_shards.main, building), (train_tokenizer.main, training)):
        code, _, said = run_main(monkeypatch, main, *arguments)
        assert code == 3 and said.startswith(f"error: {place}") and said.count("\n") == 1
    code, out, said = run_main(monkeypatch, build_shards.main, *building, "--on-error", "skip")
    assert code == 0 and f"skipped: {place}" in said and "left out: 1 damaged" in out
