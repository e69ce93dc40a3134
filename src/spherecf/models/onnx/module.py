"""A recogniser's ONNX graph as a torch module, and a torch module as an ONNX graph."""

import copy
import io
import keyword
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spherecf.errors import ModelError
from spherecf.models.network import as_map, map_order
from spherecf.models.onnx.graph import (
    MAX_BYTES,
    SAFE_OPSET,
    Model,
    Node,
    OnnxGraph,
    as_array,
    attributes,
    evaluate,
    image_tensors,
    opset_of,
    reads,
)
from spherecf.models.onnx.operators import OPERATIONS, Value
from spherecf.models.onnx.outputs import GraphOutputs, find_outputs, needed_nodes
from spherecf.models.onnx.repairs import load_graph


class OnnxModule(nn.Module):
    """An imported recogniser: pixels as the network wants them (n, 3, h, w) to (embedding, last map).

    Attributes:
        network: the graph as torch.fx sees it; ``print(module.network.code)`` shows it as Python.
        outputs: names and shapes of the two results.

    Example:
        >>> from spherecf.models.preprocessing import default_recogniser_path
        >>> module = import_onnx(default_recogniser_path())
        >>> module.outputs.embedding, module.outputs.features, module.outputs.feature_shape
        ('fc1', 'bn1', (1024, 7, 7))
    """

    def __init__(self, network: fx.GraphModule, outputs: GraphOutputs) -> None:
        super().__init__()
        self.network, self.outputs = network, outputs

    def forward(
        self, x: Float[Tensor, "n 3 h w"]
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n c fh fw"]]:
        """(embedding (n, dim), features (n, C, H, W)), see `as_map`."""
        embedding, features = self.network.forward(x)  # without fx's print of where an error arose
        return embedding.flatten(1), as_map(features)

    def folded(self) -> "OnnxModule":
        """A faster copy for inference: batch normalisations that follow a convolution are folded into it."""
        network = copy.deepcopy(self.network)
        modules = dict(network.named_modules())
        for node in list(network.graph.nodes):
            before = node.args[0] if node.args else None
            if not isinstance(before, fx.Node) or node.op != "call_module" or before.op != "call_module":
                continue
            norm, convolution = modules[str(node.target)], modules[str(before.target)]
            follows = isinstance(norm, nn.modules.batchnorm._BatchNorm) and isinstance(convolution, nn.Conv2d)
            if follows and len(before.users) == 1:
                fused = fuse_conv_bn_eval(convolution.eval(), norm.eval())
                network.set_submodule(str(before.target), fused)
                modules[str(before.target)] = fused
                node.replace_all_uses_with(before)
                network.graph.erase_node(node)
        network.delete_all_unused_submodules()
        network.recompile()
        return OnnxModule(network, self.outputs).eval()


def import_onnx(
    source: str | Path | Model, *, embedding: str | None = None, features: str | None = None
) -> OnnxModule:
    """Read a recogniser's graph into torch; its weights become parameters named after the graph's nodes.

    Args:
        source: the ONNX file, or a loaded ``onnx.ModelProto``; repaired as in `FrozenBackbone.from_onnx`.
        embedding, features: names of the two tensors, where they are not found by themselves.

    Returns:
        The module in evaluation mode, equal to onnxruntime within 1e-4; call ``train()`` to fine-tune it.

    Raises:
        ModelError: not a recogniser, or an operation SphereCF cannot import (operation and node are named).

    Example:
        >>> from spherecf.models.preprocessing import default_recogniser_path
        >>> network = import_onnx(default_recogniser_path())
        >>> embedding, features = network(torch.zeros(2, 3, 112, 112))
        >>> tuple(embedding.shape), tuple(features.shape)
        ((2, 128), (2, 1024, 7, 7))
    """
    graph = load_graph(source)
    return build_module(graph, find_outputs(graph, graph.size or (112, 112), embedding, features))


def build_module(graph: OnnxGraph, outputs: GraphOutputs) -> OnnxModule:
    """The part of a repaired graph that leads to the two results, as a module."""
    needed = needed_nodes(graph, {outputs.embedding, outputs.features})
    alive = image_tensors(graph)
    traced: fx.Graph = fx.Graph()
    root = nn.Module()
    values: dict[str, Value] = dict(_fold_constants(graph, needed, alive))
    values[graph.image] = traced.placeholder("x")
    for node in needed:
        if alive.intersection(reads(node)):
            if node.op_type not in OPERATIONS or node.domain not in ("", "ai.onnx"):
                raise ModelError(_refusal(graph, node, "this operation cannot be imported"))
            results = _built(graph, node, values, traced, root)
            values.update(zip(node.output, results, strict=False))  # what is left out no builder gives
    traced.output((values[outputs.embedding], values[outputs.features]))
    network = fx.GraphModule(root, traced, "OnnxNetwork")
    return OnnxModule(network, outputs).eval()


def _built(
    graph: OnnxGraph, node: Node, values: dict[str, Value], traced: fx.Graph, root: nn.Module
) -> tuple[Value, ...]:
    """The node's results as torch has them; what no builder expects is an error like any other."""
    try:
        result = OPERATIONS[node.op_type](_Operation(graph, node, values, traced, root))
    except ModelError:
        raise
    except Exception as error:  # of torch, or a look-up of what the node should have
        raise ModelError(_refusal(graph, node, f"cannot be imported ({error!r})")) from error
    return result if isinstance(result, tuple) else (result,)


def _refusal(graph: OnnxGraph, node: Node, reason: str) -> str:
    where = f"{node.op_type} (node {node.name or node.output[0]})"
    return f"{graph.name}: {where}: {reason}; run the file with engine='onnxruntime' instead"


def _fold_constants(graph: OnnxGraph, needed: list[Node], alive: set[str]) -> dict[str, Tensor]:
    """Everything that does not depend on the image, computed once: dequantised weights, shapes, constants."""
    steps = [node for node in needed if not alive.intersection(reads(node))]
    read = {name for node in needed if alive.intersection(reads(node)) for name in reads(node)}
    stored = {t.name: as_array(t, graph.name) for t in graph.model.graph.initializer if t.name in read}
    computed = sorted(read & {name for node in steps for name in node.output})
    if computed:
        stored.update(evaluate(graph, steps, computed, {}))
    return {name: _tensor(value) for name, value in stored.items()}


def _tensor(value: NDArray[Any]) -> Tensor:
    """Floating point types that NumPy does not know itself (bfloat16, float8) become float32."""
    return torch.from_numpy(np.array(value if value.dtype.kind in "fiub" else value.astype(np.float32)))


class _Operation:
    """One node while it is built, see `spherecf.models.onnx.operators.Operation`."""

    def __init__(
        self, graph: OnnxGraph, node: Node, values: dict[str, Value], traced: fx.Graph, root: nn.Module
    ) -> None:
        self._graph, self._node, self._traced, self._root = graph, node, traced, root
        self.kind, self.attributes = str(node.op_type), attributes(node)
        self.name = _readable(node.name or node.output[0])
        self.outputs, self.opset = len(node.output), opset_of(graph.model)
        if missing := [name for name in node.input if name and name not in values]:
            raise self.refuse(f"its input {missing[0]} is a second output that cannot be imported")
        self.inputs: list[Value] = [values[name] if name else None for name in node.input]

    def constant(self, position: int, default: Any = None) -> Any:
        """The constant tensor at this input, or ``default`` if it is left out or depends on the image."""
        value = self.inputs[position] if position < len(self.inputs) else None
        return value if isinstance(value, Tensor) else default

    def module(self, module: nn.Module, *inputs: Value) -> fx.Node:
        """Apply a new submodule named after the node."""
        name = self._free(self.name)
        self._root.add_module(name, module)
        return self._traced.call_module(name, inputs)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Apply a function; constant tensors among its arguments are kept as parameters or buffers."""
        return self._traced.call_function(function, tuple(self._stored(arg) for arg in args), kwargs)

    def _stored(self, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, Tensor | fx.Node) for item in value):
            return [self._stored(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        name = self._free(f"{self.name}_constant")
        if value.numel() > 1 and value.is_floating_point():
            self._root.register_parameter(name, nn.Parameter(value))
        else:
            self._root.register_buffer(name, value)
        return self._traced.get_attr(name)

    def _free(self, name: str) -> str:
        number, unique = 1, name
        while hasattr(self._root, unique):
            number, unique = number + 1, f"{name}_{number}"
        return unique

    def refuse(self, reason: str) -> ModelError:
        """The error that says why this node cannot be imported."""
        return ModelError(_refusal(self._graph, self._node, reason))


def _readable(name: str) -> str:
    """A Python identifier close to the node's name."""
    plain = re.sub(r"\W+", "_", name).strip("_")
    plain = f"n{plain}" if not plain or plain[0].isdigit() else plain
    return f"{plain}_" if keyword.iskeyword(plain) else plain


TRACED_OPSETS = (9, 20)  # what torch writes; newer ones are converted from the last
BATCH = "batch"


def trace_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], opset_version: int = 17
) -> Model:
    """An ``onnx.ModelProto`` that does what the module does in evaluation mode, for any number of rows.

    The module is run once and what it does is written down, so that any module without decisions that depend
    on its input's values can be exported. The first dimension of all inputs and outputs becomes ``batch``.

    Args:
        module: takes the inputs in this order and returns the outputs as a tensor or a tuple.
        inputs: examples of at least two rows, by the names they get.
        outputs: names of the results.
        opset_version: of the graph, 9 or later.

    Raises:
        ModelError: torch cannot write an operation, or the result is larger than 2 GiB.

    Example:
        >>> model = trace_onnx(nn.Linear(4, 2), {"x": torch.zeros(2, 4)}, ["y"])
        >>> [node.op_type for node in model.graph.node], model.graph.output[0].name
        (['Gemm'], 'y')
    """
    oldest, newest = TRACED_OPSETS
    if opset_version < oldest:
        raise ModelError(f"opset {opset_version} is older than {oldest}, the oldest that torch writes")
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if size > MAX_BYTES:
        raise ModelError(f"{size} bytes of weights: an ONNX file holds 2 GiB at most; use a smaller head")
    stream: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # Checks of the input become constants, which is meant; the other exporter needs one more package.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module.eval(), tuple(inputs.values()), stream, input_names=[*inputs],
                output_names=[*outputs], dynamic_axes={name: {0: BATCH} for name in (*inputs, *outputs)},
                opset_version=min(opset_version, newest), dynamo=False,
            )  # fmt: skip
        except (RuntimeError, torch.onnx.OnnxExporterError) as error:
            raise ModelError(f"torch cannot write this network as ONNX: {error}") from error
    model = onnx.load_model_from_string(stream.getvalue())
    return model if opset_of(model) == opset_version else _with_opset(model, opset_version)


