"""Show what a shard directory holds: counts, lengths, share of [UNK], and some documents as text."""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from pipeline.data.indexed import IndexedReader
from pipeline.data.manifest import TOKENIZER_NAME, Manifest, quick_check
from pipeline.errors import EXIT_DONE, run_entry_point
from pipeline.launch import add_launcher_arguments, only_rank_zero, positive_int

_SHOWN_TOKENS = 120


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="inspect_shards.py", description="Show what a shard directory holds.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory that build_shards.py wrote")
    documents_help = "documents to print, spread evenly (default: %(default)s)"
    parser.add_argument("--documents", type=positive_int, default=3, metavar="N", help=documents_help)
    add_launcher_arguments(parser)
    args = parser.parse_args()
    if not only_rank_zero():
        return EXIT_DONE
    manifest = quick_check(args.directory)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(args.directory / TOKENIZER_NAME), local_files_only=True)
    readers = [IndexedReader(args.directory / shard.name) for shard in manifest.shards]
    print_summary(manifest, readers, tokenizer.unk_token_id)
    for index in np.unique(np.linspace(0, manifest.documents - 1, args.documents).astype(int)):
        ids = document(readers, int(index))
        more = " ..." if ids.size > _SHOWN_TOKENS else ""
        print(f"\ndocument {index}, {ids.size:,} tokens:\n{tokenizer.decode(ids[:_SHOWN_TOKENS].tolist())}{more}")
    return EXIT_DONE


def print_summary(manifest: Manifest, readers: list[IndexedReader], unknown_id: int) -> None:
    """Print the counts; reads every id once, to count the unknown ones."""
    lengths = np.concatenate([document_lengths(reader) for reader in readers])
    unknown = sum(int(np.count_nonzero(reader.tokens == unknown_id)) for reader in readers)
    quartiles = np.percentile(lengths, [0, 25, 50, 75, 100]).astype(int)
    print(f"documents            {manifest.documents:,}")
    print(f"tokens               {manifest.tokens:,} ({readers[0].tokens.dtype}, vocabulary {manifest.vocab_size:,})")
    print(f"shards               {len(manifest.shards):,}")
    print(f"tokens per document  mean {lengths.mean():,.1f}; least, quartiles, most: {', '.join(map(str, quartiles))}")
    print(f"share of [UNK]       {unknown / manifest.tokens:.4%}")
    for reason, count in sorted(manifest.skipped.items()):
        print(f"left out, {reason:<10} {count:,}")


def document_lengths(reader: IndexedReader) -> np.ndarray:
    """Tokens in each document (documents,) int64."""
    sums = np.concatenate([[0], np.cumsum(reader.lengths, dtype=np.int64)])
    return np.diff(sums[reader.document_ends])


def document(readers: list[IndexedReader], index: int) -> np.ndarray:
    """Ids (tokens,) of document `index`, counted through all shards in order."""
    for reader in readers:
        if index < len(reader):
            return reader[index]
        index -= len(reader)
    raise IndexError("document beyond the last shard")


if __name__ == "__main__":
    run_entry_point(main)
