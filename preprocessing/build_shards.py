"""Text to verified token shards.

1. The SPECs become a list of files, and the files a fixed list of tasks (inputs.py).
2. The output directory is claimed, or an unfinished build in it continued (output.py).
3. Worker processes, on every rank that mpirun or srun started (ranks.py, workers.py), take tasks: they read and clean
   documents into working files (readers.py, cleaning.py).
4. Documents that occur twice are found (duplicates.py).
5. Worker processes take the tasks again: they tokenize the working files and write shards (sharding.py).
6. The manifest appears last, and with it the directory counts as finished.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.data.manifest import Manifest, tokenizer_fingerprint
from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.launch import add_launcher_arguments, only_rank_zero, positive_int
from preprocessing.build.cleaning import Cleaner, Cleaning
from preprocessing.build.output import BuildDirectory, TaskResult, duplicates_path, listed
from preprocessing.build.plan import Task, plan_tasks, source_hash
from preprocessing.build.ranks import Ranks, joined_ranks
from preprocessing.build.reflow import MODES
from preprocessing.readers.specs import SPEC_HELP, expand_specs

# 8 MB of ids, 16 MB of text, 5 s of one core: what a kill costs at most, and small enough to share out evenly.
SHARD_TOKENS = 4_000_000


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="build_shards.py", description="Turn text into verified token shards.")
    parser.add_argument("--input", action="extend", nargs="+", required=True, metavar="SPEC", help=SPEC_HELP)
    tokenizer_help = "tokenizer directory, vocab.txt, or SentencePiece .model"
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help=tokenizer_help)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new or unfinished directory")
    workers_help = "processes of each rank (default: one per core; under mpirun and srun one)"
    parser.add_argument("--workers", type=positive_int, metavar="N", help=workers_help)
    shard_help = "tokens after which a shard is closed (default: %(default)s)"
    parser.add_argument("--shard-tokens", type=positive_int, default=SHARD_TOKENS, help=shard_help)
    case = parser.add_mutually_exclusive_group()
    case_help = "a vocab.txt alone is cased (default: uncased, if no token has capitals)"
    case.add_argument("--cased", action="store_const", const=True, help=case_help)
    case.add_argument("--uncased", dest="cased", action="store_const", const=False, help="a vocab.txt alone is uncased")
    reflow_help = (
        "join hard-wrapped lines into paragraphs and cut Project Gutenberg's licence; auto judges each document"
    )
    parser.add_argument("--reflow", choices=MODES, default="auto", help=f"{reflow_help} (default: %(default)s)")
    length_help = "characters a document needs to be kept (default: %(default)s)"
    parser.add_argument("--min-length", type=positive_int, default=1, metavar="N", help=length_help)
    error_help = "what undecodable bytes and malformed records do: end the run, or cost their document"
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help=f"{error_help} (default: stop)")
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Entry point; returns the exit code."""
    with joined_ranks() as ranks:
        args = ranks.share(parse_arguments)
        if only_rank_zero():
            build_shards(args, ranks)
    return EXIT_DONE


def build_shards(args: argparse.Namespace, ranks: Ranks) -> None:
    """Build on all ranks what the command line asks for."""
    plan = ranks.share(lambda: make_plan(args))
    if plan is None:
        return
    # Only now what takes a second to import: mistakes in the arguments do not wait for it.
    from preprocessing.build.duplicates import find_duplicates
    from preprocessing.build.progress import Progress
    from preprocessing.build.sharding import TaskRunner
    from preprocessing.build.workers import Workforce

    build, tasks = plan.build, plan.tasks
    cores = len(os.sched_getaffinity(0)) if ranks.size == 1 else 1
    with Workforce(ranks, min(args.workers or cores, len(tasks)), build.claims) as workforce:
        done = len(tasks) - len(plan.unclean)
        with Progress("reading", len(tasks), done, lambda: build.news("clean"), ranks):
            workforce.run("clean", plan.unclean, Cleaner(build.output, plan.cleaning))
        if plan.unclean or not plan.duplicates_known:
            ranks.share(lambda: find_duplicates(build.output, len(tasks)))
        left = [task for task in tasks if task.index not in plan.results]
        runner = TaskRunner(build.output, plan.tokenizer, args.shard_tokens)
        with Progress("tokenizing", len(tasks), len(plan.results), lambda: build.news("task"), ranks):
            results = plan.results | workforce.run("task", left, runner)
    if ranks.rank == 0:
        print_summary(args.output, build.finish(results[task.index] for task in tasks))


@dataclass(frozen=True)
class Plan:
    """What is to be done, the same on all ranks; rank 0 alone looks at what a killed run has left."""

    build: BuildDirectory
    cleaning: Cleaning
    tokenizer: Path
    tasks: list[Task]
    unclean: list[Task]
    """Those whose first pass has to be run."""
    results: dict[int, TaskResult]
    """Those that are done, by index."""
    duplicates_known: bool


def make_plan(args: argparse.Namespace) -> Plan | None:
    """Claim the output directory or continue in it; None if it is finished."""
    cleaning = Cleaning(args.reflow, args.min_length, skip_faults=args.on_error == "skip")
    sources = expand_specs(args.input)
    tasks = plan_tasks(sources, args.shard_tokens)
    from preprocessing.tokenizing.tokenizer import save_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        # A folder of its own: the temporary one is private to its user, and copies keep the mode.
        tokenizer = Path(folder) / "tokenizer"
        tokenizer.mkdir()
        save_tokenizer(args.tokenizer, tokenizer, args.cased)
        settings = f"{tokenizer_fingerprint(tokenizer)} {args.shard_tokens} {cleaning.settings}"
        build = BuildDirectory(args.output, source_hash(sources, settings))
        if build.is_finished():
            build.remove_work()
            print(f"{args.output}: these shards are already finished")
            return None
        tokenizer = build.open(tokenizer)
    known = {task.index: build.result_of(task.index) for task in tasks}
    results = {index: result for index, result in known.items() if result is not None}
    unclean = [task for task in tasks if task.index not in results and not build.is_clean(task.index)]
    if len(unclean) < len(tasks):
        print(
            f"continuing: of {len(tasks)} tasks {len(tasks) - len(unclean)} are read, {len(results)} done", flush=True
        )
    for marker in ("clean", "task"):
        build.news(marker)
    return Plan(build, cleaning, tokenizer, tasks, unclean, results, duplicates_path(build.output).exists())


def print_summary(output: Path, manifest: Manifest) -> None:
    """Say what was written."""
    counts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens in {len(manifest.shards)} shards"
    print(f"{output}: {counts}; left out: {listed(manifest.skipped)}; vocabulary {manifest.vocab_size:,}")


if __name__ == "__main__":
    run_entry_point(main)
