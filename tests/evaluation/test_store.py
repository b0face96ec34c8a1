"""Items, their records and the directory that several processes share, one call at a time."""

import json
import multiprocessing
import time

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.items import Item, Outcome, Part, When
from pipeline.evaluation.records import compose
from pipeline.evaluation.store import ResultStore


def item(name, seed, **fields):
    return Item(name, seed, entries={name: {"data": "full", "data_sha256": "0"}}, flops=1.0, **fields)


def store(path, *items):
    made = ResultStore(path, path.parent / "model", "0", {})
    for each in items:
        made.plan(each)
    return made


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "1/2/3", "-1/2", " 1/2"])
def test_a_part_is_spelled_i_of_n(text):
    with pytest.raises(UserError, match="--items"):
        Part.parse(text)


@pytest.mark.parametrize(("parts", "ranks"), [(1, 1), (3, 1), (1, 4), (3, 2), (20, 2)])
def test_parts_and_ranks_have_every_item_once(parts, ranks):
    items = [item("rte", seed) for seed in range(7)] + [item("submission", 1, when=When.LAST)]
    shares = [
        Part(number, parts).within(rank, ranks).of(items) for number in range(1, parts + 1) for rank in range(ranks)
    ]
    assert sorted(each.seed for share in shares for each in share[:-1]) == list(range(7))
    assert all(share[-1].when is When.LAST for share in shares)  # whoever finds the others done


def test_a_record_makes_results_whoever_wrote_it(tmp_path):
    first, second = (store(tmp_path / "out", item("rte", 1), item("rte", 2)) for _ in range(2))
    for made in (first, second):
        made.open(1.0)
    second.finish(second.items[1], Outcome({"rte": {"accuracy": {2: 0.5}}}), {"seconds": 1.0})
    assert not second.complete
    first.finish(first.items[0], Outcome({"rte": {"accuracy": {1: 1.0}}}), {"seconds": 1.0})
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["complete"] and found["tasks"]["rte"]["accuracy"]["seeds"] == {"1": 1.0, "2": 0.5}
    assert found["cost"] == {"items": 2, "done": 2, "teraflops": 0.0, "estimated_seconds": 2.0, "seconds": 2.0}
    third = store(tmp_path / "out", item("rte", 3))
    assert third.complete and third.scores("rte")["accuracy"]["mean"] == 0.75
    third.open(1.0)
    assert not third.complete


def test_what_is_finished_while_another_process_starts_stays(tmp_path):
    slow, quick = (store(tmp_path / "out", item("rte", 1), item("rte", 2)) for _ in range(2))
    quick.open(1.0)
    quick.finish(quick.items[0], Outcome({"rte": {"accuracy": {1: 1.0}}}), {"seconds": 1.0})
    slow.open(1.0)  # it read the directory before there was anything
    assert slow.is_done(slow.items[0]) and slow.scores("rte")["accuracy"]["seeds"] == {"1": 1.0}
    assert slow.undone == ["rte_2"]


def test_scores_stay_until_they_are_made_again(tmp_path):
    made = store(tmp_path / "out", item("rte", 1))
    made.open(1.0)
    made.finish(made.items[0], Outcome({"rte": {"accuracy": {1: 1.0}}}), {"seconds": 1.0})
    again = store(tmp_path / "out", item("rte", 1, files=["models/rte_1"]))
    again.open(1.0)
    assert not again.is_done(again.items[0]) and again.scores("rte")["accuracy"]["mean"] == 1.0


def test_two_evaluations_that_begin_in_one_directory_do_not_mix(tmp_path):
    first = store(tmp_path / "out", item("rte", 1))
    second = ResultStore(tmp_path / "out", tmp_path / "model", "another", {})
    second.plan(item("rte", 1))
    first.open(1.0)
    with pytest.raises(UserError, match="results of another model"):
        second.open(1.0)
    (tmp_path / "out/results.json").unlink()  # as if both had looked before either wrote it
    with pytest.raises(UserError, match="results of another model or of other hyper-parameters"):
        second.open(1.0)


def test_a_score_is_told_by_the_rows_it_is_of(tmp_path):
    old = store(tmp_path / "out", item("rte", 1), item("rte", 2))
    old.open(1.0)
    new = ResultStore(tmp_path / "out", tmp_path / "model", "0", {})
    new.plan(Item("rte", 2, entries={"rte": {"data": "others", "data_sha256": "1"}}))
    new.open(1.0)
    new.finish(new.items[0], Outcome({"rte": {"accuracy": {2: 1.0}}}), {"seconds": 1.0})
    assert new.data("rte") == "others"


