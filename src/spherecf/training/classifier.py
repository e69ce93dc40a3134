"""The classifier of stage 1: one prototype per identity, sharded over ranks, all or a sample each step."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.errors import InputError
from spherecf.losses import Margin
from spherecf.training.config import OptimizerSettings
from spherecf.training.distributed import Ranks, gather_rows
from spherecf.training.optim import RowOptimizer, make_optimizer

_BLOCK = 1024  # prototypes drawn from one seed: the same for any number of ranks, in bounded memory


class MarginLoss(NamedTuple):
    """``backward``: this rank's part; ``value``: the batch's loss; ``cosine``: mean to the true prototype."""

    backward: Tensor
    value: Tensor
    cosine: Tensor


class ShardedClassifier:
    """Margin softmax over any number of identities; rank r holds and moves the r-th part of the prototypes.

    Every rank gathers the batch's embeddings, takes their cosines to its own prototypes, and the softmax is
    normalised over ranks by two sums and a maximum of one number per sample (X. An et al., "Partial FC",
    ICCV workshops 2021). With ``sample_rate`` q < 1 a step sees the batch's own identities and each other one
    with probability q. The draw depends on seed, step and identity alone, so it is the same for any number
    of ranks, and so is the loss.

    Args:
        identities: of the whole data set.
        dim: of the embedding.
        margin: what is done to the cosines; its buffers are the same on all ranks.
        ranks: who shares.
        optimizer: settings; prototypes have an optimizer of their own, over the rows a step looks at.
        sample_rate: q, in (0, 1].
        seed: of initial prototypes and draws.
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
    ) -> None:
        if not 0 < sample_rate <= 1:
            raise InputError(f"sample_rate must lie in (0, 1], got {sample_rate}")
        if identities < max(2, ranks.size):
            raise InputError(
                f"a classifier over {ranks.size} ranks needs {max(2, ranks.size)} identities or more, got "
                f"{identities}"
            )
        self.identities, self.margin, self.ranks = identities, margin.to(ranks.device), ranks
        self.sample_rate, self._seed = sample_rate, seed
        part = ranks.share(identities)
        self.first, self.last = part.start, part.stop
        weight = initial_prototypes(identities, dim, seed, part).to(ranks.device)
        self.rows = RowOptimizer(weight, lambda own: make_optimizer(own, optimizer))
        parameters = list(margin.parameters())
        plain = replace(optimizer, weight_decay=0.0)
        self.margin_optimizer = make_optimizer(parameters, plain) if parameters else None

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Of the prototypes, and of the margin where it learns something itself."""
        return [self.rows.optimizer, *([self.margin_optimizer] if self.margin_optimizer else [])]

    def begin(self, labels: Tensor, step: int) -> Tensor | None:
        """Choose the prototypes of this step, by the labels (n,) of the whole batch; None for all."""
        rows = None if self.sample_rate == 1 else self._draw(labels, step)
        self.rows.take(rows)
        return rows

    def _draw(self, labels: Tensor, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        chosen = torch.rand(self.identities, generator=generator) < self.sample_rate
        chosen[labels.cpu()] = True
        return torch.nonzero(chosen[self.first : self.last]).flatten().to(self.ranks.device)

    def loss(self, embedding: Tensor, labels: Tensor, rows: Tensor | None) -> MarginLoss:
        """Loss of a (micro-)batch, averaged over its samples.

        Args:
            embedding: raw, of this rank's samples (n_r, dim).
            labels: of this rank's samples (n_r,).
            rows: what `begin` returned.
        """
        ranks, margin = self.ranks, self.margin
        every = gather_rows(embedding.float(), ranks, replicated=False)
        every_label = ranks.gather(labels)
        norm = torch.linalg.vector_norm(every, dim=1)
        cosine = normalize(every) @ normalize(self.rows.active).T
        who, where = self._own(every_label, rows)
        own_cosine = cosine[who, where]
        true_cosine = torch.zeros_like(norm.detach())
        true_cosine[who] = own_cosine.detach()
        ranks.sum_(true_cosine)
        with torch.no_grad():
            margin.update(true_cosine, norm.detach())
        if margin.binary:
            backward, value = self._binary(cosine, own_cosine, norm, who, where)
        else:
            target = margin.target(own_cosine, norm[who])
            logits = margin.others(cosine, true_cosine).index_put((who, where), target)
            losses = _cross_entropy(logits, who, where, margin.scale, ranks)
            # The penalty is a part of the loss of the rank that holds the identity, so that it counts once.
            penalty = margin.penalty(norm)[who].sum() / len(every)
            backward = losses.mean() + penalty
            value = losses.detach().mean() + ranks.sum_(penalty.detach().clone())
        return MarginLoss(backward, value, true_cosine.mean())

    def _own(self, labels: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Samples whose prototype is here, and the column of each."""
        who = torch.nonzero((labels >= self.first) & (labels < self.last)).flatten()
        local = labels[who] - self.first
        return who, local if rows is None else torch.searchsorted(rows, local)

    def _binary(
        self, cosine: Tensor, own_cosine: Tensor, norm: Tensor, who: Tensor, where: Tensor
    ) -> tuple[Tensor, Tensor]:
        negative = self.margin.negative(cosine)
        negative = negative.index_put((who, where), torch.zeros_like(own_cosine))
        part = (negative.sum() + self.margin.positive(own_cosine, norm[who]).sum()) / len(cosine)
        return part, self.ranks.sum_(part.detach().clone())

    def reduce_gradients(self) -> None:
        """Sum the gradients of what the margin itself learns over ranks."""
        for parameter in self.margin.parameters():
            if parameter.grad is not None:
                self.ranks.sum_(parameter.grad)

    def end(self) -> None:
        """After the optimizers' step."""
        self.rows.put_back()

    def state(self) -> dict[str, Any]:
        """What every rank has the same of."""
        own = None if self.margin_optimizer is None else self.margin_optimizer.state_dict()
        return {"margin": self.margin.state_dict(), "margin_optimizer": own}

    def load_state(self, state: dict[str, Any]) -> None:
        """Undo `state`."""
        self.margin.load_state_dict(state["margin"])
        if self.margin_optimizer is not None:
            self.margin_optimizer.load_state_dict(state["margin_optimizer"])


