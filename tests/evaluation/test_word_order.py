"""The sentence task made of any text: what counts as a sentence, and that labels tell the truth."""

import random

from demo.word_order import exchange_neighbours, sentences, write_task

PLAIN = "The quick brown fox jumps over the lazy dog today."


def test_plain_sentences_are_found_once_and_others_left_out():
    documents = [
        f"{PLAIN} Too short. {PLAIN} The value x_1 of the array is not a plain word here at all.",
        "a fragment without a capital stays out because it does not begin like one. " + PLAIN,
        "It calls f(x) and g(y) with the very same arguments as before. We then go on to something else entirely here!",
        "The word " * 31 + "ends.",
    ]
    assert sentences(documents) == [PLAIN, "We then go on to something else entirely here!"]


def test_three_separate_pairs_of_inner_neighbours_change_places():
    draw = random.Random(0)
    before = PLAIN.split()
    seen = set()
    for _ in range(200):
        after = exchange_neighbours(PLAIN, draw).split()
        pairs = [i for i in range(len(before) - 1) if after[i] == before[i + 1] and after[i + 1] == before[i]]
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert len(pairs) == 3 and changed == sorted(j for i in pairs for j in (i, i + 1))
        assert changed[0] >= 1 and changed[-1] < len(before) - 1
        seen.update(pairs)
    assert seen == set(range(1, len(before) - 2))
    assert exchange_neighbours("He saw that, that, that, that, was it.", draw) is None
    assert exchange_neighbours("He saw that old thing, and went, again.", draw) is None  # one pair only


def test_the_task_is_balanced_disjoint_and_repeatable(tmp_path):
    words = [f"w{chr(97 + i)}{chr(97 + j)}" for i in range(10) for j in range(10)]
    draw = random.Random(1)
    pool = [" ".join(["The", *draw.sample(words, 9), "end."]) for _ in range(120)]
    write_task(pool[:80], pool[60:], tmp_path / "a", (50, 100))
    write_task(pool[:80], pool[60:], tmp_path / "b", (50, 100))
    rows = {}
    for name in ("train", "dev"):
        path = tmp_path / "a" / "word_order" / f"{name}.tsv"
        assert path.read_bytes() == (tmp_path / "b" / "word_order" / f"{name}.tsv").read_bytes()
        header, *lines = path.read_text().splitlines()
        assert header == "sentence\tlabel"
        rows[name] = [line.split("\t") for line in lines]
    assert len(rows["train"]) == 50 and len(rows["dev"]) == 40  # 20 of the 60 are in the first list
    for name, part in (("train", pool[:80]), ("dev", pool[80:])):
        assert abs(sum(label == "1" for _, label in rows[name]) - len(rows[name]) / 2) <= 0.5
        intact = {sentence for sentence, label in rows[name] if label == "1"}
        spoiled = {sentence for sentence, label in rows[name] if label == "0"}
        assert intact <= set(part) and not spoiled & set(pool)
        assert {tuple(sorted(s.split())) for s in spoiled} <= {tuple(sorted(s.split())) for s in part}