def test_a_claimed_item_is_left_alone_until_its_process_is_gone(tmp_path):
    mine = store(tmp_path / "out", item("rte", 1))
    mine.open(1.0)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def hold():
        with mine.claim(mine.items[0]) as free:
            theirs.send(free)
            time.sleep(60)

    process = context.Process(target=hold)
    process.start()
    assert ours.recv()
    with mine.claim(mine.items[0]) as free:
        assert not free
    process.kill()
    process.join()
    with mine.claim(mine.items[0]) as free:
        assert free
        mine.finish(mine.items[0], Outcome({"rte": {"accuracy": {1: 1.0}}}), {"seconds": 1.0})
    with mine.claim(mine.items[0]) as free:
        assert not free
    assert [path.name for path in (tmp_path / "out/items").iterdir() if path.suffix != ".lock"] == ["rte_1.json"]


def test_an_item_whose_file_is_gone_or_that_is_to_leave_more_is_not_done(tmp_path):
    made = store(tmp_path / "out", item("rte", 1, files=["predictions/rte_1.jsonl"]))
    made.open(1.0)
    made.finish(made.items[0], Outcome(), {"seconds": 1.0})
    assert not made.is_done(made.items[0])
    (tmp_path / "out/predictions/rte_1.jsonl").touch()
    assert made.is_done(made.items[0])
    assert not made.is_done(item("rte", 1, files=["predictions/rte_1.jsonl", "models/rte_1"]))


def test_a_directory_that_another_process_makes_at_this_moment_is_taken(tmp_path):
    for folder in ("items", "predictions"):
        (tmp_path / "out" / folder).mkdir(parents=True, exist_ok=True)
        store(tmp_path / "out", item("rte", 1)).open(1.0)
        (tmp_path / "out/results.json").unlink()
    (tmp_path / "out/notes.txt").touch()
    with pytest.raises(UserError, match="it holds other files"):
        store(tmp_path / "out", item("rte", 1))


def test_a_damaged_record_is_named(tmp_path):
    made = store(tmp_path / "out", item("rte", 1))
    made.open(1.0)
    (tmp_path / "out/items/rte_1.json").write_text("{")
    with pytest.raises(UserError, match=r"items/rte_1\.json: it cannot be read; remove it"):
        store(tmp_path / "out", item("rte", 1))


def test_the_best_point_stands_for_its_task_when_all_are_done():
    def record(point, rate, seed, selection, accuracy):
        settings = {"learning_rate": rate, "batch_size": 32}
        done = {"scores": {"rte": {"accuracy": {str(seed): accuracy}}}, "verdicts": {}, "selection": selection}
        done |= {"submission": None, "failure": None, "seconds": 1.0}
        entries = {"rte": {"data": "full", "data_sha256": "0"}}
        base = {"task": "rte", "seed": seed, "point": point, "chosen_on": "dev", "settings": settings, "missing": {}}
        return {**base, "entries": entries, "teraflops": 1.0, "estimated_seconds": 1.0, "done": done}

    records = [
        record("a", 1e-4, 1, 0.5, 0.1),
        record("a", 1e-4, 2, 0.6, 0.2),
        record("b", 2e-4, 1, 0.7, 0.3),
        record("b", 2e-4, 2, 0.4, 0.4),
        record("c", 3e-4, 1, 0.9, 0.9),
    ]
    waiting = [{**record("c", 3e-4, seed, 0.0, 0.9), "done": None} for seed in (1, 2)]
    none = compose({}, [*records[:4], *waiting], [], {})
    assert none["grid"]["rte"]["chosen"] is None and "accuracy" not in none["tasks"]["rte"]
    partly = compose({}, [*records, waiting[1]], [], {})  # seed 1 is done at every point
    assert partly["grid"]["rte"]["chosen"] == "c" and not partly["complete"]
    assert partly["tasks"]["rte"]["accuracy"]["seeds"] == {"1": 0.9}
    assert [point["seeds"] for point in partly["grid"]["rte"]["points"]] == [1, 1, 1]
    found = compose({}, [*records, record("c", 3e-4, 2, 0.1, 0.9)], [], {})
    assert found["grid"]["rte"]["chosen"] == "a"  # of three equal means (0.55, 0.55, 0.5) the lowest rate
    assert found["tasks"]["rte"]["accuracy"]["seeds"] == {"1": 0.1, "2": 0.2}
    assert found["task_settings"]["rte"]["learning_rate"] == 1e-4
