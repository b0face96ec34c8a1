"""The training loop.

One optimizer step, in this order:

1. if an increment is due: score the dimensions, retire some, record the choice;
2. set every gate and learning rate to its value for this step; when all gates are 0 or 1, narrow the model to what
   they have left open;
3. compose the tensors of a BERT; each micro-batch goes forward and backward on them; the gradients of all go back
   through the composition at once;
4. agree with the other ranks, in one all-reduce: the loss, whether it is finite, who must stop;
5. DeepSpeed's step, unless the numbers are not finite; add the squared gate gradients to the Taylor scores;
6. log, measure on held-out text, write a checkpoint, stop if asked.

Everything but parameters, moments, the record of retirements and the Taylor sums is a function of the step number,
so a checkpoint holds no more than that.
"""

import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.building import BuiltModel, rebuild_model
from pipeline.compaction.model import CompactedBert
from pipeline.config import Recipe
from pipeline.data.ahead import collate, read_ahead
from pipeline.data.loader import HeldOutData, Share, TrainingData
from pipeline.data.masking import MaskedBatch
from pipeline.engine.anomalies import Anomalies, StepResult, describe_windows
from pipeline.engine.checkpoint import Checkpoint, save_checkpoint
from pipeline.engine.compaction import CompactionState
from pipeline.engine.deepspeed_config import precision
from pipeline.engine.distributed import World
from pipeline.engine.faults import Faults
from pipeline.engine.micro_step import dropout_seed
from pipeline.engine.model_engine import ModelEngine
from pipeline.engine.optimizer import head_warmup, learning_rates
from pipeline.engine.run_log import RunLog
from pipeline.engine.stopping import StopRequest
from pipeline.engine.telemetry import Telemetry, compactor_norms, trained_shape
from pipeline.engine.watch import Watch
from pipeline.errors import UserError
from pipeline.models.encoder import encode
from pipeline.models.huggingface import save_config
from pipeline.models.loss import masked_lm_loss


