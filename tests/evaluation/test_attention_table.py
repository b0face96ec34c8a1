"""The numbers of attention in the last table: the main ones of every condition, and the verdict of every text."""

from pipeline.evaluation.attention.conditions import by_text
from pipeline.evaluation.results import Results
from pipeline.evaluation.table import format_table

METRICS = ("js", "kl", "js_no_special", "kl_no_special", "relation_queries", "relation_keys", "relation_values")


def entry(value: float, **rest: object) -> dict:
    scores = {metric: {"mean": value, "std": 0.0, "seeds": {"0": value}} for metric in METRICS}
    return {"data": "32 windows", **scores, **rest}


def results(tasks: dict) -> Results:
    return Results({"model": "m", "tasks": tasks})


def test_a_row_for_every_condition_and_a_line_for_every_verdict():
    tasks = {
        "attention a": entry(0.125, verdict="closer to the teacher"),
        "attention a scratch": entry(0.25),
        "attention b": entry(0.5, verdict="no verdict: one window is too little text"),
    }
    main, attention, verdicts, more = format_table(
        results({**tasks, "rte": {"data": "full", "accuracy": entry(0.75)["js"]}})
    ).split("\n\n")
    assert "rte accuracy" in main and "attention" not in main
    assert len(attention.splitlines()) == 2 + 3 and "kl" not in attention.lower()
    assert attention.splitlines()[3].count("0.2500") == 5
    assert verdicts.splitlines() == [
        "attention a: closer to the teacher",
        "attention b: no verdict: one window is too little text",
    ]
    assert more.endswith("attention.json")
    assert format_table(results(tasks)) == "\n\n".join((attention, verdicts, more))


def test_without_attention_there_is_one_table():
    assert format_table(results({})).count("\n\n") == 0


def test_names_are_put_together_by_text_in_whatever_order_they_come():
    names = ["attention a scratch", "mlm a", "attention a", "attention my teacher", "attention a teacher"]
    assert by_text(names) == {
        "attention a": {"student": "attention a", "scratch": "attention a scratch", "teacher": "attention a teacher"},
        "attention my teacher": {"student": "attention my teacher"},
    }
