from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.models import graphs
from tests.models.conftest import TINY, noise

from spherecf.errors import ModelError
from spherecf.models import FrozenBackbone
from spherecf.models.onnx.graph import as_array, read_onnx


def save_with_external_weights(
    folder: Path, seed: int = 0, location: str = "weights", **options: object
) -> Path:
    """A recogniser with weights stored beside its graph."""
    model = graphs.iresnet()
    for tensor in model.graph.initializer:
        if seed and tensor.name == "conv1_w":
            tensor.raw_data = (onnx.numpy_helper.to_array(tensor) * np.float32(1 + seed)).tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {"save_as_external_data": True, "size_threshold": 0, "location": location, **options}
    onnx.save(model, folder / "r.onnx", **arguments)
    return folder / "r.onnx"


def change_external_entry(path: Path, key: str, value: str) -> None:
    """Set one entry of every tensor's external data description."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = value if entry.key == key else entry.value
    path.write_bytes(model.SerializeToString())


def test_external_weights_change_the_identity(tmp_path: Path) -> None:
    first, copied, reweighted = (
        save_with_external_weights(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.read_bytes() == reweighted.read_bytes()
    assert read_onnx(first).sha256 == read_onnx(copied).sha256 != read_onnx(reweighted).sha256
    assert read_onnx(first).former_sha256 == read_onnx(reweighted).former_sha256 != ""


def test_the_layout_of_external_weights_does_not_change_the_identity(tmp_path: Path) -> None:
    original = save_with_external_weights(tmp_path / "a")
    files = [
        save_with_external_weights(tmp_path / "b", location="other.data"),
        save_with_external_weights(tmp_path / "c", all_tensors_to_one_file=False),
    ]
    onnx.save(onnx.load(original), tmp_path / "whole.onnx")
    expected = read_onnx(original).sha256
    assert {read_onnx(path).sha256 for path in files} == {expected}
    assert read_onnx(onnx.load(original)).sha256 == read_onnx(tmp_path / "whole.onnx").sha256 == expected


def test_the_identity_of_a_single_file_is_its_hash(tiny_file: Path) -> None:
    import hashlib

    file = read_onnx(tiny_file)
    assert (file.sha256, file.former_sha256) == (hashlib.sha256(tiny_file.read_bytes()).hexdigest(), "")
    assert read_onnx(onnx.load(tiny_file)).sha256 == file.sha256


def test_a_loaded_model_without_its_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="give the path"):
        read_onnx(onnx.load(save_with_external_weights(tmp_path), load_external_data=False))


@pytest.mark.parametrize(
    "location", ["../weights", "/etc/passwd", "a/../../weights", "..\\weights", "C:\\weights", "", "x" * 5000]
)
def test_weights_in_other_folders_are_not_opened(tmp_path: Path, location: str) -> None:
    path = save_with_external_weights(tmp_path / "in")
    (tmp_path / "weights").write_bytes((tmp_path / "in" / "weights").read_bytes())
    change_external_entry(path, "location", location)
    with pytest.raises(ModelError, match="stored outside the file"):
        read_onnx(path)


def test_symlinked_weights_are_read(tmp_path: Path) -> None:
    """Caches of model hubs store files as symbolic links."""
    path = save_with_external_weights(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in ("r.onnx", "weights"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert read_onnx(tmp_path / "snapshot" / "r.onnx").sha256 == read_onnx(path).sha256


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "999999999"), ("length", "1"), ("offset", "-1"), ("length", "many")]
)
def test_invalid_weight_offsets_are_refused(tmp_path: Path, key: str, value: str) -> None:
    path = save_with_external_weights(tmp_path)
    change_external_entry(path, key, value)
    with pytest.raises(ModelError, match="conv1_w"):
        read_onnx(path)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    path = save_with_external_weights(tmp_path)
    content = (tmp_path / "weights").read_bytes()
    (tmp_path / "weights").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="truncated"):
        read_onnx(path)


@pytest.mark.parametrize("dims", [[-8, 3, 3, 3], [8, 3, 3, 4], [2**40, 2**40], [8]])
def test_a_tensor_that_contradicts_its_shape_is_refused_by_name(tmp_path: Path, dims: list[int]) -> None:
    model = graphs.iresnet()
    tensor = next(t for t in model.graph.initializer if t.name == "conv1_w")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    with pytest.raises(ModelError, match="conv1_w"):
        read_onnx(model)


@pytest.mark.parametrize(
    "kind", ["FLOAT", "FLOAT16", "BFLOAT16", "INT4", "UINT4", "BOOL", "COMPLEX64", "INT64"]
)
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_of_every_type_are_read(kind: str, raw: bool) -> None:
    number = TensorProto.DataType.Value(kind)
    values = np.array([1, 0, 1], helper.tensor_dtype_to_np_dtype(number))
    tensor = onnx.numpy_helper.from_array(values, "x")
    if not raw and kind not in ("INT4", "UINT4"):
        tensor = helper.make_tensor("x", number, [3], values.tolist())
    assert as_array(tensor, "test").tolist() == values.tolist()
    tensor.dims[0] = 50
    with pytest.raises(ModelError, match="'x'"):
        as_array(tensor, "test")


def test_texts_of_a_tensor_are_counted_and_decoded() -> None:
    tensor = helper.make_tensor("x", TensorProto.STRING, [1], [b"a"])
    assert as_array(tensor, "test").tolist() == ["a"]
    tensor.string_data[0] = b"\xff"
    with pytest.raises(ModelError, match=r"test: tensor 'x' cannot be read: .*can't decode byte 0xff"):
        as_array(tensor, "test")
    tensor.dims[0] = 2
    with pytest.raises(ModelError, match=r"'x' of shape \(2,\) should hold 2 texts, found 1"):
        as_array(tensor, "test")


def test_a_damaged_sparse_constant_is_refused_by_name() -> None:
    model = graphs.iresnet()
    values = onnx.numpy_helper.from_array(np.float32([1, 2]), "values")
    places = onnx.numpy_helper.from_array(np.array([0, 3]), "places")
    sparse = helper.make_sparse_tensor(values, places, [4])
    model.graph.node.insert(0, helper.make_node("Constant", [], ["unused"], sparse_value=sparse))
    assert read_onnx(model).name == "tiny"
    model.graph.node[0].attribute[0].sparse_tensor.values.dims[0] = 5
    with pytest.raises(ModelError, match=r"tensor 'values' of shape \(5,\) should hold 20 bytes, found 8"):
        read_onnx(model)


def test_external_weights_of_more_than_2_gib_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = save_with_external_weights(tmp_path)
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "fc_w")
    tensor.dims[:] = [2**29 + 1]
    for entry in tensor.external_data:
        entry.value = {"offset": "0", "length": str(2**31 + 4)}.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())
    with (tmp_path / "weights").open("r+b") as weights:
        weights.truncate(2**31 + 4)  # a hole, which takes no space on the disk
    with pytest.raises(ModelError, match=r"r.onnx: at least 2147\d{6} bytes of weights.* 2 GiB at most"):
        read_onnx(path)


def test_external_weights_give_the_same_results_as_one_file(tmp_path: Path, tiny: FrozenBackbone) -> None:
    backbone = FrozenBackbone.from_onnx(save_with_external_weights(tmp_path), preprocessing=TINY)
    assert backbone.engine == "torch" and backbone.repairs == []
    assert (backbone(noise(2)).embedding == tiny(noise(2)).embedding).all()
    assert backbone.to_onnx().graph.output[0].name == "features"
    save_with_external_weights(tmp_path, seed=1)
    with pytest.raises(ModelError, match="changed since it was loaded"):
        backbone.to_onnx()
