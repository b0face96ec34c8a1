"""One export: read, convert, judge, measure, and write a directory that appears whole."""

import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.masking import Vocabulary
from pipeline.data.tokenizer_files import write_tokenizer
from pipeline.data.vocabulary import load_vocabulary
from pipeline.deploy import gate, latency
from pipeline.deploy.card import CARD, model_card
from pipeline.deploy.graph import export_graph, open_session, save_graph
from pipeline.deploy.int8 import needs_reduced_range, quantise
from pipeline.deploy.quality import MaskedTokens, Measure, Scores, TaskScores
from pipeline.deploy.subject import INPUTS, Predict, Subject, load_subject
from pipeline.deploy.text import Text, read_text
from pipeline.environment import commit, machine, versions
from pipeline.errors import UserError
from pipeline.evaluation.encoder import fingerprint
from pipeline.evaluation.glue.rows import TaskData
from pipeline.files import open_to_others, sync_directory, temporary_name, writing

FORMAT = "wid-export-1"
FP32, INT8 = "model.onnx", "model_int8.onnx"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Request:
    """What one command asks for.

    Attributes:
        model: directory.
        output: directory that is new or empty.
        int8: write that version, too.
        texts: documents to compare and measure on.
        source: of the texts, as the user named it.
        task: whose dev sets a classifier is measured on.
        margin: by how much int8 may be worse, in place of the default.
        teacher: directory of a model that the latencies are compared with.
    """

    model: Path
    output: Path
    int8: bool
    texts: Iterable[str]
    source: str
    task: TaskData | None = None
    margin: float | None = None
    teacher: Path | None = None


