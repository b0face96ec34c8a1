"""What submit.py fetches, with a hub of the test's: it hands over folders and remembers what was asked for."""

import os
import sys
import types

import pytest

from pipeline.errors import UserError
from slurm import fetch
from slurm.fetch import Fetcher


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Calls of snapshot_download; `files` is what a snapshot holds, `builder` what a data set is made of."""
    own = types.SimpleNamespace(calls=[], files=["config.json", "model.safetensors"], data_files=None)

    def snapshot_download(name, **options):
        own.calls.append((name, options))
        folder = tmp_path / "snapshot"
        folder.mkdir(exist_ok=True)
        for file in own.files:
            (folder / file).touch()
        return str(folder)

    def load_dataset_builder(name, config, revision=None):
        own.asked = (name, config, revision)
        return types.SimpleNamespace(config=types.SimpleNamespace(data_files=own.data_files))

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset_builder=load_dataset_builder))
    return own


def test_a_teacher_of_the_hub_becomes_a_directory(hub, tmp_path):
    path = Fetcher(tmp_path / "cache").model("google-bert/bert-base-uncased", "teacher")
    (name, options), *rest = hub.calls
    assert path == str(tmp_path / "snapshot") and rest == []
    assert name == "google-bert/bert-base-uncased" and "*.bin" not in str(options["allow_patterns"])
    assert options["cache_dir"] == tmp_path / "cache" / "hub"


def test_pickled_weights_are_taken_where_there_are_no_others(hub, tmp_path):
    hub.files = ["config.json"]
    Fetcher(tmp_path / "cache").model("old/bert", "teacher")
    assert len(hub.calls) == 2 and "pytorch_model*.bin*" in hub.calls[1][1]["allow_patterns"]


def test_of_a_data_set_the_files_of_its_configuration_are_taken(hub, tmp_path):
    hub.data_files = {"train": ["hf://datasets/wikimedia/wikipedia@abc/20231101.en/train-0.parquet"]}
    spec = Fetcher(tmp_path).source("hub:wikimedia/wikipedia?config=20231101.en&split=train&revision=abc")
    assert spec == f"hub:{tmp_path}/snapshot?config=20231101.en&split=train"
    assert hub.asked == ("wikimedia/wikipedia", "20231101.en", "abc")
    assert hub.calls[0][1]["allow_patterns"] == ["20231101.en/train-0.parquet", "README.md"]


def test_what_is_here_is_not_fetched(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    fetcher = Fetcher(tmp_path / "cache")
    assert fetcher.model("bert", "teacher") == str(tmp_path / "bert")
    assert fetcher.source("hub:bert?field=x") == f"hub:{tmp_path}/bert?field=x"
    assert fetcher.source("lines:a/*.txt") == f"lines:{tmp_path}/a/*.txt"
    assert fetcher.tasks("rte", "bert") == str(tmp_path / "bert") and hub.calls == []


def test_a_dry_run_fetches_nothing(hub, tmp_path):
    fetcher = Fetcher(tmp_path, download=False)
    assert fetcher.model("a/b", "teacher") == "a/b" and fetcher.source("hub:a/b") == "hub:a/b"
    assert fetcher.tasks("rte", "hub") == "hub" and hub.calls == []


def test_rows_of_tasks_are_asked_for_as_evaluate_does(hub, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("pipeline.evaluation.glue.load.load_task", lambda task, source: asked.append(task.name))
    monkeypatch.setattr("pipeline.evaluation.squad.load.load_squad", lambda version, source: asked.append("squad"))
    assert Fetcher(tmp_path).tasks("rte, mnli_mm,latency,squad_v1", "hub") == "hub"
    assert asked == ["rte", "mnli", "squad"]


def test_a_hub_that_fails_is_one_sentence(hub, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no network\nand more")

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", fails)
    with pytest.raises(UserError, match=r"^teacher a/b cannot be fetched: no network$"):
        Fetcher(tmp_path).model("a/b", "teacher")
    with pytest.raises(UserError, match=r"^data set hub:a/b cannot be fetched: no network$"):
        Fetcher(tmp_path).source("hub:a/b")
    assert fetch.hub_variables(tmp_path)["HF_HUB_CACHE"] == f"{tmp_path}/hub"
