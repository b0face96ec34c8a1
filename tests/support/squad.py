"""Small SQuAD files and a small BERT that can learn them: the answer is the words from `go` to `stop`."""

import json
import random

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

WORDS = [f"w{i}" for i in range(20)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES = {"squad_v1": "v1.1", "squad_v2": "v2.0"}


def save_model(path, positions=48, segments=2):
    """A 2 x 32 BERT with a vocabulary of whole words."""
    tokens = [*SPECIAL, "go", "stop", "which", "?", ",", *WORDS]
    BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.1,
        max_position_embeddings=positions,
        type_vocab_size=segments,
    )
    BertForMaskedLM(config).save_pretrained(path)
    return path


def question(name, context, answers, text="which ?", **more):
    """One entry of `qas`; answers by their text, at their first place."""
    listed = [{"text": answer, "answer_start": context.index(answer)} for answer in answers]
    return {"id": name, "question": text, "answers": listed, **more}


def document(*paragraphs):
    """A SQuAD file of (context, entries of `qas`)."""
    return {
        "version": "x",
        "data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs]}],
    }


def write_files(folder, version, train, dev, seed=0, unanswerable=0.0):
    """Both files of a version with so many questions, each on a context of its own that may need two windows."""
    generator = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", train), ("dev", dev)):
        paragraphs = []
        for number in range(count):
            words, has = generator.choices(WORDS, k=generator.randint(6, 40)), number >= unanswerable * count
            if has:
                place = generator.randint(0, len(words) - 2)
                words[place : place + 2] = ["go", words[place], "stop"]
            context = " ".join(words)
            answers = [context[context.index("go") : context.index("stop") + 4]] if has else []
            more = {"is_impossible": not has} if version == "squad_v2" else {}
            paragraphs.append((context, [question(f"{stem}{number}", context, answers, **more)]))
        (folder / f"{stem}-{NAMES[version]}.json").write_text(json.dumps(document(*paragraphs)))
