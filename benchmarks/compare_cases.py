"""The commands that `compare_commits.py` runs in both revisions, in order, as a user would type them.

They run in a directory of their own: `../inputs` is what compare_inputs.py made, `out` is compared, `failed` holds what
commands that are to fail leave behind. Only scripts, options and files are used, never a module: those may move.
"""

from dataclasses import dataclass
from typing import Any

SHARED = "../inputs"
TREE = "$TREE"
"""Stands for the checkout of the revision."""


@dataclass(frozen=True)
class Command:
    """One command line.

    Attributes:
        name: of its log.
        script: from the repository's root.
        line: its arguments, quoted as for a shell.
        ranks: under the deepspeed launcher; 0 without it.
        code: the exit code it must have before.
        remove: glob of what is deleted first.
        touch: file that is made first.
    """

    name: str
    script: str
    line: str
    ranks: int = 0
    code: int = 0
    remove: str = ""
    touch: str = ""


def _tokenizer(name: str, line: str) -> Command:
    return Command(f"tokenizer_{name}", "preprocessing/train_tokenizer.py", f"{line} --output out/tokenizers/{name}")


def _build(name: str, line: str, code: int = 0) -> Command:
    output = f"failed/{name}" if code else f"out/shards/{name}"
    return Command(f"shards_{name}", "preprocessing/build_shards.py", f"{line} --output {output}", code=code)


def _verify(name: str, line: str = "") -> Command:
    return Command(f"verify_{name}", "preprocessing/verify_shards.py", f"out/shards/{name} {line}")


def _train(
    name: str, line: str, config: str = f"{SHARED}/wid.yaml", zero: int | None = 0, again: str = "", **more: Any
) -> Command:
    """A run, or with `again` one that goes on; the ZeRO stage, if any, picks one of the inputs' DeepSpeed files."""
    deepspeed = "" if zero is None else f"--deepspeed_config {SHARED}/zero{zero}.json"
    line = f"--config {config} {deepspeed} {line} --output out/runs/{name}"
    return Command(f"train_{name}{again}", "pipeline/train.py", line, **more)


def _fold(run: str, student: str = "", line: str = "", code: int = 0) -> Command:
    name = student or run
    line = f"--run out/runs/{run} --output {'failed' if code else 'out/students'}/{name} {line}"
    return Command(f"fold_{name}", "pipeline/fold.py", line, code=code)


def _evaluate(name: str, tasks: str, data: str, model: str = "", again: str = "") -> Command:
    how = "--seeds 1,2 --epochs 1 --batch-size 8 --learning-rate 3e-4 --max-length 32"
    line = f"--model {model or f'out/students/{name}'} --tasks {tasks} --data {data} {how}"
    return Command(f"evaluate_{name}{again}", "pipeline/evaluate.py", f"{line} --output out/evaluations/{name}")


