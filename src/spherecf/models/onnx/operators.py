"""ONNX operators as torch modules and functions, one small builder each.

A builder takes an `Operation` and returns the traced result, or a tuple if there are several. Learned values
(weights of convolutions, dense layers, normalisations, slopes, added vectors) become parameters; scalars
become buffers. The operators are specified at https://onnx.ai/onnx/operators/.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from onnx import TensorProto
from torch import Tensor, fx, nn
from torch.nn import functional

from spherecf.errors import ModelError
from spherecf.models.onnx.graph import as_array, type_name

Value = Any  # an fx.Node, or a Tensor for constants


@runtime_checkable
class Operation(Protocol):
    """A node to build; its inputs are traced values, constant tensors, or None for omitted inputs."""

    kind: str
    name: str
    opset: int
    outputs: int
    inputs: list[Value]
    attributes: dict[str, Any]

    def constant(self, position: int, default: Any = None) -> Any: ...

    def module(self, module: nn.Module, *inputs: Value) -> fx.Node: ...

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node: ...

    def refuse(self, reason: str) -> ModelError: ...


Builder = Callable[[Operation], Value]
OPERATIONS: dict[str, Builder] = {}


def operation(*kinds: str) -> Callable[[Builder], Builder]:
    """Register a builder for these operator types."""

    def register(builder: Builder) -> Builder:
        OPERATIONS.update(dict.fromkeys(kinds, builder))
        return builder

    return register


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of any rank: ONNX uses the same operator for vectors and maps."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _parameter(module: nn.Module, name: str, value: Tensor | None) -> None:
    if value is not None:
        setattr(module, name, nn.Parameter(value.clone(), requires_grad=value.is_floating_point()))


def _optional(op: Operation, position: int, default: Any = None) -> Any:
    """The constant at an input that may be omitted; one that depends on the image must not be ignored."""
    value = op.inputs[position] if position < len(op.inputs) else None
    if value is not None and not isinstance(value, Tensor):
        raise op.refuse(f"expected a constant as input {position + 1}")
    return default if value is None else value


def _padding(op: Operation) -> tuple[int, int] | list[int]:
    """Padding as (height, width) if symmetric, else as a list for torch's `pad` (last dimension first)."""
    if op.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise op.refuse(f"auto_pad={op.attributes['auto_pad']} is not supported")
    pads = list(op.attributes.get("pads", [0] * 4))
    if pads[:2] == pads[2:]:
        return pads[0], pads[1]
    return [pads[1], pads[3], pads[0], pads[2]]


@operation("Conv")
def _conv(op: Operation) -> Value:
    weight, bias = op.constant(1), _optional(op, 2)
    if weight is None or weight.ndim != 4:
        raise op.refuse("expected constant weights (out, in, height, width)")
    x, padding = op.inputs[0], _padding(op)
    if isinstance(padding, list):
        x, padding = op.call(functional.pad, x, padding), (0, 0)
    groups = int(op.attributes.get("group", 1))
    out, per_group, *kernel = weight.shape
    layer = nn.Conv2d(
        per_group * groups,
        out,
        (kernel[0], kernel[1]),
        stride=tuple(op.attributes.get("strides", (1, 1))),
        padding=padding,
        dilation=tuple(op.attributes.get("dilations", (1, 1))),
        groups=groups,
        bias=bias is not None,
    )
    _parameter(layer, "weight", weight)
    _parameter(layer, "bias", bias)
    return op.module(layer, x)


@operation("BatchNormalization")
def _batch_norm(op: Operation) -> Value:
    scale, shift, mean, variance = (op.constant(i) for i in range(1, 5))
    if any(value is None or value.ndim != 1 for value in (scale, shift, mean, variance)):
        raise op.refuse("expected constant scale, bias, mean and variance, one number per channel")
    # ONNX's momentum weights the old value, torch's the new one.
    layer = BatchNorm(len(mean), op.attributes.get("epsilon", 1e-5), 1 - op.attributes.get("momentum", 0.9))
    _parameter(layer, "weight", scale)
    _parameter(layer, "bias", shift)
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    return op.module(layer, op.inputs[0])


def leaky(x: Tensor, slope: Tensor) -> Tensor:
    """ONNX's PRelu: the slopes are broadcast to x from the last dimension."""
    return torch.where(x < 0, x * slope, x)