def initial_prototypes(identities: int, dim: int, seed: int, part: slice | None = None) -> Tensor:
    """Normal numbers of deviation 0.01 (identities, dim), or some of the rows: the same for any division."""
    part = part or slice(0, identities)
    blocks = []
    for block in range(part.start // _BLOCK, -(-part.stop // _BLOCK)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + block)
        rows = torch.empty(_BLOCK, dim).normal_(0, 0.01, generator=generator)
        begin = block * _BLOCK
        blocks.append(rows[max(part.start - begin, 0) : part.stop - begin].clone())
    return torch.cat(blocks)


def _cross_entropy(logits: Tensor, who: Tensor, where: Tensor, scale: float, ranks: Ranks) -> Tensor:
    losses: Tensor = _ShardedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, who, where, scale, ranks
    )
    return losses


class _ShardedCrossEntropy(torch.autograd.Function):
    """-log softmax of the true class (n,), from this rank's columns of scale * logits (n, c)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, who: Tensor, where: Tensor, scale: float, ranks: Ranks) -> Tensor:
        largest = logits.new_full((len(logits),), -torch.inf)
        if logits.shape[1]:
            largest = logits.amax(1)
        ranks.max_(largest)
        p = logits.sub(largest[:, None]).mul_(scale)
        true = torch.zeros_like(largest)
        true[who] = p[who, where]
        p.exp_()
        total, true = ranks.sum_(torch.stack([p.sum(1), true]))
        p.div_(total[:, None])
        p[who, where] -= 1
        ctx.scale = scale
        ctx.save_for_backward(p)
        losses: Tensor = total.log() - true
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (p,) = ctx.saved_tensors
        return p * (grads[0] * ctx.scale)[:, None], None, None, None, None
