"""What a run can say of its own cost: time per phase, speed, model FLOP utilisation, memory.

Nothing here waits for the device between two logged steps, and ranks exchange their numbers at logged steps only.
"""

import itertools
import resource
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.cost import Batch
from pipeline.engine.distributed import World
from pipeline.records import NOT_TRAINING

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GIB = 2**30


class PhaseClock:
    """Adds up the seconds spent in each phase of a step: `with clock("forward"): ...`. Phases do not nest.

    On CUDA a phase lasts from when the device reaches its beginning to when it reaches its end, by events that are read
    once they have passed: waiting for data counts only where the device ran dry. Elsewhere it is the host's time.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._open: deque[tuple[str, Any, Any]] = deque()
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self._mark()
        yield
        self._open.append((phase, start, self._mark()))
        while self._open and (not self._on_cuda or self._open[0][2].query()):
            self._close_oldest()

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call. On CUDA this waits for the device."""
        if self._on_cuda:
            torch.cuda.synchronize()
        while self._open:
            self._close_oldest()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds

    def _mark(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _close_oldest(self) -> None:
        phase, start, end = self._open.popleft()
        self._seconds[phase] += start.elapsed_time(end) / 1000 if self._on_cuda else end - start


class Telemetry:
    """Speed, time and memory of a run, over all ranks. All ranks must construct one and call the same methods.

    Args:
        precision: fp32, bf16 or fp16; the device's peak is measured in it.
        tokens: of one training window.
        predicted: positions predicted per window.
        global_batch: windows per optimizer step.
    """

    PHASES = ("data", "forward", "backward", "agree", "optimizer", "compaction", *NOT_TRAINING)

    def __init__(self, world: World, precision: str, tokens: int, predicted: int, global_batch: int) -> None:
        self.world, self.tokens, self.predicted, self.global_batch = world, tokens, predicted, global_batch
        self.clock = PhaseClock(world.device)
        # All ranks at once: processes that share cores share their peak as well.
        world.barrier()
        peak = torch.tensor(measure_peak(world.device, DTYPES[precision]), dtype=torch.float64, device=world.device)
        self.peak = float(world.sum(peak))
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin the first interval at `step` completed steps."""
        self.clock.take()
        memory_in_use(self.world.device)  # its peak so far is not the interval's
        self._since = (step, time.perf_counter())

    def interval(self, step: int, macs: Callable[[Batch], int]) -> dict[str, Any]:
        """What to log of the steps since the last call, the same on every rank.

        Args:
            step: steps completed.
            macs: multiply-accumulates that training on a batch cannot do without. Composing weights and compactors is
                no part of them, it is overhead that lowers the utilisation (Chowdhery et al. 2022, PaLM, appendix B:
                what an ideal implementation would not compute does not count).

        Returns:
            `tokens_per_s`, of training alone; `model_tflop_per_s`, what these tokens need at least,
            and `model_flop_utilisation`, its share of the measured peak of all ranks; `time_ms`, milliseconds
            per step in each phase (mean over ranks), what is left as `other`, and their sum as `step`; `memory_gib`,
            of the rank that holds most.
        """
        own = self.clock.take()
        first, started = self._since
        steps, self._since = max(step - first, 1), (step, time.perf_counter())
        row = [*(own.get(phase, 0.0) for phase in self.PHASES), self._since[1] - started]
        row += memory_in_use(self.world.device)
        table = torch.zeros(self.world.size, len(row), dtype=torch.float64, device=self.world.device)
        table[self.world.rank] = torch.tensor(row, dtype=torch.float64)
        table = self.world.sum(table).cpu()

        *per_phase, wall = table[:, :-2].mean(0).tolist()
        host, gpu = (table[:, -2:].amax(0) / GIB).tolist()
        phases = dict(zip(self.PHASES, per_phase, strict=True))
        training = max(wall - sum(phases[name] for name in NOT_TRAINING), 1e-9)
        windows = steps * self.global_batch
        flops = 2 * macs(Batch(windows, self.tokens, self.predicted)) / training
        phases |= {"other": max(wall - sum(phases.values()), 0.0), "step": wall}
        return {
            "tokens_per_s": windows * self.tokens / training,
            "model_flop_utilisation": flops / self.peak,
            "model_tflop_per_s": flops / 1e12,
            "time_ms": {name: 1000 * value / steps for name, value in phases.items()},
            "memory_gib": {"host": host, "gpu": gpu} if gpu else {"host": host},
        }


def measure_peak(device: torch.device, dtype: torch.dtype, budget: float = 0.5) -> float:
    """The best rate of a square matrix product, in floating-point operations per second.

    The size doubles until the next one would take longer than `budget` seconds. It begins where a product takes
    milliseconds: on a busy machine a shorter one would measure nothing but the wait for the threads.
    """
    generator = torch.Generator(device).manual_seed(0)  # not the one that initialises models
    if device.type == "cuda":
        _warm_up(device, dtype, budget)
    repeats, size, best, next_takes = 4, 512, 0.0, 0.0
    while size <= 8192 and next_takes < budget:
        matrix = torch.rand(size, size, generator=generator, device=device).to(dtype)
        out = torch.empty_like(matrix)
        marks = [_now(device)]
        for _ in range(repeats):
            torch.mm(matrix, matrix, out=out)
            marks.append(_now(device))
        fastest = min(after - before for before, after in itertools.pairwise(marks))
        best, next_takes, size = max(best, 2 * size**3 / fastest), 8 * repeats * fastest, 2 * size
    return best


def _warm_up(device: torch.device, dtype: torch.dtype, seconds: float) -> None:
    """Keep a GPU busy until its clocks have risen: an idle one's are a fraction of those it trains at."""
    matrix = torch.ones(4096, 4096, device=device, dtype=dtype)
    begun = _now(device)
    while _now(device) - begun < seconds:
        torch.mm(matrix, matrix)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def memory_in_use(device: torch.device) -> tuple[int, int]:
    """Bytes this process holds in main memory now, and the most torch held on its GPU for it since the last call.

    Held, not allocated: what a recorded micro-step works in counts as allocated while it is recorded alone.
    """
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    if device.type != "cuda":
        return resident, 0
    held = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return resident, held
