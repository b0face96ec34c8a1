"""A model in DeepSpeed's hands: started, restored, replaced by a narrower one, and stepped.

Whoever trains asks for an optimizer step in this order: `begin`, `micro_step.run` for every micro-batch, `backward`,
`step`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from pipeline.compaction.model import CompactedBert
from pipeline.config import TrainConfig
from pipeline.engine import micro_step
from pipeline.engine.clipping import clips_here, gradient_norm, limit_of, prepare_step
from pipeline.engine.distributed import World
from pipeline.engine.micro_step import MicroStep
from pipeline.engine.optimizer import set_learning_rates
from pipeline.engine.readback import Readback
from pipeline.engine.setup import initialize_engine
from pipeline.engine.state import (
    MOMENTS,
    LossScaler,
    gather_state,
    inner_optimizer,
    optimizer_steps,
    restore_state,
)
from pipeline.methods.method import Method, State, load_parameters
from pipeline.models.plain import PlainBert

Clock = Callable[[str], AbstractContextManager[None]]


class ModelEngine:
    """DeepSpeed's engine around a model, and the micro-steps on what the model composes.

    Args:
        method: what is trained, and on what.
        train: the recipe's.
        config: DeepSpeed's, complete, see `load_deepspeed_config`.
        world: this rank and the others.
        clock: of the phases of a step.
        say: takes a sentence for the user.

    Attributes:
        micro_step: takes the micro-batches.
        scaler: fp16's loss scale.
    """

    def __init__(
        self,
        method: Method,
        train: TrainConfig,
        config: dict[str, Any],
        world: World,
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        self._train, self._config, self._world, self._clock, self._say = train, config, world, clock, say
        self._clips, self._limit = clips_here(config), limit_of(config)
        self._start(method)

    def _start(self, method: Method) -> None:
        self._method = method
        self._engine = initialize_engine(method.model, self._train, self._config, method.head_is_new)
        method.move_to(self._world.device)
        self._engine.train()
        self.scaler = LossScaler(self._engine)
        loss_of = method.loss_of()
        if self._train.compile:
            loss_of = micro_step.compiled(loss_of)
        recorded = self._train.cuda_graph == "auto" and self._world.device.type == "cuda"
        accumulation = self._config["gradient_accumulation_steps"]
        self.micro_step = MicroStep(loss_of, accumulation, self._world.device, self._clock, recorded, self._say)

    def begin(self, rates: dict[str, float]) -> None:
        """Begin an optimizer step with these learning rates by role: compose what its micro-batches run on."""
        set_learning_rates(self._engine.optimizer, rates)
        with self._clock("forward"):
            self.micro_step.begin(self._engine(), self.scaler.scale or 1.0)

    def backward(self) -> None:
        """Hand the gradients of all micro-batches over to the parameters; ranks exchange them."""
        with self._clock("backward"):
            self._engine.backward(self.micro_step.carried_loss())

    def step(self, unsound: Tensor) -> None:
        """DeepSpeed's step, in which nothing changes if the numbers are unsound or the gradient is not finite.

        Args:
            unsound: not 0 if they are; a number () on the device, which the host does not wait for.
        """
        with self._clock("optimizer"):
            self._norm = gradient_norm(self._engine, self._world) if self._clips else None
            self._skipped = Readback(prepare_step(inner_optimizer(self._engine), unsound, self._norm, self._limit))
            self._engine.step()

    def applied(self) -> bool:
        """Whether the last step changed anything; waits for what was launched before it."""
        return bool(self._engine.was_step_applied()) and not bool(self._skipped.read())

    def gradient_norm(self, loss_scale: float | None) -> float | None:
        """The norm of the whole gradient of the step just taken, before clipping, which the host waits for.

        Args:
            loss_scale: that the step had.
        """
        if self._norm is not None:
            return float(self._norm)
        norm = self._engine.get_global_grad_norm()
        if norm is None:
            return None
        # At stage 0 DeepSpeed leaves fp16's loss scale in it (0.19.8).
        scale = loss_scale if self._engine.zero_optimization_stage() == 0 else None
        return float(norm) / (scale or 1.0)

    @torch.no_grad()
    def composed(self) -> dict[str, Tensor]:
        """The tensors of the BERT as it is, to measure it. All ranks must call."""
        self._engine.eval()
        tensors: dict[str, Tensor] = self._engine()
        self._engine.train()
        return tensors

    def state(self, keep: bool) -> State:
        """See `gather_state`."""
        return gather_state(self._engine, keep)

    @property
    def optimizer_steps(self) -> int:
        """Steps that Adam has counted (skipped ones are not)."""
        return optimizer_steps(self._engine)

    def restore(self, state: State, steps: int, scaler: dict[str, float] | None) -> None:
        """Go on from here. The module must hold the state's parameters already.

        Args:
            state: fp32 parameters and both moments, on every rank.
            steps: what `optimizer_steps` was.
            scaler: what the loss scaler's `state_dict` returned.
        """
        kinds = ("parameters", *MOMENTS)
        restore_state(self._engine, {kind: state[kind] for kind in kinds}, steps, self._world)
        if scaler:
            self.scaler.load_state_dict(scaler)

    def replace(self, successor: PlainBert | CompactedBert) -> None:
        """Train the method's successor from now on, under the same optimizer state, in the same process group.

        Args:
            successor: its parameters are set here.
        """
        method, steps, scaler = self._method, self.optimizer_steps, self.scaler.state_dict()
        state = method.hand_over(successor, self.state(keep=True))
        load_parameters(successor, state["parameters"])
        self._engine.destroy()
        del self._engine, self.micro_step  # or both models would lie in memory for a moment
        if self._world.device.type == "cuda":
            torch.cuda.empty_cache()
        self._start(method)
        self.restore(state, steps, scaler)
