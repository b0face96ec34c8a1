"""Handing a model to DeepSpeed."""

import logging
import warnings
from typing import Any

import deepspeed
from torch import nn

from pipeline.config import TrainConfig
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.state import create_moments


def initialize_engine(module: nn.Module, train: TrainConfig, config: dict[str, Any]) -> Any:
    """The DeepSpeed engine around `module`, with our AdamW; learning rates are set step by step."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch announces the renaming of a collective that DeepSpeed uses, once per rank.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    engine, _, _, _ = deepspeed.initialize(model=module, optimizer=build_optimizer(module, train), config=config)
    create_moments(engine)
    return engine
