"""The temporary folder is full, missing or closed: one sentence that names it, from every door that needs one."""

import os
import resource

import pytest

from preprocessing import build_shards, train_tokenizer
from tests.support.runs import run_main
from tests.support.shards import sentences, write_vocabulary


@pytest.fixture(params=["build", "wordpiece", "bpe"])
def door(request, tmp_path):
    """An entry point with its arguments, and the folder for temporary files, which is not that of the output."""
    (tmp_path / "a.txt").write_text("\n".join(sentences(200)) + "\n")
    common = ["--input", f"lines:{tmp_path}/a.txt", "--output", tmp_path / "out"]
    if request.param == "build":
        vocabulary = write_vocabulary(tmp_path / "vocab.txt")
        return build_shards.main, [*common, "--tokenizer", vocabulary, "--workers", 1]
    return train_tokenizer.main, [*common, "--kind", request.param, "--vocab-size", 400]


def refused(tmp_path, monkeypatch, door, folder):
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setenv("TMPDIR", str(folder))
    code, _, said = run_main(monkeypatch, *door[:1], *door[1])
    assert (code, said.count("\n")) == (2, 1) and said.startswith(f"error: {folder}: cannot write"), said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_one(tmp_path, monkeypatch, door):
    """A limit on the size of files fails writes as a full disk does; tokenizers and Python say it differently."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        refused(tmp_path, monkeypatch, door, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_one_that_does_not_exist_or_is_closed(tmp_path, monkeypatch, door):
    refused(tmp_path, monkeypatch, door, tmp_path / "nowhere")
    # A file in its place refuses root too.
    (tmp_path / "file").touch()
    refused(tmp_path, monkeypatch, door, tmp_path / "file")
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        refused(tmp_path, monkeypatch, door, tmp_path / "closed")
