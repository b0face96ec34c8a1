"""Weights and compactors multiplied: all layers of a stack at once.

A compactor is stored as identity + delta, and only ever multiplied with the weight, never with activations:
the composition costs a constant per step, and attention and FFN kernels see a plain BERT.

Written as weight + changes: in bf16 every product is rounded relative to the change, not to the weight, and the sum is
rounded once. In fp32 identity + delta is one matrix: nothing is gathered from large weights, at the price of keeping
these matrices until the backward pass. (TF32, which nothing here turns on, would round the weight.) Indices say which
dimensions are left once a group is narrowed, for each layer of the stack its own.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline.cost import composes_rows_first
from pipeline.models.precision import accumulation_dtype


def select(stack: Tensor, index: Tensor | None, dim: int) -> Tensor:
    """Of each layer n of a stack the entries `index[n]` of its dimension `dim`, 1 or 2; all of them for None.

    Args:
        stack: (n, size) or (n, rows, columns).
        index: (n, kept).
        dim: counted with the layers as dimension 0.
    """
    if index is None:
        return stack
    if stack.ndim == 2:
        return stack.gather(1, index)
    rows, columns = stack.shape[1:]
    wanted = index[:, :, None].expand(-1, -1, columns) if dim == 1 else index[:, None, :].expand(-1, rows, -1)
    return stack.gather(dim, wanted)


def compose(
    weight: Tensor,
    row_delta: Tensor,
    column_delta: Tensor,
    kept_in: Tensor | None = None,
    kept_out: Tensor | None = None,
) -> Tensor:
    """(I + column_delta) @ weight @ (I + row_delta) of n layers, rounded once.

    That is (n, out, in), or (n, kept out, kept in) once the groups are narrowed, when I has only the kept rows on the
    left and the kept columns on the right. Of the two orders of the products the one with fewer multiply-accumulates
    is taken; after narrowing, the row compactor first halves the price of FFN-in.

    Args:
        weight: (n, out, in), or with matrices below one another: (n / m, m out, in). It is kept for the backward pass
            as it is handed in: of a parameter, ZeRO-3 takes the memory away meanwhile.
        row_delta: (n, in, kept in), of the row compactors L on the input side.
        column_delta: (n, kept out, out), of the column compactors R on the output side.
        kept_in: (n, kept in), None for everything.
        kept_out: (n, kept out), likewise.
    """
    composed: Tensor
    if _adds_identity(weight.dtype):
        rows, columns = _with_identity(row_delta, kept_in, 1), _with_identity(column_delta, kept_out, 2)
        composed = _Product.apply(weight, rows, columns)
    else:
        composed = _Changes.apply(weight, row_delta, column_delta, kept_in, kept_out)
    return composed


def compose_bias(bias: Tensor, column_delta: Tensor, kept_out: Tensor | None = None) -> Tensor:
    """(I + column_delta) @ bias of n layers: (n, out), (n, kept out, out) -> (n, kept out)."""
    wide = accumulation_dtype(bias.dtype)
    change = torch.bmm(column_delta, bias[:, :, None]).squeeze(2)
    return (select(bias, kept_out, 1).to(wide) + change).to(bias.dtype)


def compose_tables(tables: Tensor, column_delta: Tensor, kept: Tensor | None = None) -> Tensor:
    """tables @ (I + column_delta).T: (rows, hidden), (kept, hidden) -> (rows, kept).

    Args:
        tables: the embedding tables below one another.
        column_delta: of their one column compactor.
        kept: (kept,), None for everything.
    """
    index = None if kept is None else kept[None]
    if _adds_identity(tables.dtype):
        return tables @ _with_identity(column_delta[None], index, 2)[0].T
    composed: Tensor = _TableChanges.apply(tables, column_delta, index)
    return composed


def _adds_identity(dtype: torch.dtype) -> bool:
    """Whether identity and delta become one matrix; float64, in which nothing is trained, keeps the general way."""
    return dtype == torch.float32


def _with_identity(delta: Tensor, kept: Tensor | None, dim: int) -> Tensor:
    """I + delta of n layers (n, rows, columns), 1 at `kept` (n, other dimension) along `dim`."""
    if kept is None:
        return delta + torch.eye(delta.shape[1], dtype=delta.dtype, device=delta.device)
    ones = torch.ones((), dtype=delta.dtype, device=delta.device).expand_as(kept)
    return delta.scatter_add(dim, kept.unsqueeze(dim), ones.unsqueeze(dim))


class _Product(torch.autograd.Function):
    """columns @ weight @ rows. Autograd would keep a view of the weight, whose memory ZeRO-3 takes away."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        given, weight = weight, weight.view(len(rows), -1, weight.shape[-1])
        ctx.rows_first = composes_rows_first(weight.shape[1:], (columns.shape[1], rows.shape[2]))
        middle = weight @ rows if ctx.rows_first else columns @ weight
        ctx.save_for_backward(given, rows, columns, middle)
        return columns @ middle if ctx.rows_first else middle @ rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        given, rows, columns, middle = ctx.saved_tensors
        gradient, weight = gradients[0], given.view(len(rows), -1, given.shape[-1])
        if ctx.rows_first:
            back = columns.mT @ gradient
            by_weight, by_rows, by_columns = back @ rows.mT, weight.mT @ back, gradient @ middle.mT
        else:
            back = gradient @ rows.mT
            by_weight, by_rows, by_columns = columns.mT @ back, middle.mT @ gradient, back @ weight.mT
        return by_weight.view(given.shape), by_rows, by_columns


