"""Engines that run a recogniser's network, and the test run that selects one.

Every engine returns features as a map (n, C, H, W), also if the network outputs tokens or channels last
(`as_map`).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spherecf.common.compiling import compiled
from spherecf.errors import InputError, ModelError
from spherecf.models.arithmetic import check_arithmetic, float32_arithmetic
from spherecf.models.network import as_map
from spherecf.models.onnx.graph import OnnxGraph, session
from spherecf.models.onnx.module import build_module
from spherecf.models.onnx.outputs import GraphOutputs
from spherecf.models.preprocessing import Preprocessing


@runtime_checkable
class Engine(Protocol):
    """Maps the network's input (n, 3, h, w) to raw embedding (n, dim) and map (n, C, H, W), in float32."""

    name: str

    @property
    def module(self) -> nn.Module | None:
        """The network, if torch runs it, else None."""

    @property
    def device(self) -> torch.device:
        """The device on which it runs and returns its results."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class OnnxRuntimeEngine:
    """onnxruntime on the CPU; its results are the reference for the other engines."""

    name = "onnxruntime"
    device = torch.device("cpu")
    module = None

    def __init__(self, graph: OnnxGraph, outputs: GraphOutputs, threads: int | None = None) -> None:
        self._name, self._dim, self._image = graph.name, outputs.dim, graph.image
        self._output_names = [outputs.embedding, outputs.features]
        declared = graph.model.graph.output
        original = [output.name for output in declared]
        # Declare both tensors as outputs of the graph while the session is created.
        try:
            declared.extend(
                onnx.ValueInfoProto(name=name) for name in self._output_names if name not in original
            )
            self._session = session(graph.serialized(), graph.name, threads or torch.get_num_threads())
        finally:
            del declared[len(original) :]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = np.ascontiguousarray(x.cpu().numpy())
        results = self._session.run(self._output_names, {self._image: pixels})
        named = zip(self._output_names, results, strict=True)
        embedding, features = (self._float_tensor(name, result) for name, result in named)
        return embedding.reshape(len(x), self._dim), as_map(features).contiguous()

    def _float_tensor(self, name: str, result: NDArray[Any]) -> Tensor:
        if result.dtype.kind != "f":
            raise ModelError(
                f"{self._name}: {name} is of type {result.dtype}, expected floating-point numbers"
            )
        return torch.from_numpy(result).float()


class LoopedEngine:
    """Runs one image at a time, for networks that cannot process a batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.name = engine, engine.name

    @property
    def module(self) -> nn.Module | None:
        """The network of the wrapped engine."""
        return self._engine.module

    @property
    def device(self) -> torch.device:
        """The device of the wrapped engine."""
        return self._engine.device

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding, features = zip(*(self._engine(image) for image in torch.split(x, 1)), strict=True)
        return torch.cat(embedding), torch.cat(features)


