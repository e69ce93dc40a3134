"""Scores of pairs and matrices, and pooling many images into one (paper equations 13 and 14).

Larger = more alike; accept iff score >= threshold. Everything works on (mu, kappa), from any network.
"""

from spherecf.scoring._gaussian import gaussian_score
from spherecf.scoring._matrix import cosine_matrix, mutual_likelihood_matrix
from spherecf.scoring._pairs import cosine_score, mutual_likelihood_score
from spherecf.scoring._pool import Pooled, pool
from spherecf.scoring._posterior import (
    OpenSetPosterior,
    fit_gallery_kappa,
    mean_cosine_kappa,
    open_set_posterior,
)
from spherecf.scoring._template_pairs import score_template_pairs
from spherecf.scoring._template_pool import pool_templates
from spherecf.scoring._templates import Templates
from spherecf.scoring._tiles import cosine_tiles

__all__ = [
    "OpenSetPosterior",
    "Pooled",
    "Templates",
    "cosine_matrix",
    "cosine_score",
    "cosine_tiles",
    "fit_gallery_kappa",
    "mean_cosine_kappa",
    "gaussian_score",
    "mutual_likelihood_matrix",
    "mutual_likelihood_score",
    "open_set_posterior",
    "pool",
    "pool_templates",
    "score_template_pairs",
]
