"""Which engine runs a graph, and a short run on two images that proves it does."""

import torch
from torch import Tensor

from spherecf.errors import InputError, ModelError
from spherecf.models._engines import Engine, LoopedEngine, ModuleEngine, OnnxRuntimeEngine
from spherecf.models._onnx_find import Found
from spherecf.models._onnx_graph import OnnxGraph
from spherecf.models._onnx_import import build_module
from spherecf.models._preprocessing import Preprocessing

ENGINES = ("auto", "onnxruntime", "torch", "compiled")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}  # largest difference from onnxruntime, over the largest value


def choose_engine(
    graph: OnnxGraph,
    found: Found,
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
    x = _probe(preprocessing)
    reference, answer = _any_batch(graph, OnnxRuntimeEngine(graph, found, threads), x, found)
    if engine == "onnxruntime":
        return reference
    try:
        module = build_module(graph, found).folded()
        runner = ModuleEngine(module, dtype=dtype, device=device, threads=threads)
        _check_agreement(graph, _tried(graph, runner, x), answer, TOLERANCE[dtype])
    except ModelError as error:
        if engine != "auto" or not plain:
            raise
        graph.repairs.append(f"run by onnxruntime because torch cannot: {error}")
        return reference
    if engine == "compiled":
        runner.compile()
    return runner


def _tried(graph: OnnxGraph, runner: ModuleEngine, x: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return runner(x)
    except ModelError:
        raise
    except Exception as error:  # whatever torch's operations raise, at sizes that fit one image alone say
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{graph.name}: torch cannot run {len(x)} images at once: {reason}") from error


def _probe(preprocessing: Preprocessing) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, *preprocessing.size, 3), generator=noise).to(torch.uint8)
    return preprocessing(images)


def _any_batch(
    graph: OnnxGraph, engine: OnnxRuntimeEngine, x: Tensor, found: Found
) -> tuple[Engine, tuple[Tensor, Tensor]]:
    """The engine, in a loop over images if two at once get other answers than each alone."""
    looped = LoopedEngine(engine)
    try:
        answer = looped(x)
    except Exception as error:  # onnxruntime's errors have no common base
        raise ModelError(f"{graph.name}: onnxruntime cannot run the graph: {str(error).strip()}") from error
    if answer[1].shape[1:] != found.feature_shape:
        raise ModelError(
            f"{graph.name}: expected maps {found.feature_shape}, onnxruntime gives "
            f"{tuple(answer[1].shape[1:])}"
        )
    try:
        _check_agreement(graph, engine(x), answer, TOLERANCE["float32"])
    except Exception as error:
        graph.repairs.append(
            f"images are run one by one, the graph cannot take several: {str(error).strip()}"
        )
        return looped, answer
    return engine, answer


def _check_agreement(
    graph: OnnxGraph, got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float
) -> None:
    for role, value, truth in zip(("embedding", "map"), got, expected, strict=True):
        if value.shape != truth.shape:
            raise ModelError(
                f"{graph.name}: {role} of shape {tuple(value.shape)}, expected {tuple(truth.shape)}"
            )
        difference = float((value.cpu() - truth).abs().max() / truth.abs().max().clamp_min(1e-12))
        if not difference <= tolerance:
            raise ModelError(f"{graph.name}: the {role} differs by {difference:.1e} of its largest value")
