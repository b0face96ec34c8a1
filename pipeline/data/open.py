"""From the recipe's `data` section to what the trainer and the evaluation read."""

from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.loader import HeldOutData, Masking, TrainingData
from pipeline.data.manifest import TOKENIZER_NAME, Manifest, quick_check
from pipeline.data.vocabulary import load_vocabulary
from pipeline.data.windows import WindowSource
from pipeline.errors import UserError

MUCH_HELD_OUT = 0.1
"""Share of a source's windows; where more are held out, the user is told."""


def open_shards(directory: Path, window_tokens: int) -> tuple[WindowSource, Manifest]:
    """Check (quickly) and open one shard directory.

    Raises:
        UserError: there is no shard directory.
        DataError: it is damaged, or shorter than a window.
    """
    manifest = quick_check(directory)
    vocabulary = load_vocabulary(directory / TOKENIZER_NAME)
    return WindowSource(directory, manifest, vocabulary, window_tokens), manifest


def open_training_data(config: DataConfig, seed: int) -> tuple[TrainingData, HeldOutData, Manifest]:
    """Training samples, held-out windows, and the manifest of the first source.

    Raises:
        UserError: sources with different tokenizers, or too little text to hold windows back.
        DataError: a shard directory is damaged.
    """
    directories = config.sources()
    opened = [open_shards(path, config.seq_len) for path, _ in directories]
    sources, manifest = [source for source, _ in opened], opened[0][1]
    for (path, _), (_, other) in zip(directories, opened, strict=True):
        if other.tokenizer_fingerprint != manifest.tokenizer_fingerprint:
            raise UserError(f"{path} and {directories[0][0]} were built with different tokenizers")
    weights = [weight for _, weight in directories]
    masking = Masking(seed, config.mask_fraction, config.whole_word)

    if config.heldout is not None:
        source, other = open_shards(Path(config.heldout), config.seq_len)
        if other.tokenizer_fingerprint != manifest.tokenizer_fingerprint:
            raise UserError(f"data.heldout {config.heldout} was built with another tokenizer than the training shards")
        count = min(config.heldout_windows, source.windows)
        # Spread over all of it: a directory often holds one kind of text after the other.
        spread = np.arange(count) * source.windows // count
        heldout = HeldOutData(source, spread, config.mask_fraction)
        return TrainingData(sources, weights, masking), heldout, manifest

    for source in sources:
        if source.windows <= config.heldout_windows:
            raise UserError(
                f"{source.directory} has {source.windows} windows of {config.seq_len} tokens, too few to keep "
                f"{config.heldout_windows} of them back: set data.heldout_windows lower, or data.heldout to a directory"
            )
    last = np.arange(sources[0].windows - config.heldout_windows, sources[0].windows)
    heldout = HeldOutData(sources[0], last, config.mask_fraction)
    return TrainingData(sources, weights, masking, reserved=config.heldout_windows), heldout, manifest


def describe_text(data: TrainingData, heldout: HeldOutData, samples: int) -> list[str]:
    """How much text there is, how much of it is held out, and how often a run of `samples` windows reads the rest.

    Returns:
        A sentence for each source, a note where much of it is held out, and a sentence for a held-out directory.
    """
    said = []
    for source, trained, read in zip(data.sources, data.windows, data.consumed(samples), strict=True):
        held = source.windows - trained
        share, epochs = held / source.windows, read / trained
        weight = f" ({100 * read / samples:.1f} % of the samples)" if len(data.sources) > 1 else ""
        kept_back = f"{held:,} of them held out ({100 * share:.1f} %)" if held else "none of them held out"
        said.append(
            f"text {source.directory}{weight}: {source.windows:,} windows, {kept_back}; "
            f"the run makes {epochs:{',.0f' if epochs >= 10 else '.2g'}} epochs"
        )
        if share > MUCH_HELD_OUT:
            said.append(
                f"note: {100 * share:.0f} % of {source.directory} is held out from training: set data.heldout_windows "
                "lower, or data.heldout to another shard directory"
            )
    if not any(heldout.source is source for source in data.sources):
        own = heldout.source
        said.append(f"held-out text {own.directory}: {len(heldout.windows):,} of {own.windows:,} windows are measured")
    return said
