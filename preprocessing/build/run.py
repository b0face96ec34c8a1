"""A build from start to end: what is left to do, the two passes over the tasks, the manifest."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.manifest import Manifest, tokenizer_fingerprint
from pipeline.errors import UserError
from pipeline.files import temporary_folder, writing_temporary
from preprocessing.build.cleaning import Cleaning
from preprocessing.build.duplicates import find_duplicates
from preprocessing.build.output import BuildDirectory, TaskResult, duplicates_path, listed
from preprocessing.build.parts import listed_numbers, part_number
from preprocessing.build.plan import Task, plan_tasks, source_hash
from preprocessing.build.progress import Progress
from preprocessing.build.ranks import Ranks
from preprocessing.build.reading import TaskReader
from preprocessing.build.sharding import TaskWriter
from preprocessing.build.workers import Workforce
from preprocessing.readers.specs import expand_specs
from preprocessing.tokenizing.tokenizer import save_tokenizer


def build_shards(arguments: argparse.Namespace, ranks: Ranks) -> None:
    """Build on all ranks what the command line asks for."""
    plan = ranks.share(lambda: make_plan(arguments, ranks.size))
    if plan is None:
        return
    build, tasks = plan.build, plan.tasks
    cores = len(os.sched_getaffinity(0)) if ranks.size == 1 else 1
    with Workforce(ranks, min(arguments.workers or cores, len(tasks)), build.claims) as workforce:
        done = len(tasks) - len(plan.unread)
        with Progress("tokenizing", len(tasks), done, lambda: build.news("read"), ranks):
            workforce.run("read", plan.unread, TaskReader(build.output, build.tokenizer, plan.cleaning))
        if arguments.part:
            print(f"{build.output}: part {arguments.part} is built ({len(tasks)} tasks)")
            return
        if plan.unread or not plan.duplicates_known:
            ranks.share(lambda: find_duplicates(build.output, len(tasks)))
        left = [task for task in tasks if task.index not in plan.results]
        with Progress("writing", len(tasks), len(plan.results), lambda: build.news("task"), ranks):
            results = plan.results | workforce.run("task", left, TaskWriter(build.output, arguments.shard_tokens))
    if ranks.rank == 0:
        print_summary(arguments.output, build.finish(results[task.index] for task in tasks))


@dataclass(frozen=True)
class Plan:
    """What is to be done, the same on all ranks; rank 0 alone looks at what a killed run has left."""

    build: BuildDirectory
    cleaning: Cleaning
    tasks: list[Task]
    """Of the whole build, or of the part that is built."""
    unread: list[Task]
    """Those whose first pass has to be run."""
    results: dict[int, TaskResult]
    """Those that are done, by index."""
    duplicates_known: bool


def make_plan(arguments: argparse.Namespace, ranks: int) -> Plan | None:
    """Claim the output directory or continue in it; None if it is finished."""
    if arguments.part and ranks > 1:
        raise UserError("--part is for one process: start it without MPI, or all ranks without --part")
    cleaning = Cleaning(arguments.reflow, arguments.min_length, skip_faults=arguments.on_error == "skip")
    sources = expand_specs(arguments.input)
    tasks = plan_tasks(sources, arguments.shard_tokens)
    if arguments.part:
        tasks = [task for task in tasks if arguments.part.holds(task.index)]
    with temporary_folder() as folder:
        # A folder of its own: the temporary one is private to its user, and copies keep the mode.
        tokenizer = folder / "tokenizer"
        with writing_temporary(folder):
            tokenizer.mkdir()
            save_tokenizer(arguments.tokenizer, tokenizer, arguments.cased)
        known = tokenizer_fingerprint(tokenizer)
        whole = source_hash(sources, f"{known} {arguments.shard_tokens} {cleaning.settings}")
        named = {"reflow": "--reflow", "min_length": "--min-length", "shard_tokens": "--shard-tokens"}
        settings = {"tokenizer": known, **{named[key]: str(getattr(arguments, key)) for key in named}}
        build = BuildDirectory(arguments.output, whole, settings, arguments.part)
        if not _opened(build, tokenizer, arguments.merge):
            build.remove_work()
            print(f"{arguments.output}: these shards are already finished")
            return None
    plan = _what_is_left(build, cleaning, tasks)
    if arguments.merge:
        _check_all_read(build, plan)
    return plan


def _opened(build: BuildDirectory, tokenizer: Path, merge: bool) -> bool:
    """Whether there is something to be done in the directory, which is then claimed."""
    if build.is_finished():
        return False
    if merge and build.parts() is None:
        raise UserError(f"{build.output} holds no parts to merge; build them first, --part 1/N to --part N/N")
    return build.open(tokenizer)


def _what_is_left(build: BuildDirectory, cleaning: Cleaning, tasks: list[Task]) -> Plan:
    known = {task.index: build.result_of(task.index) for task in tasks}
    results = {index: result for index, result in known.items() if result is not None}
    unread = [task for task in tasks if task.index not in results and not build.is_read(task.index)]
    if len(unread) < len(tasks):
        counts = f"of {len(tasks)} tasks {len(tasks) - len(unread)} are read, {len(results)} done"
        print(f"continuing: {counts}", flush=True)
    for marker in ("read", "task"):
        build.news(marker)
    return Plan(build, cleaning, tasks, unread, results, duplicates_path(build.output).exists())


def _check_all_read(build: BuildDirectory, plan: Plan) -> None:
    count = build.parts()
    if plan.unread and count:
        missing = listed_numbers(part_number(task.index, count) for task in plan.unread)
        hint = f"build them with --part I/{count} and merge again"
        raise UserError(f"{build.output}: of {count} parts these are missing or unfinished: {missing}; {hint}")


def print_summary(output: Path, manifest: Manifest) -> None:
    """Say what was written."""
    counts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens in {len(manifest.shards)} shards"
    print(f"{output}: {counts}; left out: {listed(manifest.skipped)}; vocabulary {manifest.vocab_size:,}")