@operation("PRelu")
def _prelu(op: Operation) -> Value:
    slope = op.constant(1)
    if slope is None:
        raise op.refuse("expected constant slopes")
    per_channel = slope.ndim > 2 and slope.shape[-2:] == (1, 1) and slope.shape[-3] == slope.numel()
    if not per_channel and slope.numel() > 1:
        return op.call(leaky, op.inputs[0], slope)
    layer = nn.PReLU(slope.numel())
    _parameter(layer, "weight", slope.flatten())
    return op.module(layer, op.inputs[0])


@operation("Gemm")
def _gemm(op: Operation) -> Value:
    weight, bias, get = op.constant(1), _optional(op, 2), op.attributes.get
    if weight is None or get("transA", 0):
        raise op.refuse("expected a constant matrix and transA=0")
    weight = (weight if get("transB", 0) else weight.T) * get("alpha", 1.0)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _parameter(layer, "weight", weight.contiguous())
    if bias is not None:
        _parameter(layer, "bias", (bias * get("beta", 1.0)).flatten().expand(weight.shape[0]))
    return op.module(layer, op.inputs[0])


@operation("MatMul")
def _matmul(op: Operation) -> Value:
    weight = op.constant(1)
    if weight is None or weight.ndim != 2:
        return op.call(torch.matmul, *op.inputs)
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias=False)
    _parameter(layer, "weight", weight.T.contiguous())
    return op.module(layer, op.inputs[0])


def divide(x: Tensor, y: Tensor) -> Tensor:
    """ONNX's Div: the quotient of integers is truncated."""
    integers = not x.is_floating_point() and not y.is_floating_point()
    return torch.div(x, y, rounding_mode="trunc" if integers else None)


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": divide, "Pow": torch.pow,
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Sqrt": torch.sqrt, "Abs": torch.abs,
    "Exp": torch.exp, "Neg": torch.neg, "Erf": torch.erf, "Softplus": functional.softplus,
    "HardSwish": functional.hardswish, "Reciprocal": torch.reciprocal, "Where": torch.where,
    "Equal": torch.eq, "Less": torch.lt, "Greater": torch.gt, "And": torch.logical_and,
    "Or": torch.logical_or, "Not": torch.logical_not,
}  # fmt: skip


@operation(*_ELEMENTWISE)
def _elementwise(op: Operation) -> Value:
    return op.call(_ELEMENTWISE[op.kind], *op.inputs)


@operation("LeakyRelu")
def _leaky(op: Operation) -> Value:
    return op.call(functional.leaky_relu, op.inputs[0], op.attributes.get("alpha", 0.01))


@operation("HardSigmoid")
def _hard_sigmoid(op: Operation) -> Value:
    scaled = op.call(torch.mul, op.inputs[0], op.attributes.get("alpha", 0.2))
    return op.call(torch.clamp, op.call(torch.add, scaled, op.attributes.get("beta", 0.5)), 0.0, 1.0)


@operation("Clip")
def _clip(op: Operation) -> Value:
    low, high = (_optional(op, i, op.attributes.get(key)) for i, key in ((1, "min"), (2, "max")))
    low, high = (None if bound is None else float(bound) for bound in (low, high))
    return op.call(torch.clamp, op.inputs[0], low, high)


CASTS: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.DOUBLE: torch.float64, TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8, TensorProto.INT32: torch.int32, TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}  # fmt: skip


@operation("Cast")
def _cast(op: Operation) -> Value:
    if op.attributes["to"] not in CASTS:
        raise op.refuse(f"a cast to {type_name(op.attributes['to'])} is not supported")
    return op.call(Tensor.to, op.inputs[0], CASTS[op.attributes["to"]])


@operation("Identity", "Dropout")
def _identity(op: Operation) -> Value:
    return op.inputs[0]


@operation("Flatten")
def _flatten(op: Operation) -> Value:
    if op.attributes.get("axis", 1) != 1:
        raise op.refuse("only axis=1 is supported")
    return op.call(torch.flatten, op.inputs[0], 1)


@operation("LayerNormalization")
def _layer_norm(op: Operation) -> Value:
    scale, shift = op.constant(1), _optional(op, 2)
    axis = op.attributes.get("axis", -1)
    if scale is None or (axis < 0 and scale.ndim != -axis):
        raise op.refuse("expected a constant scale of the normalised shape")
    layer = nn.LayerNorm(tuple(scale.shape), op.attributes.get("epsilon", 1e-5), bias=shift is not None)
    _parameter(layer, "weight", scale)
    _parameter(layer, "bias", shift)
    return op.module(layer, op.inputs[0])


