"""Latency of an encoder: one sequence at a time, on the device that the evaluation uses."""

import statistics
import time
from typing import TYPE_CHECKING

from pipeline.evaluation.results import ResultStore
from pipeline.evaluation.task import Task

if TYPE_CHECKING:
    import torch

    from pipeline.evaluation.encoder import Encoder

ROUNDS, PASSES, WARM_UP = 5, 40, 10
"""A value is the median of `PASSES` forward passes after `WARM_UP`; there are `ROUNDS` of them, in place of seeds."""


class Latency(Task):
    """Milliseconds of a forward pass: fp32, batch 1, no head."""

    names = ("latency",)

    def check(self, model: "Encoder", store: ResultStore) -> None:
        """Nothing can be wrong but results of another device or length."""
        from pipeline.evaluation.encoder import device

        where = "GPU" if device() == "cuda" else "CPU, 1 thread"
        what = f"batch 1, {self.request.settings.max_length} tokens, {where}"
        store.begin("latency", what, what)

    def run(self, model: "Encoder", store: ResultStore) -> None:
        """Measure, unless that was done before."""
        if store.scores("latency"):
            print("latency: already done", flush=True)
        else:
            print(f"latency: {ROUNDS} x {PASSES} passes, {store.data('latency')} ...", flush=True)
            store.enter("latency", {"milliseconds": measure(model, self.request.settings.max_length)})
        store.say("latency")


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
