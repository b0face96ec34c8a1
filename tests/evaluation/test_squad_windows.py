"""Windows and spans: overlap, answers as tokens and back, and the best answers of several windows."""

import random

import numpy as np
import pytest

from pipeline.evaluation.encoder import load_encoder
from pipeline.evaluation.squad.questions import Question
from pipeline.evaluation.squad.spans import LONGEST_ANSWER, N_BEST, Candidates, best_spans
from pipeline.evaluation.squad.windows import Windows, shortened, token_span
from tests.support.squad import WORDS, save_model

SPECIAL = 3


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def one_segment(tmp_path_factory):
    return load_encoder(save_model(tmp_path_factory.mktemp("one"), segments=1))


def words(count, seed=0):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.mark.parametrize(
    ("length", "asked", "context"), [(32, 2, 100), (32, 9, 100), (33, 2, 30), (16, 3, 50), (384, 10, 900), (8, 2, 9)]
)
def test_windows_cover_the_context_and_overlap_as_said(encoder, length, asked, context):
    question = Question("a", words(asked), words(context, 1), ())
    windows = Windows([question], encoder, length)
    asked = min(asked, (length - SPECIAL) // 2)
    room = length - SPECIAL - asked
    overlap = min(128, room // 2)
    assert len(windows) == 1 + -(-max(0, context - room) // (room - overlap))
    covered = [spans[spans[:, 0] >= 0] for spans in windows.spans]
    for number, spans in enumerate(covered):
        assert len(spans) <= room and len(windows[number]["input_ids"]) == SPECIAL + asked + len(spans) <= length
        if number:
            shared = {tuple(span) for span in spans} & {tuple(span) for span in covered[number - 1]}
            assert len(shared) == overlap
    starts = sorted({int(first) for spans in covered for first, _ in spans})
    expected, place = [], 0
    for word in question.context.split():
        expected.append(place)
        place += len(word) + 1
    assert starts == expected


def test_questions_of_any_lengths_keep_their_windows(encoder):
    """Questions are tokenised in groups of one overlap: every window must still be of its own question."""
    rows = [Question(f"q{n}", words(n % 7 + 1, n), words(20 + n, 100 + n), ()) for n in range(30)]
    windows = Windows(rows, encoder, 24)
    assert set(windows.questions) == set(range(30))
    for number, (row, spans) in enumerate(zip(windows.questions, windows.spans, strict=True)):
        texts = [rows[row].context[first:last] for first, last in spans if first >= 0]
        ids = encoder.tokenizer.convert_tokens_to_ids(["[CLS]", *rows[row].text.split(), "[SEP]", *texts, "[SEP]"])
        assert windows[number]["input_ids"] == ids


def test_long_questions_are_cut(encoder):
    rows = [Question("a", words(90), words(50), ()), Question("b", f"  {words(3)} ", words(5), ())]
    (cut, count), (whole, few) = shortened(rows, encoder.tokenizer, 500)
    assert (count, few) == (64, 3) and rows[0].text.startswith(cut) and whole == rows[1].text.strip()
    assert shortened(rows, encoder.tokenizer, 10)[0] == (" ".join(rows[0].text.split()[:10]) + " ", 10)
    assert all(len(windows["input_ids"]) <= 40 for windows in Windows(rows, encoder, 40))


def test_answers_become_tokens_and_come_back(encoder):
    generator = random.Random(3)
    rows = []
    for number in range(40):
        context = words(generator.randint(5, 60), number).replace(" ", ", ", 2)
        parts = context.split()
        first = generator.randrange(len(parts))
        answer = " ".join(parts[first : first + generator.randint(1, 4)])
        start = len(" ".join(parts[:first])) + (first > 0)
        rows.append(Question(f"q{number}", words(number % 7 + 1), context, ((start, answer),)))
    windows = Windows(rows, encoder, 24)
    met = set()
    for number, spans in enumerate(windows.spans):
        start, answer = rows[windows.questions[number]].answers[0]
        item = windows[number]
        inside = spans[spans[:, 0] >= 0]
        whole = inside[0, 0] <= start and inside[-1, 1] >= start + len(answer)
        if whole:
            met.add(windows.questions[number])
            first, last = spans[item["start_positions"], 0], spans[item["end_positions"], 1]
            assert (first, last) == (start, start + len(answer))
        else:
            assert (item["start_positions"], item["end_positions"]) == (0, 0)
    assert met == set(range(40)) and len(windows) > 40


def test_an_answer_within_words_takes_all_of_them():
    spans = np.array([[-1, -1], [0, 5], [6, 9], [9, 12], [-1, -1]])
    assert token_span(spans, 2, "xxx y") == (1, 2)  # characters 2 to 7
    assert token_span(spans, 9, "abc") == (3, 3)
    assert token_span(spans, 10, "abc") == (0, 0)  # it goes on behind the window
    assert token_span(spans[[0, 2, 3, 4]], 2, "xxx y") == (0, 0)  # it begins before
    assert token_span(spans[[0, 4]], 2, "x") == (0, 0)


def test_unanswerable_questions_point_to_the_beginning(encoder):
    windows = Windows([Question("a", "which ?", words(100), ())], encoder, 24)
    assert all((item["start_positions"], item["end_positions"]) == (0, 0) for item in windows)


def test_a_model_with_one_segment(encoder, one_segment):
    rows = [Question("a", "which ?", words(9), ())]
    assert set(Windows(rows, encoder, 24)[0]["token_type_ids"]) == {0, 1}
    assert set(Windows(rows, one_segment, 24)[0]["token_type_ids"]) == {0}


SPANS = np.array([[-1, -1], [-1, -1], [0, 1], [2, 3], [4, 5], [-1, -1]])


def test_the_best_span_ends_after_it_starts_and_lies_in_the_context():
    starts, ends = np.array([9.0, 8, 0, 1, 5, 7]), np.array([9.0, 8, 4, 2.5, 1, 7])
    best = list(best_spans(starts, ends, SPANS))
    # By hand: starts 0, 1, 5 and ends 4, 2.5, 1 of the three tokens; those that end before they start are out.
    assert [(-span.cost, span.first, span.last) for span in best] == [
        (6, 4, 5),
        (4, 0, 1),
        (3.5, 2, 3),
        (2.5, 0, 3),
        (2, 2, 5),
        (1, 0, 5),
    ]


def test_spans_are_all_that_there_are(encoder):
    """Against trying every pair."""
    generator = np.random.default_rng(0)
    tokens = 60
    spans = np.stack([2 * np.arange(tokens), 2 * np.arange(tokens) + 1], 1)
    spans[:4] = -1
    for _ in range(5):
        starts, ends = generator.normal(size=(2, tokens))
        starts[10], ends[10 + LONGEST_ANSWER] = 9, 9  # the best ones, but one token too far apart
        pairs = [
            (starts[i] + ends[j], spans[i, 0], spans[j, 1])
            for i in range(4, tokens)
            for j in range(i, min(tokens, i + LONGEST_ANSWER))
        ]
        found = list(best_spans(starts, ends, spans))
        assert len(found) == N_BEST
        best = max(pairs)
        assert (-found[0].cost, found[0].first, found[0].last) == pytest.approx(best)
        assert [-span.cost for span in found] == sorted((-span.cost for span in found), reverse=True)


def test_windows_of_a_question_come_together_in_any_order():
    context = "a b c"
    first = (np.array([3.0, 0, 0, 1, 0, 0]), np.array([2.0, 0, 0, 1, 0, 0]), SPANS)
    second = (np.array([1.0, 0, 0, 0.5, 2, 0]), np.array([0.5, 0, 0, 0, 3, 0]), SPANS)
    found = []
    for order in ((first, second), (second, first)):
        candidates = Candidates()
        for window in order:
            candidates.add(*window)
        found.append((candidates.texts(context), candidates.null, candidates.no_answer()))
    assert found[0] == found[1]
    assert found[0][0][:2] == ["c", "b c"] and len(set(found[0][0])) == len(found[0][0])
    assert found[0][1] == 1.5  # the lowest of the two
    assert found[0][2] == pytest.approx(1 / (1 + np.exp(5 - 1.5)))


def test_a_question_without_any_span_has_no_answer():
    candidates = Candidates()
    candidates.add(np.zeros(2), np.zeros(2), np.full((2, 2), -1))
    assert candidates.texts("x") == [] and candidates.no_answer() == 1.0
    far = Candidates()
    far.add(np.array([-2e3, 1e3]), np.array([-2e3, 1e3]), np.array([[-1, -1], [0, 1]]))
    assert 0 <= far.no_answer() < 1e-300
