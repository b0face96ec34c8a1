"""Latency of an encoder: one sequence at a time, on the device that the evaluation uses."""

import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.evaluation.items import Item, Outcome, When
from pipeline.evaluation.task import Task

if TYPE_CHECKING:
    import torch

    from pipeline.evaluation.encoder import Encoder

ROUNDS, PASSES, WARM_UP = 5, 40, 10
"""A value is the median of `PASSES` forward passes after `WARM_UP`; there are `ROUNDS` of them, in place of seeds."""


class Latency(Task):
    """Milliseconds of a forward pass: fp32, batch 1, no head."""

    names = ("latency",)

    def check(self, model: "Encoder") -> Iterator[Item]:
        """Nothing can be wrong but results of another device or length."""
        from pipeline.evaluation.encoder import device
        from pipeline.evaluation.estimate import shape_of

        tokens = self.request.settings.max_length
        where = "GPU" if device() == "cuda" else "CPU, 1 thread"
        what = f"batch 1, {tokens} tokens, {where}"
        flops = ROUNDS * (WARM_UP + PASSES) * shape_of(model).encoder_flops(tokens)
        entries = {"latency": {"data": what, "data_sha256": what}}
        yield Item("latency", entries=entries, flops=flops, when=When.ALONE)

    def run(self, item: Item, model: "Encoder") -> Outcome:
        """Measure."""
        print(f"latency: {ROUNDS} x {PASSES} passes, {item.entries['latency']['data']} ...", flush=True)
        return Outcome({"latency": {"milliseconds": measure(model, self.request.settings.max_length)}})


def measure(encoder: "Encoder", tokens: int) -> dict[int, float]:
    """The milliseconds of a forward pass over `tokens` random tokens, for every round."""
    import torch
    from transformers import AutoModel

    from pipeline.evaluation.encoder import device

    model = AutoModel.from_config(encoder.config, add_pooling_layer=False, dtype=torch.float32)
    model.load_state_dict(encoder.weights)
    model = model.to(device()).eval()
    input_ids = torch.randint(encoder.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several of them wait for each other more than they work, and on whom is chance
    with torch.no_grad():
        rounds = {number: _median(model, input_ids.to(device())) for number in range(1, ROUNDS + 1)}
    torch.set_num_threads(threads)
    return rounds


def _median(model: "torch.nn.Module", input_ids: "torch.Tensor") -> float:
    """Milliseconds, the median of one round."""
    import torch

    times = []
    for number in range(WARM_UP + PASSES):
        started = time.perf_counter()
        model(input_ids=input_ids)
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        if number >= WARM_UP:
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)
