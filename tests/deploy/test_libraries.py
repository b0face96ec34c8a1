"""Students in the libraries that services use: transformers' pipelines, sentence-transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from pipeline.engine.student import write_student
from tests.deploy.conftest import TEACHER, make_classifier
from tests.support.models import random_teacher
from tests.support.runs import make_shards, vocabulary_of

TEXTS = ["the quick brown fox", "seven rivers run to an old sea while a dog jumps"]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """What pipeline/fold.py writes, of a random model."""
    folder = tmp_path_factory.mktemp("fold")
    shards = make_shards(folder / "shards")
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    origin = {"method": "wid", "step": 1, "tokens": 1, "trained_seq_len": 16}
    write_student(random_teacher(vocab=vocabulary_of(shards)), tokenizer, origin, folder / "student")
    return folder / "student"


@pytest.mark.parametrize("kind", ["student", "shipped"])
def test_fill_mask(request, kind):
    model = TEACHER if kind == "shipped" else request.getfixturevalue("student")
    fill = pipeline("fill-mask", model=str(model), device="cpu")
    found = fill(f"the {fill.tokenizer.mask_token} of the city")
    assert len(found) == 5 and all(0 < answer["score"] < 1 for answer in found)
    assert found[0]["score"] == max(answer["score"] for answer in found)
    if kind == "shipped":
        assert {"rest", "centre", "center", "city", "end", "population", "name", "part"} & {
            answer["token_str"] for answer in found
        }, found


def test_a_student_starts_a_classifier_and_a_kept_one_answers(student, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(student, num_labels=3).eval()
    inputs = AutoTokenizer.from_pretrained(student)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).logits.shape == (2, 3)
    classify = pipeline("text-classification", model=str(make_classifier(tmp_path / "kept", 2)), device="cpu")
    answers = classify(["w1 w2", "w5 w3 w7"])
    assert {answer["label"] for answer in answers} <= {"negative", "positive"}


@pytest.mark.filterwarnings("ignore")
def test_sentence_transformers(student):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(student), device="cpu")  # a BERT without its settings: the mean over the tokens
    found = model.encode(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(student)
    bert = AutoModelForSequenceClassification.from_pretrained(student).bert.eval()
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            hidden = bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert vector.shape == (24,) and np.abs(vector - hidden.mean(0).numpy()).max() < 1e-5
