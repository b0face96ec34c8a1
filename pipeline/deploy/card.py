"""The README.md of an exported directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.deploy.latency import Cell, table

CARD = "README.md"

_USE = """```python
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")
session = onnxruntime.InferenceSession("THIS_DIRECTORY/{file}")
inputs = tokenizer(["A sentence."], padding=True, return_tensors="np", return_token_type_ids=True)
(logits,) = session.run(None, dict(inputs))  # {logits}
```"""


def model_card(record: Mapping[str, Any], cells: list[Cell], source: Path) -> str:
    """What the files are, how they are used, and what was measured; the model's own card behind it."""
    classifies = record["architecture"] == "BertForSequenceClassification"
    logits = "(texts, classes)" if classifies else "(texts, tokens, vocabulary)"
    file = "model_int8.onnx" if "model_int8.onnx" in record["bytes"] else "model.onnx"
    own, front = _own_card(source)
    head = front or ["library_name: onnx", f"pipeline_tag: {'text-classification' if classifies else 'fill-mask'}"]
    lines = [
        *("---", *head, "---"),
        f"# {record['name']} for ONNX Runtime",
        "",
        f"{record['architecture']}, {record['parameters'] / 1e6:.1f}M parameters, inputs of up to "
        f"{record['positions']} tokens in batches of any size. `export.json` has all numbers.",
        "",
        _USE.format(file=file, logits=logits),
        "",
        *_sizes(record),
        *_quality(record),
        "",
        f"Milliseconds of a forward pass on {record['machine']}: the median, and in brackets what 95 % stay below.",
        "",
        table(cells),
    ]
    return "\n".join([*lines, *(("", "## The model that was exported", "", own) if own else ())]) + "\n"


def _sizes(record: Mapping[str, Any]) -> list[str]:
    return [
        "| file | MB |",
        "|---|---:|",
        *(f"| {name} | {size / 1e6:.1f} |" for name, size in record["bytes"].items()),
    ]


def _quality(record: Mapping[str, Any]) -> list[str]:
    """Agreement with PyTorch, what int8 costs, and the scores."""
    fp32, int8, quality = record["fp32"], record.get("int8"), record.get("quality")
    lines = [
        "",
        f"The logits of `model.onnx` are within {fp32['max_logit_diff']:.1e} of PyTorch's (largest logit "
        f"{fp32['max_abs_logit']:.1f}).",
    ]
    if int8:
        state = "is" if int8["written"] else "would be"
        lines += [
            f"Int8 {state} {int8['fall']:.3f} {int8['unit']} worse in {int8['measure']}; {int8['margin']:g} are allowed"
            + ("." if int8["written"] else ", so it was not written."),
        ]
        if int8["written"]:
            lines += [
                "An 8-bit model rounds by the largest number in a batch, so a text's logits depend a little on the "
                "others in its batch."
                + (" Its weights have 7 bits, as older processors need." if int8["reduce_range"] else "")
            ]
    if quality:
        columns = [name for name in quality if name != "measure"]
        names = list(quality[columns[0]])
        lines += ["", f"| {quality['measure']} | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        lines += [
            f"| {column} | " + " | ".join(f"{quality[column][n]:.4f}" for n in names) + " |" for column in columns
        ]
    return lines


def _own_card(source: Path) -> tuple[str, list[str]]:
    """The body of the model's own card without its title's mark, and the lines of its front matter."""
    path = source / CARD
    if not path.is_file():
        return "", []
    text = path.read_text(encoding="utf-8", errors="replace")
    front: list[str] = []
    if text.startswith("---\n") and "\n---\n" in text[4:]:
        matter, text = text[4:].split("\n---\n", 1)
        front = [line for line in matter.splitlines() if not line.startswith("library_name:")]
        front.insert(0, "library_name: onnx")
    # Its headings move below the one they stand under.
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in text.strip().splitlines()), front
