"""Records that grow line by line: cut back where a run goes on, and never broken by a kill."""

import json

import pytest

from pipeline.records import JsonLines, read_json_lines
from tests.support.checkpoints import names


def test_records_are_cut_back_to_where_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, 0)
    for step in range(1, 7):
        lines.append(step=step, loss=1 / step)
    original = path.read_text().splitlines(keepends=True)
    again = JsonLines(path, 4)
    assert path.read_text() == "".join(original[:4])
    again.append(step=5, loss=0.25)
    assert [line["step"] for line in read_json_lines(path)] == [1, 2, 3, 4, 5]
    assert names(tmp_path) == ["metrics.jsonl"]


def test_numbers_that_are_none_become_null(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl", 0)
    lines.append(step=1, loss=float("nan"), gradient_norm=float("inf"), event="skipped")
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "gradient_norm": None,
        "event": "skipped",
    }


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b"\0" * 40, b"{", b'{"step": 3}\n{"st'])
def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    JsonLines(path, 2).append(step=3)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    assert read_json_lines(tmp_path / "missing.jsonl") == []
