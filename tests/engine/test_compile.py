"""`train.compile` in real runs: the same losses as without, and no more graphs than the model has forms.

    python tests/engine/test_compile.py JOBS.json GRAPHS.json

This file is the worker as well: it trains every job in one process and writes down, step by step, how many graphs
torch has compiled. A job is a backend and the arguments of pipeline/train.py.
"""

import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import pytest
import torch

STEPS, START, INCREMENTS, DECAY = 9, 2, 3, 2
LAST_CHOICE = START + INCREMENTS - 1
NARROWED = LAST_CHOICE + DECAY
FORMS = {0, LAST_CHOICE, NARROWED}
"""Steps at which what is compiled takes other tensors: a gate that is scored, one that is not, none."""
STAGES = (0, 1, 3)


def write_job(directory: Path, name: str, stage: int, compiled: bool, checkpoint_every: int = 100) -> list[str]:
    """The arguments that train into directory/name, with every option that the forward pass depends on."""
    from tests.support.runs import recipe_values, train_command, write_deepspeed, write_recipe

    schedule = {"start_step": START, "increments": INCREMENTS, "decay_steps": DECAY}
    length = {"steps": STEPS, "checkpoint_every": checkpoint_every, "keep_checkpoints": STEPS, "evaluate_every": 4}
    values = recipe_values(
        directory / "shards",
        directory / "teacher",
        data={"separate_documents": True},
        compaction={"selection": "taylor", "decay": "penalty", **schedule},
        train={"dropout": 0.0, "compile": compiled, **length},
    )
    recipe = write_recipe(directory / f"{name}.yaml", values)
    deepspeed = write_deepspeed(directory / f"{name}.json", zero_optimization={"stage": stage}, gradient_clipping=1.0)
    return train_command({"recipe": recipe, "deepspeed": deepspeed}, directory / name)


def train_all(directory: Path, jobs: list[tuple[str, list[str]]]) -> dict[str, list[int]]:
    """Train; name of the run -> graphs that there were after each of its steps."""
    listing, graphs = directory / "jobs.json", directory / "graphs.json"
    listing.write_text(json.dumps(jobs))
    command = [sys.executable, __file__, str(listing), str(graphs)]
    with tempfile.TemporaryDirectory() as cache:  # of code: what another process has generated is not taken from there
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(graphs.read_text())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    from tests.support.runs import make_shards, make_teacher, vocabulary_of

    directory = tmp_path_factory.mktemp("compile")
    make_teacher(directory / "teacher", vocabulary_of(make_shards(directory / "shards")))
    return directory


@pytest.fixture(scope="module")
def graphs(inputs) -> dict[str, list[int]]:
    """Of the runs `plain` and `zeroN`, through everything but the code generator, which takes a compiler and long."""
    jobs = [("eager", write_job(inputs, "plain", stage=1, compiled=False))]
    jobs += [("eager", write_job(inputs, f"zero{stage}", stage, compiled=True)) for stage in STAGES]
    return train_all(inputs, jobs)


def assert_same_losses(compiled: Path, plain: Path) -> None:
    records = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (compiled, plain)
    ]
    for key, count in (("loss", STEPS), ("heldout_loss", 3)):
        ours, theirs = ([record[key] for record in run if key in record] for run in records)
        assert len(theirs) == count
        np.testing.assert_allclose(ours, theirs, rtol=2e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_compiled_run_trains_the_same(inputs, graphs, stage):
    assert_same_losses(inputs / f"zero{stage}", inputs / "plain")


@pytest.mark.parametrize("stage", STAGES)
def test_there_are_as_many_graphs_as_forms(graphs, stage):
    """Scoring, closing after the last choice, narrowed: no other choice or gate brings another graph."""
    assert set(graphs["plain"]) == {0}
    made = np.diff([0, *graphs[f"zero{stage}"]]).tolist()
    assert made == [int(step in FORMS) for step in range(STEPS)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ here")
def test_the_code_that_a_real_run_is_compiled_to_trains_the_same(inputs):
    runs = {"plain_again": False, "code": True}
    graphs = train_all(inputs, [("inductor", write_job(inputs, name, 1, compiled)) for name, compiled in runs.items()])
    assert np.diff([0, *graphs["code"]]).tolist() == [int(step in FORMS) for step in range(STEPS)]
    assert_same_losses(inputs / "code", inputs / "plain_again")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ here")
def test_a_compiled_run_resumes_bit_for_bit_in_every_form(inputs):
    train_all(inputs, [("inductor", write_job(inputs, "whole", 1, True, checkpoint_every=1))])
    jobs, forms = [], (1, LAST_CHOICE + 1, NARROWED + 1)
    for step in forms:
        resumed = inputs / f"from_{step}"
        shutil.copytree(inputs / "whole", resumed)
        for checkpoint in (resumed / "checkpoints").glob("step_*"):
            if int(checkpoint.name[5:]) > step:
                shutil.rmtree(checkpoint)
        jobs.append(("inductor", write_job(inputs, resumed.name, 1, True, checkpoint_every=1)))
    graphs = train_all(inputs, jobs)
    assert [len(graphs[f"from_{step}"]) for step in forms] == [STEPS - step for step in forms]
    last = Path("checkpoints", f"step_{STEPS}")
    names = {path.name for path in (inputs / "whole" / last).glob("*.safetensors")}
    assert len(names) >= 3
    for step, name in itertools.product(forms, names):
        whole, resumed = ((inputs / run / last / name).read_bytes() for run in ("whole", f"from_{step}"))
        assert whole == resumed, (step, name)


def main() -> None:
    """Train the jobs of argv[1] in turn, with graphs counted per step."""
    from torch._dynamo.utils import counters

    from pipeline import train
    from pipeline.engine import deepspeed_config, distributed, micro_step, session
    from pipeline.engine.trainer import Trainer
    from pipeline.recipe import load_recipe

    torch.set_num_threads(1)
    jobs, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    world = distributed.start(timeout_minutes=5)
    compiled, finish_step = micro_step.compiled, Trainer._finish_step
    made: list[int] = []

    def counted(trainer, means):
        made.append(counters["stats"]["unique_graphs"])
        return finish_step(trainer, means)

    Trainer._finish_step = counted
    deepspeed_config.require_compiler = lambda *_: None  # only the code generator wants a compiler
    result = {}
    for backend, job in jobs:
        micro_step.compiled = functools.partial(compiled, backend=backend)
        counters.clear()
        torch._dynamo.reset()
        made.clear()
        sys.argv = ["train.py", *job]
        arguments, overrides = train.parse_arguments()
        assert session.train(
            load_recipe(arguments.config, overrides), arguments.deepspeed_config, arguments.output, world
        )
        result[arguments.output.name] = list(made)
    distributed.stop()
    output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
