"""Margin softmax over many identities: block by block, the logits are never stored whole."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from spherecf.common.arrays import triton_runs_on
from spherecf.losses.margin_functions import widen

if TYPE_CHECKING:
    from spherecf.losses.margins import Margin

# Bytes of a block's logits. Products of small blocks do not fill a GPU; a CPU's cache holds part of them.
_BLOCK_BYTES = {"cpu": 16 * 2**20, "cuda": 128 * 2**20}
_MIN_LENGTH = 1e-12  # of a row, as in torch's `normalize`

Exchange = Callable[[Tensor], Tensor]


class BlockwiseLosses(NamedTuple):
    """``losses`` (n,), and the cosines to the own prototypes, without margin and gradient (n,)."""

    losses: Tensor
    cosine: Tensor


def rows_per_block(samples: int, dim: int, device: torch.device) -> int:
    """Identities of a block. With that many the logits (samples, identities) may as well be stored."""
    # The gradient of a block's rows (rows, dim) must not be larger than its logits (samples, rows) may be.
    size = _BLOCK_BYTES.get(device.type, _BLOCK_BYTES["cuda"])
    rows = size // (4 * max(1, samples, dim))
    return max(1, rows if rows < 64 else rows - rows % 64)  # lines of memory on whole boundaries


def _alone(statistic: Tensor) -> Tensor:
    return statistic


def blockwise_losses(
    embedding: Float[Tensor, "n dim"],
    prototypes: Float[Tensor, "identities dim"],
    columns: Int[Tensor, " n"],
    margin: "Margin",
    products: torch.dtype | None = None,
    sum_: Exchange = _alone,
    max_: Exchange = _alone,
) -> BlockwiseLosses:
    """The losses of `margin_softmax_loss` in the memory of one block of identities, exact for every margin.

        L_i = log(e^(s T_i) + sum_{j != y} e^(s N(cos_ij))) - s T_i + penalty(|x_i|)

    The sum over the others is a running log-sum-exp per sample (M. Milakov, N. Gimelshein, arXiv:1805.02867),
    in float32, or float64 of float64 arguments. The backward pass computes each block's cosines again and
    writes the gradient of its rows. Beside that gradient nothing is as large as ``prototypes``: products are
    divided by the rows' lengths, so there are no unit rows. The cosine to the own prototype comes first, in
    full precision, as statistics and some margins treat the others by it.

    The identities may be divided over ranks. Each then has all samples and its part of the prototypes, and
    gets all losses, but of their gradients its own share.

    Nothing here waits for the device. The result can be differentiated once, and not be traced by
    torch.compile. On CUDA, for margins that change the true class only, a block's elementwise work is one
    Triton kernel each way.

    Args:
        embedding: raw (n, dim).
        prototypes: raw rows (identities, dim), of this rank.
        columns: row of each sample's own prototype (n,), -1 where another rank has it.
        margin: one of `MARGINS`; its running statistics are renewed first if it is in training mode.
        products: torch.bfloat16 rounds the factors of all products over identities, which are summed in
            float32. None: the type of the embedding.
        sum_, max_: over ranks, in place, of one number per sample.

    Example:
        >>> from spherecf.losses import ArcFace
        >>> embedding, prototypes = torch.tensor([[3.0, 4.0]]), torch.eye(2)
        >>> blockwise_losses(embedding, prototypes, torch.tensor([1]), ArcFace(margin=0.5, scale=8)).losses
        tensor([1.6889])
    """
    embedding = widen(embedding)
    unit, norm = normalize(embedding), torch.linalg.vector_norm(embedding, dim=1)  # (n, dim), (n,)
    with torch.no_grad():
        cosine = sum_(_own_cosine(unit, prototypes, columns))  # (n,)
        if margin.training:
            margin.update(cosine, norm)
    own_cosine, rivals = _Rivals.apply(  # type: ignore[no-untyped-call]
        unit, prototypes, columns, cosine, margin, products or unit.dtype, *margin.parameters()
    )  # (n,), (n,)
    own = columns >= 0  # (n,)

    def here(values: Tensor) -> Tensor:
        """The same values; their gradient is left to the rank that has the sample's own prototype."""
        return torch.where(own, values, values.detach())

    def over_ranks(values: Tensor) -> Tensor:
        """The sum over ranks, with the gradient of this rank's part."""
        return sum_(values.detach().clone()) + (values - values.detach())

    if margin.binary:
        losses = over_ranks(rivals) + here(margin.positive(own_cosine, norm))
    else:
        target = here(margin.scale * margin.target(own_cosine, norm))  # (n,)
        largest = max_(torch.maximum(rivals, target).detach())  # (n,), so that exp does not overflow
        others = over_ranks(torch.exp(rivals - largest))  # (n,)
        # Where the target is the largest logit the loss may be tiny: log1p keeps its digits.
        losses = torch.log1p(others + torch.expm1(target - largest)) + (largest - target)
    return BlockwiseLosses(losses + here(margin.penalty(norm)), cosine)


