"""Every entry script as a script, with -m and through DeepSpeed's launcher, from a copy that is not installed.

The copy runs in an environment whose editable install is hidden, and each process that imported `pipeline` writes
down where from. One real run goes through the launcher: trained on two ranks, stopped on request with exit code 75,
refused for another recipe with exit code 2, resumed and ended with 0.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from pipeline.launch import free_port
from tests.support import ROOT
from tests.support.runs import prepare, recipe_values, train_command, write_recipe

DEEPSPEED = Path(sys.executable).with_name("deepspeed")
# The folder of its script is what Python would put first on the path: nothing in it may hide a library.
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("pipeline", "preprocessing")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in path.read_text()
)
EXPECTED = {
    "pipeline/train.py",
    "pipeline/fold.py",
    "pipeline/evaluate.py",
    "pipeline/export.py",
    "pipeline/report.py",
    "preprocessing/train_tokenizer.py",
    "preprocessing/build_shards.py",
    "preprocessing/verify_shards.py",
    "preprocessing/inspect_shards.py",
}
WAYS = ["script", "module", "launcher"]
REAL_RUN = "pipeline/train.py"  # goes through the launcher in earnest, below

HIDE_INSTALLATION = """
import atexit, os, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != {root!r}]

def note():
    package = sys.modules.get("pipeline")
    if package is not None:
        with open(os.environ["TEST_TRACE"], "a") as trace:
            trace.write(package.__file__ + "\\n")

atexit.register(note)
"""


# What `deepspeed SCRIPT --help` does on one machine, for every script at once: its imports cost more than the rest.
LAUNCH_ALL = """
import base64, json, os, socket, sys
from pathlib import Path
from deepspeed.launcher import launch

world = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
options = [f"--world_info={world}", "--node_rank=0", "--master_addr=127.0.0.1"]
for number, script in enumerate(sys.argv[2:]):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if os.fork() == 0:
        output = Path(sys.argv[1]) / Path(script).stem
        for stream, suffix in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{output}.{suffix}", os.O_CREAT | os.O_WRONLY), stream)
        os.environ["TEST_TRACE"] += f"/{output.name}_launcher"
        sys.argv = ["launch.py", *options, f"--master_port={port}", script, "--help"]
        launch.main()
        sys.exit(0)
    if number % 2:
        os.wait()
while True:
    try:
        process, status = os.wait()
    except ChildProcessError:
        break
