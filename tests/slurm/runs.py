"""What the tests of whole runs on a cluster share: a recipe on real text, a site file, and the doors."""

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from tests.engine.faults.processes import wait_until
from tests.slurm.cluster import Cluster
from tests.support import ROOT

TEACHER = ROOT / "teachers" / "wiki_books_4x192"
STEPS = 4
SITE = {
    "defaults": {"time": "0:30:00", "cpus": 1, "partition": "main"},
    "shards": {"array": 2},
    "evaluate": {"array": 2},
    "train": {"nodes": 2, "extra": ["--signal=USR2@60"]},
}


def write_recipe(path: Path, **sections: dict) -> Path:
    """The shipped teacher on prose, for four steps."""
    recipe = {
        "method": "wid",
        "teacher": {"path": str(TEACHER)},
        "data": {"seq_len": 32, "heldout_windows": 8},
        "target": {"hidden": 108, "head_size": 18},
        "compaction": {"start_step": 1, "interval_steps": 1, "increments": 1, "decay_steps": 1},
        "train": {"steps": STEPS, "global_batch": 4, "checkpoint_every": 2, "log_every": 1},
        "sources": {"inputs": [f"lines:{ROOT / 'demo' / 'prose.txt'}"]},
    }
    changed = {name: {**recipe.get(name, {}), **values} for name, values in sections.items()}
    path.write_text(yaml.safe_dump({**recipe, **changed}))
    return path


def write_site(path: Path, cache: Path, **entries: object) -> Path:
    path.write_text(yaml.safe_dump({"cache": str(cache), **SITE, **entries}))
    return path


def write_deepspeed(path: Path) -> Path:
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 1}}))
    return path


def write_task(folder: Path) -> Path:
    """Sixteen rows of RTE, made up."""
    (folder / "RTE").mkdir(parents=True)
    rows = [f"{i}\tThe boat is late.\tIt rains.\t{('entailment', 'not_entailment')[i % 2]}" for i in range(16)]
    for part in ("train", "dev"):
        (folder / "RTE" / f"{part}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n")
    return folder


def student_files(run: Path) -> dict[str, bytes]:
    """What a student is, by file: fold.json without where it comes from, and the model card not at all."""
    files = {path.name: path.read_bytes() for path in (run / "student").iterdir() if path.name != "README.md"}
    fold = {key: value for key, value in json.loads(files["fold.json"]).items() if key != "source_run"}
    return {**files, "fold.json": json.dumps(fold, sort_keys=True).encode()}


def ranks(slurm: Cluster) -> dict[str, psutil.Process]:
    """The processes that train, by their rank."""
    found = {}
    for process in slurm.processes():
        with suppress(psutil.Error):
            if process.name().startswith("python") and "pipeline/train.py" in process.cmdline():
                found[process.environ()["SLURM_PROCID"]] = process
    return found


def pending(process: psutil.Process) -> bool:
    """Whether SIGUSR1 or SIGUSR2 was sent to a process and has not reached it."""
    with suppress(OSError):
        waiting = int(Path(f"/proc/{process.pid}/status").read_text().split("ShdPnd:")[1].split()[0], 16)
        return any(waiting >> number - 1 & 1 for number in (signal.SIGUSR1, signal.SIGUSR2))
    return False


class Doors:
    """submit.py, status.py and cancel.py for one run, in the environment of a cluster."""

    def __init__(self, slurm: Cluster, folder: Path, name: str = "run", **recipe: dict) -> None:
        self.slurm, self.run = slurm, folder / name
        self.recipe = write_recipe(folder / f"{name}.yaml", **recipe)
        self.deepspeed = write_deepspeed(folder / "deepspeed.json")
        self.site = folder / "site.yaml"
        if not self.site.exists():
            write_site(self.site, folder / "cache")

    def call(self, door: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "slurm" / f"{door}.py"), *map(str, arguments)]
        return subprocess.run(command, env=self.slurm.variables, capture_output=True, text=True, timeout=120)

    def submit(self, *options: object) -> subprocess.CompletedProcess[str]:
        how = ("--deepspeed_config", self.deepspeed, "--site", self.site, "--allow-dirty")
        return self.call("submit", self.recipe, "--run", self.run, *how, *options)

    def rows(self) -> dict[str, dict]:
        """What status.py says, by stage."""
        done = self.call("status", self.run, "--json")
        assert done.returncode == 0, done.stderr
        return {row["stage"]: row for row in json.loads(done.stdout)}

    def wait_for(self, text: str, stage: str, seconds: float = 180) -> None:
        """Until a log of the stage has `text`."""
        logs = self.run / "slurm" / "logs"
        found = lambda: any(text in log.read_text(errors="replace") for log in logs.glob(f"{stage}_*.log"))  # noqa: E731
        wait_until(found, f"{text!r} in a log of {stage}", seconds, 0.2)

    def finish(self, seconds: float = 300) -> dict[str, dict]:
        """What status.py says when no job is left."""
        self.slurm.wait_until_empty(seconds)
        return self.rows()

    def logs(self, last: int = 3000) -> str:
        """The last characters of every log."""
        logs = sorted((self.run / "slurm" / "logs").glob("*"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-last:]}" for log in logs)
