"""The training loop.

One optimizer step, in this order:

1. if an increment is due: score the dimensions, retire some, record the choice;
2. set every gate and learning rate to its value for this step; when all gates are 0 or 1, narrow the model to what
   they have left open;
3. for each micro-batch: forward, loss on the predicted positions, backward, DeepSpeed's step;
4. add the squared gate gradients to the Taylor scores;
5. log, measure on held-out text, write a checkpoint, stop if asked.

Everything but parameters, moments, the record of retirements and the Taylor sums is a function of the step number,
so a checkpoint holds no more than that.
"""

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compaction.model import CompactedBert
from pipeline.config import Recipe
from pipeline.data.loader import HeldOutData, TrainingData, micro_batches
from pipeline.data.masking import MaskedBatch
from pipeline.engine.checkpoint import Checkpoint, save_checkpoint
from pipeline.engine.compaction import CompactionState
from pipeline.engine.distributed import World
from pipeline.engine.optimizer import learning_rates, set_learning_rates
from pipeline.engine.run_log import RunLog
from pipeline.engine.setup import initialize_engine
from pipeline.engine.state import gather_state, optimizer_steps, restore_state
from pipeline.engine.stopping import StopRequest
from pipeline.models import BuiltModel, load_parameters, rebuild_model, save_config