def _with_opset(model: Model, version: int) -> Model:
    """The same graph in another opset.

    Raises:
        ModelError: onnx has no converter for one of its operations.
    """
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as error:  # the converter raises RuntimeError and classes of its own
        subject = f"{model.graph.name or 'the graph'}: opset {opset_of(model)}"
        raise ModelError(f"{subject} cannot be converted to {version}: {error}") from error


def cut_graph(graph: OnnxGraph, outputs: GraphOutputs) -> Model:
    """The part of a repaired graph that leads to (embedding, map), its new outputs, in opset 9 or later."""
    model, body = graph.model, graph.model.graph
    names = [outputs.embedding, _add_map(body, outputs)]
    nodes = needed_nodes(graph, set(names))
    used = {name for node in nodes for name in reads(node)}
    stored = [tensor for tensor in body.initializer if tensor.name in used]
    del body.node[:], body.initializer[:], body.output[:], body.value_info[:], model.metadata_props[:]
    body.node.extend(nodes)
    body.initializer.extend(stored)
    body.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    return model if opset_of(model) >= TRACED_OPSETS[0] else _with_opset(model, SAFE_OPSET)


def _add_map(body: Any, outputs: GraphOutputs) -> str:
    """Name of the features as a map: where they come in another form, the graph gets `as_map` at its end."""
    order = map_order(outputs.given_shape)
    if not order:
        return outputs.features
    turned, name, sizes = (f"{outputs.features}/{part}" for part in ("turned", "map", "sizes"))
    axes, shape = [0, *(axis + 1 for axis in order)], np.array([-1, *outputs.feature_shape])
    body.initializer.append(onnx.numpy_helper.from_array(shape, sizes))
    body.node.append(onnx.helper.make_node("Transpose", [outputs.features], [turned], perm=axes))
    body.node.append(onnx.helper.make_node("Reshape", [turned, sizes], [name]))
    return name
