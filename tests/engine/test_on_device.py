"""What a GPU is to record keeps to the GPU. Torch's `meta` device stands in for it: whoever reads a number there fails.

A recording replays what the device did. An operation that takes a tensor from the host, or hands one to it, would end
the recording. What only CUDA knows is not seen: kernels that wait by themselves, and streams and pools of memory.
"""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.baselines.distillation import distillation_of
from pipeline.baselines.minilm import minilm_loss
from pipeline.compaction.fold import open_indices
from pipeline.engine.micro_step import MicroStep, Recording
from pipeline.models.encoder import Bert
from pipeline.models.loss import LossOf, masked_lm_of
from pipeline.models.plain import PlainBert
from tests.support.models import close_random_gates, compacted, random_teacher, token_batch

META = torch.device("meta")
DROPOUT = 0.1


class OnDevice(TorchDispatchMode):
    """Refuses an operation that takes or makes a tensor anywhere else."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, made)):
            assert not isinstance(tensor, torch.Tensor) or tensor.device == META, f"{function} is on the host too"
        return made


class NoNumbers(TorchFunctionMode):
    """Refuses tensors made of Python's numbers, which a GPU has copied from the host and `meta` does not."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        of_numbers = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        index = args[1] if function is torch.Tensor.__getitem__ else ()
        listed = any(isinstance(part, list) for part in (index if isinstance(index, tuple) else (index,)))
        assert function not in of_numbers and not listed, f"{function} takes numbers from the host"
        return function(*args, **(kwargs or {}))


def teacher(seed: int = 0):
    made = random_teacher(seed=seed)
    made.config.hidden_dropout_prob = made.config.attention_probs_dropout_prob = DROPOUT
    return made


def model_of(form: str):
    if form == "student":
        return PlainBert(teacher())
    made = compacted(teacher(), 15, 5, "dim", 31)
    if form != "open":
        close_random_gates(made)
    if form == "narrowed":
        made.narrow(open_indices(made.gates))
    made.gates.record_gradient(form == "scored")
    return made


def loss_of_method(name: str, model, dtype: torch.dtype) -> LossOf:
    if name == "masked_lm":
        return masked_lm_of(model.form, training=True)
    known = PlainBert(teacher(seed=1)).to(META, dtype)
    tensors, form = dict(known.named_parameters()), known.form
    if name == "kd":
        return distillation_of(model.form, tensors, form, 2.0, 0.5)

    def relations(own, batch):
        loss = minilm_loss(
            Bert(own, model.form, True), Bert(tensors, form), batch["input_ids"], 3, 1, batch["documents"]
        )
        return loss, torch.full_like(loss, torch.nan)

    return relations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "form,method",
    [
        *((form, "masked_lm") for form in ("open", "closing", "scored", "narrowed", "student")),
        ("student", "kd"),
        ("student", "minilmv2"),
    ],
)
def test_a_recorded_micro_step_takes_nothing_from_the_host_and_waits_for_nothing(monkeypatch, form, method, dtype):
    monkeypatch.setattr(Recording, "_capture", lambda recording: recording._work)
    model = model_of(form).to(META, dtype)
    if form != "student":
        model.gates.move_to(META)
    cpu, clock = torch.device("cpu"), lambda _: contextlib.nullcontext()
    # What cannot be recorded would be said, and run as it is.
    step = MicroStep(loss_of_method(method, model, dtype), 2, cpu, clock, recorded=True, say=pytest.fail)
    batch = {
        "input_ids": token_batch(),
        "positions": torch.tensor([[1, 5, 9]]).expand(4, -1),
        "labels": token_batch(tokens=3),
        "documents": torch.zeros(4, 16, dtype=torch.int64),
    }
    batch = {name: tensor.to(META) for name, tensor in batch.items()}
    with NoNumbers(), OnDevice():
        step.begin(model())
        for number in range(2):
            step.run(batch, number)
        step.carried_loss().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    if form == "scored":
        assert model.gates.value.grad is not None


@pytest.mark.parametrize(
    "fault",
    [
        lambda device: device.item(),
        lambda device: device + torch.zeros(()),
        lambda device: device + torch.tensor(2.0, device=META),
        lambda device: device.new_tensor(2.0),
        lambda device: device[[0]],
    ],
)
def test_the_stand_in_would_notice(fault):
    with pytest.raises((RuntimeError, AssertionError)), NoNumbers(), OnDevice():
        fault(torch.zeros(1, device=META))
