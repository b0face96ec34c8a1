"""Records that cannot be read are refused in a sentence that names the file."""

import json

import pytest

from pipeline import report
from tests.reporting.test_report import write_evaluation, write_run
from tests.support.runs import run_main


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", '{"model": "m", "tasks": {"ss'),
        ("results.json", "[]"),
        ("results.json", '{"machine": {}, "rows": {}}'),
        ("config.json", "{"),
        ("config.json", '{"model_type": "bert"}'),
        ("config.yaml", "method: [wid"),
        ("config.yaml", "- wid"),
        ("config.yaml", None),
    ],
)
def test_damaged_records(monkeypatch, tmp_path, name, content):
    run = write_run(tmp_path / "run")
    evaluation = write_evaluation(tmp_path / "evaluation", 16, 3.5, {"1": 0.8})
    model = json.loads((evaluation / "results.json").read_text())["model"]
    damaged = {"results.json": evaluation, "config.json": tmp_path / model, "config.yaml": run}[name] / name
    if content is None:
        damaged.unlink()
    else:
        damaged.write_text(content)
    code, out, err = run_main(monkeypatch, report.main, "--runs", run, evaluation, "--output", tmp_path / "out")
    assert (code, out) == (3, "") and not (tmp_path / "out").exists()
    assert err.startswith(f"error: {damaged}: ") and err.count("\n") == 1 and "expected" in err
