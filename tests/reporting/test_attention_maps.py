"""The heat maps of an evaluation, drawn from its record."""

import json

import matplotlib.image
import pytest

from pipeline.errors import DataError
from pipeline.reporting.attention import draw_attention


def shown(*names: str) -> dict:
    return {"layer": 0, "js": 0.1, **{name: {"head": 1, "attention": [[0.5, 0.5], [0.0, 1.0]]} for name in names}}


def test_there_is_a_row_for_every_model_of_every_text(tmp_path):
    heights = []
    for texts in (
        {"a": {"maps": [shown("teacher", "student"), shown("teacher", "student")]}},
        {"a": {"maps": [shown("teacher", "student"), shown("teacher", "student", "scratch")]}},
        {"a": {"maps": [shown("teacher", "student")]}, "b": {"maps": [shown("teacher", "student")]}},
    ):
        (tmp_path / "attention.json").write_text(json.dumps({"texts": texts}))
        draw_attention(tmp_path)
        heights.append(matplotlib.image.imread(tmp_path / "attention.png").shape[0])
    assert heights[0] < heights[1] < heights[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.json", "attention.png"]


def test_nothing_is_drawn_without_a_record(tmp_path):
    draw_attention(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"texts": {}}', '{"texts": {"a": {}}}', '{"texts": {"a": {"maps": [3]}}}']
)
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "attention.json").write_text(content)
    with pytest.raises(DataError, match=r"attention\.json: the record of task attention was expected"):
        draw_attention(tmp_path)
