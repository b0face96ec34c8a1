"""Check a shard directory against its manifest and print every fault with its file and byte."""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.data.manifest import read_manifest
from pipeline.errors import EXIT_DONE, DataError, run_entry_point
from pipeline.launch import add_launcher_arguments, only_rank_zero
from preprocessing.inspection.verification import find_faults


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="verify_shards.py", description="Check a shard directory.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory that build_shards.py wrote")
    parser.add_argument("--quick", action="store_true", help="headers, sizes, manifest and tokenizer only")
    add_launcher_arguments(parser)
    args = parser.parse_args()
    if not only_rank_zero():
        return EXIT_DONE
    count = 0
    for fault in find_faults(args.directory, args.quick):
        print(fault)
        count += 1
    if count:
        raise DataError(f"{args.directory}: {count} {'fault' if count == 1 else 'faults'} found")
    manifest = read_manifest(args.directory)
    checked = "quick check passed" if args.quick else "every byte checked"
    print(f"{args.directory}: {len(manifest.shards)} shards, {manifest.tokens:,} tokens: {checked}")
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
