"""Stages as data: what is done, what is missing, and that their command lines are those the doors understand."""

import sys
from pathlib import Path

import pytest

from demo import run as demo
from pipeline import evaluate, fold, report, train
from pipeline.errors import UserError
from pipeline.stages import (
    ROOT,
    Stage,
    StageRunner,
    evaluate_stage,
    fold_stage,
    report_stage,
    shards_stage,
    train_stage,
)
from preprocessing import build_shards

RECIPE, DEEPSPEED = "recipes/demo_student.yaml", "ds_configs/demo_cpu_fp32.json"


def every_stage(tmp_path: Path) -> dict[str, Stage]:
    run, student = tmp_path / "run", tmp_path / "student"
    return {
        "shards": shards_stage("shards", ["lines:a.txt", "lines:b.txt"], tmp_path, tmp_path / "shards", workers=2),
        "train": train_stage("train", RECIPE, DEEPSPEED, run, "--train.steps", 170, "--train.lr", 1e-3),
        "fold": fold_stage("fold", run, student, step=10),
        "evaluate": evaluate_stage("scores", student, "mlm", tmp_path, tmp_path / "scores", "--seeds", "1,2"),
        "report": report_stage("report", [run, tmp_path / "scores"], tmp_path / "report"),
    }


@pytest.mark.parametrize(
    "name,door", [("shards", build_shards), ("fold", fold), ("evaluate", evaluate), ("report", report)]
)
def test_the_doors_understand_the_command_lines(tmp_path, monkeypatch, name, door):
    monkeypatch.setattr(sys, "argv", list(every_stage(tmp_path)[name].command))
    assert str(door.parse_arguments().output).startswith(str(tmp_path))


def test_so_does_training(tmp_path, monkeypatch):
    stage = every_stage(tmp_path)["train"]
    monkeypatch.setattr(sys, "argv", list(stage.command))
    arguments, options = train.parse_arguments()
    assert arguments.output == tmp_path / "run"
    assert options == ["--train.steps", "170", "--train.lr", "0.001"]
    assert stage.launcher == "deepspeed" and stage.resources == "gpu"


def test_a_run_is_done_with_its_last_step(tmp_path):
    stage = every_stage(tmp_path)["train"]
    marker = tmp_path / "run" / "checkpoints" / "step_170" / "complete.json"
    marker.parent.mkdir(parents=True)
    assert not stage.done
    marker.write_text("{}")
    assert stage.done


def writing(folder: Path, name: str, *inputs: Path, text: str = "x") -> Stage:
    """A stage that appends `text` to a file of its name."""
    script = folder / "append.py"
    script.write_text("import sys\nprint('appending')\nopen(sys.argv[1], 'a').write(sys.argv[2])\n")
    return Stage(name, (str(script), str(folder / name), text), inputs, (folder / name,))


def test_what_is_done_is_not_run_again(tmp_path, capfd):
    first, second = writing(tmp_path, "first"), writing(tmp_path, "second", tmp_path / "first")
    runner = StageRunner(tmp_path / "logs")
    runner.run([first])
    runner.run([first, second])
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text() == "x"
    assert capfd.readouterr().out.count("appending") == 2
    assert (tmp_path / "logs" / "append.log").read_text() == "appending\n" * 2


def test_a_missing_input_and_a_failure_are_named(tmp_path):
    runner = StageRunner(tmp_path / "logs")
    with pytest.raises(UserError, match=r"stage second needs .*first, which is not there"):
        runner.run([writing(tmp_path, "second", tmp_path / "first")])
    broken = Stage("broken", (str(tmp_path / "none.py"),), (), (tmp_path / "never",))
    with pytest.raises(UserError, match=r"none.py ended with code 2; everything it said is in .*none.log"):
        runner.run([broken, writing(tmp_path, "after")])
    assert not (tmp_path / "after").exists()


def test_every_stage_of_the_demo_has_its_inputs_from_the_stages_before(tmp_path):
    """What is there at the start: the teacher, the text that `collect_text` writes, files of the repository."""
    teacher = tmp_path / "teacher"
    teacher.symlink_to(demo.SHIPPED_TEACHER)
    there = {tmp_path, teacher, tmp_path / demo.EVALUATION_DATA}
    for stage in demo.stages(tmp_path, quick=False, ranks=2):
        for path in stage.inputs:
            made = any(path == known or path in known.parents for known in there)
            assert made or path.is_relative_to(ROOT), (stage.name, path)
        there.update(stage.outputs)
