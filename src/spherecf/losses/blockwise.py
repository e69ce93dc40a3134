"""Margin softmax over many identities, block by block, so that the logits are never stored as a whole."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from spherecf.common.arrays import triton_runs_on, widen

if TYPE_CHECKING:
    from spherecf.losses.margins import Margin

# Bytes of a block's logits: large enough to occupy a GPU; on a CPU, small enough for the cache to help.
_BLOCK_BYTES = {"cpu": 16 * 2**20, "cuda": 128 * 2**20}
_MIN_NORM = 1e-12  # of a prototype, as in torch's `normalize`

Exchange = Callable[[Tensor], Tensor]
"""An all-reduce over ranks, in place, of one number per sample."""


class BlockwiseLosses(NamedTuple):
    """Losses, and cosines to the true prototypes, of n samples."""

    losses: Tensor
    """(n,)."""
    cosine: Tensor
    """(n,), without margin and without gradient."""


def rows_per_block(samples: int, dim: int, device: torch.device) -> int:
    """The number of identities per block. With no more than that, all logits can just as well be stored."""
    # Neither a block's logits (samples, rows) nor the gradient of its rows (rows, dim) exceeds the size.
    size = _BLOCK_BYTES.get(device.type, _BLOCK_BYTES["cuda"])
    rows = size // (4 * max(1, samples, dim))
    return max(1, rows if rows < 64 else rows - rows % 64)  # a multiple of 64 aligns the rows in memory


def _identity(values: Tensor) -> Tensor:
    """The all-reduce of a single process."""
    return values


def blockwise_losses(
    embedding: Float[Tensor, "n dim"],
    prototypes: Float[Tensor, "identities dim"],
    columns: Int[Tensor, " n"],
    margin: "Margin",
    products: torch.dtype | None = None,
    sum_: Exchange = _identity,
    max_: Exchange = _identity,
) -> BlockwiseLosses:
    """The losses of `margin_softmax_loss` in the memory of one block of identities, exact for every margin.

        L_i = log(e^(s T_i) + sum_{j != y} e^(s N(cos_ij))) - s T_i + penalty(|x_i|)

    The sum over the other identities is a running log-sum-exp per sample (M. Milakov, N. Gimelshein,
    arXiv:1805.02867), in float32, or in float64 for float64 arguments. The backward pass recomputes each
    block's cosines and writes the gradient of its rows. Apart from that gradient, no tensor is as large as
    ``prototypes``: products with the raw rows are divided by their norms, so normalised rows are never
    stored. The cosine to the true prototype is computed first, in full precision, because running statistics
    and some margins depend on it.

    The identities may be sharded over ranks. Each rank then has all samples and its shard of the prototypes.
    It returns all losses, and the gradients of its shard.

    No operation waits for the device. The result can be differentiated once and cannot be traced by
    torch.compile. On CUDA, for margins that change only the logit of the true class, one Triton kernel in
    each direction does the elementwise work on a block.

    Args:
        embedding: raw outputs of the backbone (n, dim).
        prototypes: raw rows of the classifier on this rank (identities, dim).
        columns: row of each sample's true prototype (n,), -1 if it is on another rank.
        margin: an instance of one of `MARGINS`. In training mode its running statistics are updated first.
        products: torch.bfloat16 rounds the factors of all products over identities, which are summed in
            float32. None: the type of the embedding.
        sum_, max_: all-reduce over ranks, in place, of one number per sample.

    Example:
        >>> from spherecf.losses import ArcFace
        >>> embedding, prototypes = torch.tensor([[3.0, 4.0]]), torch.eye(2)
        >>> blockwise_losses(embedding, prototypes, torch.tensor([1]), ArcFace(margin=0.5, scale=8)).losses
        tensor([1.6889])
    """
    embedding = widen(embedding)
    unit, norm = normalize(embedding), torch.linalg.vector_norm(embedding, dim=1)  # (n, dim), (n,)
    with torch.no_grad():
        cosine = sum_(_local_target_cosine(unit, prototypes, columns))  # (n,)
        if margin.training:
            margin.update(cosine, norm)
    target_cosine, others_term = _OthersTerm.apply(  # type: ignore[no-untyped-call]
        unit, prototypes, columns, cosine, margin, products or unit.dtype, *margin.parameters()
    )  # (n,), (n,)
    is_local = columns >= 0  # (n,)

    def local_gradient(values: Tensor) -> Tensor:
        """``values`` with a gradient only on the rank that has the sample's true prototype."""
        return torch.where(is_local, values, values.detach())

    def sum_over_ranks(values: Tensor) -> Tensor:
        """The sum over ranks, with the gradient of this rank's term."""
        return sum_(values.detach().clone()) + (values - values.detach())

    if margin.binary:
        losses = sum_over_ranks(others_term) + local_gradient(margin.positive(target_cosine, norm))
    else:
        target = local_gradient(margin.scale * margin.target(target_cosine, norm))  # (n,)
        max_logit = max_(torch.maximum(others_term, target).detach())  # (n,), so that exp does not overflow
        others = sum_over_ranks(torch.exp(others_term - max_logit))  # (n,)
        # If the target is the largest logit, the loss may be tiny: log1p keeps its digits.
        losses = torch.log1p(others + torch.expm1(target - max_logit)) + (max_logit - target)
    return BlockwiseLosses(losses + local_gradient(margin.penalty(norm)), cosine)


