"""Scores of pairs and of all pairs, and pooling of images into templates (equations 13 and 14 of the paper).

A larger score means more similar; a pair is accepted if and only if score >= threshold. All functions work on
(mu, kappa) from any network.
"""

from spherecf.scoring.matrix import cosine_matrix, cosine_tiles as cosine_tiles, mutual_likelihood_matrix
from spherecf.scoring.pairs import cosine_score, gaussian_score, mutual_likelihood_score
from spherecf.scoring.pooling import (
    Pooled as Pooled,
    mean_by as mean_by,
    natural_parameter as natural_parameter,
    pool,
    without_each as without_each,
)
from spherecf.scoring.posterior import (
    OpenSetPosterior as OpenSetPosterior,
    fit_gallery_kappa as fit_gallery_kappa,
    mean_cosine_kappa as mean_cosine_kappa,
    open_set_posterior,
)
from spherecf.scoring.reductions import Top as Top, mutual_likelihood_counts, mutual_likelihood_top
from spherecf.scoring.template_pairs import score_template_pairs
from spherecf.scoring.templates import Templates, pool_templates

# Names imported `as` themselves are for the other packages of spherecf and are not part of the public
# interface.
__all__ = [
    "Templates",
    "cosine_matrix",
    "cosine_score",
    "gaussian_score",
    "mutual_likelihood_counts",
    "mutual_likelihood_matrix",
    "mutual_likelihood_score",
    "mutual_likelihood_top",
    "open_set_posterior",
    "pool",
    "pool_templates",
    "score_template_pairs",
]