class Trainer:
    """Drives a DeepSpeed engine from where it is to the end of the recipe.

    Args:
        deepspeed_config: complete, see `load_deepspeed_config`.
        log: on rank 0, None elsewhere.

    Attributes:
        compaction: schedule, gates and scores; None for a plain BERT.
        saved: step of the checkpoint that was written or read last.

    Raises:
        DataError: the held-out windows cannot be read.
    """

    def __init__(
        self,
        deepspeed_config: dict[str, Any],
        recipe: Recipe,
        built: BuiltModel,
        data: TrainingData,
        heldout: HeldOutData,
        world: World,
        directory: Path,
        log: RunLog | None,
        watch: Watch,
    ) -> None:
        self.recipe, self.built = recipe, built
        self.data, self.world, self.watch = data, world, watch
        self.directory, self.log, self._heldout_hash = directory, log, heldout.source.tokens_hash
        self.step = 0
        self.saved: int | None = None
        self.anomalies = Anomalies()
        self.faults = Faults(world)
        self.accumulation = deepspeed_config["gradient_accumulation_steps"]
        self.micro_batch = deepspeed_config["train_micro_batch_size_per_gpu"]
        self.rates = learning_rates(recipe.train, recipe.teacher, built.head_is_new)
        self.compaction = None
        if isinstance(built.module, CompactedBert):
            self.compaction = CompactionState(recipe, built.module, world)
        self.telemetry = Telemetry(
            world, precision(deepspeed_config), recipe.data.seq_len, recipe.data.predicted, recipe.train.global_batch
        )
        say = log.say if log else lambda _: None
        self.engine = ModelEngine(built.module, recipe.train, deepspeed_config, world, self.telemetry.clock, say)
        self._collate = partial(collate, documents=recipe.data.separate_documents)
        # Read once and kept, so that a fault in them shows before the first step.
        kept = world.on_all(lambda: list(heldout.batches(self.micro_batch, world.rank, world.size)))
        self.heldout = [(self._collate(batch), valid) for batch, valid in kept]
        self.stop = StopRequest(directory, world)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue after the checkpoint's step. The module must be as `restored_model` makes it."""
        trainer = checkpoint.trainer
        self.engine.restore(checkpoint.tensors, trainer["optimizer_steps"], trainer["loss_scale"])
        self.step = self.saved = checkpoint.step
        self.anomalies.load_state_dict(trainer["anomalies"])
        if self.compaction:
            self.compaction.load_state_dict(checkpoint.tensors["compaction"])

    def run(self) -> bool:
        """Train to the end; True if it was reached, False if the run was asked to stop before.

        Raises:
            UserError: too many steps in a row without finite numbers, or a record that cannot be written.
            DataError: text that cannot be trained on. All ranks raise these together.
        """
        share = Share(self.recipe.train.global_batch, self.micro_batch, self.world.rank, self.world.size)
        wanted = self.recipe.data
        with read_ahead(self.data, self.step, share, wanted.separate_documents, wanted.reader) as batches:
            return self._train(batches)

    def _train(self, batches: Iterator[dict[str, Tensor]]) -> bool:
        """What `run` does, with the micro-batches of this rank."""
        train = self.recipe.train
        self.telemetry.restart(self.step)
        self._started, self._saving = time.monotonic(), 0.0
        if self.step < train.steps and self._asked_to_stop():
            return False
        while self.step < train.steps:
            result = self._optimizer_step(batches)
            event = self.anomalies.find(result)
            self.step += 1
            last = self.step == train.steps
            evaluate = last or self.step % train.evaluate_every == 0
            if event:
                self._report(event, result)
            if event or evaluate or self.step % train.log_every == 0 or self.step == 1:
                with self.faults.kept():
                    self._log(result, event, evaluate)
            if self.log and not last and self.step == head_warmup(self.recipe.teacher, self.built.head_is_new):
                self.log.say(f"step {self.step}: the new MLM head has warmed up, the whole model trains from here on")
            if self.anomalies.in_a_row >= train.max_skipped_in_a_row:
                raise self.world.said_once(self._unsound())
            stopping = result.stop and not last
            if last or stopping or self.step % train.checkpoint_interval == 0:
                with self.telemetry.clock("checkpoint"):
                    self.save()
            if stopping:
                return False
        return True

    def _optimizer_step(self, batches: Iterator[dict[str, Tensor]]) -> StepResult:
        """Steps 1 to 5 of the module's list."""
        if self.compaction:
            with self.telemetry.clock("compaction"):
                choices = self.compaction.before_step(self.step)
                if self.compaction.narrowing_due(self.step):
                    self._narrow(self.compaction)
            if self.log and choices:
                with self.telemetry.clock("log"), self.faults.kept():
                    self.log.selection(choices, self.compaction.schedule)
        self.engine.begin(self.rates(self.step))
        for micro in range(self.accumulation):
            with self.telemetry.clock("data"):
                batch = self._to_device(self._read(batches))
            seed = dropout_seed(self.recipe.train.seed, self.step, micro, self.world.rank)
            self.engine.micro_step.run(batch, seed)
            self.watch.beat()
        self.engine.backward()
        return self._finish_step(self.engine.micro_step.means())

    def _finish_step(self, means: Tensor) -> StepResult:
        """Steps 4 and 5.

        Args:
            means: loss and accuracy (2,) of this rank's part of the global batch.
        """
        with self.telemetry.clock("agree"):
            loss, accuracy, faults, stops = self._agree(means)
        if faults:
            self.faults.raise_together()
        sound = math.isfinite(loss)
        scale, can_lower = self.engine.scaler.scale, self.engine.scaler.can_lower  # the step may change both
        gradient = None
        if self.compaction and sound:
            with self.telemetry.clock("compaction"):
                gradient = self.compaction.gate_gradient(scale or 1.0)
        self.engine.step(means.new_tensor(not sound))
        applied = self.engine.applied()
        if self.compaction and applied and gradient is not None:
            with self.telemetry.clock("compaction"):
                self.compaction.after_step(gradient)
        return StepResult(loss, accuracy, applied, scale, can_lower, stop=stops > 0)

    def _agree(self, means: Tensor) -> list[float]:
        """Mean loss and accuracy; ranks that cannot go on, that were asked to stop."""
        # This is the one collective of a step that is not DeepSpeed's or the scores'.
        own = torch.tensor([self.faults.met, self.stop.received()], dtype=means.dtype).to(means.device)
        total = self.world.sum(torch.cat([means, own])).tolist()
        return [total[0] / self.world.size, total[1] / self.world.size, *total[2:]]

    def _asked_to_stop(self) -> bool:
        """Whether any rank was asked to stop before the first step."""
        return bool(self.world.sum(torch.tensor([float(self.stop.received())], device=self.world.device)).item())

    def _read(self, batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The next micro-batch; an empty one keeps step with the other ranks until all raise this rank's fault."""
        if not self.faults.met:
            with self.faults.kept():
                return next(batches)
        tokens, predicted = self.recipe.data.seq_len, self.recipe.data.predicted
        shapes = ((tokens,), (predicted,), (predicted,), (tokens,), ())
        empty = MaskedBatch(*(np.zeros((self.micro_batch, *shape), dtype=np.int64) for shape in shapes))
        return self._collate(empty)

    def _report(self, event: str, result: StepResult) -> None:
        """Say what was wrong with the step that was just taken."""
        if not self.log:
            return
        if event == "overflow":
            what = f"the gradients overflow at loss scale {result.loss_scale:g}, step skipped"
        elif event == "skipped":
            what = f"loss or gradient is no finite number, step skipped ({self.anomalies.in_a_row} in a row)"
        else:
            what = f"loss {result.loss:.4f} is far above the usual {self.anomalies.usual_loss:.4f}"
        windows = "" if event == "overflow" else f"; {describe_windows(self._windows())}"
        self.log.say(f"step {self.step}: {what}{windows}")

    def _unsound(self) -> UserError:
        return UserError(
            f"loss or gradient was no finite number in {self.anomalies.in_a_row} steps in a row, up to step "
            f"{self.step}, which had {describe_windows(self._windows())}: lower the learning rates, or look for what "
            "is wrong with the text or the teacher"
        )

    def _windows(self) -> list[list[int]]:
        """The window ids of the step that was just taken, per source."""
        size = self.recipe.train.global_batch
        source, _, window = self.data.locate(np.arange((self.step - 1) * size, self.step * size))
        return [window[source == number].tolist() for number in range(len(self.data.sources))]

    def _narrow(self, compaction: CompactionState) -> None:
        """Go on with a model of the student's width under the same optimizer state."""
        successor = rebuild_model(self.recipe, save_config(self.built.bert_config))
        assert isinstance(successor, CompactedBert)
        self.built.module = successor
        self.engine.replace(successor, partial(compaction.narrow, successor))
        self.watch.beat()
        if self.log:
            self.log.say(f"step {self.step}: every gate is closed or open, narrowed to {successor.target}")

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.world.device, non_blocking=True) for name, tensor in batch.items()}

    def _log(self, result: StepResult, event: str | None, evaluate: bool) -> None:
        record: dict[str, Any] = {
            "step": self.step,
            "tokens": self.step * self.recipe.train.global_batch * self.recipe.data.seq_len,
            "loss": result.loss,
            "accuracy": result.accuracy,
            "gradient_norm": self.engine.gradient_norm(result.loss_scale),
            "kept": self.compaction.schedule.open_count() if self.compaction else {},
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
                record["heldout_loss"], record["heldout_accuracy"] = self.evaluate()
            if self.compaction:
                with self.telemetry.clock("log"):
                    norms = compactor_norms(self.compaction.model)
        record |= self.telemetry.interval(self.step, trained_shape(self.built.module))
        if self.log:
            with self.telemetry.clock("log"):
                self.log.step(record, self.rates(self.step - 1))
                if self.compaction and evaluate:
                    self.log.compaction(self.step, self.compaction.schedule, norms)

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy over all predicted positions of the held-out windows, dropout off."""
        tensors, form = self.engine.composed(), self.engine.module.form
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        for batch, valid in self.heldout:
            self.watch.beat()
            if valid:
                rows = {name: tensor[:valid] for name, tensor in self._to_device(batch).items()}
                documents = rows.get("documents")
                logits = encode(tensors, form, rows["input_ids"], rows["positions"], documents=documents)
                loss, accuracy = masked_lm_loss(logits, rows["labels"])
                sums += valid * torch.stack([loss, accuracy, torch.ones_like(loss)]).double()
        total_loss, total_accuracy, windows = self.world.sum(sums).tolist()
        return total_loss / windows, total_accuracy / windows

    def save(self) -> None:
        """Write a checkpoint. All ranks must call."""
        begun = time.monotonic()
        state = self.engine.state(keep=self.world.is_main)
        compaction = self.compaction.state_dict() if self.compaction else {}
        trainer = {
            "step": self.step,
            "optimizer_steps": self.engine.optimizer_steps,
            "head_is_new": self.built.head_is_new,
            "narrowed": bool(self.compaction and self.compaction.model.narrowed),
            "shards": [source.tokens_hash for source in self.data.sources],
            "heldout": self._heldout_hash,
            "consumed": self.data.consumed(self.step * self.recipe.train.global_batch),
            "anomalies": self.anomalies.state_dict(),
            "loss_scale": self.engine.scaler.state_dict(),
        }
        checkpoint = Checkpoint({**state, "compaction": compaction}, trainer, save_config(self.built.bert_config))
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
