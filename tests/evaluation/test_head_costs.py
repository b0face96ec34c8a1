"""What pairs of heads are chosen by: the Jensen-Shannon divergence of every head with every other, in one go."""

import torch
from scipy.optimize import linear_sum_assignment

from pipeline.evaluation.attention.divergences import FLOOR, divergences
from pipeline.evaluation.attention.matching import head_costs


def draw(heads: int, seed: int) -> torch.Tensor:
    """Sharp attention, some of it at the least probability that there is."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, heads, 12, 12, dtype=torch.float64, generator=generator)
    return torch.softmax(30 * scores, -1).clamp_min(FLOOR)


def test_the_costs_are_the_divergences_of_all_pairs():
    teacher, student = draw(6, 0), draw(4, 1)
    expected = torch.stack([divergences(head[:, None], student)[0].sum(0) for head in teacher.unbind(1)])
    costs = head_costs(teacher, student)
    assert costs.shape == (6, 4) and costs.dtype == torch.float64
    torch.testing.assert_close(costs, expected, rtol=1e-12, atol=1e-12)
    assert head_costs(teacher, teacher).diagonal().abs().max() == 0.0


def test_fp32_chooses_the_same_pairs():
    teacher, student = draw(6, 0), draw(4, 1)
    exact, fast = head_costs(teacher, student), head_costs(teacher.float(), student.float())
    torch.testing.assert_close(fast.double(), exact, rtol=1e-5, atol=1e-5)
    assert [side.tolist() for side in linear_sum_assignment(exact)] == [
        side.tolist() for side in linear_sum_assignment(fast)
    ]
