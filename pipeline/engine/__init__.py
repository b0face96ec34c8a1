"""How a run runs: processes, DeepSpeed, optimizer, state, checkpoints, logs."""
