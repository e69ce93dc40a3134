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
    show_tables,
    tables,
)
from spherecf.experiments._reproduce import Reproduction, reproduce
from spherecf.experiments._reproduce_report import present_reproduction, reproduction_tables
from spherecf.experiments._shipped import MODEL_FILE, Shipped, ship
from spherecf.experiments._shipped_report import present_shipped, shipped_tables
from spherecf.experiments._summary import Cell, summarize
from spherecf.experiments._template_sets import TemplatePlan
from spherecf.experiments._validate import verification
from spherecf.experiments._variants import BASELINES, VARIANTS, HeadVariant, fit_variants

__all__ = [
    "BASELINES",
    "MODEL_FILE",
    "VARIANTS",
    "Cell",
    "CrossQuality",
    "Demo",
    "HeadVariant",
    "Reproduction",
    "Shipped",
    "TemplatePlan",
    "cross_quality",
    "demo",
    "edc_table",
    "fit_variants",
    "gain_table",
    "kappa_strips",
    "present",
    "present_reproduction",
    "present_shipped",
    "reproduce",
    "reproduction_tables",
    "score_table",
    "ship",
    "shipped_tables",
    "show",
    "show_tables",
    "summarize",
    "tables",
    "verification",
]
