"""Figures in the documents: those that were measured are those of the results files, those counted come out again."""

import re
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from pipeline.cost import Batch, composition_macs, sent_elements, step_macs, trained_parameters
from pipeline.shapes import BertShape
from tests.support import ROOT
from tests.support.documents import RESULTS, counted, document, results, table

DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "preprocessing/*.md", "teachers/*/*.md") for path in ROOT.glob(pattern)
)
TEACHER, STUDENT = BertShape(12, 768, 12, 3072, 30522), BertShape(12, 192, 12, 768, 30522)


def spread(score: dict[str, Any]) -> str:
    return f"{score['mean']:.3f} ± {score['std']:.3f}"


def test_the_readme_shows_the_comparison():
    names = {
        "teacher": "teacher",
        "WID": "wid taylor anneal",
        "slice of the teacher": "slice",
        "from scratch": "scratch",
    }
    measured = results("2026-11-22_first_comparison")["rows"]
    shown = table("README.md", "| held-out loss")
    assert shown.keys() == names.keys()
    metrics = {"sst2": "accuracy", "mrpc": "accuracy", "cola": "matthews", "rte": "accuracy", "stsb": "pearson"}
    for name, cells in shown.items():
        row = measured[names[name]]
        # The teacher is one model: nothing to average.
        loss = spread(row["loss"]) if name != "teacher" else f"{row['loss']['mean']:.3f}"
        assert cells == [loss, *(spread(row["glue"][task][metric]) for task, metric in metrics.items())]


@pytest.mark.parametrize("name", ["README.md", "docs/comparison.md"])
def test_the_lead_and_its_standard_deviations(name):
    rows = results("2026-11-22_first_comparison")["rows"]
    wid, slice_ = rows["wid taylor anneal"]["loss"], rows["slice"]["loss"]
    assert f"{slice_['mean'] - wid['mean']:.3f} nats" in document(name)
    assert f"(standard deviations {wid['std']:.3f} and {slice_['std']:.3f} over three seeds)" in document(name)


def test_the_comparison_counts_its_trainings_and_the_cost_of_folding_early():
    rows = results("2026-11-22_first_comparison")["rows"].values()
    trainings = {
        (number, run["rate"], run["seed"])
        for number, row in enumerate(rows)
        for run in (*row.get("tried", ()), *row.get("runs", ()))
    }
    assert f"{len(trainings)} trainings" in document("docs/comparison.md")
    rows = results("2026-11-22_narrowed_or_folded")["rows"]
    narrowed, folded = rows["narrowed"]["loss"], rows["folded"]["loss"]
    lead = f"{folded['mean'] - narrowed['mean']:.3f} nats"
    assert f"{lead} ahead (standard deviations {narrowed['std']:.3f} and {folded['std']:.3f}" in document(
        "docs/comparison.md"
    )
    assert f"{lead} behind the compactors ({spread(folded)} against {spread(narrowed)}" in document("docs/decisions.md")


def test_the_table_of_the_demo_is_that_of_its_results():
    measured = results("2026-11-27_demo")
    shown = list(table("docs/demo.md", "model").values())
    assert len(shown) == len(measured["rows"])
    for cells, row in zip(shown, measured["rows"].values(), strict=True):
        score = row["scores"]
        expected = [f"{row['parameters']:,}", f"{row['encoder_parameters']:,}"]
        for text in ("heldout", "prose"):
            expected += [f"{score[f'mlm {text} loss']['mean']:.3f}", f"{score[f'mlm {text} accuracy']['mean']:.1%}"]
        expected += [spread(score["word_order accuracy"]), f"{score['latency milliseconds']['mean']:.1f} ms"]
        assert cells == [cell.replace("%", " %") for cell in expected]
    loss = {name: row["scores"]["mlm heldout loss"]["mean"] for name, row in measured["rows"].items()}
    for name, lead in (
        ("docs/demo.md", f"{loss['teacher'] - loss['student']:.2f} nats ahead of the unchanged teacher"),
        ("docs/demo.md", f"{loss['student'] - loss['continued']:.2f} nats behind the teacher"),
        ("docs/demo.md", f"{loss['slice'] - loss['student']:.2f} nats ahead of the slice"),
        ("docs/demo.md", f"{loss['scratch'] - loss['student']:.1f} nats ahead of the same size from scratch"),
        ("docs/demo.md", f"{measured['minutes']} minutes"),
        ("README.md", f"{measured['minutes']} minutes"),
    ):
        assert lead in document(name), lead


