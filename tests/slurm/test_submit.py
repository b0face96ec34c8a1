"""slurm/submit.py without SLURM: the functions that talk with it are the test's."""

import itertools
import json
import subprocess
import types

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.recipe import load_recipe
from slurm import batch, checks, scheduler, submit
from slurm.record import read_record
from slurm.resources import load_site
from slurm.scheduler import JobState
from tests.slurm.runs import write_deepspeed, write_recipe, write_site
from tests.support import ROOT
from tests.support.runs import run_main


class Queue:
    """Takes every job, and keeps it waiting until it is told otherwise."""

    def __init__(self, monkeypatch):
        self.sent, self.waiting, self.complaint = [], {}, None
        self.numbers = itertools.count(11)
        for name in ("submit", "check", "named", "active"):
            monkeypatch.setattr(scheduler, name, getattr(self, name))

    def submit(self, batch_file, options):
        number = str(next(self.numbers))
        self.sent.append((batch_file.stem, list(options)))
        self.waiting[number] = options[0].removeprefix("--job-name=")
        return number

    def check(self, batch_file):
        return self.complaint

    def named(self, name):
        return [number for number, own in self.waiting.items() if own == name]

    def active(self, numbers):
        return [JobState(number, "PENDING") for number in numbers if number in self.waiting]

    def dependency(self, stage):
        options = [options for name, options in self.sent if name == stage]
        return [option.removeprefix("--dependency=") for line in options for option in line if "dependency" in option]


@pytest.fixture
def door(tmp_path, monkeypatch):
    """A queue, and submit.py in this process: (exit code, stdout, stderr)."""
    deepspeed, site = write_deepspeed(tmp_path / "ds.json"), write_site(tmp_path / "site.yaml", tmp_path / "cache")

    def call(*options, name="run", site=site, **recipe):
        path = write_recipe(tmp_path / f"{name}.yaml", **recipe)
        how = ("--run", tmp_path / name, "--deepspeed_config", deepspeed, "--site", site, "--allow-dirty")
        return run_main(monkeypatch, submit.main, path, *how, *options)

    return types.SimpleNamespace(queue=Queue(monkeypatch), call=call, folder=tmp_path)


def test_the_chain_is_queued_stage_behind_stage(door):
    code, out, err = door.call()
    assert code == 0, err
    assert [name for name, _ in door.queue.sent] == ["shards", "merge", "verify", "train", "fold", "report"]
    assert door.queue.dependency("shards") == [] and door.queue.dependency("report") == ["afterok:15"]
    assert all("--kill-on-invalid-dep=yes" in options for name, options in door.queue.sent if name != "shards")
    assert "evaluate: not queued, the recipe has no section evaluation" in out
    record = read_record(door.folder / "run")
    assert [job.number for job in record.jobs] == ["11", "12", "13", "14", "15", "16"]
    recipe = load_recipe(record.folder / "recipe.yaml", [])
    assert recipe.data.shards == record.shards and record.shards.startswith(str(door.folder / "cache" / "shards"))


def test_a_dry_run_prints_every_file_and_touches_nothing(door):
    before = sorted(door.folder.rglob("*"))
    code, out, _ = door.call("--dry-run", evaluation={"tasks": "latency", "data": str(door.folder), "seeds": "1"})
    assert code == 0 and door.queue.sent == []
    assert {*door.folder.rglob("*")} - {*before} == {door.folder / "run.yaml"}
    for stage in ("shards", "merge", "verify", "train", "fold", "evaluate", "report"):
        assert f"==> {door.folder / 'run' / 'slurm' / stage}.sbatch" in out
    assert "bash slurm/evaluate.sbatch --model" in out and "--tasks latency" in out and "HF_HUB_OFFLINE=1" in out


def test_a_dry_run_needs_no_hub(door):
    code, out, err = door.call("--dry-run", teacher={"path": "no/such-teacher"})
    assert code == 0 and "cache/shards/HASH" in out, err
    code, out, err = door.call("--dry-run", sources={"inputs": ["hub:no/such?split=train"]})
    assert code == 0 and "hub:no/such?split=train" in out, err


def test_batch_files_are_shell_and_keep_odd_paths(door):
    name = "läufe of mine/it's 100%"
    (door.folder / name).parent.mkdir()
    code, _, err = door.call(name=name)
    assert code == 0, err
    files = sorted((door.folder / name / "slurm").glob("*.sbatch"))
    assert len(files) == 6
    for path in files:
        assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""
        assert "100%%" in path.read_text()


@pytest.mark.parametrize("name", ["back\\slash", "a\ttab", "two\nlines"])
def test_a_path_that_slurm_would_write_no_logs_to_is_refused(door, name):
    before = sorted(door.folder.rglob("*"))
    for option in ((), ("--dry-run",)):
        code, _, err = door.call(*option, name=name)
        assert code == 2 and err.count("\n") == 1 and "SLURM writes no logs to a path with " in err, err
    assert door.queue.sent == [] and {*door.folder.rglob("*")} - {*before} == {door.folder / f"{name}.yaml"}


