"""The classifier of stage 1: one prototype per identity, sharded over ranks, with optional sampling."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.common.arrays import to_device
from spherecf.errors import InputError
from spherecf.losses import Margin, blockwise_losses, rows_per_block
from spherecf.training.config import OptimizerSettings
from spherecf.training.distributed import Ranks, gather_rows
from spherecf.training.optim import RowOptimizer, make_optimizer

_BLOCK = 1024  # prototypes per seed: a rank draws only its blocks, with values independent of the ranks


class MarginLoss(NamedTuple):
    """Loss of a batch, as scalars on the device.

    Attributes:
        backward: this rank's share of the loss.
        value: the loss over all ranks.
        cosine: mean cosine to the true class.
    """

    backward: Tensor
    value: Tensor
    cosine: Tensor


class ShardedClassifier:
    """Margin softmax over any number of identities; rank r updates the r-th share of the prototypes.

    Every rank gathers the batch's embeddings and computes their cosines to its prototypes. The softmax is
    normalised over ranks with a maximum and two sums of one number per sample (X. An et al., "Partial FC",
    ICCV workshops 2021). With ``sample_rate`` q < 1, a step uses the identities of the batch and every other
    identity with probability q. The sample depends only on seed, step and identity, so that sample and loss
    are the same for any number of ranks.

    On a GPU, and if the logits need more than one block, the loss is computed by `blockwise_losses`: logits
    are not stored, and no step waits for the device.

    Args:
        identities: number of identities in the data set.
        dim: dimension of the embedding.
        margin: applied to the cosines; its parameters and buffers are replicated.
        ranks: over which the prototypes are sharded.
        optimizer: settings; the prototypes have a separate optimizer of the rows used in a step.
        sample_rate: q, in (0, 1].
        seed: of initial prototypes and samples.
        products: torch.bfloat16 rounds the factors of the products over identities, which are summed in
            float32.

    Raises:
        InputError: ``sample_rate`` out of range, fewer identities than ranks, or fewer than two.
    """

    def __init__(
        self,
        identities: int,
        dim: int,
        margin: Margin,
        ranks: Ranks,
        optimizer: OptimizerSettings,
        sample_rate: float = 1.0,
        seed: int = 0,
        products: torch.dtype = torch.float32,
    ) -> None:
        if not 0 < sample_rate <= 1:
            raise InputError(f"sample_rate must be in (0, 1], got {sample_rate}")
        if identities < max(2, ranks.size):
            raise InputError(
                f"a classifier over {ranks.size} ranks needs {max(2, ranks.size)} identities or more, got "
                f"{identities}"
            )
        self.identities, self.margin, self.ranks = identities, margin.to(ranks.device), ranks
        self.sample_rate, self._seed, self._products = sample_rate, seed, products
        part = ranks.share(identities)
        self.first, self.last = part.start, part.stop
        weight = initial_prototypes(identities, dim, seed, part).to(ranks.device)
        # Updates of torch that are not fused copy the gradient, which is as large as the prototypes.
        row_settings = replace(optimizer, fused=optimizer.fused or weight.is_cuda)
        self.rows = RowOptimizer(weight, lambda parameters: make_optimizer(parameters, row_settings))
        # No weight decay for a margin's parameters, which are biases or scales.
        parameters = list(margin.parameters())
        undecayed = replace(optimizer, weight_decay=0.0)
        self.margin_optimizer = make_optimizer(parameters, undecayed) if parameters else None

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of the prototypes and, if it has parameters, of the margin."""
        return [self.rows.optimizer, *([self.margin_optimizer] if self.margin_optimizer else [])]

    def begin(self, labels: Tensor, step: int) -> Tensor | None:
        """Select the prototypes of this step, given the labels (n,) of the global batch.

        Returns:
            This rank's rows (m,), ascending; None for all rows.
        """
        rows = None if self.sample_rate == 1 else self._sample(labels, step)
        self.rows.select_rows(rows)
        return rows

    def _sample(self, labels: Tensor, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        # Every rank draws for all identities, so that the sample does not depend on the sharding.
        sampled = torch.rand(self.identities, generator=generator) < self.sample_rate
        sampled[labels.cpu()] = True
        rows = torch.nonzero(sampled[self.first : self.last]).flatten()
        return to_device(rows, self.ranks.device)

    def loss(self, embedding: Tensor, labels: Tensor, rows: Tensor | None) -> MarginLoss:
        """Loss of a (micro-)batch, averaged over its samples.

        Args:
            embedding: raw embeddings of this rank's samples (n_r, dim).
            labels: of this rank's samples (n_r,).
            rows: as returned by `begin`.
        """
        ranks, prototypes = self.ranks, self.rows.active  # this rank's c prototypes of the step
        gathered = gather_rows(embedding.float(), ranks, replicated=False)  # (n, dim), of all ranks
        columns = self._columns(ranks.gather(labels), rows)  # (n,)
        # Decided by the largest shard, so that all ranks take the same path and their collectives agree.
        max_shard = -(-self.identities // ranks.size)
        one_block = max_shard <= rows_per_block(len(gathered), gathered.shape[1], ranks.device)
        if one_block and ranks.device.type == "cpu" and self._products == torch.float32:
            return self._single_block_loss(gathered, columns)
        losses, cosine = blockwise_losses(
            gathered, prototypes, columns, self.margin, self._products, ranks.sum_, ranks.max_
        )
        return MarginLoss(losses.mean(), losses.detach().mean(), cosine.mean())

    def _columns(self, labels: Tensor, rows: Tensor | None) -> Tensor:
        """Column (n,) of each sample's true prototype among this rank's rows of the step, else -1."""
        local = labels - self.first
        is_local = (labels >= self.first) & (labels < self.last)
        return torch.where(is_local, local if rows is None else torch.searchsorted(rows, local), -1)

    def _single_block_loss(self, gathered: Tensor, columns: Tensor) -> MarginLoss:
        """The loss from all logits at once, if they are few; the numbers of small runs thus never changed."""
        ranks, margin = self.ranks, self.margin
        norm = torch.linalg.vector_norm(gathered, dim=1)  # (n,)
        cosine = normalize(gathered) @ normalize(self.rows.active).T  # (n, c)

        # The true prototype of a sample is on one rank, but all ranks need its cosine, for the margin's
        # statistics and for margins whose other logits depend on it. It carries no gradient.
        samples = torch.nonzero(columns >= 0).flatten()  # (m,)
        columns = columns[samples]  # (m,)
        target_cosine = cosine[samples, columns]  # (m,)
        true_cosine = torch.zeros_like(norm.detach())
        true_cosine[samples] = target_cosine.detach()
        ranks.sum_(true_cosine)  # (n,)
        with torch.no_grad():
            margin.update(true_cosine, norm.detach())

        if margin.binary:
            backward, value = self._binary(cosine, target_cosine, norm, samples, columns)
        else:
            target = margin.target(target_cosine, norm[samples])  # (m,)
            logits = margin.others(cosine, true_cosine).index_put((samples, columns), target)  # (n, c)
            losses = _ShardedCrossEntropy.apply(  # type: ignore[no-untyped-call]
                logits, samples, columns, margin.scale, ranks
            )  # (n,)
            # Only the rank with the true prototype adds the penalty, so that it counts once in the sum.
            penalty = margin.penalty(norm)[samples].sum() / len(gathered)
            backward = losses.mean() + penalty
            value = losses.detach().mean() + ranks.sum_(penalty.detach().clone())
        return MarginLoss(backward, value, true_cosine.mean())

    def _binary(
        self, cosine: Tensor, target_cosine: Tensor, norm: Tensor, samples: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        # One binary loss per sample and class: a sum over this rank's classes, without a softmax.
        negative = self.margin.negative(cosine)  # (n, c)
        negative = negative.index_put((samples, columns), torch.zeros_like(target_cosine))
        part = (negative.sum() + self.margin.positive(target_cosine, norm[samples]).sum()) / len(cosine)
        return part, self.ranks.sum_(part.detach().clone())

    def reduce_gradients(self) -> None:
        """Sum the gradients of the margin's parameters over ranks."""
        for parameter in self.margin.parameters():
            if parameter.grad is not None:
                self.ranks.sum_(parameter.grad)

    def end(self) -> None:
        """Finish a step, after the optimizers have run."""
        self.rows.write_back()

    def state(self) -> dict[str, Any]:
        """The replicated state, which is that of the margin."""
        optimizer = None if self.margin_optimizer is None else self.margin_optimizer.state_dict()
        return {"margin": self.margin.state_dict(), "margin_optimizer": optimizer}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        self.margin.load_state_dict(state["margin"])
        if self.margin_optimizer is not None:
            self.margin_optimizer.load_state_dict(state["margin_optimizer"])


def initial_prototypes(identities: int, dim: int, seed: int, part: slice | None = None) -> Tensor:
    """Normally distributed prototypes (identities, dim) of standard deviation 0.01, or the rows ``part``."""
    part = part or slice(0, identities)
    blocks = []
    for block in range(part.start // _BLOCK, -(-part.stop // _BLOCK)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + block)
        rows = torch.empty(_BLOCK, dim).normal_(0, 0.01, generator=generator)
        begin = block * _BLOCK
        blocks.append(rows[max(part.start - begin, 0) : part.stop - begin].clone())
    return torch.cat(blocks)


class _ShardedCrossEntropy(torch.autograd.Function):
    """-log softmax of the true class (n,), from this rank's columns of scale * logits (n, c).

    The true class of sample i is column ``columns[j]`` of the rank on which ``samples[j] == i``. The softmax
    is computed in place; only its gradient ``softmax - onehot`` is saved for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, samples: Tensor, columns: Tensor, scale: float, ranks: Ranks
    ) -> Tensor:
        maximum = logits.new_full((len(logits),), -torch.inf)
        if logits.shape[1]:  # a rank's sample may be empty
            maximum = logits.amax(1)
        ranks.max_(maximum)  # (n,), so that exp does not overflow
        p = logits.sub(maximum[:, None]).mul_(scale)  # (n, c)
        true = torch.zeros_like(maximum)
        true[samples] = p[samples, columns]
        p.exp_()
        # One collective for both sums: the normaliser, and the true logit, which is on one rank.
        total, true = ranks.sum_(torch.stack([p.sum(1), true]))  # (n,), (n,)
        p.div_(total[:, None])
        p[samples, columns] -= 1
        ctx.scale = scale
        ctx.save_for_backward(p)
        losses: Tensor = total.log() - true
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (p,) = ctx.saved_tensors
        return p * (grads[0] * ctx.scale)[:, None], None, None, None, None