def test_the_table_of_steps_on_the_cpu():
    rows, shown = results("2026-11-28_step_time_192_16k")["rows"], table("docs/cost.md", "step")
    assert shown.keys() == rows.keys()
    for name, cells in shown.items():
        row, (least, most) = rows[name], rows[name]["times_student_step_range"]
        expected = [f"{row['tokens_per_s']:,.0f}", f"{row['times_student_step']:.2f}", f"{least:.2f} to {most:.2f}"]
        assert cells == [*expected, counted(rows, name)], name


def test_the_sentences_on_narrowed_steps_say_what_was_measured():
    cpu, text = results("2026-11-28_step_time_192_16k")["rows"], document("docs/cost.md")
    faster, student = "times_faster_than_chained", "times_student_step"
    assert f"is {cpu['narrowed'][faster]:.1f} times as fast as chained" in text
    assert f"Narrowed takes {cpu['narrowed'][student]:.2f} times the student's step" in text
    for name in ("chained", "student"):
        assert f"{cpu[name]['utilisation']:.0%}".replace("%", " %") in text
    earlier = results("2026-11-23_step_time_192_16k")["rows"]["narrowed"][faster]
    avx2 = results("2026-11-28_step_time_192_16k_avx2")["rows"]["narrowed"][faster]
    for words in (f"it is {avx2:.1f} times as fast", f"AMD EPYC reached {earlier:.1f}"):
        assert words in text
    readme = document("README.md")
    assert f"{cpu['narrowed'][faster]:.1f} times as fast as the published chain" in readme
    assert f"takes {cpu['narrowed'][student]:.2f} times a plain step" in readme
    for name in ("516_16k", "192_64k", "516_64k"):
        row = results(f"2026-11-23_step_time_{name}")["rows"]["narrowed"]
        assert f"[{row[student]:.2f}](../benchmarks/results/2026-11-23_step_time_{name}.json)" in text


@pytest.mark.parametrize("name", ["192_16k", "192_4x4k"])
def test_the_present_core_beside_the_one_before_it(name):
    rows = results(f"2026-11-28_step_time_{name}_beside")["rows"]

    def said(form: str, words: str = "") -> str:
        least, most = rows[form]["times_as_fast_as_beside_range"]
        return f"{rows[form]['times_as_fast_as_beside']:.2f}{words} ({least:.2f} to {most:.2f})"

    text = document("docs/cost.md").split(f"step_time_{name}_beside.json")[1]
    sentence = f"composed is {said('composed', ' times as fast')}, narrowed {said('narrowed')}, the student "
    assert sentence + said("student") in text[:400]