class _Changes(torch.autograd.Function):
    """Four batched products each way. Autograd would take twice the launches, and keep what can be made again."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        row_delta: Tensor,
        column_delta: Tensor,
        kept_in: Tensor | None,
        kept_out: Tensor | None,
    ) -> Tensor:
        given, weight = weight, weight.view(len(row_delta), -1, weight.shape[-1])
        rows_first = composes_rows_first(weight.shape[1:], (column_delta.shape[1], row_delta.shape[2]))
        if rows_first:
            left = select(weight, kept_in, 2)
            change = torch.bmm(weight, row_delta)
            middle = left + change
            last = torch.bmm(column_delta, middle)
            rest, dim = kept_out, 1
        else:
            left = select(weight, kept_out, 1)
            change = torch.bmm(column_delta, weight)
            middle = left + change
            last = torch.bmm(middle, row_delta)
            rest, dim = kept_in, 2
        total = select(left, rest, dim).to(accumulation_dtype(weight.dtype)) + select(change, rest, dim)
        composed = torch.add(total, last, out=torch.empty_like(last))
        ctx.rows_first, ctx.kept_in, ctx.kept_out = rows_first, kept_in, kept_out
        ctx.save_for_backward(given, row_delta, column_delta, middle)
        return composed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given, row_delta, column_delta, middle = ctx.saved_tensors
        gradient, weight = gradients[0], given.view(len(row_delta), -1, given.shape[-1])
        if ctx.rows_first:  # middle = W L
            back = _transposed_left(column_delta, gradient, ctx.kept_out)
            by_column, by_row = torch.bmm(gradient, middle.mT), torch.bmm(weight.mT, back)
            by_weight = _transposed_right(back, row_delta, ctx.kept_in)
        else:  # middle = R W
            back = _transposed_right(gradient, row_delta, ctx.kept_in)
            by_column, by_row = torch.bmm(back, weight.mT), torch.bmm(middle.mT, gradient)
            by_weight = _transposed_left(column_delta, back, ctx.kept_out)
        return by_weight.view(given.shape), by_row, by_column, None, None


class _TableChanges(torch.autograd.Function):
    """One product, and two back. Of narrowed tables autograd would make the whole gradient in three passes more."""

    @staticmethod
    def forward(ctx: Any, tables: Tensor, column_delta: Tensor, kept: Tensor | None) -> Tensor:
        ctx.save_for_backward(tables, column_delta, kept)
        return (tables @ column_delta.T).add_(select(tables[None], kept, 2)[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tables, column_delta, kept = ctx.saved_tensors
        by_tables = _transposed_right(gradients[0][None], column_delta.T[None], kept)[0]
        return by_tables, gradients[0].T @ tables, None


def _transposed_left(delta: Tensor, right: Tensor, kept: Tensor | None) -> Tensor:
    """(I[kept] + delta).T @ right: (n, kept, size), (n, kept, columns) -> (n, size, columns)."""
    if kept is None:
        return torch.baddbmm(right, delta.mT, right)
    return torch.bmm(delta.mT, right).scatter_add_(1, kept[:, :, None].expand_as(right), right)


def _transposed_right(left: Tensor, delta: Tensor, kept: Tensor | None) -> Tensor:
    """left @ (I[:, kept] + delta).T: (n, rows, kept), (n, size, kept) -> (n, rows, size)."""
    if kept is None:
        return torch.baddbmm(left, left, delta.mT)
    return torch.bmm(left, delta.mT).scatter_add_(2, kept[:, None, :].expand_as(left), left)