def test_without_requeue_training_is_a_chain_of_which_one_must_finish(door):
    site = write_site(door.folder / "other.yaml", door.folder / "cache", requeue=False, train_jobs=3)
    assert door.call(site=site)[0] == 0
    assert door.queue.dependency("train") == ["afterok:13", "afternotok:14", "afternotok:14,afternotok:15"]
    assert door.queue.dependency("fold") == ["afterok:14?afterok:15?afterok:16"]
    text = (door.folder / "run" / "slurm" / "train.sbatch").read_text()
    assert text.rindex("--no-requeue") > text.index("--requeue") and "export SUCCESSORS='train-run-" in text


def test_a_second_submission_is_refused_while_jobs_wait(door):
    door.call()
    code, _, err = door.call()
    assert code == 2 and "has jobs that wait or run: 11, 12, 13, 14, 15, 16;" in err and len(door.queue.sent) == 6


def test_a_submission_that_was_cut_loses_no_job(door, monkeypatch):
    def cut(*arguments):
        Queue.submit(door.queue, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler, "submit", cut)
    with pytest.raises(KeyboardInterrupt):
        door.call()
    assert read_record(door.folder / "run").jobs[0].number == ""
    code, _, err = door.call()
    assert code == 2 and "wait or run: 11;" in err
    door.queue.waiting.clear()
    monkeypatch.setattr(scheduler, "submit", door.queue.submit)
    assert door.call()[0] == 0


def test_what_is_done_is_not_queued_again(door):
    door.call()
    door.queue.waiting.clear()
    run, record = door.folder / "run", read_record(door.folder / "run")
    for path in (f"{record.shards}/manifest.json", run / "checkpoints" / "step_4" / "complete.json"):
        (door.folder / path).parent.mkdir(parents=True)
        (door.folder / path).write_text("{}")
    (run / "slurm" / "states" / "13.ended").write_text('{"code": 0, "time": 1}')
    door.queue.sent.clear()
    assert door.call()[0] == 0
    assert [name for name, _ in door.queue.sent] == ["fold", "report"]
    door.queue.waiting.clear()
    door.queue.sent.clear()
    assert door.call("--from", "verify")[0] == 0
    assert [name for name, _ in door.queue.sent] == ["verify", "train", "fold", "report"]
    door.queue.waiting.clear()
    (run / "student").mkdir()
    (run / "student" / "fold.json").write_text("{}")
    code, _, err = door.call("--from", "fold")
    assert code == 2 and "student, which is there: move it away" in err


def test_another_recipe_is_refused_once_there_is_a_checkpoint(door):
    door.call()
    door.queue.waiting.clear()
    assert door.call(train={"lr": 0.5})[0] == 0
    door.queue.waiting.clear()
    marker = door.folder / "run" / "checkpoints" / "step_2" / "complete.json"
    marker.parent.mkdir(parents=True)
    marker.write_text("{}")
    assert door.call(train={"lr": 0.5, "steps": 9}, evaluation={"seeds": "4"})[0] == 0
    door.queue.waiting.clear()
    how = {"compile": True, "cuda_graph": "off", "hang_minutes": 5.0}
    assert door.call(train={"lr": 0.5, "steps": 9, **how}, data={"reader": "thread"})[0] == 0
    door.queue.waiting.clear()
    code, _, err = door.call(train={"lr": 0.25, "steps": 9})
    assert code == 2 and "holds another run: its train.lr is 0.5, not 0.25; choose another --run" in err


def test_the_marker_of_cancel_goes_with_the_next_submission(door):
    door.call()
    door.queue.waiting.clear()
    marker = read_record(door.folder / "run").marker
    marker.touch()
    assert door.call()[0] == 0 and not marker.exists()


def test_a_second_run_waits_for_the_shards_of_the_first(door):
    door.call()
    door.queue.sent.clear()
    code, out, err = door.call(name="second")
    assert code == 0, err
    assert f"merge: job 12 of {door.folder / 'run'} makes the same shards" in out
    assert [name for name, _ in door.queue.sent] == ["verify", "train", "fold", "report"]
    assert door.queue.dependency("verify") == ["afterok:12"]
    door.queue.waiting.clear()
    door.queue.sent.clear()
    assert door.call(name="third")[0] == 0 and door.queue.sent[0][0] == "shards"


def test_other_text_or_another_tokenizer_makes_other_shards(door):
    (door.folder / "text.txt").write_text("one line\n")
    door.call()
    door.call(name="second", sources={"inputs": [f"lines:{door.folder}/text.txt"]})
    first, second = (read_record(door.folder / name).shards for name in ("run", "second"))
    assert first != second


