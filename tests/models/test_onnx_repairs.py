"""Variants of ONNX files that runtimes or torch do not accept unmodified."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.models import graphs
from tests.models.conftest import TINY, noise

from spherecf.errors import ModelError
from spherecf.models import FrozenBackbone
from spherecf.models.onnx.repairs import load_graph


def opened(model: onnx.ModelProto, tiny: FrozenBackbone, word: str) -> FrozenBackbone:
    """Load the model; check its results and that a repair message contains ``word``."""
    backbone = FrozenBackbone.from_onnx(model, preprocessing=TINY)
    torch.testing.assert_close(backbone(noise(3)).embedding, tiny(noise(3)).embedding, atol=1e-5, rtol=1e-4)
    assert any(word in message for message in backbone.repairs) or not word
    return backbone


def test_local_functions_are_inlined(tiny: FrozenBackbone) -> None:
    model = graphs.iresnet()
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Identity", ["b"], ["c"])]
    function = helper.make_function("own", "Layer", ["a"], ["c"], body, [helper.make_opsetid("", 13)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Layer"
    next(n for n in model.graph.node if n.op_type == "Layer").domain = "own"
    assert opened(model, tiny, "functions").engine == "torch"


@pytest.mark.parametrize("calls", [["Layer"], [f"Layer{i + 1}" for i in range(40)]], ids=["itself", "tree"])
def test_recursive_and_exploding_functions_are_refused(calls: list[str]) -> None:
    model = graphs.iresnet()
    model.opset_import.append(helper.make_opsetid("own", 1))
    for name, call in zip(["Layer", *calls], calls, strict=False):
        steps = [helper.make_node(call, [a], [b], domain="own") for a, b in (("a", "b"), ("b", "c"))]
        model.functions.append(
            helper.make_function("own", name, ["a"], ["c"], steps, [helper.make_opsetid("own", 1)])
        )
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    relu.op_type, relu.domain = "Layer", "own"
    with pytest.raises(ModelError, match="functions"):
        load_graph(model)


def test_branches_may_use_tensors_of_the_outer_graph(tiny: FrozenBackbone) -> None:
    """torch exports a squeeze as an If whose branches refer to outer tensors by name."""
    model = graphs.iresnet()
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    branches = {
        name: helper.make_graph(
            [helper.make_node("Relu", [relu.input[0]], [f"{name}_out"])], name, [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name in ("then_branch", "else_branch")
    }  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    condition = helper.make_node("If", ["flag"], [relu.output[0]], **branches)
    relu.CopyFrom(condition)
    backbone = opened(model, tiny, "run by onnxruntime")
    assert backbone.feature_name == tiny.feature_name
    assert [node.op_type for node in backbone.to_onnx().graph.node].count("If") == 1


def test_sparse_weights_are_converted(tiny: FrozenBackbone) -> None:
    model = graphs.iresnet()
    tensor = next(t for t in model.graph.initializer if t.name == "fc_w")
    dense = numpy_helper.to_array(tensor)
    model.graph.initializer.remove(tensor)
    values = numpy_helper.from_array(dense.ravel().copy(), "fc_w")
    indices = numpy_helper.from_array(np.arange(dense.size), "fc_w_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dense.shape))
    opened(model, tiny, "sparse")
    model.graph.sparse_initializer[0].dims[0] = 2
    with pytest.raises(ModelError, match="fc_w"):
        load_graph(model)


def test_nodes_out_of_order_are_sorted(tiny: FrozenBackbone) -> None:
    model = graphs.iresnet()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert opened(model, tiny, "order").engine == "torch"


def test_a_cycle_is_reported() -> None:
    model = graphs.iresnet()
    next(n for n in model.graph.node if n.name == "b_bn1").input[0] = "b_bn3"
    with pytest.raises(ModelError, match="has a cycle"):
        load_graph(model)


@pytest.mark.parametrize("fault", ["absent output", "made twice"])
def test_inconsistent_graphs_are_refused(fault: str) -> None:
    model = graphs.iresnet()
    if fault == "absent output":
        model.graph.output[0].name = "nowhere"
    else:
        model.graph.node[3].output[0] = model.graph.node[2].output[0]
    with pytest.raises(ModelError, match=r"nowhere|conv1|prelu1|bn1|b_bn1"):
        load_graph(model)


def test_names_that_are_not_utf8_are_refused(tiny_file: object) -> None:
    content = graphs.iresnet().SerializeToString().replace(b"b_conv1", b"b_\xffonv1")
    model = onnx.ModelProto.FromString(content)
    with pytest.raises(ModelError, match="not valid UTF-8"):
        load_graph(model)


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ({"type": onnx.AttributeProto.STRING, "s": b"\xff"}, "can't decode byte 0xff"),
        ({"type": onnx.AttributeProto.FLOAT, "ref_attr_name": "outer"}, "reference attribute"),
    ],
    ids=["text", "reference"],
)
def test_unreadable_attributes_are_refused_by_node(attribute: dict[str, object], reason: str) -> None:
    model = graphs.iresnet()
    norm = next(node for node in model.graph.node if node.name == "bn1")
    norm.attribute.append(onnx.AttributeProto(name="note", **attribute))
    with pytest.raises(ModelError, match=rf"\(node bn1\): an attribute cannot be read: .*{reason}"):
        load_graph(model)


@pytest.mark.parametrize("batch", ["n", 2])
@pytest.mark.parametrize(
    ("kind", "domain", "reason"),
    [
        ("Relu", "own", "inconsistent graph, shapes cannot be inferred: .*No opset import for domain own"),
        ("Mystery", "", "onnxruntime rejects the graph: .*Mystery"),
    ],
    ids=["domain", "kind"],
)
def test_unknown_operations_are_refused_by_name(
    batch: int | str, kind: str, domain: str, reason: str
) -> None:
    model = graphs.iresnet(batch=batch)
    relu = next(n for n in model.graph.node if n.op_type == "Relu")
    relu.op_type, relu.domain = kind, domain
    with pytest.raises(ModelError, match=f"tiny: {reason}"):
        FrozenBackbone.from_onnx(model, preprocessing=TINY)


def test_an_operation_that_cannot_be_converted_from_an_old_opset_is_named() -> None:
    make = graphs.Maker()
    make.node("Mystery", ["image"], "result")
    with pytest.raises(ModelError, match=r"opset 6 is too old and could not be converted: .*Mystery"):
        load_graph(make.model(["result"], opset=6))


@pytest.mark.parametrize("batch", [1, 4])
def test_any_fixed_batch_is_made_dynamic(batch: int, tiny: FrozenBackbone) -> None:
    assert opened(graphs.iresnet(batch=batch), tiny, f"fixed batch of {batch}").engine == "torch"
