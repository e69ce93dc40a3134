"""Engines that run a recogniser's graph, and the test run that chooses one.

Features that come as tokens, or with their channels last, leave every engine as a map, see `as_map`.
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

from spherecf.errors import InputError, ModelError
from spherecf.models.arithmetic import check_arithmetic, float32_arithmetic
from spherecf.models.network import as_map
from spherecf.models.onnx.graph import OnnxGraph, session
from spherecf.models.onnx.module import build_module
from spherecf.models.onnx.outputs import GraphOutputs
from spherecf.models.preprocessing import Preprocessing


@runtime_checkable
class Engine(Protocol):
    """Maps a network's input (n, 3, h, w) to the raw embedding (n, dim) and the map (n, C, H, W), float32."""

    name: str

    @property
    def module(self) -> nn.Module | None:
        """The network, where torch runs it."""

    @property
    def device(self) -> torch.device:
        """Where it runs and its results are."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class OnnxRuntimeEngine:
    """onnxruntime on the CPU; its results are the reference for the others."""

    name = "onnxruntime"
    device = torch.device("cpu")
    module = None

    def __init__(self, graph: OnnxGraph, outputs: GraphOutputs, threads: int | None = None) -> None:
        self._name, self._dim, self._image = graph.name, outputs.dim, graph.image
        self._wanted = [outputs.embedding, outputs.features]
        declared = graph.model.graph.output
        known = [output.name for output in declared]
        try:
            declared.extend(onnx.ValueInfoProto(name=name) for name in self._wanted if name not in known)
            self._session = session(graph.serialized(), graph.name, threads or torch.get_num_threads())
        finally:
            del declared[len(known) :]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = np.ascontiguousarray(x.cpu().numpy())
        results = self._session.run(self._wanted, {self._image: pixels})
        embedding, features = (self._floating(*pair) for pair in zip(self._wanted, results, strict=True))
        return embedding.reshape(len(x), self._dim), as_map(features).contiguous()

    def _floating(self, name: str, result: NDArray[Any]) -> Tensor:
        if result.dtype.kind != "f":
            raise ModelError(f"{self._name}: {name} holds {result.dtype}, expected floating point numbers")
        return torch.from_numpy(result).float()


class LoopedEngine:
    """One image at a time, for graphs whose batch cannot be made dynamic."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.name = engine, engine.name

    @property
    def module(self) -> nn.Module | None:
        """That of its engine."""
        return self._engine.module

    @property
    def device(self) -> torch.device:
        """That of its engine."""
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
        # Two types give two results: caches and records tell them apart by the name.
        self._suffix = "" if dtype == "float32" else f"-{dtype}"
        self.name = f"torch{self._suffix}"
        self._threads = threads
        self._device, self._arithmetic = _usable(device), dtype
        check_arithmetic(dtype, self._device)
        self._dtype = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
        self._hooked: list[Tensor] = []
        self._hooked_output = features is not None
        if self._dtype != torch.float32:
            module = copy.deepcopy(module)  # the caller's own stays as exact as it is
        if features is not None:  # after copying: a copied hook would report to a copy of this engine
            _submodule(module, features).register_forward_hook(self._keep)
        self.module = module.eval().requires_grad_(False).to(self._device, self._dtype)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.ndim == 4:  # torch's own conversion fails at five, as masks of windows have
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        self._run: Any = self.module

    @property
    def device(self) -> torch.device:
        """Where the module is now."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return next((tensor.device for tensor in tensors), self._device)

    def compile(self) -> None:
        """Let torch.compile write code for it on the first call: needs a C++ compiler and a minute."""
        self._run, self.name = torch.compile(self.module, dynamic=True), f"compiled{self._suffix}"

    def exact(self) -> "ModuleEngine":
        """The same module in full float32, where this one computes in TF32."""
        twin = copy.copy(self)
        twin._arithmetic = "float32"
        return twin

    def _keep(self, module: nn.Module, args: object, output: Any) -> None:
        # Blocks of transformers often return a tuple, of which the tokens are the first.
        self._hooked[:] = [output[0] if isinstance(output, tuple | list) and output else output]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        device = self.device
        x = x.to(device, self._dtype).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), _threads(self._threads), float32_arithmetic(self._arithmetic, device):
            return self._results(self._run(x))

    def plain(self) -> nn.Module:
        """The network as a module that returns (embedding, map) and can be traced."""
        return _Plain(self)

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
                f"got {type(result).__name__}; if it returns the embedding alone, pass features= with a "
                f"submodule's name"
            )
        embedding, layer = result
        return embedding.float(), as_map(layer).float().contiguous()


def _usable(device: str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises the latter
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used here: {reason}; the CPU is 'cpu'") from error


class _Plain(nn.Module):
    def __init__(self, engine: ModuleEngine) -> None:
        super().__init__()
        self.network, self._engine = engine.module, engine

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._engine._results(self.network(x))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        if count:
            torch.set_num_threads(before)


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        names = [n for n, _ in module.named_children()]
        raise ModelError(
            f"{type(module).__name__} has no submodule {name!r}; its own are {', '.join(names)}"
        ) from error


ENGINES = ("auto", "onnxruntime", "torch", "compiled")
Result = tuple[Tensor, Tensor]  # (embedding, map)

# Largest differences, over the largest value: of batches and engines, and of a second run from the first.
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
    """The engine asked for; ``"auto"`` is torch where the graph can be imported and agrees, else onnxruntime.

    A rule, not a timing, so that the same file is always run the same way and an interrupted run goes on to
    the identical result; benchmarks/backbone_engines.py measures what the rule rests on.

    Raises:
        InputError: unknown engine or dtype, or a combination onnxruntime cannot do.
        ModelError: the graph cannot be run, or torch's result differs from onnxruntime's.
    """
    if engine not in ENGINES or dtype not in TOLERANCE:
        raise InputError(
            f"expected engine in {ENGINES} and dtype in {tuple(TOLERANCE)}, got {engine!r}, {dtype!r}"
        )
    plain = dtype == "float32" and device == "cpu"
    if engine == "onnxruntime" and not plain:
        raise InputError(
            f"onnxruntime runs float32 on the CPU here, got {dtype} on {device}; use engine='torch'"
        )
    check_arithmetic(dtype, _usable(device))
    x = probe(preprocessing)
    onnx_engine = OnnxRuntimeEngine(graph, outputs, threads)
    reference, expected, warning = check_batches(graph.name, onnx_engine, x)
    if expected[1].shape[1:] != outputs.feature_shape:
        raise ModelError(
            f"{graph.name}: expected maps {outputs.feature_shape}, onnxruntime gives "
            f"{tuple(expected[1].shape[1:])}"
        )
    graph.repairs += [warning] if warning else []
    if engine == "onnxruntime":
        return reference
    try:
        module = build_module(graph, outputs).folded()
        runner = ModuleEngine(module, dtype=dtype, device=device, threads=threads)
        graph.repairs += told(dtype, "onnxruntime", attempt(runner, x), expected)
    except ModelError as error:
        if engine != "auto" or not plain:
            raise ModelError(f"{graph.name}: torch cannot run the graph: {error}") from error
        graph.repairs.append(f"run by onnxruntime because torch cannot: {error}")
        return reference
    if engine == "compiled":
        runner.compile()
    return runner


def probe(preprocessing: Preprocessing) -> Tensor:
    """Two images of noise, as the network wants them."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, *preprocessing.size, 3), generator=noise).to(torch.uint8)
    return preprocessing(images)