@pytest.mark.parametrize(
    "recipe,words",
    [
        ({"train": {"stesp": 4}}, "there is no key train.stesp, did you mean train.steps"),
        ({"train": {"global_batch": 7}}, "global_batch 7"),
        ({"sources": {"inputs": ["lines:nowhere.txt"]}}, "no such file"),
        ({"sources": {"inputs": 5}}, "sources.inputs must be FORMAT:PATH"),
        ({"teacher": {"path": "/nowhere"}}, "teacher /nowhere does not exist"),
        ({"teacher": {"path": "no/such-teacher"}}, "teacher no/such-teacher cannot be fetched"),
        ({"evaluation": {"tasks": "rte"}}, "evaluation.tasks and evaluation.data go together"),
        ({"evaluation": {"tasks": "rte,tre", "data": "."}}, "unknown task 'tre'"),
        ({"evaluation": {"tasks": "rte", "data": "/nowhere"}}, "evaluation.data /nowhere: there is no such directory"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_anything_is_queued(door, recipe, words):
    code, _, err = door.call(**recipe)
    assert code == 2 and words in err and err.count("\n") == 1, err
    assert door.queue.sent == []


def test_what_slurm_refuses_is_said_with_partition_and_account(door):
    door.queue.complaint = "invalid partition specified: main"
    site = write_site(door.folder / "other.yaml", door.folder / "cache", report={"account": "nobody"})
    code, _, err = door.call(site=site)
    assert code == 2 and door.queue.sent == []
    assert "SLURM refuses stage report (partition main, account nobody): invalid partition specified" in err


def test_a_full_disk_is_said_before(door, monkeypatch):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    code, _, err = door.call()
    assert code == 2 and door.queue.sent == []
    assert "0.0 GB are free, and checkpoints need about 0." in err and "and shards need" in err


def test_uncommitted_code_is_refused(door, monkeypatch):
    monkeypatch.setattr(checks, "code_revision", lambda: ("abc", " M pipeline/fold.py\n?? slurm/new.py\n"))
    allowed = door.call
    code, _, err = run_main(
        monkeypatch,
        submit.main,
        *(write_recipe(door.folder / "r.yaml"), "--run", door.folder / "r", "--site", door.folder / "site.yaml"),
        *("--deepspeed_config", door.folder / "ds.json"),
    )
    assert code == 2 and "uncommitted changes in pipeline/fold.py and 1 more" in err
    assert allowed()[0] == 0
    assert {job.revision for job in read_record(door.folder / "run").jobs} == {"abc-dirty"}


def test_the_revision_is_of_the_code_and_not_of_recipes(tmp_path, monkeypatch):
    repository = tmp_path / "clone"
    (repository / "pipeline").mkdir(parents=True)
    (repository / "recipes").mkdir()
    for path in ("pipeline/a.py", "recipes/a.yaml"):
        (repository / path).write_text("x")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(checks, "ROOT", repository)
    (repository / "recipes" / "a.yaml").write_text("y")
    commit, changes = checks.code_revision()
    assert len(commit) == 12 and changes == ""
    (repository / "pipeline" / "b.py").write_text("y")
    assert checks.code_revision()[1] == "?? pipeline/b.py\n"


@pytest.mark.parametrize(
    "content,words",
    [
        ({}, "cache is missing"),
        ({"cache": "c"}, "shards.time is missing"),
        ({"cache": "c", "defaults": {"time": 86400}}, "shards.time must be written in quotes"),
        ({"cache": "c", "tran": {}}, "there is no key tran, did you mean train"),
        (
            {"cache": "c", "defaults": {"time": "1:00"}, "train": {"gpsu": 1}},
            "no key train.gpsu, did you mean train.gpus",
        ),
        ({"cache": "c", "defaults": {"time": "1:00", "extra": "--x"}}, "shards.extra must be a list of options"),
        ({"cache": "c", "defaults": {"time": "1:00"}, "fold": {"array": 2}}, "fold.array must be 1"),
        ({"cache": "c", "defaults": {"time": "1:00"}, "evaluate": {"gpus": 4}}, "evaluate has one process"),
        ({"cache": "c", "defaults": {"time": "1:00"}, "train": 5}, "train must be a section"),
        ({"cache": "c", "defaults": {"nods": 5}}, "there is no key defaults.nods"),
    ],
)
def test_a_wrong_site_file_gets_a_sentence(tmp_path, content, words):
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=words) as refused:
        load_site(path)
    assert all(sentence.startswith(f"site file {path}: ") for sentence in refused.value.sentences)


def test_the_example_site_file_is_one(tmp_path):
    site = load_site(ROOT / "slurm" / "site.yaml")
    assert site.train.options() == [
        *("--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=4", "--gres=gpu:4", "--time=24:00:00")
    ]
    assert "--array=1-4" in site.evaluate.options() and site.fold.time == "02:00:00"


def test_training_inherits_the_options_of_its_batch_file():
    assert any(option.startswith("--signal=USR2@") for option in batch._options(batch.TRAIN))


def test_a_record_that_is_none_is_said(tmp_path):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "jobs.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="expected a list of jobs"):
        read_record(tmp_path)
