"""Every command of the README: run as written in a fresh copy of the repository, or checked and listed here by name."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.recipe import load_recipe
from pipeline.shapes import BertShape
from pipeline.teacher_files import resolve_student
from preprocessing.tokenizing.tokenizer import save_tokenizer
from tests.support import ROOT
from tests.support.models import random_teacher
from tests.support.shards import sentences, write_vocabulary

README = (ROOT / "README.md").read_text(encoding="utf-8")

SMALL = {
    "preprocessing/build_shards.py": "--workers 2",
    "preprocessing/verify_shards.py": "",
    "pipeline/train.py": (
        "--data.seq_len 16 --data.heldout_windows 8 --target.hidden 12 --target.head_size 4 "
        "--compaction.start_step 1 --compaction.interval_steps 1 --compaction.increments 2 --compaction.decay_steps 1 "
        "--train.steps 4 --train.global_batch 120"
    ),
    "pipeline/fold.py": "",
    "pipeline/evaluate.py": "--seeds 1 --max-length 16 --epochs 1",
    "pipeline/report.py": "",
    "pipeline/export.py": "",
}
"""Scripts whose commands are run, and what makes them short: the last occurrence of an option wins."""

CHECKED = {
    # Installing needs a network or carried wheels, and takes minutes; `.ci/run` starts with it.
    "make install": "make --dry-run install",
    "python3 -m venv .venv": "python -m venv --help",
    ".venv/bin/pip install": "python -m pip install --help",
    ".venv/bin/pip wheel": "python -m pip wheel --help",
    'PIP_NO_INDEX=1 PIP_FIND_LINKS="$PWD/wheels" make install': "make --dry-run install",
    "hf download": "hf download --help",
    # These take as long as they say; tests/commands/test_demo.py runs the demo's program with a few steps.
    "make demo": "make --dry-run demo",
    "make demo DATA=lines:my.txt TEACHER=my_bert": "make --dry-run demo DATA=lines:my.txt TEACHER=my_bert",
    "make test": "make --dry-run test",
    # A cluster: tests/slurm has the batch file on one. The arguments behind its name are checked below.
    "sbatch": "bash -n slurm/train.sbatch",
    # tests/slurm has whole runs on one.
    "$EDITOR": "cat slurm/site.yaml recipes/cluster_11m.yaml",
    "bash slurm/tensorboard.sbatch": "bash -n slurm/tensorboard.sbatch",
    "python slurm/submit.py": "python slurm/submit.py --help",
    "python slurm/status.py": "python slurm/status.py --help",
    # A shell's own state, and a server that does not end.
    "source .venv/bin/activate": "make --dry-run install",
    "tensorboard": "tensorboard --help",
}
"""Commands that are not run, by how they begin, and what is run in their place."""


def commands(text: str) -> list[str]:
    """The commands of all bash blocks, each on one line and without comments."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in block.replace("\\\n", " ").splitlines())
        found += [re.sub(r"\s+", " ", line) for line in lines if line]
    return found


def script_of(command: str) -> str | None:
    """The script that a command runs, if it is one of those that are run here."""
    return next((word for word in shlex.split(command) if word in SMALL), None)


def check_of(command: str) -> str | None:
    """The longest beginning in `CHECKED`."""
    return max((start for start in CHECKED if f"{command} ".startswith(f"{start} ")), key=len, default=None)


def run(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", command], cwd=directory, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result


def prepare(directory: Path) -> None:
    """The repository's files, and what the commands expect beside them: a tiny BERT in place of the public one."""
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
    teacher = directory / "bert-base-uncased"
    random_teacher(1, 24, 3, vocab=len(vocabulary.read_text().splitlines())).save_pretrained(teacher)
    save_tokenizer(vocabulary, teacher, cased=False)
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


def test_every_command_is_run_or_checked():
    assert [command for command in commands(README) if not script_of(command) and not check_of(command)] == []
    assert {script_of(command) for command in commands(README)} - {None} == SMALL.keys()
    assert {check_of(command) for command in commands(README)} - {None} == CHECKED.keys()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the git clone to know which files belong to it")
def test_the_real_run_as_written(tmp_path):
    prepare(tmp_path)
    to_run = [command for command in commands(README) if script_of(command)]
    assert len(to_run) == len(SMALL)
    for command in to_run:
        run(f"{command} {SMALL[script_of(command)]}", tmp_path)
    weights = tmp_path / "students" / "11m" / "model.safetensors"
    assert weights.stat().st_mode & 0o777 == (tmp_path / "students" / "11m" / "config.json").stat().st_mode & 0o777
    assert (tmp_path / "services" / "11m" / "model_int8.onnx").is_file()
    assert "sst2 accuracy" in (tmp_path / "report" / "report.md").read_text()

    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block
    result = subprocess.run([sys.executable, "-c", block[1]], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("start", CHECKED)
def test_a_command_that_is_not_run_has_the_options_it_is_given(start):
    shown = run(CHECKED[start], ROOT).stdout
    for command in commands(README):
        if check_of(command) != start:
            continue
        words = shlex.split(command)
        if start == "sbatch":
            deepspeed_config, recipe, _, *overrides = words[words.index("slurm/train.sbatch") + 1 :]
            assert (ROOT / deepspeed_config).is_file()
            assert load_recipe(ROOT / recipe, overrides).teacher.path == "bert-base-uncased"
        elif "--help" in CHECKED[start]:
            assert [word for word in words if word.startswith("--") and word not in shown] == []
        elif start.startswith("make demo DATA"):
            assert "--data 'lines:my.txt' --teacher 'my_bert'" in shown


def test_every_option_and_recipe_key_in_the_text_exists():
    teacher = BertShape(layers=12, hidden=768, heads=12, intermediate=3072, vocab_size=30522)
    examples = [code for code in re.findall(r"`(--\w+\.[^`]+)`", README) if " " in code]
    assert len(examples) >= 3
    for example in examples:
        recipe = load_recipe(ROOT / "recipes" / "bert_base_to_11m.yaml", example.split())
        assert resolve_student(recipe, teacher)
        assert recipe != load_recipe(ROOT / "recipes" / "bert_base_to_11m.yaml", [])


def test_every_file_the_readme_names_exists():
    named = re.findall(
        r"(?:pipeline|preprocessing|recipes|ds_configs|docs|slurm)/[\w/]*\w+\.(?:py|yaml|json|md|sbatch)", README
    )
    assert len(set(named)) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []
