"""From a checkpoint to the method as it was, its model with it. Used to go on training and to fold.

A checkpoint holds the whole model, so nothing here reads the teacher.
"""

from pathlib import Path

from transformers import BertConfig

from pipeline.data.loader import HeldOutData, TrainingData
from pipeline.data.manifest import Manifest
from pipeline.engine.checkpoint import Checkpoint
from pipeline.errors import UserError
from pipeline.methods import METHODS
from pipeline.methods.method import Method, load_parameters
from pipeline.recipe import Recipe
from pipeline.teachers import first_not_finite


def restored_method(recipe: Recipe, checkpoint: Checkpoint) -> Method:
    """The method as it was after the checkpoint's last step.

    Raises:
        UserError: it is the checkpoint of another model, or its parameters are not finite.
    """
    tensors, facts = checkpoint.tensors, checkpoint.trainer
    if name := first_not_finite(tensors["parameters"]):
        raise UserError(
            f"the checkpoint of step {checkpoint.step} holds NaN or infinity in {name}: take an earlier one (fold with "
            "--step; training goes on from it once this one is deleted)"
        )
    config = BertConfig.from_dict(checkpoint.bert_config)
    method = METHODS[recipe.method].rebuild(recipe, config, facts["head_is_new"])
    method.load_state_dict(checkpoint.step, facts, tensors["compaction"])
    load_parameters(method.model, tensors["parameters"])
    return method


def check_same_vocabulary(directory: Path, manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Refuse shards whose vocabulary has another size than the checkpoint's model."""
    size = checkpoint.bert_config["vocab_size"]
    if manifest.vocab_size != size:
        raise UserError(
            f"{directory} has a vocabulary of {manifest.vocab_size} and the run one of {size}: these are not the "
            "shards it was trained on"
        )


def check_same_shards(data: TrainingData, heldout: HeldOutData, checkpoint: Checkpoint) -> None:
    """Refuse shards that were built anew since: the run would go on at its place in another order of other text.

    Where they lie does not matter.

    Raises:
        UserError: the shards are not those that the checkpoint was trained and measured on.
    """
    sources = [*data.sources, heldout.source]
    hashes = [*checkpoint.trainer["shards"], checkpoint.trainer["heldout"]]
    for source, recorded, what in zip(sources, hashes, ["trained"] * len(data.sources) + ["measured"], strict=True):
        if source.tokens_hash != recorded:
            raise UserError(
                f"{source.directory} holds other tokens than those that this run was {what} on up to step "
                f"{checkpoint.step}: put the old shards back, or begin anew in another --output"
            )
