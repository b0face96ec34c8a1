"""The manifest: what it says, that it cannot change unnoticed, and the trainer's quick check."""

import hashlib
import json
import os
import shutil

import pytest

from pipeline.data.manifest import Manifest, quick_check, read_manifest, tokenizer_fingerprint
from pipeline.errors import DataError, UserError
from tests.support.shards import flip_bit, write_shard, write_shard_directory


def test_what_is_written_is_read(tmp_path):
    manifest = write_shard_directory(tmp_path)
    assert read_manifest(tmp_path) == manifest == quick_check(tmp_path)
    assert (manifest.tokens, manifest.documents) == (9, 4)


def test_the_file_says_everything_and_ends_with_a_hash_of_itself(tmp_path):
    write_shard_directory(tmp_path)
    fields = json.loads((tmp_path / "manifest.json").read_bytes())
    assert list(fields)[-1] == "content_hash"
    content_hash = fields.pop("content_hash")
    assert content_hash == hashlib.sha256(json.dumps(fields).encode()).hexdigest()
    assert (fields["format_version"], fields["vocab_size"], fields["tokens"], fields["documents"]) == (1, 1000, 9, 4)
    assert fields["skipped"] == {"empty": 1}
    assert fields["shards"][1] == {
        "name": "b",
        "tokens": 4,
        "documents": 2,
        "bytes": 8,
        "sha256_bin": hashlib.sha256((tmp_path / "b.bin").read_bytes()).hexdigest(),
        "sha256_idx": hashlib.sha256((tmp_path / "b.idx").read_bytes()).hexdigest(),
    }


def test_every_byte_of_the_manifest_counts(tmp_path):
    write_shard_directory(tmp_path)
    path = tmp_path / "manifest.json"
    original = path.read_bytes()
    for bit in range(0, 8 * len(original), 7):  # every byte, and each of its bits in turn
        flip_bit(path, bit)
        with pytest.raises(DataError, match=r"manifest\.json"):
            read_manifest(tmp_path)
        path.write_bytes(original)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_truncated_manifest_is_found(tmp_path, size):
    write_shard_directory(tmp_path)
    path = tmp_path / "manifest.json"
    os.truncate(path, size % path.stat().st_size)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_directory_without_a_manifest_is_the_users_mistake(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="no finished shard directory") as caught:
            quick_check(directory)
        assert caught.value.exit_code == 2


def test_a_newer_format_is_named(tmp_path):
    old = write_shard_directory(tmp_path)
    Manifest(old.source_hash, old.tokenizer_fingerprint, 1000, {}, old.shards, format_version=2).write(tmp_path)
    with pytest.raises(DataError, match="format version 2"):
        read_manifest(tmp_path)


def test_the_fingerprint_follows_defining_files_only(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\n")
    first = tokenizer_fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("about")
    assert tokenizer_fingerprint(tmp_path) == first
    (tmp_path / "vocab.txt").write_text("b\n")
    assert tokenizer_fingerprint(tmp_path) != first
    (tmp_path / "vocab.txt").rename(tmp_path / "merges.txt")
    (tmp_path / "merges.txt").write_text("a\n")
    assert tokenizer_fingerprint(tmp_path) != first
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match="none"):
        tokenizer_fingerprint(tmp_path)


def swap(directory):
    for suffix in (".bin", ".idx"):
        (directory / f"a{suffix}").rename(directory / "c")
        (directory / f"b{suffix}").rename(directory / f"a{suffix}")
        (directory / "c").rename(directory / f"b{suffix}")


DAMAGE = {
    "truncated body": (lambda d: os.truncate(d / "a.bin", 5), r"a\.bin: byte 5"),
    "truncated index": (lambda d: os.truncate(d / "b.idx", 50), r"b\.idx: byte 50"),
    "missing shard": (lambda d: (d / "a.bin").unlink(), r"a\.bin"),
    "missing tokenizer": (lambda d: shutil.rmtree(d / "tokenizer"), "tokenizer"),
    "other tokenizer": (lambda d: (d / "tokenizer" / "vocab.txt").write_text("[PAD]\n"), "fingerprint"),
    "swapped shards": (swap, r"a\.bin: expected 5 tokens"),
    "other id type": (lambda d: write_shard(d / "a", [[1, 2, 3], [4, 5]], 70_000), r"a\.idx: byte 17"),
    "fewer documents": (lambda d: write_shard(d / "a", [[1, 2, 3, 4, 5]]), r"a\.idx: byte 26: expected 2 documents"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_quick_check_finds(tmp_path, damage):
    write_shard_directory(tmp_path)
    inflict, where = DAMAGE[damage]
    inflict(tmp_path)
    with pytest.raises(DataError, match=where):
        quick_check(tmp_path)


def test_the_quick_check_reads_no_body(tmp_path):
    write_shard_directory(tmp_path)
    flip_bit(tmp_path / "a.bin", 3)
    quick_check(tmp_path)
