"""Counts against plain Python, PPMI factors against a full SVD, and what they know: which words go together."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from pipeline.data import cooccurrence
from pipeline.data.cooccurrence import TokenStatistics, count_tokens, ppmi_embeddings
from pipeline.data.open import open_shards
from pipeline.methods.scratch import start_from_counts
from pipeline.models.plain import PlainBert
from tests.support.shards import tiny_shards


@pytest.fixture(scope="module")
def statistics(tmp_path_factory) -> tuple[TokenStatistics, np.ndarray]:
    source, _ = open_shards(tiny_shards(tmp_path_factory.mktemp("counts") / "shards"), 16)
    return count_tokens(source), source.read(np.arange(source.windows))


def test_counts(statistics):
    counted, windows = statistics
    frequencies, near = Counter(), Counter()
    for window in windows[:, 1:-1].tolist():
        frequencies.update(window)
        for i, a in enumerate(window):
            for j in range(max(0, i - cooccurrence.NEIGHBOURS), min(len(window), i + cooccurrence.NEIGHBOURS + 1)):
                if i != j:
                    near[a, window[j]] += 1
    assert all(counted.frequencies[token] == 1 + frequencies[token] for token in range(len(counted.frequencies)))
    assert {(a, b): int(counted.near[a, b]) for a, b in zip(*counted.near.nonzero(), strict=True)} == near


def test_factors_are_those_of_the_ppmi_matrix(statistics):
    counted, _ = statistics
    near = counted.near.astype(np.float64)
    smoothed = np.maximum(near.sum(0), 1) ** 0.75
    smoothed *= near.sum() / smoothed.sum()
    expected = np.zeros_like(near)
    for a, b in np.ndindex(near.shape):
        ratio = near[a, b] * near.sum() / (max(near[a].sum(), 1) * smoothed[b])
        expected[a, b] = max(0.0, math.log(ratio)) if ratio > 0 else 0.0
    left, values, _ = np.linalg.svd(expected)
    wanted = left[:, :8] * np.sqrt(values[:8])
    wanted *= 0.02 / wanted.std(ddof=1)
    got = ppmi_embeddings(counted, 8).double().numpy()
    np.testing.assert_allclose(got @ got.T, wanted @ wanted.T, atol=2e-5)


def test_words_of_one_topic_lie_close():
    near = np.zeros((12, 12), dtype=np.float32)
    near[:6, :6] = near[6:, 6:] = 20
    near += 1
    embeddings = ppmi_embeddings(TokenStatistics(near.sum(1).astype(np.float64), near), 2)
    cosine = torch.nn.functional.cosine_similarity(embeddings[:, None], embeddings[None], dim=-1)
    assert float(cosine[:6, :6].min()) > 0.9 and float(cosine[:6, 6:].max()) < 0.5


def test_a_decoder_starts_from_the_frequencies(statistics):
    counted, _ = statistics
    config = BertConfig(vocab_size=len(counted.frequencies), hidden_size=12, num_attention_heads=2, num_hidden_layers=1)
    module = PlainBert(BertForMaskedLM(config))
    start_from_counts(module, counted)
    bert = module.bert()
    bias = bert.cls.predictions.decoder.bias.detach()
    torch.testing.assert_close(bias.exp().sum(), torch.tensor(1.0), rtol=1e-4, atol=0)
    word = bert.bert.embeddings.word_embeddings.weight
    assert word is bert.cls.predictions.decoder.weight
    assert float(word.detach().std()) == pytest.approx(0.02, rel=1e-4)
