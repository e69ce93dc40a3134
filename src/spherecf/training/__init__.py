"""Training: stage 2, a confidence head on the features of a frozen backbone."""

from spherecf.training._cache import FeatureCache, build_cache
from spherecf.training._confidence import (
    MODEL_FILE,
    TrainingData,
    fit_confidence,
    new_head,
    prepare,
    train_confidence,
)
from spherecf.training._config import (
    ConfidenceConfig,
    FitSettings,
    HeadSettings,
    LossSettings,
    PrototypeSettings,
    ViewSettings,
)
from spherecf.training._fit import FitResult, fit_head
from spherecf.training._targets import Targets, prototype_targets

__all__ = [
    "MODEL_FILE",
    "ConfidenceConfig",
    "FeatureCache",
    "FitResult",
    "FitSettings",
    "HeadSettings",
    "LossSettings",
    "PrototypeSettings",
    "Targets",
    "TrainingData",
    "ViewSettings",
    "build_cache",
    "fit_confidence",
    "fit_head",
    "new_head",
    "prepare",
    "prototype_targets",
    "train_confidence",
]
