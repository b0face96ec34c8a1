"""Handing a model to DeepSpeed."""

import logging
import warnings
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.engine.optimizer import StepGuard, build_optimizer, parameter_groups
from pipeline.engine.state import LossScaler, create_moments


def initialize_engine(module: nn.Module, train: TrainConfig, config: dict[str, Any]) -> tuple[Any, StepGuard]:
    """The DeepSpeed engine around `module`, with our AdamW, and what can make that skip a step.

    Learning rates are set step by step.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch announces the renaming of a collective that DeepSpeed uses, once per rank.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if train.compile:
        compile_forward(module)
    optimizer = build_optimizer(parameter_groups(module, train.weight_decay))
    engine, _, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    create_moments(engine)
    LossScaler(engine).never_raise()
    return engine, StepGuard(optimizer)


def compile_forward(module: nn.Module, backend: str = "inductor") -> None:
    """Put the module's forward pass, as it is in training, through torch.compile.

    Only `forward`, not the call with DeepSpeed's hooks around it. Held-out text goes through the plain one: a few
    batches are not worth another graph. Shapes are fixed, so the number of graphs is that of the model's forms (gates
    open, closing with and without a gradient of their own, narrowed), not of the steps.
    """
    plain = module.forward
    compiled = torch.compile(plain, backend=backend, dynamic=False)

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return (compiled if module.training else plain)(*args, **kwargs)

    module.forward = forward
