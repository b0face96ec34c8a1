"""How far a task is: lines on a pipe, a bar on a terminal."""

import sys

from pipeline.evaluation import progress


def test_progress_is_a_line_a_minute_or_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress.time, "monotonic", iter([0.0, 30.0, 61.0, 90.0, 122.0]).__next__)
    with progress.Progress("mlm x", 1000, "windows") as shown:
        for done in (250, 500, 750, 999):
            shown.reached(done)
    assert capsys.readouterr().out.splitlines() == [
        "mlm x: 500 of 1,000 windows, 0:01:01 left",
        "mlm x: 999 of 1,000 windows, 0:00:00 left",
    ]
    monkeypatch.undo()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with progress.Progress("mlm x", 10, "windows") as bar:
        bar.reached(10)
    shown = capsys.readouterr().out
    assert shown.startswith("\rmlm x: ") and "\n" not in shown
