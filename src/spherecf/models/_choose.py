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
Answer = tuple[Tensor, Tensor]  # (embedding, map)

# Largest differences, over the largest value: of batches and engines, and of a second run from the first.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}
REPEATED = {"float32": 1e-4, "bfloat16": 1e-2}


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
    x = probe(preprocessing)
    onnx_engine = OnnxRuntimeEngine(graph, found, threads)
    reference, answer, word = same_answers(graph.name, onnx_engine, x)
    if answer[1].shape[1:] != found.feature_shape:
        raise ModelError(
            f"{graph.name}: expected maps {found.feature_shape}, onnxruntime gives "
            f"{tuple(answer[1].shape[1:])}"
        )
    graph.repairs += [word] if word else []
    if engine == "onnxruntime":
        return reference
    try:
        module = build_module(graph, found).folded()
        runner = ModuleEngine(module, dtype=dtype, device=device, threads=threads)
        _check_agreement(_attempt(runner, x), answer, TOLERANCE[dtype])
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


def same_answers(
    name: str, engine: Engine, x: Tensor, dtype: str = "float32", advice: str = ""
) -> tuple[Engine, Answer, str]:
    """An engine whose answer about an image depends on nothing else, which is tried on these two images.

    Each is run alone, then both in a batch; if the results differ, or may because of their type, each is run
    alone once more, to tell whether the batch is the reason.

    Args:
        name: of the network, for errors.
        engine: any.
        x: the network's input (2, 3, h, w).
        dtype: what it computes in.
        advice: what to look at, added to the error.

    Returns:
        The engine, in a loop over images if a batch gets other answers than each image alone; the answers;
        a sentence that says so, or "".

    Raises:
        ModelError: it cannot run on one image, or answers differently when it is asked again.

    Example:
        >>> engine = ModuleEngine(torch.nn.Identity(), features="")
        >>> same_answers("identity", engine, torch.ones(2, 3, 4, 4))[2]
        ''
    """
    looped = LoopedEngine(engine)
    try:
        alone = _attempt(looped, x)
    except ModelError as error:
        raise ModelError(f"{name}: cannot be run on one image alone: {error}") from error
    word = ""
    try:
        _check_agreement(_attempt(engine, x), alone, TOLERANCE[dtype])
    except ModelError as error:
        word = f"images are run one by one, as an image's result is another in a batch of several: {error}"
    if not word and dtype == "float32":
        return engine, alone, ""
    try:
        _check_agreement(_attempt(looped, x), alone, REPEATED[dtype])
    except ModelError as error:
        raise ModelError(
            f"{name}: the same image gives other results when it is run again ({error}): look for "
            f"dropout that is always on, random noise, or a state that is kept between calls{advice}"
        ) from error
    return (looped if word else engine), alone, word


def _attempt(engine: Engine, x: Tensor) -> Answer:
    try:
        return engine(x)
    except ModelError:
        raise
    except Exception as error:  # of torch, of onnxruntime, or of a module of the caller's
        raise ModelError(str(error).strip() or type(error).__name__) from error


def _check_agreement(got: Answer, expected: Answer, tolerance: float) -> None:
    for role, value, truth in zip(("embedding", "map"), got, expected, strict=True):
        if value.shape != truth.shape:
            raise ModelError(f"the {role} has the shape {tuple(value.shape)}, expected {tuple(truth.shape)}")
        if not torch.isfinite(truth).all():
            raise ModelError(f"the {role} of an image of noise is not finite")
        difference = float((value.cpu() - truth.cpu()).abs().max() / truth.abs().max().clamp_min(1e-12))
        if not difference <= tolerance:
            raise ModelError(f"the {role} differs by {difference:.1e} of its largest value")