def test_runs_of_few_rounds_stay_in_the_documents():
    ratios = {}
    for name, row in results("2026-11-23_step_time_few_rounds")["rows"].items():
        rounds = sorted(a / b for a, b in zip(row["seconds"]["narrowed"], row["seconds"]["student"], strict=True))
        middle = (rounds[(len(rounds) - 1) // 2] + rounds[len(rounds) // 2]) / 2
        assert row["times_student_step"] == pytest.approx(middle)
        assert row["times_student_step_range"] == pytest.approx([rounds[0], rounds[-1]])
        ratios[name] = f"{middle:.2f}"
    first, second, third, fourth = ratios.values()
    ranges = [row["times_student_step_range"] for row in results("2026-11-23_step_time_few_rounds")["rows"].values()]
    for name in ("192_16k", "192_64k"):
        ranges.append(results(f"2026-11-23_step_time_{name}")["rows"]["narrowed"]["times_student_step_range"])
    text = document("docs/cost.md")
    assert f"of two rounds gave {first} and {second}" in text
    assert f"three rounds gave {third}, and another of nine gave {fourth}" in text
    assert f"between {min(low for low, _ in ranges):.2f} and {max(high for _, high in ranges):.2f}" in text


def test_checkpoints_take_what_was_measured():
    full, narrowed = results("2026-11-23_checkpoints")["rows"].values()
    text = document("docs/cost.md")
    assert f"{full['gigabytes']:.1f} GB at full width and {narrowed['gigabytes']:.1f} GB narrowed" in text
    assert f"stands still for {full['seconds']:.1f} s and {narrowed['seconds']:.1f} s" in text
    assert full["seconds"] / (full["seconds"] + 180) < 0.05 and narrowed["seconds"] / (narrowed["seconds"] + 95) < 0.05


def test_what_the_advice_counts():
    def ratio(windows: int) -> float:
        batch = Batch(windows, 128, 19)
        return step_macs("narrowed", TEACHER, STUDENT, batch) / step_macs("student", TEACHER, STUDENT, batch)

    text = document("docs/cost.md")
    batch = Batch(480, 128, 19)
    plain = step_macs("student", TEACHER, STUDENT, batch)
    composed, narrowed = (step_macs(form, TEACHER, STUDENT, batch) / plain for form in ("composed", "narrowed"))
    shown = table("docs/cost.md", "on an H200")
    assert [shown[name][2] for name in ("composed", "narrowed")] == [f"{composed:.2f}", f"{narrowed:.2f}"]
    assert f"a narrowed step is {ratio(960):.2f} times the student's step" in text
    assert f"{ratio(960 // 8):.2f} times the student's on 8 ranks and {ratio(960 // 64):.1f} times on 64" in text
    held = {name: trained_parameters(name, TEACHER, STUDENT) for name in ("composed", "narrowed", "student")}
    millions = {name: round(count / 1e6) for name, count in held.items()}
    assert f"{millions['composed']} M parameters at full width, {millions['narrowed']} M narrowed to 192" in text
    assert f"the student has {millions['student']} M" in text
    sent = {name: 2 * sent_elements(count, stage=1, ranks=8) for name, count in held.items()}
    assert f"{sent['composed'] / 1e9:.1f} GB sent" in text and f"{sent['narrowed'] / 1e6:.0f} MB when narrowed" in text
    assert f"the student alone would send {sent['student'] / 1e6:.0f} MB" in text


def test_what_the_formulas_come_to():
    batch = Batch(960, 128, 19)
    composing = {"composed": composition_macs(TEACHER, TEACHER), "narrowed": composition_macs(TEACHER, STUDENT)}
    millions = {
        name: (step_macs(name, TEACHER, STUDENT, batch) / 3 - composing.get(name, 0)) / batch.tokens / 1e6
        for name in ("chained", "composed", "narrowed")
    }
    text = document("docs/method.md")
    assert f"chained {millions['chained']:.0f}, composed {millions['composed']:.0f}" in text
    assert f"narrowed {millions['narrowed']:.1f}." in text
    wide, narrow = (round(macs / 1e6) for macs in composing.values())
    assert f"({wide:,} and {narrow:,} per step)" in text


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    broken = []
    for link in links(path):
        name, _, anchor = link.partition("#")
        if name.startswith("http"):
            continue
        target = (path.parent / name).resolve() if name else path
        headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        if not target.exists() or (anchor and anchor not in anchors):
            broken.append(link)
    assert broken == []


def test_every_results_file_is_named_by_a_document_and_says_how_it_was_measured():
    named = {Path(link).name for path in DOCUMENTS for link in links(path)}
    for path in RESULTS.glob("*.json"):
        assert path.name in named, path.name
        found = results(path.stem)
        assert found.keys() >= {"machine", "versions", "commit", "date", "command", "not_measured"}
        assert "rows" in found or "sections" in found


def test_attention_beside_the_teachers_is_as_measured():
    measured = results("2026-11-27_attention")["rows"]
    shown = table("docs/evaluation.md", "attention beside")
    conditions = {
        "WID student": "",
        "the slice of the teacher, untrained": " slice",
        "trained from scratch": " scratch",
        "the teacher's heads in a wrong order": " shuffled",
        "the teacher itself": " teacher",
    }
    assert shown.keys() == conditions.keys()
    for name, condition in conditions.items():
        heldout, prose = (measured[f"attention {text}{condition}"] for text in ("heldout", "prose"))
        relations = (heldout.get(f"relation_{what}") for what in ("queries", "keys", "values"))
        scores = [heldout["js"], prose["js"], *relations]
        assert shown[name] == ["-" if score is None else f"{score['mean']:.3f}" for score in scores]


SCORES = {
    "SST-2, accuracy": ("sst2", "accuracy"),
    "MRPC, accuracy": ("mrpc", "accuracy"),
    "RTE, accuracy": ("rte", "accuracy"),
    "STS-B, Spearman": ("stsb", "spearman"),
    "CoLA, Matthews": ("cola", "matthews"),
    "SQuAD 1.1, F1": ("squad_v1", "f1"),
    "SQuAD 1.1, exact match": ("squad_v1", "exact_match"),
}
"""Rows of the tables of scores."""


def score_cell(score: dict) -> str:
    return spread(score) if len(score["seeds"]) > 1 else f"{score['mean']:.3f}"


def test_the_public_bert_scores_as_measured():
    measured = results("2026-11-27_default_scores")["rows"][0]["tasks"]
    shown = table("docs/evaluation.md", "public BERT, fine-tuned")
    assert shown.keys() == SCORES.keys()
    for name, (task, metric) in SCORES.items():
        score = measured[task][metric]
        assert shown[name] == [score_cell(score), str(len(score["seeds"]))]


def test_the_demos_student_scores_as_measured():
    rows = {row["model"]: row["tasks"] for row in results("2026-11-27_student_scores")["rows"]}
    teacher, student = rows["shipped teacher (4 layers x 192)"], rows["WID student of the demo (4 layers x 108)"]
    shown = table("docs/evaluation.md", "demo's models")
    assert shown.keys() == SCORES.keys()
    others = [tasks["stsb"]["spearman"] for model, tasks in rows.items() if "STS-B with" in model]
    worst = min(others[0]["seeds"].values())
    text = document("docs/evaluation.md")
    assert f"stays at {worst:.3f} ({spread(others[0])}). The student with 1e-4 has {spread(others[1])}." in text
    for name, (task, metric) in SCORES.items():
        assert shown[name][:2] == [score_cell(tasks[task][metric]) for tasks in (teacher, student)]


def test_the_hosts_milliseconds_are_as_measured():
    rows = results("2026-11-28_host_time")["rows"]
    shown = table("docs/cost.md", "milliseconds a step")

    def cell(row: dict[str, Any]) -> str:
        return "{:.1f} ({:.1f} to {:.1f})".format(row["host_ms"], *row["host_ms_range"])

    for widths, cells in shown.items():
        earlier, now = (row for name, row in rows.items() if name.startswith(f"{widths}, "))
        assert cells == [cell(earlier), cell(now), f"{earlier['host_ms'] / now['host_ms']:.1f}"], widths
    assert {name.rpartition(", ")[0] for name in rows} == shown.keys()
    slower = results("2026-11-28_host_time_24")["rows"]
    earlier, now = (f"{row['host_ms']:.1f}" for name, row in slower.items() if name.startswith("bf16"))
    assert f"gave {now} from 24 to 12, and {earlier} before" in document("docs/cost.md")


def test_compiled_steps_on_the_cpu_take_as_long_as_measured():
    rows = results("2026-11-28_step_time_192_16k_compiled")["rows"]
    narrowed, student = (
        median(b / a for a, b in zip(rows[name]["seconds"], rows[f"{name}_compiled"]["seconds"], strict=True))
        for name in ("narrowed", "student")
    )
    words = f"takes {narrowed:.2f} times as long narrowed and {student:.2f} times for the student"
    assert words in document("docs/decisions.md")
