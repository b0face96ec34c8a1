"""A build from start to end: what is left to do, the two passes over the tasks, the manifest."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.manifest import Manifest, tokenizer_fingerprint
from pipeline.files import temporary_folder, writing_temporary
from preprocessing.build.cleaning import Cleaner, Cleaning
from preprocessing.build.duplicates import find_duplicates
from preprocessing.build.output import BuildDirectory, TaskResult, duplicates_path, listed
from preprocessing.build.plan import Task, plan_tasks, source_hash
from preprocessing.build.progress import Progress
from preprocessing.build.ranks import Ranks
from preprocessing.build.sharding import TaskRunner
from preprocessing.build.workers import Workforce
from preprocessing.readers.specs import expand_specs
from preprocessing.tokenizing.tokenizer import save_tokenizer


def build_shards(arguments: argparse.Namespace, ranks: Ranks) -> None:
    """Build on all ranks what the command line asks for."""
    plan = ranks.share(lambda: make_plan(arguments))
    if plan is None:
        return
    build, tasks = plan.build, plan.tasks
    cores = len(os.sched_getaffinity(0)) if ranks.size == 1 else 1
    with Workforce(ranks, min(arguments.workers or cores, len(tasks)), build.claims) as workforce:
        done = len(tasks) - len(plan.unclean)
        with Progress("reading", len(tasks), done, lambda: build.news("clean"), ranks):
            workforce.run("clean", plan.unclean, Cleaner(build.output, plan.cleaning))
        if plan.unclean or not plan.duplicates_known:
            ranks.share(lambda: find_duplicates(build.output, len(tasks)))
        left = [task for task in tasks if task.index not in plan.results]
        runner = TaskRunner(build.output, plan.tokenizer, arguments.shard_tokens)
        with Progress("tokenizing", len(tasks), len(plan.results), lambda: build.news("task"), ranks):
            results = plan.results | workforce.run("task", left, runner)
    if ranks.rank == 0:
        print_summary(arguments.output, build.finish(results[task.index] for task in tasks))


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


def make_plan(arguments: argparse.Namespace) -> Plan | None:
    """Claim the output directory or continue in it; None if it is finished."""
    cleaning = Cleaning(arguments.reflow, arguments.min_length, skip_faults=arguments.on_error == "skip")
    sources = expand_specs(arguments.input)
    tasks = plan_tasks(sources, arguments.shard_tokens)
    with temporary_folder() as folder:
        # A folder of its own: the temporary one is private to its user, and copies keep the mode.
        tokenizer = folder / "tokenizer"
        with writing_temporary(folder):
            tokenizer.mkdir()
            save_tokenizer(arguments.tokenizer, tokenizer, arguments.cased)
        settings = f"{tokenizer_fingerprint(tokenizer)} {arguments.shard_tokens} {cleaning.settings}"
        build = BuildDirectory(arguments.output, source_hash(sources, settings))
        if build.is_finished():
            build.remove_work()
            print(f"{arguments.output}: these shards are already finished")
            return None
        tokenizer = build.open(tokenizer)
    return _what_is_left(build, cleaning, tokenizer, tasks)


def _what_is_left(build: BuildDirectory, cleaning: Cleaning, tokenizer: Path, tasks: list[Task]) -> Plan:
    known = {task.index: build.result_of(task.index) for task in tasks}
    results = {index: result for index, result in known.items() if result is not None}
    unclean = [task for task in tasks if task.index not in results and not build.is_clean(task.index)]
    if len(unclean) < len(tasks):
        counts = f"of {len(tasks)} tasks {len(tasks) - len(unclean)} are read, {len(results)} done"
        print(f"continuing: {counts}", flush=True)
    for marker in ("clean", "task"):
        build.news(marker)
    return Plan(build, cleaning, tokenizer, tasks, unclean, results, duplicates_path(build.output).exists())


def print_summary(output: Path, manifest: Manifest) -> None:
    """Say what was written."""
    counts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens in {len(manifest.shards)} shards"
    print(f"{output}: {counts}; left out: {listed(manifest.skipped)}; vocabulary {manifest.vocab_size:,}")
