"""What DeepSpeed's own log of communication says one rank sends in an optimizer step, at every ZeRO stage.

    torchrun --nproc_per_node 2 tests/engine/communication_worker.py

Rank 0 prints a JSON object per stage, in fp32.
"""

import json

import deepspeed
import deepspeed.comm.comm as communication
import deepspeed.ops
import torch
from torch import nn

STEPS = 2
# Passes over the logged size that a ring makes; of an all-gather the log has the shard, of the others the whole.
WHOLE = {"all_reduce": 2.0, "reduce_scatter_tensor": 1.0}

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # needs a compiler
torch.set_num_threads(1)
deepspeed.init_distributed("gloo")
rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()


def optimizer_steps(engine) -> None:
    for _ in range(STEPS):
        loss = engine(torch.randn(4, 64)).square().mean()
        engine.backward(loss)
        engine.step()


for stage in range(4):
    module = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    parameters = sum(p.numel() for p in module.parameters())
    config = {
        "train_micro_batch_size_per_gpu": 4,
        # Small models would otherwise stay gathered at stage 3.
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
        },
        "zero_allow_untested_optimizer": True,
        "comms_logger": {"enabled": True, "prof_all": True, "verbose": False},
    }
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    engine, _, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    optimizer_steps(engine)  # the first one also sets things up
    communication.comms_logger.comms_dict.clear()
    optimizer_steps(engine)
    sent = 0.0
    for operation, sizes in communication.comms_logger.comms_dict.items():
        for size, (count, *_) in sizes.items():
            passes = WHOLE[operation] * (ranks - 1) / ranks if operation in WHOLE else ranks - 1
            sent += passes * size * count / STEPS
    if rank == 0:
        print(json.dumps({"stage": stage, "parameters": parameters, "sent_bytes": sent}), flush=True)
    engine.destroy()
torch.distributed.destroy_process_group()
