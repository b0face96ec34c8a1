"""The report's page: what stands on it, that it needs nothing else, and that a browser shows it."""

import html
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest
import yaml

from pipeline import report
from pipeline.reporting.html import page
from pipeline.reporting.summaries import EvaluationSummary, RunSummary
from tests.reporting.demo_records import write_demo
from tests.reporting.test_report import write_evaluation, write_run
from tests.support.runs import run_main

MADE_WITH = {"machine": "a machine", "commit": "abc123"}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
VOID = {"meta", "img", "br", "hr", "link", "input"}
PHONE, DESKTOP = 390, 1280


class Tags(HTMLParser):
    """Counts elements, collects what they refer to, and checks that every one is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self.references: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found[tag] = self.found.get(tag, 0) + 1
        self.references += [value for name, value in attrs if name.rpartition(":")[2] in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(runs, evaluations):
    return [RunSummary.read(path) for path in runs], [EvaluationSummary.read(path) for path in evaluations]


def assert_self_contained(text: str) -> Tags:
    tags = Tags(text)
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in tags.references)
    assert not re.search(r"https?://|//\w|@import|<script|<link|<iframe", text)
    ids = set(re.findall(r'\bid="([^"]*)"', text))
    assert {name[1:] for name in tags.references if name[0] == "#"} | set(re.findall(r"url\(#([^)]*)\)", text)) <= ids
    return tags


@pytest.fixture(scope="module")
def demo_page(tmp_path_factory) -> Path:
    """The page of the demo's records, made by the command, with attention maps."""
    directory = tmp_path_factory.mktemp("demo")
    runs, evaluations = write_demo(directory)
    (evaluations[2] / "attention.png").write_bytes(PIXEL)
    with pytest.MonkeyPatch.context() as patch:
        code, out, err = run_main(patch, report.main, "--runs", *runs, *evaluations, "--output", directory / "report")
    assert code == 0, err
    made = directory / "report" / "report.html"
    assert f"page: {made}\n" in out
    return made


def test_the_demos_page(demo_page):
    text = demo_page.read_text()
    tags = assert_self_contained(text)
    # Three tasks against two costs, the curves, the two runs that narrowed.
    assert tags.found["svg"] == 9 and tags.found["img"] == 1
    # Models, three tasks and the latency, runs, what differs between recipes.
    assert tags.found["table"] == 7
    for heading in (
        *("The models", "Quality against size and latency", "Scores, task by task", "Training"),
        *("Kept dimensions over time", "Attention", "How it was made"),
    ):
        assert f"<h2>{heading}</h2>" in text, heading
    for words in (
        "Compressed from teacher (4 layers x 192, 2.66 M parameters) to student",
        "below the square root of the sum of the squared standard deviations",
        "<b>0.904</b> ± 0.006<small>≈ teacher</small>",
        "ffn, mean of 4 layers: 768 → 432",
        "29 windows of 128 tokens",
        "<dt>train.steps</dt><dd>250</dd>",
        "AMD EPYC, 2 cores",
        "7c38e0c",
        "pipeline/train.py --output runs/slice",
        "data:image/png;base64,iVBOR",
    ):
        assert words in text, words


def test_every_point_of_every_chart_is_named(demo_page):
    drawn = re.findall(r"<svg.*?</svg>", demo_page.read_text(), re.DOTALL)
    charts = [chart for chart in drawn if re.search('aria-label="[^"]* against ', chart)]
    assert len(charts) == 6
    for chart in charts:
        # Text is text, and every svg is well-formed on its own.
        root = ElementTree.fromstring(chart.replace("xlink:", ""))
        words = ["".join(element.itertext()).strip() for element in root.iter("text")]
        assert {"teacher", "continued", "student", "slice", "scratch"} <= set(words)


def test_the_same_records_make_the_same_page(tmp_path):
    runs, evaluations = read(*write_demo(tmp_path))
    assert page(runs, evaluations, MADE_WITH) == page(runs, evaluations, MADE_WITH)


def test_whatever_the_records_say_is_text(tmp_path):
    bad = '<script>alert("1")</script>&$x^2$'
    name = bad.replace("/", "|")
    run = write_run(tmp_path / name, (5, 15))
    recipe = {"method": bad, "data": {bad: bad, "deep": {"er": [bad]}}, "empty": {}, "none": None}
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    (run / "environment.txt").write_text(f"machine: {bad}\ncommand: {bad}\nno colon\n{bad}: 1\n")
    evaluation = write_evaluation(tmp_path / f"2{name}", 16, 4.0, {"1": 0.79, "2": 0.81})
    results = json.loads((evaluation / "results.json").read_text())
    results["tasks"][bad] = {"data": bad, bad: {"mean": 0.5, "std": 0.1, "seeds": {"1": 0.5, "2": 0.5}}}
    (evaluation / "results.json").write_text(
        json.dumps(
            {
                **results,
                "settings": {bad: bad},
                "task_settings": {"t": {bad: 7}},
                "not_available": {bad: bad},
                "complete": False,
            }
        )
    )
    text = page(*read([run], [evaluation]), {"machine": bad, "commit": bad})
    tags = assert_self_contained(text)
    assert "script" not in tags.found and "alert(&quot;1&quot;)" in text
    assert html.unescape(text).count(bad) > 10
    assert "the evaluation is not finished" in text
    assert f"<dt>t.{html.escape(bad)}</dt><dd>7</dd>" in text