def check_batches(
    name: str, engine: Engine, x: Tensor, dtype: str = "float32", advice: str = ""
) -> tuple[Engine, Result, str]:
    """An engine whose result for an image does not depend on the batch, as tested on two images.

    Each is run alone, then both in a batch; if the results differ, or may because of their type, each is run
    alone once more, to find out whether the batch is the reason.

    Args:
        name: of the network, for errors.
        engine: any.
        x: the network's input (2, 3, h, w).
        dtype: what it computes in.
        advice: what to look at, added to the error.

    Returns:
        The engine, in a loop over images if a batch gets other results than each image alone; the results;
        a warning that states this, or "".

    Raises:
        ModelError: it cannot run on one image, or gives another result when it is run again.

    Example:
        >>> engine = ModuleEngine(torch.nn.Identity(), features="")
        >>> check_batches("identity", engine, torch.ones(2, 3, 4, 4))[2]
        ''
    """
    looped = LoopedEngine(engine)
    try:
        alone = attempt(looped, x)
    except ModelError as error:
        raise ModelError(f"{name}: cannot be run on one image alone: {error}") from error
    warning = ""
    try:
        _check_agreement(attempt(engine, x), alone, TOLERANCE[dtype])
    except ModelError as error:
        warning = f"images are run one by one, because a batch of several gives other results: {error}"
    if not warning and dtype == "float32":
        return engine, alone, ""
    try:
        _check_agreement(attempt(looped, x), alone, REPEATED[dtype])
    except ModelError as error:
        raise ModelError(
            f"{name}: the same image gives other results when it is run again ({error}): look for "
            f"dropout that is always on, random noise, or a state that is kept between calls{advice}"
        ) from error
    return (looped if warning else engine), alone, warning


def attempt(engine: Engine, x: Tensor) -> Result:
    """Its result; whatever goes wrong is a `ModelError`."""
    try:
        return engine(x)
    except ModelError:
        raise
    except Exception as error:  # of torch, of onnxruntime, or of a module of the caller's
        raise ModelError(str(error).strip() or type(error).__name__) from error


def told(dtype: str, other: str, got: Result, expected: Result) -> list[str]:
    """What a result in TF32 loses, as one sentence for `FrozenBackbone.repairs`; none in other types.

    Raises:
        ModelError: it differs by more than the type allows.
    """
    embedding, features = _check_agreement(got, expected, TOLERANCE[dtype])
    if dtype != "tf32":
        return []
    return [
        f"runs in TF32: on two images of noise its embedding differs from that of {other} by {embedding:.1e} "
        f"of its largest value, its map by {features:.1e}"
    ]


def _check_agreement(got: Result, expected: Result, tolerance: float) -> list[float]:
    """The differences of embedding and map over their largest values, none of them above the tolerance."""
    differences = []
    for role, value, truth in zip(("embedding", "map"), got, expected, strict=True):
        if value.shape != truth.shape:
            raise ModelError(f"the {role} has the shape {tuple(value.shape)}, expected {tuple(truth.shape)}")
        if not torch.isfinite(truth).all():
            raise ModelError(f"the {role} of an image of noise is not finite")
        difference = float((value.cpu() - truth.cpu()).abs().max() / truth.abs().max().clamp_min(1e-12))
        if not difference <= tolerance:
            raise ModelError(f"the {role} differs by {difference:.1e} of its largest value")
        differences.append(difference)
    return differences