def _local_target_cosine(unit: Tensor, prototypes: Tensor, columns: Tensor) -> Tensor:
    """Cosine of each sample to its true prototype (n,), 0 if that is on another rank."""
    if not len(prototypes):  # with sampled classes, a rank may have none in a step
        return unit.new_zeros(len(unit))
    rows = normalize(prototypes[columns.clamp(min=0)].to(unit))  # (n, dim)
    return torch.where(columns >= 0, (unit * rows).sum(1), 0.0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; bfloat16 factors give float32, which holds the product of two such numbers exactly."""
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype != torch.bfloat16:
            return a @ b
        if a.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):  # torch 2.8 and later
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()


class _Block(NamedTuple):
    """Some consecutive prototypes."""

    position: slice
    """Where they are among all prototypes."""
    rows: Tensor
    """(b, dim), raw."""
    inverse_norm: Tensor
    """(b,) 1 / norm of each row."""
    column: Tensor
    """(n,) row of each sample's true prototype in this block, or -1."""


def _blocks(prototypes: Tensor, inverse_norms: Tensor, columns: Tensor) -> Iterator[_Block]:
    step = rows_per_block(len(columns), prototypes.shape[1], prototypes.device)
    for start in range(0, len(prototypes), step):
        position = slice(start, min(start + step, len(prototypes)))
        inside = (columns >= position.start) & (columns < position.stop)
        column = torch.where(inside, columns - start, -1)
        yield _Block(position, prototypes.detach()[position], inverse_norms[position], column)


class _OthersTerm(torch.autograd.Function):
    """(target cosine, log-sum-exp of the scaled logits of the other classes), (n,) each.

    For a binary margin the second is the sum of the losses of the other classes. The target cosine is
    returned as it was passed in, so that its gradient arrives in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        unit: Tensor,
        prototypes: Tensor,
        columns: Tensor,
        cosine: Tensor,
        margin: "Margin",
        products: torch.dtype,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        inverse_norms = unit.new_empty(len(prototypes))  # (identities,)
        initial = torch.full_like(cosine, 0.0 if margin.binary else -torch.inf)  # (n,), the empty sum
        ops = _make_ops(margin, products, cosine, initial)
        factor = unit.to(products)
        for block in _blocks(prototypes, inverse_norms, columns):
            torch.linalg.vector_norm(block.rows, dim=1, dtype=unit.dtype, out=block.inverse_norm)
            block.inverse_norm.clamp_(min=_MIN_NORM).reciprocal_()
            ops.add(block, _product(factor, block.rows.to(products).T))
        ctx.save_for_backward(unit, prototypes, columns, cosine, inverse_norms, ops.others_term)
        ctx.margin, ctx.products = margin, products
        return cosine.clone(), ops.others_term

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, target_grad: Tensor, others_grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, prototypes, columns, cosine, inverse_norms, others_term = ctx.saved_tensors
        unit_grad, prototypes_grad = torch.zeros_like(unit), torch.empty_like(prototypes)
        ops = _make_ops(ctx.margin, ctx.products, cosine, others_term)
        factor = unit.to(ctx.products)

        def differentiate(block: _Block) -> None:  # a function: its buffers are freed before the next block's
            rows = block.rows.to(ctx.products)  # (b, dim)
            slope, radial = ops.slopes(block, _product(factor, rows.T), target_grad, others_grad)
            unit_grad.add_(_product(slope, rows))
            # The loss does not depend on a row's norm: subtract the gradient's component along the row.
            grad, out = _product(slope.T, factor), prototypes_grad[block.position]  # (b, dim)
            torch.addcmul(grad, block.rows, radial[:, None], value=-1, out=out)

        for block in _blocks(prototypes, inverse_norms, columns):
            differentiate(block)
        return unit_grad, prototypes_grad, None, None, None, None, *ops.parameter_grads


class _ElementwiseOps:
    """The elementwise operations on a block, for every margin and device.

    ``cosine`` (n,) are the cosines to the true prototypes. ``others_term`` (n,) is the second result of
    `_OthersTerm`: accumulated block by block in the forward pass, complete in the backward pass.
    """

    def __init__(self, margin: "Margin", products: torch.dtype, cosine: Tensor, others_term: Tensor) -> None:
        self.margin, self.products, self.cosine, self.others_term = margin, products, cosine, others_term
        self.parameter_grads = [torch.zeros_like(parameter) for parameter in margin.parameters()]

    def add(self, block: _Block, product: Tensor) -> None:
        """Add a block to ``others_term``; ``product`` (n, b), unit embeddings by raw rows, is overwritten."""
        values = self._values(product.mul_(block.inverse_norm))  # (n, b)
        if self.margin.binary:
            self.others_term += _fill_targets(values, block, 0.0).sum(1)
        else:
            logits = _fill_targets(values.mul_(self.margin.scale), block, -torch.inf)
            torch.logaddexp(self.others_term, torch.logsumexp(logits, 1), out=self.others_term)

    def slopes(
        self, block: _Block, product: Tensor, target_grad: Tensor, others_grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient d loss / d product (n, b), and the radial part of that of the rows (b,).

        The gradient of row j has the component radial_j w_j along the row, with
        radial_j = sum_i (d loss / d product_ij) cos_ij / |w_j|.
        """
        cosines = product.mul_(block.inverse_norm).requires_grad_()  # (n, b)
        with torch.enable_grad():
            values = self._values(cosines)  # (n, b)
        if self.margin.binary:
            slope = others_grad[:, None].repeat(1, len(block.rows))
        else:
            scale = self.margin.scale
            slope = (values.detach() * scale).sub_(self.others_term[:, None]).exp_()  # softmax weights
            slope.mul_(scale * others_grad[:, None])
        if values is not cosines:
            inputs = (cosines, *self.margin.parameters())
            _fill_targets(slope, block, 0.0)
            slope, *parameter_grads = torch.autograd.grad(values, inputs, slope, allow_unused=True)
            for total, grad in zip(self.parameter_grads, parameter_grads):
                total += 0.0 if grad is None else grad
        slope = _fill_targets(slope, block, target_grad).mul_(block.inverse_norm)
        radial = (slope * cosines.detach()).sum(0).mul_(block.inverse_norm)
        return slope.to(self.products), radial

    def _values(self, cosines: Tensor) -> Tensor:
        if self.margin.binary:
            return self.margin.negative(cosines)
        return self.margin.others(cosines, self.cosine)


def _fill_targets(values: Tensor, block: _Block, target: Tensor | float) -> Tensor:
    """``values`` (n, b) with ``target`` at each sample's true prototype, in place."""
    column = block.column.clamp(min=0)[:, None]  # (n, 1)
    target = target[:, None] if isinstance(target, Tensor) else target
    is_here = block.column[:, None] >= 0  # (n, 1)
    return values.scatter_(1, column, torch.where(is_here, target, values.gather(1, column)))


class _KernelOps(_ElementwiseOps):
    """The same in Triton kernels, for a softmax whose other logits are scaled cosines, in float32."""

    def add(self, block: _Block, product: Tensor) -> None:
        self._kernels.add(product, block.inverse_norm, block.column, self.others_term, self.margin.scale)

    def slopes(
        self, block: _Block, product: Tensor, target_grad: Tensor, others_grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        grads: tuple[Tensor, Tensor] = self._kernels.slopes(
            product, block.inverse_norm, block.column, self.others_term,
            (target_grad, others_grad), self.margin.scale, self.products,
        )  # fmt: skip
        return grads

    @property
    def _kernels(self) -> Any:
        return _kernels(self.cosine.device)


def _make_ops(
    margin: "Margin", products: torch.dtype, cosine: Tensor, others_term: Tensor
) -> _ElementwiseOps:
    """Triton kernels if they support the margin, the type and the device."""
    supported = margin.others_are_cosines and not margin.binary and cosine.dtype == torch.float32
    ops_class = _KernelOps if supported and _kernels(cosine.device) else _ElementwiseOps
    return ops_class(margin, products, cosine, others_term)


def _kernels(device: torch.device) -> ModuleType | None:
    """`blockwise_kernels` if Triton can compile it for the device, else None."""
    if not triton_runs_on(device, (8, 0)):
        return None
    from spherecf.losses import blockwise_kernels

    return blockwise_kernels
