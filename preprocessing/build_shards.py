"""Text to verified token shards.

1. The SPECs become a list of files, and the files a fixed list of tasks (inputs.py).
2. The output directory is claimed, or an unfinished build in it continued (output.py).
3. Worker processes (workers.py) take tasks: they read and clean documents into working files (readers.py,
   cleaning.py).
4. Documents that occur twice are found (duplicates.py).
5. Worker processes take the tasks again: they tokenize the working files and write shards (sharding.py).
6. The manifest appears last, and with it the directory counts as finished.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.data.manifest import Manifest, tokenizer_fingerprint
from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.launch import add_launcher_arguments, only_rank_zero, positive_int
from preprocessing.cleaning import Cleaner, Cleaning
from preprocessing.inputs import SPEC_HELP, Task, expand_specs, plan_tasks, source_hash
from preprocessing.output import BuildDirectory, TaskResult, duplicates_path, listed
from preprocessing.reflow import MODES

# 8 MB of ids, 16 MB of text, 5 s of one core: what a kill costs at most, and small enough to share out evenly.
SHARD_TOKENS = 4_000_000
_REPORT_SECONDS = 10


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="build_shards.py", description="Turn text into verified token shards.")
    parser.add_argument("--input", action="extend", nargs="+", required=True, metavar="SPEC", help=SPEC_HELP)
    tokenizer_help = "tokenizer directory, vocab.txt, or SentencePiece .model"
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help=tokenizer_help)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new or unfinished directory")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=positive_int, default=cores, help="processes (default: one per core)")
    shard_help = "tokens after which a shard is closed (default: %(default)s)"
    parser.add_argument("--shard-tokens", type=positive_int, default=SHARD_TOKENS, help=shard_help)
    parser.add_argument("--cased", action="store_true", help="a vocab.txt alone is cased (default: uncased)")
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
    args = parse_arguments()
    if not only_rank_zero():
        return EXIT_DONE
    cleaning = Cleaning(args.reflow, args.min_length, skip_faults=args.on_error == "skip")
    sources = expand_specs(args.input)
    tasks = plan_tasks(sources, args.shard_tokens)
    from preprocessing.tokenizers_io import save_tokenizer

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
            return EXIT_DONE
        tokenizer = build.open(tokenizer)
    clean_inputs(build, tasks, cleaning, args.workers)
    print_summary(args.output, build.finish(write_shards(build, tasks, tokenizer, args.shard_tokens, args.workers)))
    return EXIT_DONE


def clean_inputs(build: BuildDirectory, tasks: list[Task], cleaning: Cleaning, workers: int) -> None:
    """Run the first pass of the tasks that still need it, and find the duplicates."""
    from preprocessing.duplicates import find_duplicates
    from preprocessing.workers import run_tasks

    left = [task for task in tasks if build.result_of(task.index) is None and not build.is_clean(task.index)]
    documents, done, reported = 0, len(tasks) - len(left), time.monotonic()
    for _task, result in run_tasks(left, Cleaner(build.output, cleaning), min(workers, len(left))):
        documents, done, now = documents + result.documents, done + 1, time.monotonic()
        if now - reported >= _REPORT_SECONDS:
            print(f"reading: {done}/{len(tasks)} tasks, {documents:,} documents", flush=True)
            reported = now
    if left or not duplicates_path(build.output).exists():
        find_duplicates(build.output, len(tasks))


def write_shards(
    build: BuildDirectory, tasks: list[Task], tokenizer: Path, shard_tokens: int, workers: int
) -> list[TaskResult]:
    """Run the second pass of the tasks that are not done yet and return the results of all, in task order."""
    from preprocessing.sharding import TaskRunner
    from preprocessing.workers import run_tasks

    known = {task.index: build.result_of(task.index) for task in tasks}
    results = {index: result for index, result in known.items() if result is not None}
    if results:
        print(f"continuing: {len(results)} of {len(tasks)} tasks are done", flush=True)
    left = [task for task in tasks if task.index not in results]
    began = reported = time.monotonic()
    text_bytes = 0
    for task, result in run_tasks(left, TaskRunner(build.output, tokenizer, shard_tokens), min(workers, len(left))):
        results[task.index] = result
        text_bytes += result.text_bytes
        now = time.monotonic()
        if now - reported >= _REPORT_SECONDS or len(results) == len(tasks):
            rate = text_bytes / 1e6 / (now - began)
            print(f"{len(results)}/{len(tasks)} tasks, {text_bytes / 1e6:.1f} MB, {rate:.2f} MB/s", flush=True)
            reported = now
    return [results[task.index] for task in tasks]


def print_summary(output: Path, manifest: Manifest) -> None:
    """Say what was written."""
    counts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens in {len(manifest.shards)} shards"
    print(f"{output}: {counts}; left out: {listed(manifest.skipped)}; vocabulary {manifest.vocab_size:,}")


if __name__ == "__main__":
    run_entry_point(main)
