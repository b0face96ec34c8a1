"""From PyTorch to an ONNX file, and ONNX Runtime on it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from pipeline.deploy.subject import INPUTS, Inputs, Predict, Subject

EXAMPLE = (2, 9)
"""Batch and length of the input that is traced: 1 would be taken for a constant."""
INSIDE = 1_800_000_000
"""Bytes of weights that lie in the .onnx file itself; beyond 2 GB, protobuf holds no file, and they lie beside it."""


class _Logits(torch.nn.Module):
    """The model as a function of `INPUTS`; of segments it does not have, it sees the last one it has."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        segments = token_type_ids.clamp(max=self.model.config.type_vocab_size - 1)
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=segments).logits


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of libraries about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def export_graph(subject: Subject) -> onnx.ModelProto:
    """The model as an ONNX graph of any batch and any length up to its positions."""
    model = subject.model
    # Plain matrix products and a softmax: the graph of the fused kernel has a third more nodes for the same numbers.
    model.set_attn_implementation("eager")
    example = {name: torch.ones(EXAMPLE, dtype=torch.int64) for name in INPUTS}
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=subject.positions)}
    try:
        with quiet():
            program = torch.onnx.export(
                _Logits(model).eval(),
                kwargs=example,
                dynamo=True,
                input_names=list(INPUTS),
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(INPUTS, sizes),
                verbose=False,
            )
    finally:
        model.set_attn_implementation("sdpa")
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return _without_notes(program.model_proto)


def _without_notes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what the exporter notes of every node: source lines with the paths of this machine."""
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    return proto


def save_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Write the graph and its weights, in one file if that can hold them."""
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    onnx.save_model(proto, path, save_as_external_data=weights > INSIDE, location=f"{path.name}.data")


def open_session(path: Path, threads: int = 0) -> Predict:
    """What ONNX Runtime computes on the CPU with so many threads; 0 lets it choose.

    Args:
        path: of the .onnx file.
        threads: that share one operator.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def predict(inputs: Inputs) -> np.ndarray:
        return session.run(["logits"], inputs)[0]

    return predict