def masked_lm_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy over the predicted positions.

    Args:
        logits: (batch, k, vocab).
        labels: (batch, k).
    """
    loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
    return loss, (logits.detach().argmax(-1) == labels).float().mean()


def seed_dropout(*keys: int) -> None:
    """Make the random numbers of what follows a function of the keys, so that no RNG state needs saving."""
    digest = hashlib.sha256(repr(keys).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Trainer:
    """Drives a DeepSpeed engine from where it is to the end of the recipe.

    Args:
        deepspeed_config: complete, see `load_deepspeed_config`.
        log: on rank 0, None elsewhere.

    Attributes:
        compaction: schedule, gates and scores; None for a plain BERT.
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
    ) -> None:
        self.deepspeed_config, self.recipe, self.built = deepspeed_config, recipe, built
        self.data, self.heldout, self.world = data, heldout, world
        self.directory, self.log = directory, log
        self.step = 0
        self.accumulation = deepspeed_config["gradient_accumulation_steps"]
        self.micro_batch = deepspeed_config["train_micro_batch_size_per_gpu"]
        self.rates = learning_rates(recipe.train, recipe.teacher, built.head_is_new)
        self.compaction = None
        if isinstance(built.module, CompactedBert):
            self.compaction = CompactionState(recipe, built.module, world)
        self.engine = self._start_engine(built.module)
        self.stop = StopRequest(directory, world)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue after the checkpoint's step. The module must be as `restore_model` makes it."""
        state = {name: checkpoint.tensors[name] for name in ("parameters", "exp_avg", "exp_avg_sq")}
        self._restore_engine(state, int(checkpoint.trainer["optimizer_steps"]))
        self.step = checkpoint.step
        if self.compaction:
            self.compaction.load_state_dict(checkpoint.tensors["compaction"])

    def run(self) -> bool:
        """Train to the end; True if it was reached, False if the run was asked to stop before."""
        train = self.recipe.train
        batches = micro_batches(
            self.data, self.step, train.global_batch, self.micro_batch, self.world.rank, self.world.size
        )
        self._since = (self.step, time.monotonic())
        while self.step < train.steps:
            sums = self._optimizer_step(batches)
            self.step += 1
            last = self.step == train.steps
            evaluate = last or self.step % train.evaluate_every == 0
            if evaluate or self.step % train.log_every == 0 or self.step == 1:
                self._log(sums, evaluate)
            stopping = self.stop.agreed() and not last
            if last or stopping or self.step % train.checkpoint_every == 0:
                self.save()
            if stopping:
                self.stop.clear()
                return False
        return True

    def _optimizer_step(self, batches: Any) -> Tensor:
        """Steps 1 to 4 of the module's list; returns loss and accuracy (2,) of this rank's last step."""
        if self.compaction:
            for choice in self.compaction.before_step(self.step):
                if self.log:
                    self.log.selection(**choice)
            if self.compaction.narrowing_due(self.step):
                self._narrow(self.compaction)
        set_learning_rates(self.engine.optimizer, self.rates(self.step))
        sums = torch.zeros(2, device=self.world.device)
        for micro in range(self.accumulation):
            seed_dropout(self.recipe.train.seed, self.step, micro, self.world.rank)
            input_ids, positions, labels = self._to_device(next(batches))
            loss, accuracy = masked_lm_loss(self.engine(input_ids, positions), labels)
            self.engine.backward(loss)
            if micro == self.accumulation - 1:
                self._gradient_norm = self._local_gradient_norm()
                if self.compaction:
                    self.compaction.after_backward(self.engine)
            self.engine.step()
            sums += torch.stack([loss.detach(), accuracy]) / self.accumulation
        return sums

    def _narrow(self, compaction: CompactionState) -> None:
        """Rebuild the model at the student's width under the same optimizer state, in the same process group."""
        state, steps = gather_state(self.engine, keep=True), optimizer_steps(self.engine)
        successor = rebuild_model(self.recipe, save_config(self.built.bert_config))
        assert isinstance(successor, CompactedBert)
        state = compaction.narrow(successor, state)
        load_parameters(successor, state["parameters"])
        self.engine.destroy()
        self.built.module = successor
        self.engine = self._start_engine(successor)
        self._restore_engine(state, steps)
        if self.log:
            self.log.say(f"step {self.step}: every gate is closed or open, narrowed to {successor.target}")

    def _start_engine(self, module: nn.Module) -> Any:
        engine = initialize_engine(module, self.recipe.train, self.deepspeed_config)
        if isinstance(module, CompactedBert):
            module.move_gates(self.world.device)
        engine.train()  # transformers hands over loaded models in evaluation mode
        return engine

    def _restore_engine(self, state: dict[str, dict[str, Tensor]], steps: int) -> None:
        example = {"input_ids": torch.zeros(1, 8, dtype=torch.long, device=self.world.device)}
        restore_state(self.engine, state, steps, self.world, example)

    def _to_device(self, batch: MaskedBatch) -> tuple[Tensor, Tensor, Tensor]:
        arrays = (batch.input_ids, batch.positions, batch.labels)
        input_ids, positions, labels = (torch.from_numpy(a).to(self.world.device) for a in arrays)
        return input_ids, positions, labels

    def _local_gradient_norm(self) -> Tensor | None:
        """Norm of the averaged gradient at stage 0 in fp32; DeepSpeed knows it elsewhere, after the step."""
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        if self.engine.zero_optimization_stage() > 0 or not gradients:
            return None
        return torch.nn.utils.get_total_norm(gradients)

    def _log(self, sums: Tensor, evaluate: bool) -> None:
        train = self.recipe.train
        loss, accuracy = self.world.mean(sums).tolist()
        first, started = self._since
        tokens = train.global_batch * self.recipe.data.seq_len
        norm = self.engine.get_global_grad_norm()
        norm = self._gradient_norm if norm is None else norm
        record: dict[str, Any] = {
            "step": self.step,
            "tokens": self.step * tokens,
            "loss": loss,
            "accuracy": accuracy,
            "tokens_per_s": (self.step - first) * tokens / max(time.monotonic() - started, 1e-9),
            "gradient_norm": None if norm is None else float(norm),
            "kept": self.compaction.schedule.kept() if self.compaction else {},
        }
        if evaluate:
            record["heldout_loss"], record["heldout_accuracy"] = self.evaluate()
        if self.log:
            self.log.step(record, self.rates(self.step - 1))
        # Measuring and logging are not training time.
        self._since = (self.step, time.monotonic())

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy over all predicted positions of the held-out windows, dropout off."""
        self.engine.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        for batch, valid in self.heldout.batches(self.micro_batch, self.world.rank, self.world.size):
            input_ids, positions, labels = self._to_device(batch)
            logits = self.engine(input_ids, positions)
            if valid:
                loss, accuracy = masked_lm_loss(logits[:valid], labels[:valid])
                sums += valid * torch.stack([loss, accuracy, torch.ones_like(loss)]).double()
        self.engine.train()
        total_loss, total_accuracy, windows = self.world.sum(sums).tolist()
        return total_loss / windows, total_accuracy / windows

    def save(self) -> None:
        """Write a checkpoint. All ranks must call."""
        state = gather_state(self.engine, keep=self.world.is_main)
        compaction = self.compaction.state_dict() if self.compaction else {}
        trainer = {
            "step": self.step,
            "optimizer_steps": optimizer_steps(self.engine),
            "head_is_new": self.built.head_is_new,
            "narrowed": bool(self.compaction and self.compaction.model.narrowed),
            "consumed": self.data.consumed(self.step * self.recipe.train.global_batch),
        }
        checkpoint = Checkpoint({**state, "compaction": compaction}, trainer, save_config(self.built.bert_config))
        keep = self.recipe.train.keep_checkpoints
        self.world.on_main(lambda: save_checkpoint(self.directory / "checkpoints", checkpoint, keep))