def test_a_page_of_runs_alone_and_of_evaluations_alone(tmp_path):
    run = write_run(tmp_path / "run_a")
    alone = page(*read([run], []), MADE_WITH)
    assert assert_self_contained(alone).found["svg"] == 1 and "Scores" not in alone and "abc123" in alone
    evaluation = write_evaluation(tmp_path / "student", 16, 4.0, {"1": 0.79, "2": 0.81})
    second = write_evaluation(tmp_path / "teacher", 32, 3.5, {"1": 0.79, "2": 0.81})
    other = page(*read([], [evaluation, second]), MADE_WITH)
    # Without a latency there are no charts against it, and the page says how to get them.
    assert assert_self_contained(other).found["svg"] == 3 and "--tasks latency" in other and "Training" not in other


def test_models_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    made = [write_evaluation(tmp_path / folder / "s", 16, 4.0, {"1": 0.79, "2": 0.81}) for folder in ("a", "b")]
    text = page(*read([], made), MADE_WITH)
    assert ">a/s_model<" in text and "≈ b/s_model" in text


def test_an_undefined_score_is_no_number(tmp_path):
    models = []
    for name, undefined in (("one", ["1", "2"]), ("two", ["1"])):
        evaluation = write_evaluation(tmp_path / name, 16, 4.0, {"1": 0.79, "2": 0.81})
        results = json.loads((evaluation / "results.json").read_text())
        results["tasks"]["sst2"]["accuracy"]["undefined"] = undefined
        (evaluation / "results.json").write_text(json.dumps(results))
        models.append(evaluation)
    text = page(*read([], models), MADE_WITH)
    assert "<td>undefined, counted as 0</td>" in text and "1 of 2 undefined, counted as 0" in text
    assert "≈ two_model" not in text


def test_a_damaged_fold_record_is_refused(monkeypatch, tmp_path):
    evaluation = write_evaluation(tmp_path / "e", 16, 4.0, {"1": 0.8})
    damaged = tmp_path / "e_model" / "fold.json"
    damaged.write_text("[]")
    code, _, err = run_main(monkeypatch, report.main, "--runs", evaluation, "--output", tmp_path / "out")
    assert code == 3 and err.startswith(f"error: {damaged}: ") and not (tmp_path / "out").exists()


CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH (apt-get install chromium)")


def browse(profile: Path, width: int, *options: str) -> str:
    """Open a page in a browser without a screen and without a network; its standard output."""
    alone = ("--no-sandbox",) if os.geteuid() == 0 else ()
    quiet = ("--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars")
    offline = ("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking")
    command = [CHROMIUM, "--headless", *alone, *quiet, *offline, f"--user-data-dir={profile}"]
    command += [f"--window-size={width},3000", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@needs_chromium
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_browser_shows_the_page(demo_page, tmp_path, width):
    picture = tmp_path / "seen.png"
    dom = browse(tmp_path / "profile", width, f"--screenshot={picture}", "--dump-dom", demo_page.as_uri())
    tags = Tags(dom)
    assert tags.found["svg"] == 9 and tags.found["table"] == 7
    assert all(reference.startswith(("#", "data:")) for reference in tags.references) and "://" not in dom
    seen = matplotlib.image.imread(picture)
    assert seen.shape[1] == width and len(set(map(bytes, seen[::4, ::4].reshape(-1, seen.shape[2])))) > 50


@needs_chromium
def test_the_page_fits_a_phone(demo_page, tmp_path):
    """Nothing but wide tables, each on its own, scrolls sideways."""
    frame = (
        '<iframe style="width: {0}px; height: 800px; border: 0" srcdoc="{1}"'
        " onload=\"document.title += contentDocument.documentElement.scrollWidth + ' of {0};'\"></iframe>"
    )
    source = html.escape(demo_page.read_text())
    measuring = tmp_path / "measuring.html"
    frames = "".join(frame.format(width, source) for width in (PHONE, DESKTOP))
    measuring.write_text(f'<meta charset="utf-8"><title></title>{frames}')
    dom = browse(tmp_path / "profile", DESKTOP, "--dump-dom", measuring.as_uri())
    measured = dict(re.findall(r"(\d+) of (\d+);", re.search("<title>(.*?)</title>", dom)[1]))
    assert measured == {str(PHONE): str(PHONE), str(DESKTOP): str(DESKTOP)}