@operation("Gelu")
def _gelu(op: Operation) -> Value:
    return op.call(functional.gelu, op.inputs[0], approximate=op.attributes.get("approximate", "none"))


def flat_softmax(x: Tensor, axis: int) -> Tensor:
    """ONNX's Softmax before opset 13: over all axes from ``axis`` on."""
    return x.flatten(axis).softmax(-1).reshape(x.shape)


@operation("Softmax")
def _softmax(op: Operation) -> Value:
    if op.opset < 13:
        return op.call(flat_softmax, op.inputs[0], op.attributes.get("axis", 1))
    return op.call(torch.softmax, op.inputs[0], op.attributes.get("axis", -1))


@operation("Einsum")
def _einsum(op: Operation) -> Value:
    return op.call(torch.einsum, op.attributes["equation"], *op.inputs)


def reshape(x: Tensor, shape: Sequence[int] | Tensor) -> Tensor:
    """ONNX's Reshape: 0 keeps a dimension, -1 is inferred."""
    sizes = [int(v) for v in (shape.tolist() if isinstance(shape, Tensor) else shape)]
    return x.reshape([x.shape[i] if v == 0 else v for i, v in enumerate(sizes)])


@operation("Reshape")
def _reshape(op: Operation) -> Value:
    shape = op.constant(1)
    return op.call(reshape, op.inputs[0], op.inputs[1] if shape is None else shape.tolist())


@operation("Squeeze", "Unsqueeze")
def _squeeze(op: Operation) -> Value:
    axes = op.constant(1, op.attributes.get("axes"))
    if axes is None:
        raise op.refuse("expected constant axes")
    axes = [int(a) for a in axes]
    if op.kind == "Squeeze":
        return op.call(torch.squeeze, op.inputs[0], axes)
    result = op.inputs[0]
    for axis in sorted(axes):
        result = op.call(torch.unsqueeze, result, axis)
    return result


@operation("Transpose")
def _transpose(op: Operation) -> Value:
    if "perm" not in op.attributes:
        raise op.refuse("expected perm")
    return op.call(torch.permute, op.inputs[0], list(op.attributes["perm"]))


@operation("Concat")
def _concat(op: Operation) -> Value:
    return op.call(torch.cat, op.inputs, op.attributes["axis"])


def _numbers(value: Tensor | Sequence[int]) -> list[int]:
    return [int(v) for v in (value.tolist() if isinstance(value, Tensor) else value)]


