"""Heat maps of attention: the teacher's heads beside those of its student, from what an evaluation recorded."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.evaluation.results import ATTENTION
from pipeline.files import temporary_name, writing

PICTURE = "attention.png"
ROWS = ("teacher", "student", "scratch")
"""Whose heads are shown below each other, as far as they were compared."""
CELL, DPI = 1.75, 130
"""Inches of a map, and dots per inch."""


def draw_attention(directory: Path) -> None:
    """Draw `attention.png` from the `attention.json` of an evaluation directory; nothing without one.

    Raises:
        DataError: that is no record of attention.
    """
    path = directory / ATTENTION
    if not path.is_file():
        return
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))["texts"]
        rows = [(text, who) for text, found in texts.items() for who in ROWS if any(who in m for m in found["maps"])]
        columns = max(len(found["maps"]) for found in texts.values())
        _draw(texts, rows, columns, directory / PICTURE)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: the record of task attention was expected") from None


def _draw(texts: dict[str, Any], rows: list[tuple[str, str]], columns: int, path: Path) -> None:
    # matplotlib takes a second to import, which evaluations of other tasks need not wait for.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (0.5 + CELL * columns, 0.5 + (CELL + 0.35) * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for line, (text, who) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(f"{text}\n{who}", fontsize=8)
        for axis, entry in zip(line, texts[text]["maps"], strict=False):
            if who in entry:
                # The root shows weak attention too, which a few strong columns would otherwise hide.
                axis.imshow([[value**0.5 for value in row] for row in entry[who]["attention"]], vmin=0, vmax=1)
                axis.set_title(_title(who, entry), fontsize=7)
            else:
                axis.spines[:].set_visible(False)
    figure.suptitle("mean attention of rows to columns, first positions of a window; colour: square root", fontsize=8)
    temporary = temporary_name(path)
    with writing(path):
        figure.savefig(temporary, dpi=DPI, format="png")
        temporary.replace(path)
    plt.close(figure)


def _title(who: str, entry: dict[str, Any]) -> str:
    head = f"layer {entry['layer'] + 1}, head {entry[who]['head'] + 1}"
    return f"{head}\nJS {entry['js']:.3f}" if who == "student" else head
