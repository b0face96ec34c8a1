"""What a stream's encoding has no character for is printed as an escape, at every door; it never ends a command."""

import io
import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from pipeline import train
from pipeline.errors import DataError, UserError, run_entry_point
from pipeline.stages import Stage, StageRunner
from tests.support import ROOT
from tests.support.runs import prepare, train_command
from tests.support.shards import write_vocabulary

DOORS = [
    path
    for folder in ("pipeline", "preprocessing", "demo", "slurm", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8") and not path.stem.endswith("_worker")
]
"""What people start; a worker is started by a benchmark, which reads what it prints."""


def run(monkeypatch, encoding: str, main) -> tuple[int, bytes, bytes]:
    """Exit code and the bytes of both streams, which are as strict as Python allows."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with pytest.raises(SystemExit) as done:
        run_entry_point(main)
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue() for stream in streams)
    return int(done.value.code or 0), out, err


@pytest.mark.parametrize(
    "encoding,text,printed",
    [
        ("ascii", "läufe", rb"l\xe4ufe"),
        ("latin-1", "läufe 🦊", b"l\xe4ufe " + rb"\U0001f98a"),
        # A file name that is no UTF-8 comes to Python with surrogates, which UTF-8 has no bytes for.
        ("utf-8", os.fsdecode(b"l\xe4ufe"), rb"l\udce4ufe"),
    ],
)
def test_both_streams_show_escapes(monkeypatch, encoding, text, printed):
    def main() -> int:
        print(text)
        print(text, file=sys.stderr)
        return 0

    assert run(monkeypatch, encoding, main) == (0, printed + b"\n", printed + b"\n")


@pytest.mark.parametrize("error", [UserError, DataError])
def test_a_sentence_keeps_its_exit_code(monkeypatch, error):
    def main() -> int:
        raise error("läufe is missing")

    assert run(monkeypatch, "ascii", main) == (error.exit_code, b"", rb"error: l\xe4ufe is missing" + b"\n")


def test_a_wrong_option_and_a_progress_bar_show_escapes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--output"])
    assert run(monkeypatch, "ascii", train.main)[0] == 2

    def main() -> int:
        for _ in tqdm(range(3), desc="läufe", file=sys.stderr, ascii=False):
            pass
        return 0

    code, _, err = run(monkeypatch, "ascii", main)
    assert code == 0 and rb"l\xe4ufe: 100%" in err


@pytest.mark.parametrize("path", DOORS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_door_has_this_frame(path):
    assert path.read_text(encoding="utf-8").endswith('if __name__ == "__main__":\n    run_entry_point(main)\n')


def test_a_training_on_paths_that_cannot_be_printed_runs_to_its_end(tmp_path):
    home = tmp_path / "läufe"
    home.mkdir()
    command = [sys.executable, str(ROOT / "pipeline" / "train.py"), *train_command(prepare(home), home / "run")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert rb"l\xe4ufe/run --output STUDENT_DIR" in done.stdout and done.stdout.isascii() and done.stderr.isascii()


def test_a_build_and_its_worker_processes_print_escapes(tmp_path):
    home = tmp_path / "läufe 🦊"
    home.mkdir()
    (home / "a.txt").write_bytes(b"the quick fox\n\xff\xfe\nthe lazy dog\n")
    command = [sys.executable, str(ROOT / "preprocessing" / "build_shards.py"), "--input", f"lines:{home}/a.txt"]
    command += ["--tokenizer", str(write_vocabulary(tmp_path / "vocab.txt")), "--output", str(home / "out")]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command += ["--workers", "2", "--on-error", "skip"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shown = b"l\xe4ufe " + rb"\U0001f98a"
    assert b"skipped: " in done.stderr and shown + b"/a.txt" in done.stderr
    assert shown + b"/out: 2 documents" in done.stdout


def test_a_stage_that_writes_another_encoding_is_shown_and_kept(tmp_path, monkeypatch, capsys):
    script = tmp_path / "stage.py"
    script.write_text("print('läufe')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    StageRunner(tmp_path / "logs").run([Stage("print", (str(script),), (), (), always=True)])
    assert r"  l\xe4ufe" in capsys.readouterr().out
    assert (tmp_path / "logs" / "stage.log").read_text(encoding="utf-8") == r"l\xe4ufe" + "\n"


@pytest.mark.parametrize("door", ["pipeline/fold.py", "preprocessing/build_shards.py", "pipeline/train.py"])
def test_a_path_of_bytes_that_are_no_text_is_refused_before_anything_is_written(tmp_path, door):
    output = os.fsencode(tmp_path) + b"/x\xff"
    result = subprocess.run([sys.executable, ROOT / door, "--output", output], capture_output=True)
    assert result.returncode == 2 and result.stderr.startswith(b"error: argument "), result.stderr
    assert rb"x\udcff holds bytes that are no text" in result.stderr and not os.path.exists(output)
