"""The fine-tuning tasks as data: files, columns, labels, metrics and official sizes.

All but the last are those of GLUE (Wang et al. 2018, arXiv:1804.07461).

Everything the readers, the fine-tuning and the report need to know about a task stands here once. Row counts
are those of the official release; they decide whether a score may be called a score on the full task.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

MNLI_MM = "mnli_mm"
"""The second dev set of mnli."""
ALL = "glue"
"""In `--tasks`, all tasks of `GLUE`."""


@dataclass(frozen=True)
class DevSet:
    """One labelled set a task is scored on.

    `stem` names its TSV file, `hub_split` its split on the hub; `rows` is the official number of rows, 0 where there is
    none.
    """

    name: str
    rows: int = 0
    stem: str = "dev"
    hub_split: str = "validation"


@dataclass(frozen=True)
class GlueTask:
    """One fine-tuning task.

    `texts` are the TSV columns of the sentence or the pair and `hub_texts` their names on the hub, where those are
    others; `classes` are the label strings of the TSV in the order of their ids (empty: regression on the number
    itself) and `hub_labels` what the hub calls them, in the same order, where that is something else;
    `header` gives the columns of files that have no header line; `train_rows` lists every row count known as
    the official one; `broken_rows` is how many short rows the official file itself has at most.
    """

    name: str
    folder: str
    texts: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    train_rows: tuple[int, ...]
    dev_sets: tuple[DevSet, ...]
    hub_texts: tuple[str, ...] = ()
    header: tuple[str, ...] = field(default=())
    broken_rows: int = 0
    hub_labels: tuple[str, ...] = ()

    @property
    def hub_columns(self) -> tuple[str, ...]:
        """The names of the texts on the hub and in JSON lines."""
        return self.hub_texts or self.texts

    @property
    def labels(self) -> tuple[str, ...]:
        """What the classes mean, in the order of their ids."""
        return self.hub_labels or self.classes

    @property
    def regression(self) -> bool:
        """Whether the label is a number to be met and not a class."""
        return not self.classes


BINARY = ("0", "1")
ENTAILED = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")

_TASKS = (
    GlueTask(
        name="cola",
        folder="CoLA",
        texts=("sentence",),
        label="label",
        classes=BINARY,
        metrics=("matthews",),
        train_rows=(8551,),
        dev_sets=(DevSet("cola", 1043),),
        header=("source", "label", "star", "sentence"),
        hub_labels=("unacceptable", "acceptable"),
    ),
    GlueTask(
        name="sst2",
        folder="SST-2",
        texts=("sentence",),
        label="label",
        classes=BINARY,
        metrics=("accuracy",),
        train_rows=(67349,),
        dev_sets=(DevSet("sst2", 872),),
        hub_labels=("negative", "positive"),
    ),
    GlueTask(
        name="mrpc",
        folder="MRPC",
        texts=("#1 String", "#2 String"),
        label="Quality",
        classes=BINARY,
        metrics=("accuracy", "f1"),
        train_rows=(3668,),
        dev_sets=(DevSet("mrpc", 408),),
        hub_texts=PAIR,
        hub_labels=("not_equivalent", "equivalent"),
    ),
    GlueTask("stsb", "STS-B", PAIR, "score", (), ("pearson", "spearman"), (5749,), (DevSet("stsb", 1500),)),
    GlueTask(
        name="qqp",
        folder="QQP",
        texts=QUESTIONS,
        label="is_duplicate",
        classes=BINARY,
        metrics=("accuracy", "f1"),
        # The hub leaves out three more of the rows that line breaks inside questions tore apart.
        train_rows=(363846, 363849),
        dev_sets=(DevSet("qqp", 40430),),
        broken_rows=50,
        hub_labels=("not_duplicate", "duplicate"),
    ),
    GlueTask(
        name="mnli",
        folder="MNLI",
        texts=PAIR,
        label="gold_label",
        classes=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        train_rows=(392702,),
        dev_sets=(
            DevSet("mnli", 9815, "dev_matched", "validation_matched"),
            DevSet(MNLI_MM, 9832, "dev_mismatched", "validation_mismatched"),
        ),
        hub_texts=("premise", "hypothesis"),
    ),
    GlueTask(
        name="qnli",
        folder="QNLI",
        texts=("question", "sentence"),
        label="label",
        classes=ENTAILED,
        metrics=("accuracy",),
        train_rows=(104743,),
        dev_sets=(DevSet("qnli", 5463),),
    ),
    GlueTask("rte", "RTE", PAIR, "label", ENTAILED, ("accuracy",), (2490,), (DevSet("rte", 277),)),
    GlueTask(
        name="wnli",
        folder="WNLI",
        texts=PAIR,
        label="label",
        classes=BINARY,
        metrics=("accuracy",),
        train_rows=(635,),
        dev_sets=(DevSet("wnli", 71),),
        hub_labels=("not_entailment", "entailment"),
    ),
    # Not of GLUE: sentences of any text, half of them with words exchanged, see `word_order`.
    GlueTask("word_order", "word_order", ("sentence",), "label", BINARY, ("accuracy",), (), (DevSet("word_order"),)),
)

GLUE_TASKS: dict[str, GlueTask] = {task.name: task for task in _TASKS}
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
"""What `--tasks glue` runs. WNLI stays out: its dev set contradicts its training set (GLUE FAQ, item 12), so
the published averages leave it out too; ask for it by name."""
WITH_WNLI = (*GLUE, "wnli")
"""All nine, over which the server of the benchmark averages."""

SCORED: tuple[str, ...] = tuple(dev.name for task in _TASKS for dev in task.dev_sets)
"""Every name that these tasks have in `results.json`, in the order of the table at the end."""


def trained_tasks(asked: Sequence[str]) -> list[str]:
    """The tasks to fine-tune for the names in `asked`, in order, each once.

    `glue` stands for the eight of `GLUE`; `mnli_mm` for `mnli`, which is trained once and scored on both of
    its dev sets.
    """
    names: list[str] = []
    for name in asked:
        names += GLUE if name == ALL else ["mnli" if name == MNLI_MM else name]
    return list(dict.fromkeys(names))
