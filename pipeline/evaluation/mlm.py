"""Held-out masked-language modelling: loss and accuracy of any Hugging Face BERT on all windows of shard directories.

Windows and masks are those of the trainer's held-out measurement, so its numbers and these can be compared.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.manifest import MANIFEST_NAME, TOKENIZER_NAME
from pipeline.errors import UserError
from pipeline.evaluation.items import Item, Outcome
from pipeline.evaluation.progress import Progress
from pipeline.evaluation.task import Task

if TYPE_CHECKING:
    from transformers import BertForMaskedLM

    from pipeline.data.loader import HeldOutData
    from pipeline.data.windows import WindowSource
    from pipeline.evaluation.encoder import Encoder

MASK_FRACTION = 0.15
BATCH = 32
"""Windows in one forward pass."""


class MaskedLM(Task):
    """Mean loss (nats) and accuracy over all predicted positions, as `mlm NAME` after each shard directory's name."""

    names = ("mlm",)

    def check(self, model: "Encoder") -> Iterator[Item]:
        """Open all shard directories and the model with its MLM head."""
        from pipeline.data.agreement import check_same_tokenizer
        from pipeline.data.open import open_shards
        from pipeline.data.vocabulary import load_tokenizer
        from pipeline.evaluation.encoder import load_masked_lm
        from pipeline.evaluation.estimate import shape_of

        tokens = self.request.settings.max_length
        self.sources: dict[str, WindowSource] = {}
        items = []
        for shards in find_shards(Path(self.request.data), self.names[0]):
            source, manifest = open_shards(shards, tokens)
            check_vocabulary(self.request.model, model, shards, manifest.vocab_size)
            check_same_tokenizer(str(self.request.model), shards, load_tokenizer(shards / TOKENIZER_NAME), "--model")
            name = f"mlm {shards.resolve().name}"
            entry = {"data": f"{source.windows:,} windows of {tokens} tokens", "data_sha256": manifest.source_hash}
            flops = source.windows * shape_of(model).encoder_flops(tokens)
            items.append(Item(name, entries={name: entry}, flops=flops))
            self.sources[name] = source
        self.masked_lm, self.notices = load_masked_lm(self.request.model)
        rows, entries = model.config.vocab_size, len(model.tokenizer)
        if any(source.vocabulary.size < rows for source in self.sources.values()):
            padding = f"{rows - entries} of its {rows} embeddings lie beyond the tokenizer's {entries} tokens"
            self.notices.append(f"--model {self.request.model}: {padding}, they are left out of the softmax")
        yield from items

    def run(self, item: Item, model: "Encoder") -> Outcome:
        """Measure on a shard directory."""
        import numpy as np

        from pipeline.data.loader import HeldOutData

        while self.notices:
            print(self.notices.pop(0), flush=True)
        source = self.sources[item.task]
        print(f"{item.task}: predicting in {item.entries[item.task]['data']} ...", flush=True)
        loss, accuracy = measure(
            self.masked_lm, HeldOutData(source, np.arange(source.windows), MASK_FRACTION), item.task
        )
        return Outcome({item.task: {"loss": {0: loss}, "accuracy": {0: accuracy}}})


def find_shards(data: Path, task: str) -> list[Path]:
    """`data` itself where it is a shard directory, else the shard directories in it, for a task of that name.

    Raises:
        UserError: there are none.
    """
    found = [data] if (data / MANIFEST_NAME).is_file() else sorted(p.parent for p in data.glob(f"*/{MANIFEST_NAME}"))
    if not found:
        raise UserError(f"--data {data}: task {task} needs a shard directory, or a folder of them; there is none")
    return found


def check_vocabulary(directory: Path, model: "Encoder", shards: Path, tokens: int) -> None:
    """Look whether the ids in `shards`, whose tokenizer has `tokens` entries, are those of the model.

    A model may have more embeddings than tokens: many are padded to a multiple of 64. Then its tokenizer must tell
    where the tokens end.

    Raises:
        UserError: the model has another vocabulary.
    """
    rows, entries = model.config.vocab_size, len(model.tokenizer)
    if rows != tokens and not rows > tokens == entries:
        raise UserError(
            f"--model {directory}: its tokenizer has {entries} tokens and its embeddings {rows} rows, the shards have "
            f"{tokens} tokens ({shards}): build them with the model's tokenizer"
        )


def measure(model: "BertForMaskedLM", heldout: "HeldOutData", title: str) -> tuple[float, float]:
    """Mean loss (nats) and accuracy over all predicted positions."""
    import torch
    import torch.nn.functional as F

    from pipeline.evaluation.encoder import device
    from pipeline.models.encoder import take_positions

    model = model.to(device()).eval()
    loss, right, total, windows = 0.0, 0, 0, 0
    with torch.no_grad(), Progress(title, len(heldout.windows), "windows") as progress:
        for batch, valid in heldout.batches(min(BATCH, len(heldout.windows))):
            rows = (batch.input_ids[:valid], batch.positions[:valid], batch.labels[:valid])
            input_ids, positions, labels = (torch.from_numpy(array).to(device()) for array in rows)
            hidden = model.bert(input_ids=input_ids).last_hidden_state
            # (windows, k, tokens): embeddings beyond the tokenizer's tokens are no predictions.
            logits = model.cls(take_positions(hidden, positions))[..., : heldout.source.vocabulary.size]
            loss += float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
            total += labels.numel()
            windows += valid
            progress.reached(windows)
    return loss / total, right / total
