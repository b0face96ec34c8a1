"""The training loop.

One optimizer step, in this order:

1. the method does what is due before the step, and may put a successor in the place of its model (WID retires
   dimensions, sets its gates, and narrows the model once they are all open or closed);
2. compose the tensors of a BERT at this step's learning rates; each micro-batch goes forward and backward on them; the
   gradients of all go back through the composition at once;
3. agree with the other ranks, in one all-reduce: the loss, whether it is finite, who must stop;
4. DeepSpeed's step, unless the numbers are not finite; the method takes notice of the gradients;
5. log, measure on held-out text, write a checkpoint, stop if asked.

Everything but parameters, moments and what the method keeps is a function of the step number, so a checkpoint holds no
more than that.
"""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.ahead import collate, read_ahead
from pipeline.data.loader import HeldOutData, Share, TrainingData
from pipeline.engine.anomalies import Anomalies, StepResult, describe_event, describe_unsound
from pipeline.engine.checkpoint import Checkpoint, save_checkpoint
from pipeline.engine.deepspeed_config import precision
from pipeline.engine.distributed import World
from pipeline.engine.faults import Faults
from pipeline.engine.feed import Feed, empty_windows
from pipeline.engine.heldout import HeldOut
from pipeline.engine.micro_step import dropout_seed
from pipeline.engine.model_engine import ModelEngine
from pipeline.engine.optimizer import head_warmup, learning_rates
from pipeline.engine.readback import Readback
from pipeline.engine.run_log import RunLog
from pipeline.engine.stopping import StopRequest
from pipeline.engine.telemetry import Telemetry
from pipeline.engine.watch import Watch
from pipeline.errors import UserError
from pipeline.methods.method import Method
from pipeline.models.huggingface import save_config
from pipeline.recipe import Recipe


