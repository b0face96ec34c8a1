"""Handing a model to DeepSpeed."""

import logging
import warnings
from typing import Any

import deepspeed
from torch import nn

from pipeline.config import TrainConfig
from pipeline.engine.optimizer import StepGuard, build_optimizer
from pipeline.engine.state import LossScaler, create_moments


def initialize_engine(module: nn.Module, train: TrainConfig, config: dict[str, Any]) -> tuple[Any, StepGuard]:
    """The DeepSpeed engine around `module`, with our AdamW, and what can make that skip a step.

    Learning rates are set step by step.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch announces the renaming of a collective that DeepSpeed uses, once per rank.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    optimizer = build_optimizer(module, train)
    engine, _, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    create_moments(engine)
    LossScaler(engine).never_raise()
    return engine, StepGuard(optimizer)
