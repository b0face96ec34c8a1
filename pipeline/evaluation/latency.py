"""Latency of an encoder: one sequence at a time, on the device that the evaluation uses."""

import statistics
import time

import torch
from transformers import AutoModel

from pipeline.evaluation.encoder import Encoder
from pipeline.evaluation.metrics import summarise
from pipeline.evaluation.results import ResultStore

TASK = "latency"
ROUNDS, PASSES, WARM_UP = 5, 40, 10


def score_latency(encoder: Encoder, tokens: int, store: ResultStore) -> None:
    """Enter the milliseconds of a forward pass (fp32, batch 1, no head) into `store`, as task `latency`.

    A value is the median of `PASSES` passes; there are `ROUNDS` of them, in place of seeds.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = "GPU" if device == "cuda" else "CPU, 1 thread"
    what = f"batch 1, {tokens} tokens, {where}"
    store.begin(TASK, what, what)
    if "milliseconds" in store.document["tasks"][TASK]:
        return
    model = AutoModel.from_config(encoder.config, add_pooling_layer=False, dtype=torch.float32)
    model.load_state_dict(encoder.weights)
    model = model.to(device).eval()
    input_ids = torch.randint(encoder.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several of them wait for each other more than they work, and on whom is chance
    rounds = {number: _median_milliseconds(model, input_ids.to(device)) for number in range(1, ROUNDS + 1)}
    torch.set_num_threads(threads)
    store.document["tasks"][TASK]["milliseconds"] = summarise(rounds)
    store.write()


@torch.no_grad()
def _median_milliseconds(model: torch.nn.Module, input_ids: torch.Tensor) -> float:
    times = []
    for number in range(WARM_UP + PASSES):
        started = time.perf_counter()
        model(input_ids=input_ids)
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        if number >= WARM_UP:
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)
