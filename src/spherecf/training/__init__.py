"""Training: stage 1, a recogniser; stage 2, a confidence head on the features of a frozen one."""

from spherecf.training.backbone import BACKBONE_FILE, PROTOTYPE_FILE, TrainedBackbone, train_backbone
from spherecf.training.cache import FeatureCache, build_cache, cache_bytes
from spherecf.training.classifier import ShardedClassifier
from spherecf.training.confidence import (
    MODEL_FILE,
    TrainingData,
    fit_confidence,
    new_head,
    prepare,
    train_confidence,
)
from spherecf.training.config import (
    AugmentSettings,
    BackboneConfig,
    BackboneFit,
    ConfidenceConfig,
    EngineSettings,
    FeatureSettings,
    FitSettings,
    HeadSettings,
    LossSettings,
    MarginSettings,
    NetworkSettings,
    OptimizerSettings,
    PrototypeSettings,
    ScheduleSettings,
    ViewSettings,
    lr_factor,
)
from spherecf.training.distributed import Ranks, join_ranks
from spherecf.training.features import (
    CachedFeatures,
    GivenPrototypes,
    MeanPrototypes,
    StreamedFeatures,
    Targets,
    prototype_targets,
    prototypes_for,
)
from spherecf.training.heads import FitResult, FitState, fit_head

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