SHIPPED = f"--tokenizer {SHARED}/teacher"
EVERYTHING = (
    f"--input lines:{SHARED}/lines.txt text:{SHARED}/books/*.txt jsonl:{SHARED}/records.jsonl.gz "
    f"wikiextractor:{SHARED}/wiki_0* --input mediawiki:{SHARED}/dump.xml.bz2"
)
PREPROCESSING = (
    _tokenizer("uncased", f"--vocab-size 400 --input lines:{SHARED}/lines.txt text:{SHARED}/books/*.txt"),
    _tokenizer("cased", f"--kind wordpiece --cased --vocab-size 500 --input mediawiki:{SHARED}/dump.xml.bz2"),
    _tokenizer("unigram", f"--kind unigram --vocab-size 350 --input wikiextractor:{SHARED}/wiki_00"),
    _tokenizer("bpe", f"--kind bpe --cased --vocab-size 400 --input jsonl:{SHARED}/records.jsonl.gz"),
    _build(
        "lines", f"--input lines:{SHARED}/lines.txt lines:{SHARED}/docs.txt {SHIPPED} --shard-tokens 6000 --workers 2"
    ),
    _build("heldout", f"--input lines:{SHARED}/heldout.txt {SHIPPED} --workers 1"),
    _build("books", f"--input text:{SHARED}/books/*.txt --tokenizer out/tokenizers/uncased/vocab.txt --workers 1"),
    _build(
        "records",
        f"--input jsonl:{SHARED}/records.jsonl.gz jsonl:{SHARED}/broken.jsonl --on-error skip "
        "--tokenizer out/tokenizers/bpe --workers 1",
    ),
    _build("broken", f"--input jsonl:{SHARED}/broken.jsonl {SHIPPED} --workers 1", code=3),
    _build(
        "articles",
        f"--input wikiextractor:{SHARED}/wiki_00 --tokenizer out/tokenizers/unigram/shards.model --min-length 40 "
        "--workers 1",
    ),
    _build(
        "dump",
        f"--input mediawiki:{SHARED}/dump.xml.bz2 --tokenizer out/tokenizers/cased/vocab.txt --cased "
        "--shard-tokens 2000 --workers 2",
    ),
    _build("everything", f"{EVERYTHING} {SHIPPED} --reflow off --shard-tokens 5000 --workers 1"),
    *(_verify(name) for name in ("lines", "books", "records", "articles", "dump", "everything")),
    _verify("heldout", "--quick"),
    Command("verify_nothing", "preprocessing/verify_shards.py", "out/tokenizers", code=2),
    Command("inspect_everything", "preprocessing/inspect_shards.py", "out/shards/everything --documents 5"),
)
SCHEDULE = (
    "--compaction.start_step 2 --compaction.interval_steps 1 --compaction.increments 3 --compaction.decay_steps 2 "
    "--train.checkpoint_every 3 --train.keep_every 3 --train.evaluate_every 4 --train.log_every 1"
)
SHORT = "--data.heldout out/shards/heldout --data.heldout_windows 8 --data.seq_len 32"
TWO_SOURCES = "'[{path: out/shards/lines, weight: 1}, {path: out/shards/everything, weight: 2}]'"
BY_SIZE = "--target.hidden null --target.head_size null --target.params 90k"
RANDOM = f"--compaction.selection random --data.whole_word true --train.dropout 0 {BY_SIZE}"
TRAINING = (
    # The shipped teacher under the demo's own recipe: dim, taylor, anneal; two ranks, ZeRO 1, bf16.
    _train(
        "dim",
        f"--deepspeed_config {TREE}/ds_configs/demo_cpu_bf16.json --teacher.path {SHARED}/teacher "
        f"--data.shards out/shards/lines {SHORT} {SCHEDULE} --train.steps 9",
        config=f"{TREE}/recipes/demo_student.yaml",
        zero=None,
        ranks=2,
    ),
    _train(
        "head",
        "--compaction.strategy head --target.hidden 16 --target.head_size 8 --compaction.selection norm "
        f"--compaction.decay penalty --data.separate_documents true --data.shards={TWO_SOURCES} "
        "--data.heldout out/shards/heldout",
    ),
    _train("random", RANDOM, zero=1),
    # Goes on in the middle of the schedule, and further than it was to go.
    _train(
        "random",
        f"{RANDOM} --train.steps 12",
        zero=2,
        again="_on",
        remove="out/runs/random/checkpoints/step_8",
    ),
    _train(
        "random",
        f"{RANDOM} --train.steps 14",
        again="_stopped",
        touch="out/runs/random/stop",
        code=75,
    ),
    _train("replay", f"--compaction.replay out/runs/random/selection.jsonl {BY_SIZE}", zero=3),
    _train(
        "headless",
        f"--teacher.path {SHARED}/headless --teacher.head_warmup_steps 3 --data.mask_fraction 0.3",
        config=f"{SHARED}/continue.yaml",
        zero=2,
    ),
    _train(
        "scratch",
        "--data.shards out/shards/records --data.whole_word true --target.layers 2 --target.head_size 8 "
        "--target.params 40k",
        config=f"{SHARED}/scratch.yaml",
        zero=1,
    ),
    _train(
        "ppmi",
        "--data.shards out/shards/books --target.layers 1 --target.hidden 24 --target.head_size 8 "
        "--train.embedding_init ppmi",
        config=f"{SHARED}/scratch.yaml",
    ),
    Command(
        "train_misspelt",
        "pipeline/train.py",
        f"--config {SHARED}/wid.yaml --deepspeed_config {SHARED}/zero0.json --train.stepz 1 --output failed/x",
        code=2,
    ),
)
FOLDING = (
    *(_fold(run) for run in ("dim", "head", "random", "replay", "headless", "scratch", "ppmi")),
    _fold("head", "head_early", "--step 4", code=2),
    _fold("dim", "dim_6", "--step 6 --shards out/shards/lines"),
)
EVALUATION = (
    _evaluate("dim", "mlm,latency", "out/shards/heldout"),
    _evaluate("dim", "stsb,word_order", f"{SHARED}/glue", again="_on"),
    _evaluate("head", "mlm", "out/shards/heldout"),
    _evaluate("scratch", "word_order,rte", f"{SHARED}/glue"),
    # What was trained for longer than a few steps does not predict one class for all rows.
    _evaluate("teacher", "rte,stsb,mrpc,word_order", f"{SHARED}/glue", model=f"{SHARED}/teacher"),
    _evaluate("teacher", "mlm", "out/shards/heldout", model=f"{SHARED}/teacher", again="_on"),
    Command(
        "report",
        "pipeline/report.py",
        "--runs out/runs/dim out/runs/head out/runs/random out/runs/headless out/runs/ppmi out/evaluations/dim "
        "out/evaluations/head out/evaluations/scratch out/evaluations/teacher --output out/report",
    ),
)
COMMANDS = (*PREPROCESSING, *TRAINING, *FOLDING, *EVALUATION)