def _own_cosine(unit: Tensor, prototypes: Tensor, columns: Tensor) -> Tensor:
    """Cosine of each sample to its own prototype (n,), 0 where that is not here."""
    if not len(prototypes):  # a rank may have sampled no class
        return unit.new_zeros(len(unit))
    rows = normalize(prototypes[columns.clamp(min=0)].to(unit))  # (n, dim)
    return torch.where(columns >= 0, (unit * rows).sum(1), 0.0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; of bfloat16 in float32, which holds the product of two such numbers exactly."""
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype != torch.bfloat16:
            return a @ b
        if a.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):  # torch 2.8 and later
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()


class _Block(NamedTuple):
    """``part`` of the prototypes: rows (b, dim), 1 / length of each (b,), column of each sample or -1."""

    part: slice
    rows: Tensor
    inverse: Tensor
    column: Tensor


def _blocks(prototypes: Tensor, inverse: Tensor, columns: Tensor) -> Iterator[_Block]:
    step = rows_per_block(len(columns), prototypes.shape[1], prototypes.device)
    for start in range(0, len(prototypes), step):
        part = slice(start, min(start + step, len(prototypes)))
        inside = (columns >= part.start) & (columns < part.stop)
        column = torch.where(inside, columns - start, -1)
        yield _Block(part, prototypes.detach()[part], inverse[part], column)


class _Rivals(torch.autograd.Function):
    """(own cosine, log-sum-exp of the others' scaled logits), of a binary margin the sum of their losses.

    The own cosine is the one that came in; here it gets its gradient.
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
        inverse = unit.new_empty(len(prototypes))  # (identities,)
        work = _work(margin, products, cosine, torch.full_like(cosine, 0.0 if margin.binary else -torch.inf))
        factor = unit.to(products)
        for block in _blocks(prototypes, inverse, columns):
            torch.linalg.vector_norm(block.rows, dim=1, dtype=unit.dtype, out=block.inverse)
            block.inverse.clamp_(min=_MIN_LENGTH).reciprocal_()
            work.add(block, _product(factor, block.rows.to(products).T))
        ctx.save_for_backward(unit, prototypes, columns, cosine, inverse, work.rivals)
        ctx.margin, ctx.products = margin, products
        return cosine.clone(), work.rivals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, own_grad: Tensor, rivals_grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, prototypes, columns, cosine, inverse, rivals = ctx.saved_tensors
        unit_grad, prototypes_grad = torch.zeros_like(unit), torch.empty_like(prototypes)
        work = _work(ctx.margin, ctx.products, cosine, rivals)
        factor = unit.to(ctx.products)

        def differentiate(block: _Block) -> None:  # a function: its buffers are freed before the next block's
            rows = block.rows.to(ctx.products)  # (b, dim)
            slope, along = work.slopes(block, _product(factor, rows.T), own_grad, rivals_grad)
            unit_grad.add_(_product(slope, rows))
            # A length has no gradient: from that of the rows their own direction is taken out.
            grad, out = _product(slope.T, factor), prototypes_grad[block.part]  # (b, dim)
            torch.addcmul(grad, block.rows, along[:, None], value=-1, out=out)

        for block in _blocks(prototypes, inverse, columns):
            differentiate(block)
        return unit_grad, prototypes_grad, None, None, None, None, *work.parameter_grads


class _Work:
    """The elementwise work on a block, for every margin and device.

    ``cosine``: to the own prototypes (n,). ``rivals``: what `_Rivals` gives (n,), so far or in the end.
    """

    def __init__(self, margin: "Margin", products: torch.dtype, cosine: Tensor, rivals: Tensor) -> None:
        self.margin, self.products, self.cosine, self.rivals = margin, products, cosine, rivals
        self.parameter_grads = [torch.zeros_like(parameter) for parameter in margin.parameters()]

    def add(self, block: _Block, product: Tensor) -> None:
        """Add a block to ``rivals``; its products (n, b), unit by raw rows, are overwritten."""
        values = self._values(product.mul_(block.inverse))  # (n, b)
        if self.margin.binary:
            self.rivals += _fill(values, block, 0.0).sum(1)
        else:
            logits = _fill(values.mul_(self.margin.scale), block, -torch.inf)
            torch.logaddexp(self.rivals, torch.logsumexp(logits, 1), out=self.rivals)

    def slopes(
        self, block: _Block, product: Tensor, own_grad: Tensor, rivals_grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """d loss / d product (n, b), and for each row its sum along the cosines, over the length (b,)."""
        cosines = product.mul_(block.inverse).requires_grad_()  # (n, b)
        with torch.enable_grad():
            values = self._values(cosines)  # (n, b)
        if self.margin.binary:
            slope = rivals_grad[:, None].repeat(1, len(block.rows))
        else:
            scale = self.margin.scale
            slope = (values.detach() * scale).sub_(self.rivals[:, None]).exp_()
            slope.mul_(scale * rivals_grad[:, None])
        if values is not cosines:
            inputs = (cosines, *self.margin.parameters())
            _fill(slope, block, 0.0)
            slope, *found = torch.autograd.grad(values, inputs, slope, allow_unused=True)
            for total, part in zip(self.parameter_grads, found):
                total += 0.0 if part is None else part
        slope = _fill(slope, block, own_grad).mul_(block.inverse)
        along = (slope * cosines.detach()).sum(0).mul_(block.inverse)
        return slope.to(self.products), along

    def _values(self, cosines: Tensor) -> Tensor:
        if self.margin.binary:
            return self.margin.negative(cosines)
        return self.margin.others(cosines, self.cosine)


def _fill(values: Tensor, block: _Block, own: Tensor | float) -> Tensor:
    """``values`` (n, b) with ``own`` at each sample's own prototype, in place."""
    column = block.column.clamp(min=0)[:, None]  # (n, 1)
    own = own[:, None] if isinstance(own, Tensor) else own
    return values.scatter_(1, column, torch.where(block.column[:, None] >= 0, own, values.gather(1, column)))


class _KernelWork(_Work):
    """The same in Triton kernels, for a softmax whose other logits are scaled cosines, in float32."""

    def add(self, block: _Block, product: Tensor) -> None:
        self._kernels.add(product, block.inverse, block.column, self.rivals, self.margin.scale)

    def slopes(
        self, block: _Block, product: Tensor, own_grad: Tensor, rivals_grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        grads: tuple[Tensor, Tensor] = self._kernels.slopes(
            product, block.inverse, block.column, self.rivals,
            (own_grad, rivals_grad), self.margin.scale, self.products,
        )  # fmt: skip
        return grads

    @property
    def _kernels(self) -> Any:
        return _kernels(self.cosine.device)


def _work(margin: "Margin", products: torch.dtype, cosine: Tensor, rivals: Tensor) -> _Work:
    plain = margin.others_are_cosines and not margin.binary and cosine.dtype == torch.float32
    kind = _KernelWork if plain and _kernels(cosine.device) else _Work
    return kind(margin, products, cosine, rivals)


def _kernels(device: torch.device) -> ModuleType | None:
    """`blockwise_kernels` where Triton can compile it, or None."""
    if not triton_runs_on(device, (8, 0)):
        return None
    from spherecf.losses import blockwise_kernels

    return blockwise_kernels
