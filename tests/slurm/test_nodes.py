"""Nodes check themselves: each fault is found, and the node is named that has it."""

import io
import json
import shutil
import subprocess
import time

import pytest

from pipeline.recipe import load_recipe
from slurm import check_node, judge_nodes
from tests.support.runs import prepare, run_main


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def check(inputs, tmp_path, monkeypatch):
    """What the check says on a node, as one record."""
    monkeypatch.setattr(check_node.signal, "signal", lambda *arguments: None)

    def check_here(node="n1"):
        monkeypatch.setenv("SLURMD_NODENAME", node)
        code, out, err = run_main(monkeypatch, check_node.main, tmp_path, inputs["recipe"])
        assert code == 0, err
        return json.loads(out)

    return check_here


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Judge records: exit code and what was said."""
    (tmp_path / "slurm").mkdir()

    def judge_records(names, records, since=None):
        monkeypatch.setattr(judge_nodes, "node_names", lambda: names)
        text = "a library's line\n" + "".join(json.dumps(record) + "\n" for record in records)
        monkeypatch.setattr(judge_nodes.sys, "stdin", io.StringIO(text))
        since = time.time() - 2 if since is None else since
        code, out, err = run_main(monkeypatch, judge_nodes.main, tmp_path, "--since", since)
        return code, out + err

    return judge_records


def test_good_nodes_pass(check, judge, tmp_path):
    records = [check("n1"), check("n2")]
    assert all(record["own"] == record["common"] == [] for record in records)
    code, said = judge(["n1", "n2"], records)
    assert code == 0 and "2 nodes are fit to train" in said and not (tmp_path / "slurm" / "bad_nodes").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"own": ["1 of 4 GPUs are seen", "GPU 0 is bad"]}, "error: node n2: 1 of 4 GPUs are seen; GPU 0 is bad\n"),
        ({"common": ["run: cannot write"]}, "error: node n2: run: cannot write\n"),
        ({"commit": "abc"}, "error: node n2: code is abc there and "),
        ({"versions": {"torch": "1.0"}}, "error: node n2: torch is 1.0 there and "),
        ({"time": 0}, " seconds off the first node's\n"),
        ({"node": "n9"}, "error: node n2: its check gave no answer\n"),
    ],
)
def test_the_bad_node_is_named_and_noted(check, judge, tmp_path, change, sentence):
    code, said = judge(["n1", "n2"], [check("n1"), {**check("n2"), **change}])
    assert code == 70 and sentence in said and "node n1" not in said
    assert (tmp_path / "slurm" / "bad_nodes").read_text().startswith("n2: ")


def test_what_all_nodes_lack_is_not_theirs(check, judge, tmp_path):
    records = [{**check(name), "common": ["disk full"]} for name in ("n1", "n2")]
    assert judge(["n1", "n2"], records)[0] == 2 and not (tmp_path / "slurm" / "bad_nodes").exists()


def test_shards_that_cannot_be_read_are_found(inputs, tmp_path):
    recipe = load_recipe(inputs["recipe"], [])
    assert list(check_node.shard_faults(recipe)) == []
    copy = shutil.copytree(inputs["shards"], tmp_path / "copy")
    recipe = load_recipe(inputs["recipe"], ["--data.shards", str(copy)])
    body = next(copy.glob("*.bin"))
    content = body.read_bytes()
    body.write_bytes(content[:-2])
    assert str(body) in next(check_node.shard_faults(recipe))
    body.unlink()
    assert str(body) in next(check_node.shard_faults(recipe))
    shutil.rmtree(copy)
    assert "no finished shard directory" in next(check_node.shard_faults(recipe))


def test_disk_and_memory_are_found_wanting(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "cannot write" in next(check_node.disk_faults(tmp_path / "file"))
    monkeypatch.setattr(check_node, "DISK_GIB", 1 << 30)
    assert "GiB of disk space are free" in next(check_node.disk_faults(tmp_path / "run"))
    monkeypatch.setattr(check_node, "MEMORY_GIB", 1 << 30)
    assert "of main memory are free" in next(check_node.memory_faults())


@pytest.mark.parametrize(
    ("answer", "visible", "faults"),
    [
        ("0, 4\n1, 4\n", None, []),
        ("0, 4\n", None, ["1 of 2 GPUs are seen"]),
        ("0, 4\n1, 61440\n", "0,1", ["GPU 1 is in use by another process (60.0 GiB)"]),
        ("0, 61440\n1, 4\n2, 4\n3, 4\n", "1,2", []),
        ("", None, ["0 of 2 GPUs are seen"]),
        (None, None, ["nvidia-smi does not answer (FileNotFoundError)"]),
    ],
)
def test_gpus_are_seen_and_free(monkeypatch, answer, visible, faults):
    def nvidia_smi(command, **options):
        if answer is None:
            raise FileNotFoundError
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(check_node.subprocess, "run", nvidia_smi)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    assert list(check_node.gpu_faults()) == faults
    monkeypatch.delenv("SLURM_GPUS_ON_NODE")
    assert list(check_node.gpu_faults()) == []