def cut(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    """ONNX's Slice; bounds out of range are clipped."""
    starts, ends = _numbers(starts), _numbers(ends)
    axes = range(len(starts)) if axes is None else _numbers(axes)
    steps = [1] * len(starts) if steps is None else _numbers(steps)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        indices = range(*slice(start, end, step).indices(x.shape[axis]))
        if step == 1:
            x = x.narrow(axis, indices.start, len(indices))
        else:
            x = x.index_select(axis, torch.tensor(list(indices), dtype=torch.int64, device=x.device))
    return x


@operation("Slice")
def _slice(op: Operation) -> Value:
    if "starts" in op.attributes:  # before opset 10
        bounds = [op.attributes.get(name) for name in ("starts", "ends", "axes")]
    else:
        bounds = [None if v is None else op.constant(i, v) for i, v in enumerate(op.inputs)][1:]
    bounds = [_numbers(b) if isinstance(b, Tensor | list) else b for b in bounds]
    return op.call(cut, op.inputs[0], *bounds)


def split(x: Tensor, axis: int, count: int, sizes: list[int] | None = None) -> Sequence[Tensor]:
    """ONNX's Split: parts of these sizes, or equal parts of which the last may be smaller."""
    return torch.split(x, sizes or -(-x.shape[axis] // count), axis)


@operation("Split")
def _split(op: Operation) -> Value:
    sizes = op.constant(1, op.attributes.get("split"))
    if sizes is None and len(op.inputs) > 1 and op.inputs[1] is not None:
        raise op.refuse("expected constant sizes")
    axis, sizes = op.attributes.get("axis", 0), None if sizes is None else _numbers(sizes)
    parts = op.call(split, op.inputs[0], axis, op.outputs, sizes)
    return tuple(op.call(operator.getitem, parts, index) for index in range(op.outputs))


def expand(x: Tensor, shape: Tensor | Sequence[int]) -> Tensor:
    """ONNX's Expand: dimensions of size 1 are broadcast, in the tensor as well as in the shape."""
    target = _numbers(shape)
    target = [1] * (x.ndim - len(target)) + target
    sizes = [1] * (len(target) - x.ndim) + list(x.shape)
    return x.expand([size if size != 1 else new for size, new in zip(sizes, target, strict=True)])


@operation("Expand")
def _expand(op: Operation) -> Value:
    shape = op.constant(1)
    return op.call(expand, op.inputs[0], op.inputs[1] if shape is None else _numbers(shape))


def filled(shape: Tensor, value: float | int | bool) -> Tensor:
    """ONNX's ConstantOfShape."""
    return torch.full(_numbers(shape), value)


@operation("ConstantOfShape")
def _constant_of_shape(op: Operation) -> Value:
    value = op.attributes.get("value")
    number = 0.0 if value is None else as_array(value, op.name).flatten()[0].item()
    return op.call(filled, op.inputs[0], number)


@operation("Pad")
def _pad(op: Operation) -> Value:
    pads = op.constant(1, op.attributes.get("pads"))
    value = _optional(op, 2, op.attributes.get("value", 0.0))
    if pads is None or op.attributes.get("mode", "constant") != "constant" or len(op.inputs) > 3:
        raise op.refuse("only constant padding with fixed sizes is supported")
    pads, rank = [int(p) for p in pads], len(pads) // 2
    order = [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]
    return op.call(functional.pad, op.inputs[0], order, value=float(value))


def global_mean(x: Tensor) -> Tensor:
    """ONNX's GlobalAveragePool, of maps and of sequences (n, C, T)."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operation("GlobalAveragePool")
def _global_mean(op: Operation) -> Value:
    return op.call(global_mean, op.inputs[0])


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
}  # fmt: skip


@operation(*_REDUCTIONS)
def _reduce(op: Operation) -> Value:
    axes = op.constant(1, op.attributes.get("axes"))
    if axes is None:
        raise op.refuse("expected constant axes")
    function = _REDUCTIONS[op.kind]
    keep = bool(op.attributes.get("keepdims", 1))
    return op.call(function, op.inputs[0], dim=[int(a) for a in axes], keepdim=keep)


@operation("ReduceL2")
def _norm(op: Operation) -> Value:
    axes = _optional(op, 1, op.attributes.get("axes"))
    keep = bool(op.attributes.get("keepdims", 1))
    dim = None if axes is None else [int(a) for a in axes]
    return op.call(torch.linalg.vector_norm, op.inputs[0], dim=dim, keepdim=keep)


@operation("LpNormalization")
def _normalize(op: Operation) -> Value:
    get = op.attributes.get
    return op.call(functional.normalize, op.inputs[0], p=float(get("p", 2)), dim=get("axis", -1))


@operation("MaxPool", "AveragePool")
def _pool(op: Operation) -> Value:
    if op.attributes.get("dilations", [1, 1]) != [1, 1]:
        raise op.refuse("dilations are not supported")
    padding, ceil = _padding(op), bool(op.attributes.get("ceil_mode", 0))
    if isinstance(padding, list):
        raise op.refuse("different padding on opposite sides is not supported")
    kernel, stride = tuple(op.attributes["kernel_shape"]), tuple(op.attributes.get("strides", (1, 1)))
    if op.kind == "MaxPool":
        return op.module(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil), op.inputs[0])
    include = bool(op.attributes.get("count_include_pad", 0))
    return op.module(nn.AvgPool2d(kernel, stride, padding, ceil, include), op.inputs[0])


def shape_of(x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
    """ONNX's Shape: the sizes as a tensor."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@operation("Shape")
def _shape(op: Operation) -> Value:
    return op.call(shape_of, op.inputs[0], op.attributes.get("start", 0), op.attributes.get("end"))


def take(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """ONNX's Gather; negative indices and axes count from the end."""
    axis %= x.ndim
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    gathered = x.index_select(axis, indices.flatten())
    return gathered.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@operation("Gather")
def _gather(op: Operation) -> Value:
    return op.call(take, *op.inputs, op.attributes.get("axis", 0))


READING_SIZES: tuple[Callable[..., Any], ...] = (reshape, expand, cut)
"""Functions that read sizes or bounds from tensors, best on the CPU."""


def moved_to(value: Tensor, like: Tensor) -> Tensor:
    """A value computed on the CPU, on the device of another; a few numbers are copied without waiting."""
    return value.to(like.device, non_blocking=True)
