"""The whole classification loss in one process: cosines, margin, softmax."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from spherecf.errors import InputError
from spherecf.losses._angles import widen
from spherecf.losses._margin import Margin
from spherecf.losses._sphere_confidence import Reduction, _reduce


def margin_softmax_loss(
    embedding: Float[Tensor, "batch dim"],
    prototypes: Float[Tensor, "identities dim"],
    labels: Int[Tensor, " batch"],
    margin: Margin,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*out"]:
    """Cross-entropy of scaled cosines after a margin, or the sum of a binary margin's losses over classes.

        L_i = -log( e^(s T(cos_y)) / (e^(s T(cos_y)) + sum_{j != y} e^(s N(cos_j))) ) + penalty(|x_i|)

    cos_j is the cosine of embedding i to prototype j, T the margin's `target`, N its `others`. The margin's
    running statistics are renewed first if it is in training mode.

    Args:
        embedding: raw outputs of the backbone, (batch, dim).
        prototypes: raw rows of the classifier, (identities, dim).
        labels: identities, 0 <= label < identities, (batch,).
        margin: one of `MARGINS`.
        reduction: "mean", "sum" or "none" (one loss per sample).

    Raises:
        InputError: shapes that do not fit, or labels out of range (not looked at under torch.compile).

    Example:
        >>> from spherecf.losses import ArcFace
        >>> embedding, prototypes = torch.tensor([[3.0, 4.0]]), torch.eye(2)
        >>> margin_softmax_loss(embedding, prototypes, torch.tensor([1]), ArcFace(margin=0.5, scale=8))
        tensor(1.6889)
    """
    if embedding.ndim != 2 or prototypes.shape[1:] != embedding.shape[1:] or len(labels) != len(embedding):
        raise InputError(
            "margin_softmax_loss: expected embedding (batch, dim), prototypes (identities, dim) and labels "
            f"(batch,), got {tuple(embedding.shape)}, {tuple(prototypes.shape)} and {tuple(labels.shape)}."
        )
    if not torch.compiler.is_compiling():
        _check_labels(labels, len(prototypes))
    labels = labels.long()
    embedding = widen(embedding)
    norm = embedding.norm(dim=1)
    cosine = widen(normalize(embedding, dim=1) @ normalize(widen(prototypes), dim=1).T)
    column = labels.unsqueeze(1)
    target_cosine = cosine.gather(1, column).squeeze(1)
    if margin.training:
        margin.update(target_cosine.detach(), norm.detach())
    if margin.binary:
        others = margin.negative(cosine).scatter(1, column, 0.0).sum(1)
        loss = margin.positive(target_cosine, norm) + others
    else:
        others = margin.others(cosine, target_cosine.detach())
        logits = others.scatter(1, column, margin.target(target_cosine, norm).unsqueeze(1))
        loss = cross_entropy(margin.scale * logits, labels, reduction="none")
    return _reduce(loss + margin.penalty(norm), reduction)


def _check_labels(labels: Tensor, identities: int) -> None:
    low, high = labels < 0, labels >= identities
    if bool((low | high).any()):
        raise InputError(
            f"margin_softmax_loss: expected labels in 0..{identities - 1}, one per row of prototypes; of "
            f"{len(labels)} labels {int(low.sum())} are negative and {int(high.sum())} too large (from "
            f"{int(labels.min())} to {int(labels.max())}). Leave unlabelled samples out, and see that "
            "prototypes and labels are of the same data."
        )
