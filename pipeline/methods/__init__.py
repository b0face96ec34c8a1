"""How something is trained: one class for each method that a recipe can name.

`method`         what a method is, and what the trainer asks it;
`wid`            a teacher loses its dimensions by a schedule;
`continued`      a teacher is trained on as it is;
`scratch`        a new BERT;
`distillation`   a new BERT that learns from a teacher beside it: `kd` its logits, `minilmv2` its relations.

Pure torch: what a method needs of the processes and of DeepSpeed is handed in.
"""

from pipeline.methods.continued import Continued
from pipeline.methods.distillation import LogitDistillation, RelationDistillation
from pipeline.methods.method import Method
from pipeline.methods.scratch import Scratch
from pipeline.methods.wid import Wid

METHODS: dict[str, type[Method]] = {
    "wid": Wid,
    "scratch": Scratch,
    "continue": Continued,
    "kd": LogitDistillation,
    "minilmv2": RelationDistillation,
}
"""By the names that recipes use. What a recipe must fulfil for each stands in `pipeline.recipe`."""
