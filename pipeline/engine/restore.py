"""From a checkpoint to the model as it was: gates, width and parameters. Used to go on training and to fold."""

from torch import Tensor

from pipeline.compaction.fold import kept_indices
from pipeline.compaction.model import CompactedBert
from pipeline.compaction.schedule import Schedule
from pipeline.config import Recipe
from pipeline.data.loader import TrainingData
from pipeline.engine.checkpoint import Checkpoint
from pipeline.errors import UserError
from pipeline.models import PlainBert, load_parameters

SELECTED = "selected_at."
"""Prefix in a checkpoint's `compaction` tensors of when each dimension of a group was selected."""


def restore_model(module: PlainBert | CompactedBert, recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Bring a model that was just built for the recipe to where it was after the checkpoint's last step.

    Raises:
        UserError: it is the checkpoint of another model.
    """
    if isinstance(module, CompactedBert):
        schedule = Schedule(recipe.compaction, module.gates, recipe.train.compactor_lr)
        schedule.load_state_dict(without_prefix(checkpoint.tensors["compaction"], SELECTED))
        schedule.set_gates(checkpoint.step)
        if checkpoint.trainer["narrowed"]:
            module.narrow(kept_indices(module))
    load_parameters(module, checkpoint.tensors["parameters"])


def check_same_shards(data: TrainingData, checkpoint: Checkpoint) -> None:
    """Refuse shards that were built anew since: the run would go on at its place in another order of other text.

    Raises:
        UserError: the shards under this path are not those that the checkpoint was trained on.
    """
    for source, recorded in zip(data.sources, checkpoint.trainer["shards"], strict=True):
        if source.tokens_hash != recorded:
            raise UserError(
                f"{source.directory} holds other tokens than those that this run was trained on up to step "
                f"{checkpoint.step}: put the old shards back, or begin anew in another --output"
            )


def without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
