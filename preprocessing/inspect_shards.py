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
from preprocessing.inspection.lengths import Counts, count_shard, quantile

_SHOWN_TOKENS = 120
HISTOGRAM_NAME = "tokens_per_document.png"


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="inspect_shards.py", description="Show what a shard directory holds.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory that build_shards.py wrote")
    documents_help = "documents to print, spread evenly (default: %(default)s)"
    parser.add_argument("--documents", type=positive_int, default=3, metavar="N", help=documents_help)
    histogram_help = f"where the histogram of tokens per document goes (default: DIR/{HISTOGRAM_NAME})"
    parser.add_argument("--histogram", type=Path, metavar="PNG", help=histogram_help)
    add_launcher_arguments(parser)
    args = parser.parse_args()
    if not only_rank_zero():
        return EXIT_DONE
    manifest = quick_check(args.directory)
    from pipeline.data.vocabulary import load_tokenizer
    from preprocessing.inspection.histogram import draw

    tokenizer = load_tokenizer(args.directory / TOKENIZER_NAME)
    counts = Counts()
    for shard in manifest.shards:
        counts += count_shard(IndexedReader(args.directory / shard.name), tokenizer.unk_token_id)
    print_summary(manifest, counts)
    picture = args.histogram or args.directory / HISTOGRAM_NAME
    draw(counts.histogram, picture)
    print(f"histogram            {picture}")
    for index in np.unique(np.linspace(0, manifest.documents - 1, args.documents).astype(int)):
        ids = document(args.directory, manifest, int(index))
        more = " ..." if ids.size > _SHOWN_TOKENS else ""
        print(f"\ndocument {index}, {ids.size:,} tokens:\n{tokenizer.decode(ids[:_SHOWN_TOKENS].tolist())}{more}")
    return EXIT_DONE


def print_summary(manifest: Manifest, counts: Counts) -> None:
    """Print the counts."""
    print(f"documents            {manifest.documents:,}")
    print(f"tokens               {manifest.tokens:,} (vocabulary {manifest.vocab_size:,})")
    print(f"shards               {len(manifest.shards):,}")
    mean = manifest.tokens / manifest.documents
    quartiles = ", ".join(f"{quantile(counts.histogram, share):,.0f}" for share in (0.25, 0.5, 0.75))
    lengths = f"mean {mean:,.1f}, least {counts.least:,}, quartiles about {quartiles}, most {counts.most:,}"
    print(f"tokens per document  {lengths}")
    print(f"share of [UNK]       {counts.unknown / manifest.tokens:.4%}")
    for reason, count in sorted(manifest.skipped.items()):
        print(f"left out, {reason:<10} {count:,}")


def document(directory: Path, manifest: Manifest, index: int) -> np.ndarray:
    """Ids (tokens,) of document `index`, counted through all shards in order."""
    for shard in manifest.shards:
        if index < shard.documents:
            return IndexedReader(directory / shard.name)[index]
        index -= shard.documents
    raise IndexError("document beyond the last shard")


if __name__ == "__main__":
    run_entry_point(main)
