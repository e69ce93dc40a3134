"""Convert a recogniser's ONNX graph to a torch module, and a torch module to an ONNX graph."""

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
from spherecf.models.onnx.operators import OPERATIONS, READING_SIZES, Value, moved_to, shape_of
from spherecf.models.onnx.outputs import GraphOutputs, find_outputs, needed_nodes
from spherecf.models.onnx.repairs import load_graph


class OnnxModule(nn.Module):
    """An imported recogniser: maps preprocessed pixels (n, 3, h, w) to (embedding, last feature map).

    Attributes:
        network: the graph as a torch.fx module; ``print(module.network.code)`` shows it as Python code.
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
        """Return (embedding (n, dim), features (n, C, H, W))."""
        embedding, features = self.network.forward(x)  # unlike a call, prints no traceback on errors
        return embedding.flatten(1), as_map(features)

    def folded(self) -> "OnnxModule":
        """A faster copy for inference, with batch normalisations folded into preceding convolutions."""
        network = copy.deepcopy(self.network)
        modules = dict(network.named_modules())
        for node in list(network.graph.nodes):
            source = node.args[0] if node.args else None
            if not isinstance(source, fx.Node) or node.op != "call_module" or source.op != "call_module":
                continue
            norm, convolution = modules[str(node.target)], modules[str(source.target)]
            fusible = isinstance(norm, nn.modules.batchnorm._BatchNorm) and isinstance(convolution, nn.Conv2d)
            if fusible and len(source.users) == 1:
                fused = fuse_conv_bn_eval(convolution.eval(), norm.eval())
                network.set_submodule(str(source.target), fused)
                modules[str(source.target)] = fused
                node.replace_all_uses_with(source)
                network.graph.erase_node(node)
        network.delete_all_unused_submodules()
        network.recompile()
        return OnnxModule(network, self.outputs).eval()


def import_onnx(
    source: str | Path | Model, *, embedding: str | None = None, features: str | None = None
) -> OnnxModule:
    """Import a recogniser's graph into torch; its weights become parameters named after the graph's nodes.

    Args:
        source: the ONNX file, or a loaded ``onnx.ModelProto``; repaired as in `FrozenBackbone.from_onnx`.
        embedding, features: names of the two tensors, if they are not found automatically.

    Returns:
        The module in evaluation mode, agreeing with onnxruntime within 1e-4; call ``train()`` to fine-tune
        it.

    Raises:
        ModelError: not a recogniser, or an operation that SphereCF cannot import (named in the message).

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
    """Build a module from the nodes of a repaired graph that the two results depend on."""
    needed = needed_nodes(graph, {outputs.embedding, outputs.features})
    dependent = image_tensors(graph)
    traced: fx.Graph = fx.Graph()
    root = nn.Module()
    values: dict[str, Value] = dict(_fold_constants(graph, needed, dependent))
    values[graph.image] = traced.placeholder("x")
    for node in needed:
        if dependent.intersection(reads(node)):
            if node.op_type not in OPERATIONS or node.domain not in ("", "ai.onnx"):
                raise ModelError(_error_message(graph, node, "this operation cannot be imported"))
            results = _build_node(graph, node, values, traced, root)
            values.update(zip(node.output, results, strict=False))  # optional outputs are not built
    traced.output((values[outputs.embedding], values[outputs.features]))
    network = fx.GraphModule(root, traced, "OnnxNetwork")
    return OnnxModule(network, outputs).eval()


def _build_node(
    graph: OnnxGraph, node: Node, values: dict[str, Value], traced: fx.Graph, root: nn.Module
) -> tuple[Value, ...]:
    """The node's results in the traced graph; any error of its builder becomes a `ModelError`."""
    try:
        result = OPERATIONS[node.op_type](_Operation(graph, node, values, traced, root))
    except ModelError:
        raise
    except Exception as error:  # from torch, or a missing attribute or input of the node
        raise ModelError(_error_message(graph, node, f"cannot be imported ({error!r})")) from error
    return result if isinstance(result, tuple) else (result,)


