"""Whether two revisions of this project write the same results: what a refactoring must not change.

    python benchmarks/compare_commits.py --before REV --after REV|worktree --work DIR --json FILE [--allowed FILE]

1. Both revisions are checked out under DIR; `worktree` stands for the working tree as it lies.
2. Inputs are made once, from a fixed seed and files of the earlier revision (compare_inputs.py).
3. The same commands run in both (compare_cases.py), on CPUs with one thread, the two revisions side by side.
4. Exit codes and everything that was written are compared, value by value (compare_files.py); times, speeds and what
   names the machine are left out.
5. Every difference is printed as FILE: KEY: before -> after, those that the allowed ones cover with their reason.

Ends with 1 if there is a difference that is not allowed. DIR keeps what was written and a log of every command, 700 MB.
It takes five minutes on two cores.
"""

import argparse
import contextlib
import dataclasses
import glob
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.compare_cases import COMMANDS, TREE, Command
from benchmarks.compare_files import Allowed, Difference, Side, compare, excused, read_allowed
from pipeline.environment import measured
from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.launch import free_port

ROOT = Path(__file__).resolve().parent.parent
EXIT_DIFFERENT = 1
WORKTREE = "worktree"
BEFORE, AFTER = "before", "after"
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""One thread each: sums come to the same value then, and two revisions share two cores."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="REV", help="revision whose results count")
    parser.add_argument("--after", required=True, metavar="REV", help=f"revision to compare, or {WORKTREE!r}")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="new or empty; what was written stays")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    default = ROOT / "benchmarks" / "allowed_differences.yaml"
    parser.add_argument("--allowed", type=Path, default=default, metavar="FILE", help="(default: beside this script)")
    return parser.parse_args()


def git(*arguments: str) -> str:
    """What git says in this repository. UserError if it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"git {shlex.join(arguments)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.strip()


@contextlib.contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """The directory of a revision, for as long as the block lasts."""
    if revision == WORKTREE:
        yield ROOT
        return
    git("worktree", "add", "--force", "--detach", str(folder), commit_of(revision))
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def commit_of(revision: str) -> str:
    """The commit of a revision; of the working tree with `-dirty` where files changed."""
    if revision == WORKTREE:
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    return git("rev-parse", "--verify", "--short=12", f"{revision}^{{commit}}")


class Runner:
    """Runs the commands of one side in its directory.

    In there, so that relative paths are the same on both sides: fold.json names the run as it was given, and the
    hash of a student covers fold.json.

    Attributes:
        codes: exit codes by name of the command.
    """

    def __init__(self, name: str, tree: Path, work: Path) -> None:
        self.name, self.tree, self.folder = name, tree, work / name
        self.codes: dict[str, int] = {}
        self.side = Side(
            self.folder / "out",
            {str(self.folder): "$SIDE", str(tree): TREE, str(work / "inputs"): "$INPUTS"},
        )

    def run(self, commands: tuple[Command, ...], stop: threading.Event) -> None:
        """Every command, also after one that failed, unless told to stop.

        Raises:
            UserError: one does not do before what it is there for.
        """
        (self.folder / "logs").mkdir(parents=True)
        for command in commands:
            if stop.is_set():
                return
            began = time.monotonic()
            code = self.codes[command.name] = self._run(command)
            took = f"{time.monotonic() - began:.1f} s"
            print(f"{self.name:6} {command.name}: exit code {code}, {took}\n", end="", flush=True)
            if self.name == BEFORE and code != command.code:
                expected = f"where {command.code} was expected, so it compares nothing"
                raise UserError(f"{command.name} ended with code {code}, {expected}: {self.log(command)}")
        self.side.output.mkdir(exist_ok=True)
        (self.side.output / "exit_codes.json").write_text(json.dumps(self.codes, indent=1) + "\n")

    def _run(self, command: Command) -> int:
        for path in glob.glob(command.remove, root_dir=self.folder) if command.remove else ():
            shutil.rmtree(self.folder / path)
        if command.touch and (self.folder / command.touch).parent.is_dir():
            (self.folder / command.touch).touch()
        start = [sys.executable]
        if command.ranks:
            launcher = Path(sys.executable).with_name("deepspeed")
            start = [str(launcher), "--num_accelerators", str(command.ranks), "--master_port", str(free_port())]
        line = [part.replace(TREE, str(self.tree)) for part in shlex.split(command.line)]
        with open(self.log(command), "wb") as log:
            whole = [*start, str(self.tree / command.script), *line]
            return subprocess.run(whole, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT).returncode

    def log(self, command: Command) -> Path:
        return self.folder / "logs" / f"{command.name}.log"


def run_both(before: str, after: str, work: Path) -> list[Runner]:
    """All commands in both revisions at once."""
    with checked_out(before, work / "trees" / "before") as old, checked_out(after, work / "trees" / "after") as new:
        from benchmarks.compare_inputs import write_inputs  # seconds, and after the environment is set

        write_inputs(work / "inputs", old)
        runners = [Runner(name, tree, work) for name, tree in ((BEFORE, old), (AFTER, new))]
        stop = threading.Event()
        with ThreadPoolExecutor(len(runners)) as pool:
            try:
                for done in [pool.submit(runner.run, COMMANDS, stop) for runner in runners]:
                    done.result()
            except BaseException:
                stop.set()  # the other side ends after its present command
                raise
    return runners


def report(differences: list[Difference], allowed: list[Allowed]) -> None:
    """Print the differences, and the entries that are of no use."""
    for difference in differences:
        print(f"{difference}{f' (allowed: {difference.reason})' if difference.reason else ''}")
    for entry in allowed:
        if not entry.matched:
            print(f"allowed, but not met: {entry.file}: {entry.key}: {entry.reason}")


def check(arguments: argparse.Namespace) -> None:
    """What would otherwise show after minutes."""
    work, results = arguments.work, arguments.json.resolve()
    if work.exists() and (not work.is_dir() or any(work.iterdir())):
        raise UserError(f"--work {work} exists and is not an empty directory; choose another")
    if results.is_dir() or not results.parent.is_dir():
        raise UserError(f"--json {arguments.json} is a directory, or in none that exists")


def main() -> int:
    arguments = parse_arguments()
    check(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the checkouts are removed in any case
    os.environ.update(ENVIRONMENT)
    head = measured(not_measured="GPUs, more than two ranks, hub inputs, torch.compile; what the commands print")
    allowed = read_allowed(arguments.allowed)
    revisions = {"before": commit_of(arguments.before), "after": commit_of(arguments.after)}
    began = time.monotonic()
    before, after = run_both(arguments.before, arguments.after, arguments.work.resolve())
    found, count = compare(before.side, after.side)
    differences = [excused(difference, allowed) for difference in found]
    report(differences, allowed)
    results = {
        **head,
        "revisions": revisions,
        "seconds": round(time.monotonic() - began),
        "commands": len(COMMANDS),
        "compared": count,
        "differences": [dataclasses.asdict(difference) for difference in differences],
        "not_met": [dataclasses.asdict(entry) for entry in allowed if not entry.matched],
    }
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    wrong = sum(not difference.reason for difference in differences)
    compared = f"{len(COMMANDS)} commands, {count['files']:,} files, {count['values']:,} values"
    print(f"{compared}: {wrong} differences, {len(differences) - wrong} more that are allowed")
    return EXIT_DIFFERENT if wrong else EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
