"""What the commands of `compare_commits.py` read: text in every format, teachers, GLUE tasks, recipes.

Made once, for both revisions, from a fixed seed and from files of the earlier one: what a later revision says in its
README is no difference in results.
"""

import bz2
import gzip
import json
import random
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import torch
import yaml
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.utils import logging

SEED = 20
TEACHER = Path("teachers") / "wiki_books_4x192"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
VOCABULARY = (
    "the of and to in a is that it was for on are with as his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over "
    "did down only way find use may water long little very after words called just where most know river mountain old "
    "city church music science letter winter northern century language government island railway bridge garden "
    "unbelievable untouchable reconsidered naïve café façade Zürich Anna Peter Vienna Danube London Monday 1848 42 3.5"
)
WORDS = VOCABULARY.split()
ODD = (
    "東京は日本の首都である。",
    "Ångström's e\u0301 ①② 🙂",
    "don't -- a_b/c?d=e",
    "Ελληνικά και Русский",
    "tab\there",
)
TITLES = ("River", "Old bridge", "Café", "Northern city", "Music & letters", "Danube", "Winter", "Science")

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en">
  <siteinfo><namespaces><namespace key="6" case="first-letter">File</namespace></namespaces></siteinfo>
"""
RECIPE: dict[str, Any] = {
    "method": "wid",
    "teacher": {"path": "../inputs/tiny"},
    "data": {"shards": "out/shards/lines", "seq_len": 32, "heldout_windows": 8},
    "target": {"hidden": 20, "head_size": 5},
    "compaction": {"start_step": 2, "interval_steps": 1, "increments": 3, "decay_steps": 2},
    "train": {
        "steps": 8,
        "global_batch": 8,
        "lr": 1e-3,
        "compactor_lr": 2e-3,
        "warmup": 0.2,
        "checkpoint_every": 4,
        "keep_every": 4,
        "evaluate_every": 4,
        "log_every": 1,
    },
}
"""All gates are closed after six of eight steps; every checkpoint is kept, every step logged."""
RECIPES: dict[str, dict[str, Any]] = {
    "wid": RECIPE,
    "continue": {**{key: RECIPE[key] for key in ("data", "train")}, "method": "continue"},
    "scratch": {**{key: RECIPE[key] for key in ("data", "train")}, "method": "scratch"},
}
BF16 = {"bf16": {"enabled": True}, "gradient_clipping": 1.0}


def write_inputs(folder: Path, tree: Path) -> None:
    """Fill the new directory `folder`; `tree` is a checkout of the earlier revision."""
    folder.mkdir()
    draw = random.Random(SEED)
    documents = [paragraph(draw, draw.randint(1, 4)) for _ in range(260)]
    write_lines(folder, documents, tree)
    write_books(folder / "books", draw)
    write_records(folder, draw, documents)
    write_articles(folder / "wiki_00", draw, documents)
    write_dump(folder / "dump.xml.bz2", draw)
    write_glue(folder / "glue", draw)
    shutil.copytree(tree / TEACHER, folder / "teacher")
    write_teachers(folder)
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    for stage, micro, more in ((0, 4, {}), (1, 2, BF16), (2, 4, BF16), (3, 8, {})):
        config = {"train_micro_batch_size_per_gpu": micro, "zero_optimization": {"stage": stage}, **more}
        (folder / f"zero{stage}.json").write_text(json.dumps(config))


def sentence(draw: random.Random, least: int = 6) -> str:
    """Words of `WORDS`, frequent ones first as in language, a capital at the beginning and a stop at the end."""
    weights = [1 / (rank + 3) for rank in range(len(WORDS))]
    words = draw.choices(WORDS, weights, k=draw.randint(least, 16))
    if draw.random() < 0.3:
        words[2] += ","
    return " ".join(words)[:1].upper() + " ".join(words)[1:] + draw.choice("...?!")


def paragraph(draw: random.Random, sentences: int) -> str:
    text = " ".join(sentence(draw) for _ in range(sentences))
    return f"{text} {draw.choice(ODD)}" if draw.random() < 0.1 else text


def write_lines(folder: Path, documents: list[str], tree: Path) -> None:
    """A document a line: made-up ones with duplicates and empty lines, real prose, and made-up ones to measure on."""
    lines = [*documents, "", *documents[:20], "   ", "x"]
    (folder / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sources = [tree / "README.md", *sorted((tree / "docs").glob("*.md")), tree / "LICENSE"]
    (folder / "docs.txt").write_text("".join(path.read_text(encoding="utf-8") for path in sources), encoding="utf-8")
    draw = random.Random(SEED + 1)
    heldout = [paragraph(draw, 3) for _ in range(60)]
    (folder / "heldout.txt").write_text("\n".join(heldout) + "\n", encoding="utf-8")


def write_books(folder: Path, draw: random.Random) -> None:
    """Files of a document each: hard-wrapped, with a licence and Windows line ends, verse, long lines, a copy."""
    folder.mkdir()
    pages = [[paragraph(draw, 6) for _ in range(12)] for _ in range(3)]
    wrapped, licensed, plain = pages
    filled = "\n\n".join(textwrap.fill(text, 72) for text in wrapped).replace(" river", " river-\nbank", 3)
    mark = "*** {} OF THE PROJECT GUTENBERG EBOOK THE RIVER ***"
    body = "\n\n".join(textwrap.fill(text, 65) for text in licensed)
    whole = f"Licence.\n{mark.format('START')}\n\n{body}\n\n{mark.format('END')}\nMore.\n"
    books = {
        "a_wrapped": filled + "\n\n    An indented line\n    and another.\n",
        "b_licensed": whole.replace("\n", "\r\n"),
        "c_verse": "\n".join(sentence(draw, 4)[:30] for _ in range(40)) + "\n",
        "d_plain": "\n".join(plain) + "\n",
        "e_copy": filled + "\n\n    An indented line\n    and another.\n",
    }
    for name, text in books.items():
        (folder / f"{name}.txt").write_bytes(text.encode())


def write_records(folder: Path, draw: random.Random, documents: list[str]) -> None:
    """JSON lines, packed and sound; and plain ones of which some are damaged."""
    texts = [paragraph(draw, 2) for _ in range(120)] + documents[20:30] + ["", *ODD]
    lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(texts)]
    # Without the time that gzip would note, the bytes depend on the text alone.
    (folder / "records.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    sound = json.dumps({"text": paragraph(draw, 3)}, ensure_ascii=False).encode()
    damaged = [sound, b'{"text": 5}', b"no JSON", b'{"text": "\xff"}', b"", sound.replace(b"the", b"a", 1)]
    (folder / "broken.jsonl").write_bytes(b"\n".join(damaged) + b"\n")


def write_articles(path: Path, draw: random.Random, documents: list[str]) -> None:
    """What WikiExtractor writes; some articles repeat their title, one repeats a document of another file."""
    articles = []
    for number, title in enumerate(TITLES * 4):
        text = documents[40] if number == 9 else "\n\n".join(paragraph(draw, 3) for _ in range(3))
        attributes = f'id="{number}" url="https://example.org/{number}" title="{escape(title)}"'
        articles.append(f"<doc {attributes}>\n{title if number % 3 else 'Other'}\n\n{text}\n</doc>\n")
    path.write_text("".join(articles), encoding="utf-8")


def write_dump(path: Path, draw: random.Random) -> None:
    """A multistream dump: articles with markup, and pages that are none."""

    def page(title: str, wikitext: str, namespace: int = 0) -> str:
        revision = f"<model>wikitext</model><text>{escape(wikitext)}</text>"
        head = f"<title>{escape(title)}</title><ns>{namespace}</ns>"
        return f"  <page>\n    {head}\n    <revision>{revision}</revision>\n  </page>\n"

    pages = [page(f"{title} {number}", wikitext(draw, title)) for number in range(5) for title in TITLES]
    pages[7:7] = [
        page("Talk:River", "No.", 1),
        page("Stream", "#REDIRECT [[River]]"),
        page("F", "* [[A]]\n{{disambig}}"),
    ]
    parts = [HEAD, *("".join(pages[at : at + 12]) for at in range(0, len(pages), 12)), "</mediawiki>\n"]
    path.write_bytes(b"".join(bz2.compress(part.encode()) for part in parts))


def wikitext(draw: random.Random, title: str) -> str:
    """An article with templates, links, a table, references, lists and headings."""
    first, second, third = (paragraph(draw, 3) for _ in range(3))
    return (
        f"{{{{Infobox|name={title}|text=[[x]]}}}}\n'''{title}''' ({{{{lang|de|Fluss}}}}) {first}<ref>{second}</ref>\n\n"
        f"== History ==\n[[File:x.png|thumb|{title} in [[winter]]]] See [[Danube|the river]] and "
        f"[https://example.org a page]. {second} &nbsp;&amp; ''more''<!-- hidden -->.\n"
        f'{{| class="wikitable"\n| {third}\n|}}\n* {third}\n* [[Vienna]] <math>x^2</math>\n\n[[Category:{title}]]\n'
    )


def write_glue(folder: Path, draw: random.Random) -> None:
    """Four tasks with the columns of the official files: pairs of two classes, pairs with a value, and word order."""
    rows: dict[str, tuple[str, Callable[[int], tuple[object, ...]]]] = {
        "RTE": (
            "index sentence1 sentence2 label",
            lambda n: (n, *pair(draw, n), ("not_entailment", "entailment")[n % 2]),
        ),
        "MRPC": ("Quality|#1 ID|#2 ID|#1 String|#2 String", lambda n: (n % 2, n, n + 900, *pair(draw, n))),
        "STS-B": (
            "index genre filename year old_index source1 source2 sentence1 sentence2 score",
            lambda n: (n, "g", "f", "y", n, "a", "b", *pair(draw, n), f"{(n % 2) * 3 + draw.random() * 2:.3f}"),
        ),
        "word_order": ("sentence label", lambda n: (ordered(draw, n % 2), n % 2)),
    }
    for name, (columns, row) in rows.items():
        (folder / name).mkdir(parents=True)
        for part, count in (("train", 56), ("dev", 40)):
            lines = [tuple(columns.split("|" if "|" in columns else " ")), *(row(number) for number in range(count))]
            text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
            (folder / name / f"{part}.tsv").write_text(text, encoding="utf-8")


def pair(draw: random.Random, number: int) -> tuple[str, str]:
    """Two sentences, the second a part of the first where `number` is odd."""
    first = sentence(draw, 8)
    return first, " ".join(first.split()[2:-1]) + "." if number % 2 else sentence(draw)


def ordered(draw: random.Random, intact: int) -> str:
    """A sentence, three pairs of its words exchanged unless it is to stay intact."""
    words = sentence(draw, 10).split()
    for place in () if intact else (1, 4, 7):
        words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words)


def write_teachers(folder: Path) -> None:
    """Random BERTs over the shipped teacher's vocabulary: `tiny`, and `headless` with a pooler but no MLM head."""
    logging.disable_progress_bar()
    size = json.loads((folder / "teacher" / "config.json").read_text())["vocab_size"]
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 96}
    config = BertConfig(vocab_size=size, max_position_embeddings=64, **shape)
    for name, kind in (("tiny", BertForMaskedLM), ("headless", BertModel)):
        torch.manual_seed(SEED)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Biases and gains too, so that a forgotten one shows; large enough for logits that differ.
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder / name)
    for file in TOKENIZER_FILES:
        shutil.copyfile(folder / "teacher" / file, folder / "tiny" / file)