"""


class Copy:
    """A copy of the source tree and an environment in which nothing else provides `pipeline`."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "clone"
        for folder in ("pipeline", "preprocessing"):
            shutil.copytree(ROOT / folder, self.root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        site = directory / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(HIDE_INSTALLATION.format(root=str(ROOT)))
        hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self.environment |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.traces = directory / "traces"
        self.traces.mkdir()

    def start(self, script: str, way: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start an entry script; as a module from the copy's root, else from where nothing of it can be found."""
        command = {
            "module": [sys.executable, "-m", script.removesuffix(".py").replace("/", ".")],
            "script": [sys.executable, str(self.root / script)],
            "launcher": [
                str(DEEPSPEED),
                "--num_accelerators",
                "2",
                "--master_port",
                str(free_port()),
                str(self.root / script),
            ],
        }[way]
        trace = {"TEST_TRACE": str(self.traces / f"{Path(script).stem}_{way}")}
        return subprocess.Popen(
            [*command, *arguments],
            cwd=self.root if way == "module" else "/",
            env={**self.environment, **trace, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def imported_from(self, script: str, way: str) -> set[str]:
        return set((self.traces / f"{Path(script).stem}_{way}").read_text().split())


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    return Copy(tmp_path_factory.mktemp("entry"))


@pytest.fixture(scope="module")
def helped(copy) -> dict[tuple[str, str], tuple[str, str]]:
    """`--help` of every script in every way, two at a time: (script, way) -> stdout, stderr."""

    def run(case: tuple[str, str]) -> tuple[str, str]:
        process = copy.start(*case, "--help")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out, err

    cases = [(script, way) for way in ("script", "module") for script in SCRIPTS]
    with ThreadPoolExecutor(2) as pool:
        launched = pool.submit(launch_all, copy)
        return {**dict(zip(cases, pool.map(run, cases), strict=True)), **launched.result()}


def launch_all(copy: Copy) -> dict[tuple[str, str], tuple[str, str]]:
    outputs = copy.root.parent / "outputs"
    outputs.mkdir()
    scripts = [script for script in SCRIPTS if script != REAL_RUN]
    command = [sys.executable, "-c", LAUNCH_ALL, outputs, *(copy.root / script for script in scripts)]
    environment = {**copy.environment, "TEST_TRACE": str(copy.traces)}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = {}
    for script in scripts:
        out, err = ((outputs / f"{Path(script).stem}.{suffix}").read_text() for suffix in ("out", "err"))
        assert out.count("exits successfully") == 2, out + err
        found[script, "launcher"] = out, err
    return found


def test_these_are_the_entry_scripts():
    assert set(SCRIPTS) >= EXPECTED


@pytest.mark.parametrize("script,way", [case for case in product(SCRIPTS, WAYS) if case != (REAL_RUN, "launcher")])
def test_help_from_a_clone_that_is_not_installed(copy, helped, script, way):
    out, err = helped[script, way]
    assert "usage: " in out and "show this help" in out
    assert "Traceback" not in err
    if way != "launcher":  # which names its own option on its own lines
        assert "local_rank" not in out and err == ""
    assert copy.imported_from(script, way) == {str(copy.root / "pipeline" / "__init__.py")}


def test_without_the_copy_there_is_no_pipeline(copy):
    """The trick that hides the installation works; without it the tests above could not fail."""
    trace = {"TEST_TRACE": os.devnull}
    command = [sys.executable, "-c", "import pipeline"]
    done = subprocess.run(command, cwd="/", env={**copy.environment, **trace}, capture_output=True, text=True)
    assert done.returncode == 1 and "No module named 'pipeline'" in done.stderr


def errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


def test_a_run_on_cpus_sees_no_gpu():
    """The deepspeed launcher writes numbers of ranks into CUDA_VISIBLE_DEVICES, on CPUs too."""
    code = "import os, pipeline.train; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    seen = {}
    for accelerator in ("cpu", "cuda"):
        environment = {**os.environ, "DS_ACCELERATOR": accelerator, "CUDA_VISIBLE_DEVICES": "0,1"}
        command = [sys.executable, "-c", code]
        seen[accelerator] = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    assert seen == {"cpu": "''\n", "cuda": "'0,1'\n"}


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def test_a_run_through_the_launcher_stops_refuses_resumes_and_ends(copy, tmp_path):
    inputs = prepare(tmp_path)
    train = {"steps": 300, "checkpoint_every": 10_000, "evaluate_every": 10_000}
    values = recipe_values(inputs["shards"], inputs["teacher"], train=train)
    write_recipe(inputs["recipe"], values)
    run = tmp_path / "run"
    arguments = train_command(inputs, run)
    metrics = run / "metrics.jsonl"

    started = copy.start(REAL_RUN, "launcher", *arguments)
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 3, started)
    (run / "stop").touch()
    out, err = started.communicate(timeout=240)
    assert started.returncode == 75, err
    assert "Traceback" not in err and errors(err) == [] and "stopped on request at step" in out
    stopped_at = int((run / "checkpoints" / "latest").read_text().removeprefix("step_"))
    assert 3 <= stopped_at < 300 and not (run / "stop").exists()
    assert len(metrics.read_text().splitlines()) == stopped_at
    assert json.loads((run / "stopped.json").read_text()) == {"reason": "stop file", "rank": 0, "step": stopped_at}

    # Without a launcher that would end the other rank, each must find its own way out, and one of them speak.
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    options = [*arguments, "--train.lr", "0.5"]
    ranks = [copy.start(REAL_RUN, "script", *options, RANK=r, LOCAL_RANK=r, **world) for r in "01"]
    resumed = copy.start(REAL_RUN, "launcher", *arguments)
    said = []
    for process in ranks:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 2 and "Traceback" not in err, err
        said.append(errors(err))
    assert len(said[0]) == 1 and said[1] == [] and "holds another run: its train.lr" in said[0][0]

    out, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    assert f"resumed from {run}/checkpoints/step_{stopped_at}" in out and "Traceback" not in err
    assert copy.imported_from(REAL_RUN, "launcher") == {str(copy.root / "pipeline" / "__init__.py")}
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 301)) and not (run / "stopped.json").exists()

    folded = copy.start("pipeline/fold.py", "script", "--run", str(run), "--output", str(tmp_path / "student"))
    out, err = folded.communicate(timeout=240)
    assert folded.returncode == 0, err
    assert json.loads((tmp_path / "student" / "fold.json").read_text())["step"] == 300