class Trainer:
    """Drives a DeepSpeed engine from where it is to the end of the recipe.

    Args:
        deepspeed_config: complete, see `load_deepspeed_config`.
        method: ready, see `Method.get_ready`.
        log: on rank 0, None elsewhere.

    Attributes:
        saved: step of the checkpoint that was written or read last.

    Raises:
        DataError: the held-out windows cannot be read.
    """

    def __init__(
        self,
        deepspeed_config: dict[str, Any],
        recipe: Recipe,
        method: Method,
        data: TrainingData,
        heldout: HeldOutData,
        world: World,
        directory: Path,
        log: RunLog | None,
        watch: Watch,
    ) -> None:
        self.recipe, self.method, self.data, self.world = recipe, method, data, world
        self.directory, self.log, self.watch = directory, log, watch
        self.step = 0
        self.saved: int | None = None
        self.anomalies, self.faults = Anomalies(), Faults(world)
        self.accumulation = deepspeed_config["gradient_accumulation_steps"]
        self.micro_batch = deepspeed_config["train_micro_batch_size_per_gpu"]
        self.rates = learning_rates(recipe.train, recipe.teacher, method.head_is_new)
        self.telemetry = Telemetry(
            world, precision(deepspeed_config), recipe.data.seq_len, recipe.data.predicted, recipe.train.global_batch
        )
        self.engine = ModelEngine(method, recipe.train, deepspeed_config, world, self.telemetry.clock, self._say)
        self._collate = partial(collate, documents=recipe.data.separate_documents)
        self.heldout = HeldOut(heldout, self.micro_batch, self._collate, world, watch.beat)
        self.stop = StopRequest(directory, world)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue after the checkpoint's step. The method must be as `restored_method` makes it."""
        trainer = checkpoint.trainer
        self.engine.restore(checkpoint.tensors, trainer["optimizer_steps"], trainer["loss_scale"])
        self.step = self.saved = checkpoint.step
        self.anomalies.load_state_dict(trainer["anomalies"])

    def run(self) -> bool:
        """Train to the end; True if it was reached, False if the run was asked to stop before.

        Raises:
            UserError: too many steps in a row without finite numbers, or a record that cannot be written.
            DataError: text that cannot be trained on. All ranks raise these together.
        """
        wanted = self.recipe.data
        share = Share(self.recipe.train.global_batch, self.micro_batch, self.world.rank, self.world.size)
        with read_ahead(self.data, self.step, share, wanted.separate_documents, wanted.reader) as batches:
            empty = empty_windows(wanted, self.micro_batch)
            return self._train(Feed(batches, partial(self._collate, empty), self.world.device, self.faults))

    def _train(self, feed: Feed) -> bool:
        """What `run` does, with the micro-batches of this rank."""
        train = self.recipe.train
        self.telemetry.restart(self.step)
        self._started, self._saving = time.monotonic(), 0.0
        if self.step < train.steps and self._asked_to_stop():
            return False
        while self.step < train.steps:
            result = self._optimizer_step(feed)
            event = self.anomalies.find(result)
            self.step += 1
            last = self.step == train.steps
            evaluate = last or self.step % train.evaluate_every == 0
            if event:
                windows = [] if event == "overflow" else self._windows()
                self._say(f"step {self.step}: {describe_event(event, result, self.anomalies, windows)}")
            if event or evaluate or self.step % train.log_every == 0 or self.step == 1:
                with self.faults.kept():
                    self._log(result, event, evaluate)
            if not last and self.step == head_warmup(self.recipe.teacher, self.method.head_is_new):
                self._say(f"step {self.step}: the new MLM head has warmed up, the whole model trains from here on")
            if self.anomalies.in_a_row >= train.max_skipped_in_a_row:
                raise self.world.said_once(
                    UserError(describe_unsound(self.anomalies.in_a_row, self.step, self._windows()))
                )
            stopping = result.stop and not last
            if last or stopping or self.step % train.checkpoint_interval == 0:
                with self.telemetry.clock("checkpoint"):
                    self.save()
            if stopping:
                return False
        return True

    def _optimizer_step(self, feed: Feed) -> StepResult:
        """Steps 1 to 4 of the module's list."""
        self._prepare()
        self.engine.begin(self.rates(self.step))
        for micro in range(self.accumulation):
            with self.telemetry.clock("data"):
                batch = feed.next()
            seed = dropout_seed(self.recipe.train.seed, self.step, micro, self.world.rank)
            self.engine.micro_step.run(batch, seed)
            self.watch.beat()
        self.engine.backward()
        return self._finish_step(self.engine.micro_step.means())

    def _prepare(self) -> None:
        """Step 1."""
        with self.telemetry.clock("compaction"):
            choices = self.method.before_step(self.step, self.world)
            successor = self.method.successor(self.step)
            if successor is not None:
                self.engine.replace(successor)
                self.watch.beat()
                self._say(f"step {self.step}: every gate is closed or open, narrowed to {self.method.shape}")
        if self.log and choices:
            with self.telemetry.clock("log"), self.faults.kept():
                self.log.selection(choices, self.method)

    def _finish_step(self, means: Tensor) -> StepResult:
        """Steps 3 and 4.

        Args:
            means: loss and accuracy (2,) of this rank's part of the global batch.
        """
        with self.telemetry.clock("agree"):
            agreed = self._agree(means)
            reading = Readback(agreed)
        scale, can_lower = self.engine.scaler.scale, self.engine.scaler.can_lower  # the step may change both
        self.engine.step(unsound=agreed[2] + ~agreed[0].isfinite())
        # Only now does the host wait for them: the device has the optimizer's work to go on with.
        with self.telemetry.clock("agree"):
            loss, accuracy, faults, stops = reading.read().tolist()
        if faults:
            self.faults.raise_together()
        applied = self.engine.applied()
        if applied:
            with self.telemetry.clock("compaction"):
                self.method.after_step(self.world, scale or 1.0)
        ranks = self.world.size
        return StepResult(loss / ranks, accuracy / ranks, applied, scale, can_lower, stop=stops > 0)

    def _agree(self, means: Tensor) -> Tensor:
        """Sums of loss and accuracy; ranks that cannot go on, that were asked to stop: (4,)."""
        # This is the one collective of a step that is not DeepSpeed's, of clipping, or the method's.
        own = torch.tensor([self.faults.met, self.stop.received()], dtype=means.dtype)
        return self.world.sum(torch.cat([means, own.to(means.device, non_blocking=True)]))

    def _asked_to_stop(self) -> bool:
        """Whether any rank was asked to stop before the first step."""
        return bool(self.world.sum(torch.tensor([float(self.stop.received())], device=self.world.device)).item())

    def _windows(self) -> list[list[int]]:
        """The window ids of the step that was just taken, per source."""
        size = self.recipe.train.global_batch
        source, _, window = self.data.locate(np.arange((self.step - 1) * size, self.step * size))
        return [window[source == number].tolist() for number in range(len(self.data.sources))]

    def _log(self, result: StepResult, event: str | None, evaluate: bool) -> None:
        record: dict[str, Any] = {
            "step": self.step,
            "tokens": self.step * self.recipe.train.global_batch * self.recipe.data.seq_len,
            "loss": result.loss,
            "accuracy": result.accuracy if math.isfinite(result.accuracy) else None,
            "gradient_norm": self.engine.gradient_norm(result.loss_scale),
            "kept": self.method.open_count(),
            "skipped_steps": self.anomalies.skipped,
            "checkpoint_share": self.checkpoint_share(),
        }
        if event:
            record |= {"event": event} if event == "overflow" else {"event": event, "windows": self._windows()}
        if result.loss_scale is not None:
            record["loss_scale"] = result.loss_scale
        norms = {}
        if evaluate:
            with self.telemetry.clock("evaluate"):
                record |= self.heldout.measure(self.method, self.engine.composed())
            with self.telemetry.clock("log"):
                norms = self.method.norms(self.world)
        record |= self.telemetry.interval(self.step, self.method.macs)
        if self.log:
            with self.telemetry.clock("log"):
                self.log.step(record, self.rates(self.step - 1))
                if evaluate:
                    self.log.compaction(self.step, self.method, norms)

    def save(self) -> None:
        """Write a checkpoint. All ranks must call."""
        begun = time.monotonic()
        state = self.engine.state(keep=self.world.is_main)
        trainer = {
            "step": self.step,
            "optimizer_steps": self.engine.optimizer_steps,
            **self.method.facts(),
            "shards": [source.tokens_hash for source in self.data.sources],
            "heldout": self.heldout.tokens_hash,
            "consumed": self.data.consumed(self.step * self.recipe.train.global_batch),
            "anomalies": self.anomalies.state_dict(),
            "loss_scale": self.engine.scaler.state_dict(),
        }
        tensors = {**state, "compaction": self.method.state_dict()}
        checkpoint = Checkpoint(tensors, trainer, save_config(self.method.model.config))
        train = self.recipe.train

        def write() -> None:
            self.faults.raise_own()
            if self.log:
                self.log.sync()
            save_checkpoint(self.directory / "checkpoints", checkpoint, train.keep_checkpoints, train.keep_every)

        self.world.on_main(write)
        self.saved = self.step
        self._saving += time.monotonic() - begun
        self.watch.beat()

    def checkpoint_share(self) -> float:
        """Share of the time since this start that went into checkpoints, in [0, 1]."""
        return self._saving / max(time.monotonic() - self._started, 1e-9)

    def _say(self, sentence: str) -> None:
        if self.log:
            self.log.say(sentence)
