"""What a shard directory holds, in print: counts, lengths, share of [UNK], and some documents as text."""

from pathlib import Path

import numpy as np

from pipeline.data.indexed import IndexedReader
from pipeline.data.manifest import TOKENIZER_NAME, Manifest, quick_check
from pipeline.data.vocabulary import load_tokenizer
from preprocessing.inspection.histogram import draw
from preprocessing.inspection.lengths import Counts, count_shard, quantile

_SHOWN_TOKENS = 120


def show(directory: Path, documents: int, picture: Path) -> None:
    """Print the counts and `documents` documents, spread evenly, and draw the histogram of lengths at `picture`."""
    manifest = quick_check(directory)
    tokenizer = load_tokenizer(directory / TOKENIZER_NAME)
    counts = Counts()
    for shard in manifest.shards:
        counts += count_shard(IndexedReader(directory / shard.name), tokenizer.unk_token_id)
    print_summary(manifest, counts)
    draw(counts.histogram, picture)
    print(f"histogram            {picture}")
    for index in np.unique(np.linspace(0, manifest.documents - 1, documents).astype(int)):
        ids = document(directory, manifest, int(index))
        more = " ..." if ids.size > _SHOWN_TOKENS else ""
        print(f"\ndocument {index}, {ids.size:,} tokens:\n{tokenizer.decode(ids[:_SHOWN_TOKENS].tolist())}{more}")


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
