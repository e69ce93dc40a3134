"""Open-set data drawn from the model itself.

Identities are von Mises-Fisher around their gallery direction, strangers are uniform, and every probe is seen
through its own kappa: the truth is vMF around what is seen.
"""

import numpy as np
import torch

from spherecf.scoring import Templates, pool_templates
from spherecf.vmf import VonMisesFisher


def unit(values: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def open_world(
    seed: int = 0, *, dim: int = 32, enrolled: int = 100, strangers: int = 100, each: int = 8,
    spread: float = 150.0, kappas: tuple[float, float] = (8.0, 800.0), first: int = 0,
) -> tuple[Templates, np.ndarray, Templates, np.ndarray]:  # fmt: skip
    """Gallery, subjects, probes, subjects; ``spread`` is the true gallery kappa, ``first`` a first number."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    people = unit(rng.normal(size=(enrolled, dim)))
    who = np.repeat(np.arange(enrolled + strangers), each)
    known = who < enrolled
    true = unit(rng.normal(size=(who.size, dim)))
    density = VonMisesFisher(torch.tensor(people[who[known]]), torch.full((int(known.sum()),), spread))
    true[known] = density.sample().numpy()
    kappa = np.exp(rng.uniform(*np.log(kappas), who.size)).astype(np.float32)
    seen = unit(VonMisesFisher(torch.tensor(true), torch.tensor(kappa)).sample().numpy())
    gallery = pool_templates(people, np.full(enrolled, 1e4, np.float32), np.arange(enrolled))
    return gallery, first + np.arange(enrolled), pool_templates(seen, kappa, np.arange(who.size)), first + who
