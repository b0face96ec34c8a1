"""8-bit weights: matrix products in integers, and tables of embeddings that are 8-bit on disk and in memory.

Activations are unsigned and get their range anew for every tensor of every batch. Weights are signed and have a scale
for each output channel, tables one for each row. The decoder of a masked language model is its table of words turned
over, so the file holds these bytes once.
"""

import platform
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from pipeline.deploy.graph import quiet, save_graph

CPUINFO = Path("/proc/cpuinfo")
TABLE_BYTES = 1 << 16
"""A smaller table stays as it is: segments, and positions of narrow models."""
QUANTISED, SCALE = "_quantized", "_scale"
"""What onnxruntime appends to the name of a weight."""


def needs_reduced_range() -> bool:
    """Whether this processor adds products of 8 bits in 16, which overflow: x86 without VNNI. Then weights get 7."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    flags = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""
    return "avx512_vnni" not in flags and "avx_vnni" not in flags


def quantise(source: Path, target: Path, reduce_range: bool) -> int:
    """Write the int8 version of an ONNX file.

    Args:
        source: what `export_graph` made.
        target: file to write.
        reduce_range: give weights 7 bits.

    Returns:
        The number of integer matrix products.
    """
    proto = onnx.load(source)
    # onnxruntime would leave a product with a turned table in fp32, as that is no constant to it.
    turned = _turn_constants(proto.graph)
    with quiet():
        quantize_dynamic(
            proto,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
        )
    made = onnx.load(target)
    _quantise_tables(made.graph, turned)
    _drop_unused(made.graph)
    save_graph(made, target)
    return _count(made.graph)


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _turn_constants(graph: onnx.GraphProto) -> dict[str, str]:
    """Put a turned copy in place of every matrix that is turned in the graph: source -> copy."""
    constants, turned = _constants(graph), dict[str, str]()
    for node in list(graph.node):
        if node.op_type == "Transpose" and node.input[0] in constants:
            matrix = numpy_helper.to_array(constants[node.input[0]])
            if matrix.ndim == 2:
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrix.T), node.output[0]))
                turned[node.input[0]] = node.output[0]
                graph.node.remove(node)
    return turned


def _quantise_tables(graph: onnx.GraphProto, turned: dict[str, str]) -> None:
    """Let every large table that rows are taken from have 8 bits, and scales (rows, 1) beside it."""
    constants = _constants(graph)
    for node in list(graph.node):
        table = constants.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.data_type != onnx.TensorProto.FLOAT or len(table.raw_data) < TABLE_BYTES:
            continue
        copy = turned.get(table.name, "") + QUANTISED
        if copy in constants:
            rows, scales = _shared(graph, constants, copy)
        else:
            rows, scales = _by_row(numpy_helper.to_array(table))
        graph.initializer.append(numpy_helper.from_array(rows, f"{table.name}{QUANTISED}"))
        graph.initializer.append(numpy_helper.from_array(scales[:, None], f"{table.name}_rows{SCALE}"))
        if copy in constants:
            turn = helper.make_node("Transpose", [f"{table.name}{QUANTISED}"], [copy], perm=[1, 0])
            graph.node.insert(0, turn)
        _take_rows(graph, node, table.name)


def _shared(graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto], copy: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a table and their scales, from its turned copy that was quantised by column and is taken away."""
    rows = np.ascontiguousarray(numpy_helper.to_array(constants[copy]).T)
    scales = numpy_helper.to_array(constants[copy.removesuffix(QUANTISED) + SCALE])
    graph.initializer.remove(constants[copy])
    return rows, scales


def _by_row(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed 8-bit rows of a table (rows, width), and what to multiply each with."""
    scales = np.maximum(np.abs(table).max(axis=1) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(table / scales[:, None]).astype(np.int8), scales


def _take_rows(graph: onnx.GraphProto, gather: onnx.NodeProto, table: str) -> None:
    """Put, in place of a `Gather` of fp32 rows, that of 8-bit rows times their scales."""
    rows, scales, numbers = (f"{table}{end}" for end in ("_taken", "_taken_scale", "_taken_float"))
    nodes = [
        helper.make_node("Gather", [f"{table}{QUANTISED}", gather.input[1]], [rows], axis=0),
        helper.make_node("Gather", [f"{table}_rows{SCALE}", gather.input[1]], [scales], axis=0),
        helper.make_node("Cast", [rows], [numbers], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [numbers, scales], [gather.output[0]]),
    ]
    place = list(graph.node).index(gather)
    graph.node.remove(gather)
    for number, node in enumerate(nodes):
        graph.node.insert(place + number, node)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _count(graph: onnx.GraphProto) -> int:
    """Integer matrix products, after a look whether all products with a weight are such, with a scale by channel."""
    constants = _constants(graph)
    if left := [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]:
        raise RuntimeError(f"onnxruntime left matrix products in fp32: {left}")
    weights = [node.input[1].removesuffix(QUANTISED) for node in graph.node if node.op_type == "MatMulInteger"]
    if whole := [name for name in weights if len(constants[f"{name}{SCALE}"].dims) != 1]:
        raise RuntimeError(f"onnxruntime gave one scale to all channels of {whole}")
    return len(weights)
