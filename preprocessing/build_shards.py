"""Text to verified token shards.

1. The SPECs become a list of files, and the files a fixed list of tasks (inputs.py).
2. The output directory is claimed, or an unfinished build in it continued (output.py).
3. Worker processes take tasks (workers.py); each reads, tokenizes and writes its shards (readers.py, sharding.py).
4. The manifest appears last, and with it the directory counts as finished.
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
from preprocessing.inputs import Task, expand_specs, plan_tasks, source_hash
from preprocessing.output import BuildDirectory, TaskResult

# 8 MB of ids, 16 MB of text, 5 s of one core: what a kill costs at most, and small enough to share out evenly.
SHARD_TOKENS = 4_000_000
_REPORT_SECONDS = 10


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="build_shards.py", description="Turn text into verified token shards.")
    spec_help = "FORMAT:PATH, PATH may be a glob; formats: text (a document per file), lines, wikiextractor"
    parser.add_argument("--input", action="extend", nargs="+", required=True, metavar="SPEC", help=spec_help)
    tokenizer_help = "tokenizer directory, or a vocab.txt"
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help=tokenizer_help)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new or unfinished directory")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=positive_int, default=cores, help="processes (default: one per core)")
    shard_help = "tokens after which a shard is closed (default: %(default)s)"
    parser.add_argument("--shard-tokens", type=positive_int, default=SHARD_TOKENS, help=shard_help)
    parser.add_argument("--cased", action="store_true", help="a vocab.txt alone is cased (default: uncased)")
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Entry point; returns the exit code."""
    args = parse_arguments()
    if not only_rank_zero():
        return EXIT_DONE
    sources = expand_specs(args.input)
    tasks = plan_tasks(sources, args.shard_tokens)
    from preprocessing.tokenizers_io import save_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        # A folder of its own: the temporary one is private to its user, and copies keep the mode.
        tokenizer = Path(folder) / "tokenizer"
        tokenizer.mkdir()
        save_tokenizer(args.tokenizer, tokenizer, args.cased)
        identity = source_hash(sources, tokenizer_fingerprint(tokenizer), args.shard_tokens)
        build = BuildDirectory(args.output, identity)
        if build.is_finished():
            build.remove_work()
            print(f"{args.output}: these shards are already finished")
            return EXIT_DONE
        tokenizer = build.open(tokenizer)
    results = run_build(build, tasks, tokenizer, args.shard_tokens, args.workers)
    print_summary(args.output, build.finish(results))
    return EXIT_DONE


def run_build(
    build: BuildDirectory, tasks: list[Task], tokenizer: Path, shard_tokens: int, workers: int
) -> list[TaskResult]:
    """Run the tasks that are not done yet and return the results of all, in task order."""
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
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.skipped.items())) or "none"
    counts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens in {len(manifest.shards)} shards"
    print(f"{output}: {counts}; left out: {left_out}; vocabulary {manifest.vocab_size:,}")


if __name__ == "__main__":
    run_entry_point(main)