class ModuleEngine:
    """A torch module in evaluation mode, channels last, without gradients."""

    def __init__(
        self,
        module: nn.Module,
        *,
        features: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        if dtype not in TOLERANCE:
            raise ModelError(f"dtype: expected one of {', '.join(TOLERANCE)}, got {dtype!r}")
        # Results depend on the dtype: caches and records distinguish them by the engine's name.
        self._suffix = "" if dtype == "float32" else f"-{dtype}"
        self.name = f"torch{self._suffix}"
        self._threads = threads
        self._device, self._arithmetic = _check_device(device), dtype
        check_arithmetic(dtype, self._device)
        self._dtype = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
        self._hooked: list[Tensor] = []
        self._hooked_output = features is not None
        if self._dtype != torch.float32:
            module = copy.deepcopy(module)  # the caller's module keeps its precision
        if features is not None:  # after copying: a copied hook would refer to a copy of this engine
            _submodule(module, features).register_forward_hook(self._save_features)
        self.module = module.eval().requires_grad_(False).to(self._device, self._dtype)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.ndim == 4:  # Module.to(memory_format=...) fails on tensors of five dimensions
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        self._run: Any = self.module

    @property
    def device(self) -> torch.device:
        """The module's current device."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return next((tensor.device for tensor in tensors), self._device)

    def compile(self) -> None:
        """Compile the module on its first call, which needs a C++ compiler and about a minute.

        On a GPU a deep network is compiled block by block; as a whole it would take minutes there.
        """
        self.name = f"compiled{self._suffix}"
        if self.device.type == "cuda":
            self._run = compiled(self.module, any_batch=True)
        else:
            self._run = torch.compile(self.module, dynamic=True)

    def exact(self) -> "ModuleEngine":
        """An engine with the same module that computes in full float32 instead of TF32."""
        engine = copy.copy(self)
        engine._arithmetic = "float32"
        return engine

    def _save_features(self, module: nn.Module, args: object, output: Any) -> None:
        # Transformer blocks often return a tuple whose first element is the tokens.
        self._hooked[:] = [output[0] if isinstance(output, tuple | list) and output else output]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        device = self.device
        x = x.to(device, self._dtype).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), _threads(self._threads), float32_arithmetic(self._arithmetic, device):
            return self._results(self._run(x))

    def plain(self) -> nn.Module:
        """The network as a module that returns (embedding, map) and can be traced."""
        return _Traceable(self)

    def _results(self, result: Any) -> tuple[Tensor, Tensor]:
        if self._hooked_output:
            result = result[0] if isinstance(result, tuple | list) else result, *self._hooked
            self._hooked.clear()
        if (
            not isinstance(result, tuple | list)
            or len(result) != 2
            or not all(isinstance(t, Tensor) for t in result)
        ):
            raise ModelError(
                f"{type(self.module).__name__}: expected a module that returns (embedding, map or tokens), "
                f"got {type(result).__name__}; if it returns the embedding alone, pass features= with the "
                f"name of a submodule"
            )
        embedding, features = result
        return embedding.float(), as_map(features).float().contiguous()


def _check_device(device: str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises the latter
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used here: {reason}; use 'cpu' for the CPU") from error


class _Traceable(nn.Module):
    def __init__(self, engine: ModuleEngine) -> None:
        super().__init__()
        # A copied module has no compiled blocks, which cannot be traced.
        is_compiled = engine.name.startswith("compiled")
        self.network, self._engine = copy.deepcopy(engine.module) if is_compiled else engine.module, engine

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._engine._results(self.network(x))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    previous = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        if count:
            torch.set_num_threads(previous)


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        names = [n for n, _ in module.named_children()]
        raise ModelError(
            f"{type(module).__name__} has no submodule {name!r}; it has {', '.join(names)}"
        ) from error


ENGINES = ("auto", "onnxruntime", "torch", "compiled")
Result = tuple[Tensor, Tensor]  # (embedding, map)

# Maximum difference relative to the largest value: between batches and engines, and between two runs.
TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 0.2}
REPEATED = {"float32": 1e-4, "tf32": 1e-3, "bfloat16": 1e-2}


def choose_engine(
    graph: OnnxGraph,
    outputs: GraphOutputs,
    preprocessing: Preprocessing,
    engine: str = "auto",
    *,
    threads: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> Engine:
    """Create an engine; ``"auto"`` is torch if it can import the graph and agrees, else onnxruntime.

    The choice follows a fixed rule instead of a timing: the same file always runs on the same engine, and an
    interrupted run resumes to the identical result. benchmarks/backbone_engines.py measures the alternatives.

    Args:
        graph: the repaired graph.
        outputs: its embedding and feature map.
        preprocessing: for the test images.
        engine, threads, dtype, device: as in `FrozenBackbone.from_onnx`.

    Raises:
        InputError: unknown engine or dtype, or a combination that onnxruntime does not support.
        ModelError: the graph cannot be run, or torch's result differs from onnxruntime's.
    """
    if engine not in ENGINES or dtype not in TOLERANCE:
        raise InputError(
            f"expected engine in {ENGINES} and dtype in {tuple(TOLERANCE)}, got {engine!r}, {dtype!r}"
        )
    is_default = dtype == "float32" and device == "cpu"
    if engine == "onnxruntime" and not is_default:
        raise InputError(
            f"onnxruntime runs float32 on the CPU only, got {dtype} on {device}; use engine='torch'"
        )
    check_arithmetic(dtype, _check_device(device))
    x = probe(preprocessing)
    onnx_engine = OnnxRuntimeEngine(graph, outputs, threads)
    reference, expected, warning = check_batches(graph.name, onnx_engine, x)
    if expected[1].shape[1:] != outputs.feature_shape:
        raise ModelError(
            f"{graph.name}: expected maps of shape {outputs.feature_shape}, but onnxruntime gives "
            f"{tuple(expected[1].shape[1:])}"
        )
    graph.repairs += [warning] if warning else []
    if engine == "onnxruntime":
        return reference
    try:
        module = build_module(graph, outputs).folded()
        runner = ModuleEngine(module, dtype=dtype, device=device, threads=threads)
        graph.repairs += tf32_notes(dtype, "onnxruntime", attempt(runner, x), expected)
    except ModelError as error:
        if engine != "auto" or not is_default:
            raise ModelError(f"{graph.name}: torch cannot run the graph: {error}") from error
        graph.repairs.append(f"run by onnxruntime because torch cannot: {error}")
        return reference
    if engine == "compiled":
        runner.compile()
    return runner


def probe(preprocessing: Preprocessing) -> Tensor:
    """The network's input (2, 3, h, w) for two images of noise."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, *preprocessing.size, 3), generator=noise).to(torch.uint8)
    return preprocessing(images)


def check_batches(
    name: str, engine: Engine, x: Tensor, dtype: str = "float32", advice: str = ""
) -> tuple[Engine, Result, str]:
    """Ensure that the result for an image does not depend on its batch, by a test on two images.

    Each image is run alone, then both in one batch. If the results differ, or the dtype is not float32, the
    single images are run again, to tell an effect of the batch from a lack of determinism.

    Args:
        name: of the network, for error messages.
        engine: any.
        x: the network's input (2, 3, h, w).
        dtype: in which the engine computes.
        advice: added to the error message.

    Returns:
        The engine, wrapped in a loop over images if a batch gives other results than single images; the
        results; a warning if it is wrapped, else "".

    Raises:
        ModelError: it cannot run on a single image, or gives results that are not finite, or other ones when
            it is run again.

    Example:
        >>> engine = ModuleEngine(torch.nn.Identity(), features="")
        >>> check_batches("identity", engine, torch.ones(2, 3, 4, 4))[2]
        ''
    """
    looped = LoopedEngine(engine)
    try:
        singly = attempt(looped, x)
    except ModelError as error:
        raise ModelError(f"{name}: cannot be run on one image alone: {error}") from error
    for role, value in zip(("embedding", "map"), singly, strict=True):
        if not torch.isfinite(value).all():
            raise ModelError(
                f"{name}: the {role} of an image of noise is not finite: the weights are damaged, or values "
                f"overflow{advice}"
            )
    warning = ""
    try:
        _check_agreement(attempt(engine, x), singly, TOLERANCE[dtype])
    except ModelError as error:
        warning = f"images are run one by one, because a batch of several gives other results: {error}"
    if not warning and dtype == "float32":
        return engine, singly, ""
    try:
        _check_agreement(attempt(looped, x), singly, REPEATED[dtype])
    except ModelError as error:
        raise ModelError(
            f"{name}: the same image gives other results when it is run again ({error}): look for "
            f"dropout that is always active, random noise, or state that is kept between calls{advice}"
        ) from error
    return (looped if warning else engine), singly, warning


def attempt(engine: Engine, x: Tensor) -> Result:
    """Run an engine, turning any exception into a `ModelError`."""
    try:
        return engine(x)
    except ModelError:
        raise
    except Exception as error:  # from torch, onnxruntime, or the caller's module
        raise ModelError(str(error).strip() or type(error).__name__) from error


def tf32_notes(dtype: str, reference: str, got: Result, expected: Result) -> list[str]:
    """Check a result against a reference; for TF32, one sentence on its error for `FrozenBackbone.repairs`.

    Args:
        dtype: in which ``got`` was computed.
        reference: name of the reference.
        got: result of the engine.
        expected: result of the reference.

    Raises:
        ModelError: they differ by more than the dtype's tolerance.
    """
    embedding, features = _check_agreement(got, expected, TOLERANCE[dtype])
    if dtype != "tf32":
        return []
    return [
        f"runs in TF32: on two images of noise its embedding differs from that of {reference} by "
        f"{embedding:.1e} of its largest value, its map by {features:.1e}"
    ]


def _check_agreement(got: Result, expected: Result, tolerance: float) -> list[float]:
    """Differences of embedding and map relative to their largest values; raises if beyond the tolerance."""
    differences = []
    for role, value, truth in zip(("embedding", "map"), got, expected, strict=True):
        if value.shape != truth.shape:
            raise ModelError(f"the {role} has the shape {tuple(value.shape)}, expected {tuple(truth.shape)}")
        difference = float((value.cpu() - truth.cpu()).abs().max() / truth.abs().max().clamp_min(1e-12))
        if not difference <= tolerance:  # also if it is NaN, because one of them is not finite
            raise ModelError(f"the {role} differs by {difference:.1e} of its largest value")
        differences.append(difference)
    return differences
