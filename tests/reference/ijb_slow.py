"""IJB 1:1 and 1:N the slow and obvious way: one template, one pair, one probe, one threshold at a time."""

import numpy as np

from spherecf.embeddings import Embeddings


def pooled(e: Embeddings, files, templates, media, weights) -> dict[int, tuple[np.ndarray, float]]:
    """Template id to (unit direction, kappa): mean inside a medium, sum over media."""
    row = {key: i for i, key in enumerate(e.keys)}
    found = {}
    for template in sorted(set(templates.tolist())):
        direction, eta = np.zeros(e.dim), np.zeros(e.dim)
        own = [i for i in range(len(files)) if templates[i] == template and files[i] in row]
        for medium in sorted({media[i] for i in own}):
            frames = [i for i in own if media[i] == medium]
            mus = [e.mu[row[files[i]]].astype(np.float64) for i in frames]
            direction += sum(weights[i] * mu for i, mu in zip(frames, mus)) / len(frames)
            eta += sum(float(e.kappa[row[files[i]]]) * mu for i, mu in zip(frames, mus)) / len(frames)
        if own:
            found[template] = direction / np.linalg.norm(direction), float(np.linalg.norm(eta))
    return found


def tmr_at(mated: list[float], non_mated: list[float], target: float) -> float | None:
    """Largest TMR over all thresholds whose FMR is at most the target."""
    if target * len(non_mated) < 1:
        return None
    best = 0.0
    for threshold in sorted({*mated, *non_mated, np.inf}):
        if sum(score >= threshold for score in non_mated) <= target * len(non_mated) * (1 + 1e-12):
            best = max(best, sum(score >= threshold for score in mated) / len(mated))
    return best


def search(probes, gallery, score) -> list[tuple[int | None, float | None, float]]:
    """Per probe (rank of the mate, its score, best score); probes and gallery are (template, subject).

    Rank and score of the mate are None where the gallery lacks it. A tie counts against the mate.
    """
    found = []
    for probe, subject in probes:
        scores = [(score(probe, template), other) for template, other in gallery]
        own = [s for s, other in scores if other == subject]
        rank = 1 + sum(s >= own[0] for s, other in scores if other != subject) if own else None
        found.append((rank, own[0] if own else None, max(s for s, _ in scores)))
    return found


def tpir_at(searched, target: float, max_rank: int = 1) -> float | None:
    """Largest TPIR over all thresholds whose FPIR is at most the target."""
    alone = [best for rank, _, best in searched if rank is None]
    mates = [(rank, own) for rank, own, _ in searched if rank is not None]
    if target * len(alone) < 1:
        return None
    best = 0.0
    for threshold in sorted({*alone, *(own for _, own in mates), np.inf}):
        if sum(score >= threshold for score in alone) <= target * len(alone) * (1 + 1e-12):
            hits = sum(rank <= max_rank and own >= threshold for rank, own in mates)
            best = max(best, hits / len(mates))
    return best
