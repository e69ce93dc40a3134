from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import graphs

from spherecf.errors import ModelError
from spherecf.models.onnx.graph import ONNX_INPUT_KEY, attributes
from spherecf.models.onnx.repairs import load_graph


def test_preprocessing_before_the_declared_input_is_removed() -> None:
    """The nodes before the named tensor and their private weights are dropped; the rest stays."""
    model = graphs.iresnet()
    node_names = [node.name for node in model.graph.node]
    chain = [
        helper.make_node("Cast", ["bytes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "planes_std"], ["image"]),
    ]
    nodes = [*chain, *model.graph.node]
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2.0), "planes_std"))
    model.graph.input.append(helper.make_tensor_value_info("bytes", TensorProto.UINT8, ["n", 16, 16, 3]))
    assert load_graph(model).takes_bytes
    helper.set_model_props(model, {ONNX_INPUT_KEY: "image"})
    graph = load_graph(model)
    assert (graph.image, graph.repairs) == ("image", [])
    assert [node.name for node in graph.model.graph.node] == node_names


def test_a_valid_file_needs_no_repair(tiny_file: Path) -> None:
    graph = load_graph(tiny_file)
    assert (graph.repairs, graph.image, graph.size, graph.name) == ([], "image", (16, 16), "tiny")


def test_a_fixed_batch_becomes_dynamic() -> None:
    graph = load_graph(graphs.mobilefacenet(batch=1))
    assert graph.repairs == ["fixed batch of 1 made dynamic (1 reshapes rewritten)"]
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.model.graph.initializer}
    (reshape,) = (n for n in graph.model.graph.node if n.op_type == "Reshape")
    assert shapes[reshape.input[1]].tolist() == [-1, 40]


def test_the_given_model_is_not_modified() -> None:
    model = graphs.mobilefacenet()
    content = model.SerializeToString()
    load_graph(model)
    assert model.SerializeToString() == content


def test_unused_inputs_are_dropped() -> None:
    model = graphs.iresnet()
    for name in ("old_weight", "conv1_w"):  # unused, or also an initialiser: neither is an image
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 3, 3, 3]))
    graph = load_graph(model)
    assert [i.name for i in graph.model.graph.input] == ["image"]
    assert graph.repairs == ["1 unused graph inputs dropped (old_weight)"]


def test_layers_in_training_mode_are_set_to_inference() -> None:
    model = graphs.iresnet()
    (drop,) = (n for n in model.graph.node if n.op_type == "Dropout")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.4, np.float32), "ratio"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "training"))
    drop.input.extend(["ratio", "training"])
    norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    graph = load_graph(model)
    assert graph.repairs == ["2 layers saved in training mode set to inference"]
    for node in graph.model.graph.node:
        assert "training_mode" not in attributes(node)
        assert node.op_type != "Dropout" or len(node.input) == 1


def test_mxnet_slopes_are_reshaped() -> None:
    graph = load_graph(graphs.iresnet(spatial_slopes=False))
    assert graph.repairs == ["2 PReLU slopes reshaped from (C,) to (C, 1, 1)"]


def test_old_opsets_and_new_ir_versions_are_converted() -> None:
    model = graphs.mobilefacenet(batch="n")
    model.ir_version = 99
    assert load_graph(model).repairs == ["IR version 99 changed to 10"]
    make = graphs.Maker()
    make.node("Relu", ["image"], "relu")
    old_model = make.model(["relu"], opset=6)
    assert load_graph(old_model).repairs == ["opset 6 converted to 13"]


def test_files_that_are_not_onnx_are_refused(tmp_path: Path, tiny_file: Path) -> None:
    (tmp_path / "face.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "short.onnx").write_bytes(tiny_file.read_bytes()[:2000])
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, message in (
        ("face.onnx", "not a readable ONNX file.*PNG"),
        ("short.onnx", "not a readable ONNX file.*2000 bytes.*truncated"),
        ("empty.onnx", "without any graph node"),
        ("absent.onnx", "no such file"),
    ):
        with pytest.raises(ModelError, match=message):
            load_graph(tmp_path / name)


def test_missing_external_weights_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, *args: object, **options: object) -> object:
        if path.name == "w":
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **options)

    real_open = Path.open
    onnx.save(
        graphs.iresnet(), tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    assert load_graph(tmp_path / "m.onnx").repairs == []
    with monkeypatch.context() as patch, pytest.raises(ModelError, match=r"w: cannot be read .Permission"):
        patch.setattr(Path, "open", deny)  # tests may run as root, who can read every file
        load_graph(tmp_path / "m.onnx")
    (tmp_path / "w").unlink()
    with pytest.raises(ModelError, match="outside the file"):
        load_graph(tmp_path / "m.onnx")


@pytest.mark.parametrize(("channels", "dims"), [(1, r"\[None, 1, 16, 16\]"), (16, r"\[None, 16, 16, 16\]")])
def test_inputs_that_are_not_colour_images_are_refused(channels: int, dims: str) -> None:
    make = graphs.Maker()
    make.node("Relu", ["image"], "relu")
    with pytest.raises(ModelError, match=f"not a recogniser of colour images.*{dims}"):
        load_graph(make.model(["relu"], channels=channels))


def test_two_image_inputs_are_refused() -> None:
    model = graphs.iresnet()
    model.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, ["n", 3, 16, 16]))
    model.graph.node.append(helper.make_node("Relu", ["second"], ["relu"]))
    with pytest.raises(ModelError, match=r"expected one image input, found 2: image .*second"):
        load_graph(model)
