"""From the recipe's `data` section to what the trainer and the evaluation read."""

from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.loader import HeldOutData, Masking, TrainingData
from pipeline.data.manifest import TOKENIZER_NAME, Manifest, quick_check
from pipeline.data.vocabulary import load_vocabulary
from pipeline.data.windows import WindowSource
from pipeline.errors import UserError


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
