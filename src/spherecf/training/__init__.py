"""Training: stage 1 trains a recogniser, stage 2 a confidence head on the features of a frozen recogniser."""

from spherecf.training.backbone import (
    BACKBONE_FILE as BACKBONE_FILE,
    PROTOTYPE_FILE as PROTOTYPE_FILE,
    TrainedBackbone as TrainedBackbone,
    train_backbone,
)
from spherecf.training.cache import FeatureCache as FeatureCache, build_cache as build_cache, cache_bytes
from spherecf.training.classifier import ShardedClassifier as ShardedClassifier
from spherecf.training.confidence import (
    MODEL_FILE as MODEL_FILE,
    TrainingData as TrainingData,
    fit_confidence as fit_confidence,
    new_head as new_head,
    prepare as prepare,
    train_confidence,
)
from spherecf.training.config import (
    AugmentSettings as AugmentSettings,
    BackboneConfig,
    BackboneFit as BackboneFit,
    ConfidenceConfig,
    EngineSettings as EngineSettings,
    FeatureSettings as FeatureSettings,
    FitSettings as FitSettings,
    HeadSettings as HeadSettings,
    LossSettings as LossSettings,
    MarginSettings as MarginSettings,
    NetworkSettings as NetworkSettings,
    Objectives as Objectives,
    OptimizerSettings as OptimizerSettings,
    PrototypeSettings as PrototypeSettings,
    ScheduleSettings as ScheduleSettings,
    ViewSettings as ViewSettings,
    lr_factor as lr_factor,
)
from spherecf.training.distributed import Ranks as Ranks, join_ranks
from spherecf.training.features import (
    CachedFeatures as CachedFeatures,
    GivenPrototypes as GivenPrototypes,
    MeanPrototypes as MeanPrototypes,
    StreamedFeatures as StreamedFeatures,
    Targets as Targets,
    prototype_targets as prototype_targets,
    prototypes_for as prototypes_for,
)
from spherecf.training.heads import (
    FitResult as FitResult,
    FitState as FitState,
    Monitor,
    fit_head as fit_head,
)

# Names imported `as` themselves are used by other subpackages; they are not part of the public interface.
__all__ = [
    "BackboneConfig",
    "ConfidenceConfig",
    "Monitor",
    "cache_bytes",
    "join_ranks",
    "train_backbone",
    "train_confidence",
]
