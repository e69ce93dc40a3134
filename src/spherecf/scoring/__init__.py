"""Scores of pairs and matrices, and pooling many images into one (paper equations 13 and 14).

Larger = more alike; accept iff score >= threshold. Everything works on (mu, kappa), from any network.
"""

from spherecf.scoring._matrix import cosine_matrix, mutual_likelihood_matrix
from spherecf.scoring._pairs import cosine_score, mutual_likelihood_score
from spherecf.scoring._pool import Pooled, pool

__all__ = [
    "Pooled",
    "cosine_matrix",
    "cosine_score",
    "mutual_likelihood_matrix",
    "mutual_likelihood_score",
    "pool",
]
