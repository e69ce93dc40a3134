"""Experiments: train on some people, test on others, write the report; reproducible by a seed."""

from spherecf.experiments._cross_quality import CrossQuality, cross_quality
from spherecf.experiments._demo import Demo, demo
from spherecf.experiments._present import (
    edc_table,
    gain_table,
    kappa_strips,
    present,
    score_table,
    show,
    tables,
)
from spherecf.experiments._summary import Cell, summarize
from spherecf.experiments._validate import verification
from spherecf.experiments._variants import VARIANTS, HeadVariant, fit_variants

__all__ = [
    "VARIANTS",
    "Cell",
    "CrossQuality",
    "Demo",
    "HeadVariant",
    "cross_quality",
    "demo",
    "edc_table",
    "fit_variants",
    "gain_table",
    "kappa_strips",
    "present",
    "score_table",
    "show",
    "summarize",
    "tables",
    "verification",
]
