"""Which type sums are made in."""

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 for half precisions, the type itself otherwise."""
    return torch.promote_types(dtype, torch.float32)
