"""Held-out masked-language modelling: loss and accuracy of any Hugging Face BERT on all windows of shard directories.

Windows and masks are those of the trainer's held-out measurement, so its numbers and these can be compared.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertForMaskedLM

from pipeline.data.loader import HeldOutData
from pipeline.data.manifest import MANIFEST_NAME
from pipeline.data.open import open_shards
from pipeline.errors import UserError
from pipeline.evaluation.metrics import summarise
from pipeline.evaluation.results import ResultStore

TASK = "mlm"
MASK_FRACTION = 0.15
BATCH = 32


def find_shards(data: Path) -> list[Path]:
    """`data` itself where it is a shard directory, else the shard directories in it. UserError where there are none."""
    found = [data] if (data / MANIFEST_NAME).is_file() else sorted(p.parent for p in data.glob(f"*/{MANIFEST_NAME}"))
    if not found:
        raise UserError(f"--data {data}: task mlm needs a shard directory, or a folder of them; there is none.")
    return found


def score_masked_lm(model_directory: Path, shards: Path, window_tokens: int, store: ResultStore) -> None:
    """Enter mean loss (nats) and accuracy over all predicted positions into `store`, as task `mlm NAME` after the
    shard directory's name.

    Raises:
        UserError: the model has no MLM head, or another vocabulary than the shards.
        DataError: the shards are damaged.
    """
    name = f"{TASK} {shards.resolve().name}"
    source, manifest = open_shards(shards, window_tokens)
    store.begin(name, f"{source.windows:,} windows of {window_tokens} tokens", manifest.source_hash)
    entry = store.document["tasks"][name]
    if "loss" in entry:
        return
    model, info = BertForMaskedLM.from_pretrained(model_directory, output_loading_info=True, dtype=torch.float32)
    if info["missing_keys"]:
        raise UserError(f"--model {model_directory}: it has no MLM head (no {sorted(info['missing_keys'])[0]})")
    if model.config.vocab_size != manifest.vocab_size:
        raise UserError(
            f"--model {model_directory}: it has {model.config.vocab_size} tokens, the shards have {manifest.vocab_size}"
        )
    heldout = HeldOutData(source, np.arange(source.windows), MASK_FRACTION)
    loss, accuracy = _measure(model, heldout)
    # One value that no seed changes, in the form that all scores have.
    entry["loss"], entry["accuracy"] = summarise({0: loss}), summarise({0: accuracy})
    store.write()


@torch.no_grad()
def _measure(model: BertForMaskedLM, heldout: HeldOutData) -> tuple[float, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    loss, right, total = 0.0, 0, 0
    for batch, valid in heldout.batches(min(BATCH, len(heldout.windows))):
        rows = (batch.input_ids[:valid], batch.positions[:valid], batch.labels[:valid])
        input_ids, positions, labels = (torch.from_numpy(array).to(device) for array in rows)
        hidden = model.bert(input_ids=input_ids).last_hidden_state
        picked = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = model.cls(picked)
        loss += float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        right += int((logits.argmax(-1) == labels).sum())
        total += labels.numel()
    return loss / total, right / total
