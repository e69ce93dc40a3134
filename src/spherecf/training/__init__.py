"""Training: stage 1, a recogniser; stage 2, a confidence head on the features of a frozen one."""

from spherecf.training._backbone import BACKBONE_FILE, PROTOTYPE_FILE, TrainedBackbone, train_backbone
from spherecf.training._backbone_config import (
    AugmentSettings,
    BackboneConfig,
    BackboneFit,
    MarginSettings,
    NetworkSettings,
)
from spherecf.training._cache import FeatureCache, build_cache, cache_bytes
from spherecf.training._classifier import ShardedClassifier
from spherecf.training._confidence import MODEL_FILE, fit_confidence, train_confidence
from spherecf.training._confidence_data import TrainingData, new_head, prepare
from spherecf.training._config import (
    ConfidenceConfig,
    FeatureSettings,
    FitSettings,
    HeadSettings,
    LossSettings,
    PrototypeSettings,
    ViewSettings,
)
from spherecf.training._features import CachedFeatures, StreamedFeatures
from spherecf.training._fit import FitResult, FitState, fit_head
from spherecf.training._ranks import Ranks, join_ranks
from spherecf.training._schedule import lr_factor
from spherecf.training._settings import EngineSettings, OptimizerSettings, ScheduleSettings
from spherecf.training._targets import (
    GivenPrototypes,
    MeanPrototypes,
    Targets,
    prototype_targets,
    prototypes_for,
)

__all__ = [
    "BACKBONE_FILE", "MODEL_FILE", "PROTOTYPE_FILE",
    "AugmentSettings", "BackboneConfig", "BackboneFit", "CachedFeatures", "ConfidenceConfig",
    "EngineSettings", "FeatureCache", "FeatureSettings", "FitResult", "FitSettings", "FitState",
    "GivenPrototypes", "HeadSettings", "LossSettings", "MarginSettings", "MeanPrototypes", "NetworkSettings",
    "OptimizerSettings", "PrototypeSettings", "Ranks", "ScheduleSettings", "ShardedClassifier",
    "StreamedFeatures", "Targets", "TrainedBackbone", "TrainingData", "ViewSettings",
    "build_cache", "cache_bytes", "fit_confidence", "fit_head", "join_ranks", "lr_factor", "new_head",
    "prepare", "prototype_targets", "prototypes_for", "train_backbone", "train_confidence",
]  # fmt: skip