def export_model(request: Request) -> None:
    """Write the directory `request.output` and say what is in it.

    Raises:
        UserError: what `load_subject` refuses, ONNX logits that differ from PyTorch's (nothing is written), or an int8
            model that is worse than allowed (the rest is written).
        DataError: there is too little text, or none of a task.
    """
    subject, teacher = load_subject(request.model), _load_teacher(request)
    for notice in subject.notices:
        print(notice, flush=True)
    text = read_text(request.texts, subject.encoder.tokenizer, request.source)
    task = TaskScores(subject, request.task) if request.task else None
    if request.int8 and subject.classifies and task is None:
        raise UserError("--int8 of a classifier needs --task and --task-data: else nothing tells what 8 bits cost it")
    with _appearing_whole(request.output) as folder:
        with writing(request.output):
            _write_tokenizer(subject, folder)
            subject.model.config.save_pretrained(folder)
        vocabulary = load_vocabulary(folder)
        measure = task if subject.classifies else MaskedTokens(text, vocabulary, subject.positions)
        record = _described(request, subject, text)
        record["fp32"] = _write_fp32(subject, text, vocabulary, folder / FP32)
        verdict = _measured(request, subject, measure, folder, record)
        record["bytes"] = _sizes(subject, teacher, folder)
        cells = _latencies(subject, teacher, text, vocabulary, folder)
        record["latency"] = [cell.record() for cell in cells]
        with writing(request.output):
            (folder / "export.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            (folder / CARD).write_text(model_card(record, cells, request.model), encoding="utf-8")
            open_to_others(folder)
    _say(request.output, record, latency.table(cells))
    if verdict and not verdict.passes:
        raise UserError(f"{request.output / INT8}: {verdict.sentence()}")


def _load_teacher(request: Request) -> Subject | None:
    if request.teacher is None:
        return None
    return load_subject(request.teacher, "--teacher")


@contextmanager
def _appearing_whole(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` when the block ends, and goes if it fails."""
    temporary = temporary_name(output.absolute())
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        yield temporary
        with writing(output):
            os.replace(temporary, output)  # an empty directory may stand there; anything else stays
            sync_directory(output.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tokenizer(subject: Subject, folder: Path) -> None:
    tokenizer = subject.encoder.tokenizer
    tokenizer.model_max_length = subject.trained_length
    write_tokenizer(tokenizer, folder)


def _described(request: Request, subject: Subject, text: Text) -> dict[str, Any]:
    """What `export.json` says before anything is measured."""
    return {
        "format": FORMAT,
        "name": request.model.resolve().name,
        "source": str(request.model),
        "source_sha256": fingerprint(request.model),
        "architecture": type(subject.model).__name__,
        "parameters": subject.parameters,
        "positions": subject.positions,
        "inputs": list(INPUTS),
        "text": {"source": request.source, "tokens": len(text.ids)},
        "machine": machine(),
        "versions": versions() | {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _write_fp32(subject: Subject, text: Text, vocabulary: Vocabulary, path: Path) -> dict[str, Any]:
    """Write the ONNX file; how it agrees with PyTorch.

    Raises:
        UserError: it does not.
    """
    print("writing ONNX ...", flush=True)
    proto = export_graph(subject)
    with writing(path):
        save_graph(proto, path)
    batches = gate.batches(text, vocabulary, subject.positions)
    agreement = gate.compare(subject.predict, open_session(path), batches)
    if not agreement.passes:
        raise UserError(
            f"the ONNX model is not {subject.directory}, nothing is written: its logits differ by "
            f"{agreement.max_logit_diff:.1e} where {agreement.limit:.1e} is allowed"
        )
    return {**agreement.record(), "opset": proto.opset_import[0].version}


def _measured(
    request: Request, subject: Subject, measure: Measure | None, folder: Path, record: dict[str, Any]
) -> gate.Verdict | None:
    """Score all variants into `record`; write the int8 one and judge it. One that fails is gone afterwards."""
    if measure is None:
        return None
    print(f"scoring {measure.title} ...", flush=True)
    scores: dict[str, Scores] = {"PyTorch": measure.scores(subject.predict)}
    scores["ONNX"] = measure.scores(open_session(folder / FP32))
    verdict = None
    if request.int8:
        reduce_range = needs_reduced_range()
        with writing(request.output):
            products = quantise(folder / FP32, folder / INT8, reduce_range)
        scores["int8"] = measure.scores(open_session(folder / INT8))
        verdict = gate.judge(measure, scores["PyTorch"], scores["int8"], request.margin)
        how = {"activations": "uint8", "weights": "int8 per channel", "reduce_range": reduce_range}
        record["int8"] = {**verdict.record(), **how, "integer_products": products}
        if not verdict.passes:
            (folder / INT8).unlink()
    record["quality"] = {"measure": measure.title, **scores}
    return verdict


def _sizes(subject: Subject, teacher: Subject | None, folder: Path) -> dict[str, int]:
    """Bytes on disk: weights of PyTorch, and what of ONNX there is."""
    sizes = {"teacher, PyTorch": teacher.weight_bytes} if teacher else {}
    sizes["PyTorch"] = subject.weight_bytes
    return sizes | {path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx*"))}


def _latencies(
    subject: Subject, teacher: Subject | None, text: Text, vocabulary: Vocabulary, folder: Path
) -> list[latency.Cell]:
    """The table of all variants that there are, up to the longest input of the shortest model."""
    print("measuring latency ...", flush=True)
    variants: dict[str, Callable[[int], Predict]] = {"PyTorch": lambda threads: subject.predict}
    for name, file in (("ONNX", FP32), ("int8", INT8)):
        if (path := folder / file).is_file():
            variants[name] = lambda threads, path=path: open_session(path, threads)  # type: ignore[misc]
    positions = subject.positions
    if teacher:
        variants = {"teacher, PyTorch": lambda threads: teacher.predict, **variants}
        positions = min(positions, teacher.positions)
    return latency.measure(variants, lambda rows, length: text.batch(rows, length, vocabulary, False), positions)


def _say(output: Path, record: dict[str, Any], table: str) -> None:
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in record["bytes"].items())
    print(f"{output}: {sizes}")
    print(f"largest difference in logits: {record['fp32']['max_logit_diff']:.1e} (limit {record['fp32']['limit']:.1e})")
    for variant, scores in record.get("quality", {}).items():
        if variant != "measure":
            print(f"{variant}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    print(f"milliseconds, median (95 %):\n{table}")