def _error_message(graph: OnnxGraph, node: Node, reason: str) -> str:
    label = f"{node.op_type} (node {node.name or node.output[0]})"
    return f"{graph.name}: {label}: {reason}; run the file with engine='onnxruntime' instead"


def _fold_constants(graph: OnnxGraph, needed: list[Node], dependent: set[str]) -> dict[str, Tensor]:
    """Compute all values that do not depend on the image once: dequantised weights, shapes, constants."""
    steps = [node for node in needed if not dependent.intersection(reads(node))]
    read = {name for node in needed if dependent.intersection(reads(node)) for name in reads(node)}
    stored = {t.name: as_array(t, graph.name) for t in graph.model.graph.initializer if t.name in read}
    computed = sorted(read & {name for node in steps for name in node.output})
    if computed:
        stored.update(evaluate(graph, steps, computed, {}))
    return {name: _tensor(value) for name, value in stored.items()}


def _tensor(value: NDArray[Any]) -> Tensor:
    """Convert an array to a tensor; float types that NumPy lacks (bfloat16, float8) become float32."""
    return torch.from_numpy(np.array(value if value.dtype.kind in "fiub" else value.astype(np.float32)))


class _Operation:
    """A node to build; implements `spherecf.models.onnx.operators.Operation`."""

    def __init__(
        self, graph: OnnxGraph, node: Node, values: dict[str, Value], traced: fx.Graph, root: nn.Module
    ) -> None:
        self._graph, self._node, self._traced, self._root = graph, node, traced, root
        self.kind, self.attributes = str(node.op_type), attributes(node)
        self.name = _to_identifier(node.name or node.output[0])
        self.outputs, self.opset = len(node.output), opset_of(graph.model)
        if missing := [name for name in node.input if name and name not in values]:
            raise self.refuse(f"its input {missing[0]} is a second output that cannot be imported")
        self.inputs: list[Value] = [values[name] if name else None for name in node.input]

    def constant(self, position: int, default: Any = None) -> Any:
        """The constant tensor at this input, or ``default`` if it is omitted or depends on the image."""
        value = self.inputs[position] if position < len(self.inputs) else None
        return value if isinstance(value, Tensor) else default

    def module(self, module: nn.Module, *inputs: Value) -> fx.Node:
        """Apply a new submodule that is named after the node."""
        name = self._unique(self.name)
        self._root.add_module(name, module)
        return self._traced.call_module(name, inputs)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Apply a function; constant tensors among its arguments become parameters or buffers.

        Shapes, and values computed from shapes and constants alone, stay on the CPU wherever the network is:
        Python reads them, and would have to wait for a GPU. Other operations that use them get a copy.
        """
        nodes = [item for item in _flat(args) if isinstance(item, fx.Node)]
        on_cpu = bool(nodes) and all(_is_on_cpu(node) for node in nodes)
        like = next((node for node in nodes if not _is_on_cpu(node)), None)
        like = None if function in READING_SIZES else like
        result = self._traced.call_function(
            function, tuple(self._register(arg, on_cpu, like) for arg in args), kwargs
        )
        result.meta[_ON_CPU] = on_cpu or function is shape_of
        return result

    def _register(self, value: Any, on_cpu: bool, like: fx.Node | None) -> Any:
        if isinstance(value, list) and any(isinstance(item, Tensor | fx.Node) for item in value):
            return [self._register(item, on_cpu, like) for item in value]
        if like is not None and _is_on_cpu(value):
            return self._traced.call_function(moved_to, (value, like))
        if not isinstance(value, Tensor):
            return value
        if on_cpu:  # not a buffer, which would move with the network
            return self._traced.call_function(torch.tensor, (value.tolist(),), {"dtype": value.dtype})
        name = self._unique(f"{self.name}_constant")
        if value.numel() > 1 and value.is_floating_point():
            self._root.register_parameter(name, nn.Parameter(value))
        else:
            self._root.register_buffer(name, value)
        return self._traced.get_attr(name)

    def _unique(self, name: str) -> str:
        number, unique = 1, name
        while hasattr(self._root, unique):
            number, unique = number + 1, f"{name}_{number}"
        return unique

    def refuse(self, reason: str) -> ModelError:
        """An error with the reason why this node cannot be imported."""
        return ModelError(_error_message(self._graph, self._node, reason))


_ON_CPU = "on_cpu"  # key in the metadata of a traced value


def _is_on_cpu(value: Any) -> bool:
    return isinstance(value, fx.Node) and bool(value.meta.get(_ON_CPU))


def _flat(args: Sequence[Any]) -> list[Any]:
    """The arguments of a call, and the items of lists among them."""
    return [item for arg in args for item in (arg if isinstance(arg, list) else [arg])]


def _to_identifier(name: str) -> str:
    """A Python identifier close to the node's name."""
    identifier = re.sub(r"\W+", "_", name).strip("_")
    identifier = f"n{identifier}" if not identifier or identifier[0].isdigit() else identifier
    return f"{identifier}_" if keyword.iskeyword(identifier) else identifier


