"""Every command of the README's real run, as written, in a fresh copy of the repository, on a small scale.

Only what cannot be had here is added: a tiny teacher in place of the public one, and options that make it short.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import ROOT
from tests.support.models import random_teacher
from tests.support.shards import sentences, write_vocabulary

# Appended to the commands of a script: the last occurrence of an option wins.
SMALL = {
    "preprocessing/build_shards.py": "--tokenizer vocab.txt --workers 2",
    "pipeline/train.py": (
        "--teacher.path tiny_bert --data.seq_len 16 --data.heldout_windows 8 --target.hidden 12 --target.head_size 4 "
        "--compaction.start_step 1 --compaction.interval_steps 1 --compaction.increments 2 --compaction.decay_steps 1 "
        "--train.steps 4 --train.global_batch 120"
    ),
    "pipeline/evaluate.py": "--seeds 1 --max-length 16 --epochs 1",
}


def real_run() -> list[str]:
    """The commands of the README's section on the real run."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## The real run")[1]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block
    joined = block[1].replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def prepare(directory: Path) -> None:
    """The repository's files, and what the commands expect beside them."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes((ROOT / name).read_bytes())
    (directory / "wiki" / "AA").mkdir(parents=True)
    articles = [f'<doc id="{i}" url="u" title="t">\n{text}\n</doc>\n' for i, text in enumerate(sentences(40))]
    (directory / "wiki" / "AA" / "wiki_00").write_text("".join(articles))
    (directory / "books").mkdir()
    (directory / "books" / "one.txt").write_text("\n".join(sentences(20, seed=1)))
    vocabulary = write_vocabulary(directory / "vocab.txt")
    random_teacher(1, 24, 3, vocab=len(vocabulary.read_text().splitlines())).save_pretrained(directory / "tiny_bert")
    draw = np.random.default_rng(0)
    for folder, header in (("SST-2", "sentence\tlabel"), ("RTE", "index\tsentence1\tsentence2\tlabel")):
        (directory / "glue" / folder).mkdir(parents=True)
        for part in ("train", "dev"):
            words = sentences(24, seed=3)
            if folder == "SST-2":
                rows = [f"{text}\t{draw.integers(2)}" for text in words]
            else:
                labels = draw.choice(["entailment", "not_entailment"], len(words))
                rows = [
                    f"{i}\t{text}\tthe fox\t{label}" for i, (text, label) in enumerate(zip(words, labels, strict=True))
                ]
            (directory / "glue" / folder / f"{part}.tsv").write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the git clone to know which files belong to it")
def test_the_real_run_as_written(tmp_path):
    prepare(tmp_path)
    commands = real_run()
    assert len(commands) == 7 and commands[0] == "source .venv/bin/activate"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in commands[1:]:
        script = next(word for word in shlex.split(command) if word.endswith(".py"))
        result = subprocess.run(
            ["bash", "-c", f"{command} {SMALL.get(script, '')}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    weights = tmp_path / "students" / "11m" / "model.safetensors"
    assert weights.stat().st_mode & 0o777 == (tmp_path / "students" / "11m" / "config.json").stat().st_mode & 0o777
    assert "sst2 accuracy" in (tmp_path / "report" / "report.md").read_text()

    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block
    result = subprocess.run([sys.executable, "-c", block[1]], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_file_the_readme_names_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"(?:pipeline|preprocessing|recipes|ds_configs|docs)/[\w/]*\w+\.(?:py|yaml|json|md)", text)
    assert len(set(named)) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []
