from pathlib import Path

import onnx
import pytest
from tests.models import graphs

from spherecf.errors import ModelError
from spherecf.models import default_detector_path, default_recogniser_path
from spherecf.models._onnx_find import Found, find
from spherecf.models._onnx_graph import load_graph


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (graphs.iresnet(), Found("features", "bn2", 48, (8, 8, 8))),
        (graphs.iresnet(batch=4), Found("features", "bn2", 48, (8, 8, 8))),
        (graphs.mobilefacenet(batch=1), Found("output", "last_map", 40, (16, 8, 8))),
        (graphs.mobilefacenet(batch="n"), Found("output", "last_map", 40, (16, 8, 8))),
        (graphs.traced_view(), Found("embedding", "last_map", 32, (8, 8, 8))),
    ],
)
def test_finds_both_by_itself(model: onnx.ModelProto, expected: Found) -> None:
    assert find(load_graph(model), (16, 16)) == expected


def test_sface() -> None:
    found = find(load_graph(default_recogniser_path()), (112, 112))
    assert found == Found("fc1", "bn1", 128, (1024, 7, 7))


def test_shared_mobilefacenet(shared: Path) -> None:
    found = find(load_graph(shared / "models" / "mobilefacenet-512.onnx"), (112, 112))
    assert found == Found("output", "507", 512, (512, 7, 7))


def test_both_can_be_named() -> None:
    graph = load_graph(graphs.iresnet())
    assert find(graph, (16, 16), "fc", "b_prelu") == Found("fc", "b_prelu", 48, (8, 16, 16))
    with pytest.raises(ModelError, match="embedding='nope' is no tensor"):
        find(graph, (16, 16), embedding="nope")
    with pytest.raises(ModelError, match="features='conv1_w' is no tensor"):
        find(graph, (16, 16), features="conv1_w")
    with pytest.raises(ModelError, match=r"fc should be a map .* or tokens .*, found \(1, 48\)"):
        find(graph, (16, 16), features="fc")
    with pytest.raises(ModelError, match=r"bn2 should be \(n, dim\), found \(1, 8, 8, 8\)"):
        find(graph, (16, 16), embedding="bn2", features="bn2")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graphs.classifier(), r"not a recogniser.*found probabilities \(1, 100\).*Softmax.*classifier"),
        (graphs.detector(), r"not a recogniser.*boxes \(1, 4, 16, 16\), scores.*Sigmoid"),
        (graphs.dense_only(), "neither a convolutional recogniser nor a transformer"),
        (graphs.two_rows(), r"several outputs could be the embedding \(one, other\); pass embedding="),
    ],
)
def test_says_what_is_not_a_recogniser(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find(load_graph(model), (16, 16))


def test_two_rows_named() -> None:
    assert find(load_graph(graphs.two_rows()), (16, 16), embedding="other").features == "map"


def test_a_real_detector_is_no_recogniser() -> None:
    with pytest.raises(ModelError, match="not a recogniser: expected an output"):
        graph = load_graph(default_detector_path())
        find(graph, graph.size or (320, 320))
