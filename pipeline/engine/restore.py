"""From a checkpoint to the model as it was: gates, width and parameters. Used to go on training and to fold.

A checkpoint holds the whole model, so nothing here reads the teacher.
"""

from pathlib import Path

from torch import Tensor

from pipeline.building import BuiltModel, describe_model, load_parameters, rebuild_model
from pipeline.compaction.fold import open_indices
from pipeline.compaction.model import CompactedBert
from pipeline.compaction.schedule import Schedule
from pipeline.config import Recipe
from pipeline.data.loader import HeldOutData, TrainingData
from pipeline.data.manifest import Manifest
from pipeline.engine.checkpoint import Checkpoint
from pipeline.errors import UserError
from pipeline.teachers import first_not_finite

SELECTED = "selected_at."
"""Prefix in a checkpoint's `compaction` tensors of when each dimension of a group was selected."""


def restored_model(recipe: Recipe, checkpoint: Checkpoint) -> BuiltModel:
    """The model as it was after the checkpoint's last step.

    Raises:
        UserError: it is the checkpoint of another model, or its parameters are not finite.
    """
    if name := first_not_finite(checkpoint.tensors["parameters"]):
        raise UserError(
            f"the checkpoint of step {checkpoint.step} holds NaN or infinity in {name}: take an earlier one (fold with "
            "--step; training goes on from it once this one is deleted)"
        )
    module = rebuild_model(recipe, checkpoint.bert_config)
    if isinstance(module, CompactedBert):
        schedule = Schedule(recipe.compaction, module.gates, recipe.train.compactor_lr)
        schedule.load_state_dict(without_prefix(checkpoint.tensors["compaction"], SELECTED))
        schedule.set_gates(checkpoint.step)
        if checkpoint.trainer["narrowed"]:
            module.narrow(open_indices(module.gates))
    load_parameters(module, checkpoint.tensors["parameters"])
    return BuiltModel(module, module.config, checkpoint.trainer["head_is_new"], describe_model(recipe, module))


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


def without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