TRACED_OPSETS = (9, 20)  # oldest and newest that torch exports; later ones are converted from the newest
BATCH = "batch"


def trace_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], opset_version: int = 17
) -> Model:
    """Export a module, in evaluation mode, as an ``onnx.ModelProto`` for any batch size.

    The operations of one forward pass are recorded, so the control flow of the module must not depend on the
    values of its input. The first dimension of all inputs and outputs becomes ``batch``.

    Args:
        module: takes the inputs in this order and returns the outputs as a tensor or a tuple.
        inputs: example inputs of at least two rows, by name.
        outputs: names of the results.
        opset_version: of the graph, 9 or later.

    Raises:
        ModelError: torch cannot export an operation, or the result is larger than 2 GiB.

    Example:
        >>> model = trace_onnx(nn.Linear(4, 2), {"x": torch.zeros(2, 4)}, ["y"])
        >>> [node.op_type for node in model.graph.node], model.graph.output[0].name
        (['Gemm'], 'y')
    """
    oldest, newest = TRACED_OPSETS
    if opset_version < oldest:
        raise ModelError(f"opset {opset_version} is older than {oldest}, the oldest that torch exports")
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if size > MAX_BYTES:
        raise ModelError(f"{size} bytes of weights: an ONNX file holds 2 GiB at most; use a smaller head")
    stream: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # Checks of the input become constants, as intended. The dynamo exporter needs another package.
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
    """Convert a graph to another opset.

    Raises:
        ModelError: onnx cannot convert one of its operations.
    """
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as error:  # the converter raises RuntimeError and its own classes
        subject = f"{model.graph.name or 'the graph'}: opset {opset_of(model)}"
        raise ModelError(f"{subject} cannot be converted to {version}: {error}") from error


def cut_graph(graph: OnnxGraph, outputs: GraphOutputs) -> Model:
    """Reduce a repaired graph to the nodes of its new outputs (embedding, map), in opset 9 or later."""
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
    """Name of the features as a map (n, C, H, W), after adding the nodes of `as_map` if necessary."""
    order = map_order(outputs.given_shape)
    if not order:
        return outputs.features
    permuted, name, sizes = (f"{outputs.features}/{part}" for part in ("turned", "map", "sizes"))
    axes, shape = [0, *(axis + 1 for axis in order)], np.array([-1, *outputs.feature_shape])
    body.initializer.append(onnx.numpy_helper.from_array(shape, sizes))
    body.node.append(onnx.helper.make_node("Transpose", [outputs.features], [permuted], perm=axes))
    body.node.append(onnx.helper.make_node("Reshape", [permuted, sizes], [name]))
    return name
