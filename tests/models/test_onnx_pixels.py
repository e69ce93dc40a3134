"""Normalisation within the graph and before it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import graphs

from spherecf.errors import ModelError
from spherecf.models import FrozenBackbone, Preprocessing


def normalising(*steps: tuple[str, object], opset: int = 13) -> onnx.ModelProto:
    """The tiny recogniser behind steps such as ("Sub", 127.5)."""
    model, name = graphs.iresnet(), "x"
    nodes = []
    for number, (kind, value) in enumerate(steps):
        end = "image" if number == len(steps) - 1 else f"step{number}"
        if kind == "BatchNormalization":
            mean, variance = value
            names = [f"c{number}_{i}" for i in range(4)]
            for key, array in zip(names, (1.0, 0.0, mean, variance), strict=True):
                model.graph.initializer.append(numpy_helper.from_array(np.full(3, array, np.float32), key))
            nodes.append(helper.make_node(kind, [name, *names], [end]))
        elif kind == "Cast":
            nodes.append(helper.make_node("Cast", [name], [end], to=TensorProto.FLOAT))
        else:
            array = np.asarray(value, np.float32)
            array = array.reshape(1, 3, 1, 1) if array.size == 3 else array
            model.graph.initializer.append(numpy_helper.from_array(array, f"c{number}"))
            nodes.append(helper.make_node(kind, [name, f"c{number}"], [end]))
        name = end
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.input[0].name = "x"
    return model


def pixels(mean: float, std: float, color: str = "rgb") -> Preprocessing:
    return Preprocessing(color, mean, std, (16, 16))


MXNET = [("Sub", 127.5), ("Mul", 0.0078125)]
GRAPHS = {
    "mxnet": MXNET,
    "divided": [("Cast", None), ("Sub", 127.5), ("Div", 127.5)],
    "to one": [("Div", 255.0)],
    "imagenet": [("Div", 255.0), ("Sub", [0.485, 0.456, 0.406]), ("Div", [0.229, 0.224, 0.225])],
    "folded": [("Mul", 0.0078125), ("Add", -0.99609375)],
    "statistics": [("BatchNormalization", (127.5, 127.5**2))],
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("given", [pixels(127.5, 127.5), pixels(127.5, 128.0, "bgr"), pixels(0.0, 255.0)])
def test_normalising_twice_is_refused(name: str, given: Preprocessing) -> None:
    with pytest.raises(ModelError, match=r"normalised twice.*'raw'"):
        FrozenBackbone.from_onnx(normalising(*GRAPHS[name]), preprocessing=given)


def test_normalising_twice_by_metadata_is_refused() -> None:
    model = normalising(*MXNET)
    helper.set_model_props(
        model, {"spherecf.preprocessing": '{"color":"rgb","mean":127.5,"std":128,"size":[16,16]}'}
    )
    with pytest.raises(ModelError, match="normalised twice"):
        FrozenBackbone.from_onnx(model)


@pytest.mark.parametrize("name", GRAPHS)
def test_normalisation_in_the_graph_only_is_accepted(name: str) -> None:
    assert FrozenBackbone.from_onnx(normalising(*GRAPHS[name]), preprocessing=pixels(0.0, 1.0)).repairs == []


@pytest.mark.parametrize(
    ("steps", "given"),
    [
        ([("Sub", 0.5), ("Div", 0.5)], pixels(0.0, 255.0)),  # partly before the graph, partly within
        ([("BatchNormalization", (-0.05, 0.3))], pixels(127.5, 127.5)),  # trained statistics of the input
        ([("Sub", [104.0, 117.0, 123.0])], pixels(0.0, 1.0, "bgr")),  # Caffe only subtracts the mean
    ],
)
def test_valid_combinations_give_no_warning(steps: list[tuple[str, object]], given: Preprocessing) -> None:
    assert FrozenBackbone.from_onnx(normalising(*steps), preprocessing=given).repairs == []


def test_implausible_input_ranges_are_reported_with_numbers() -> None:
    backbone = FrozenBackbone.from_onnx(
        normalising(("Sub", 0.5), ("Div", 0.5)), preprocessing=pixels(0.0, 1.0)
    )
    (warning,) = backbone.repairs
    assert "2 x + -1" in warning and "509" in warning
    (warning,) = FrozenBackbone.from_onnx(graphs.iresnet(), preprocessing=pixels(0.0, 1.0)).repairs
    assert "0..255" in warning


def test_the_request_for_preprocessing_states_what_the_graph_does() -> None:
    with pytest.raises(ModelError, match=r"0\.007812 x \+ -0\.9961 \(Sub, Mul\).*'raw'"):
        FrozenBackbone.from_onnx(normalising(*MXNET))


def one_channel() -> onnx.ModelProto:
    """A recogniser that normalises and uses the first of three channels."""
    make = graphs.Maker(9)
    cut = [make.stored(name, np.array([v])) for name, v in (("begin", 0), ("end", 1), ("axis", 1))]
    x = make.node("Slice", ["image", *cut], "first")
    x = make.node("Sub", [x, make.stored("mean", np.float32(127.5))], "centred")
    x = make.conv(make.node("Div", [x, make.stored("std", np.float32(128.0))], "scaled"), "map", 1, 4)
    make.dense(make.node("Flatten", [x], "flat", axis=1), "embedding", 4 * 256, 32)
    return make.model(["embedding"])


def test_normalising_one_channel_twice_is_refused() -> None:
    assert FrozenBackbone.from_onnx(one_channel(), preprocessing=pixels(0.0, 1.0)).repairs == []
    with pytest.raises(ModelError, match=r"computes 0\.007812 x \+ -0\.9961 \(Sub, Div\), .* -1\.004 and"):
        FrozenBackbone.from_onnx(one_channel(), preprocessing=pixels(127.5, 127.5))


@pytest.mark.parametrize("given", [pixels(0.0, 1.0), pixels(127.5, 127.5)])
def test_first_layers_with_different_input_give_no_warning(given: Preprocessing) -> None:
    """Nothing follows from the normalisation of one of two branches."""
    make = graphs.Maker(9)
    centred = make.node("Sub", ["image", make.stored("mean", np.float32(127.5))], "centred")
    x = make.node("Add", [make.conv("image", "one", 3, 4), make.conv(centred, "other", 3, 4)], "map")
    make.dense(make.node("Flatten", [x], "flat", axis=1), "embedding", 4 * 256, 32)
    assert FrozenBackbone.from_onnx(make.model(["embedding"]), preprocessing=given).repairs == []
