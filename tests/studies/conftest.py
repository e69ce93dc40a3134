"""Two tiny sets of people, a tiny recogniser, and one finished experiment on them."""

from pathlib import Path

import onnx
import pytest
from tests.data.conftest import picture
from tests.evaluation.conftest import toy
from tests.models import graphs
from tests.models.conftest import TINY

from spherecf.data import draw_pairs, open_source
from spherecf.demo.trial import CrossQuality, TrialOptions, cross_quality
from spherecf.models import FrozenBackbone
from spherecf.training import ConfidenceConfig

__all__ = ["toy"]

CONFIG = ConfidenceConfig.from_dict(
    {"views": {"degraded": 1}, "fit": {"epochs": 2, "batch_size": 16, "held_out": 0.3}}
)


def make_people(root: Path, people: int, images: int, first_seed: int) -> Path:
    for person in range(people):
        for number in range(images):
            path = root / f"p{person}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(first_seed + 100 * person + number))
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> FrozenBackbone:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(graphs.iresnet(), path)
    return FrozenBackbone.from_onnx(path, preprocessing=TINY)


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sets")
    train, test = make_people(root / "train", 6, 3, 0), make_people(root / "test", 5, 4, 5000)
    content = (test / "p0" / "0.jpg").read_bytes()
    (test / "p0" / "0.jpg").write_bytes(content[: len(content) // 2])
    return train, test


def run(tiny: FrozenBackbone, sets: tuple[Path, Path], folder: Path) -> CrossQuality:
    train, test = map(open_source, sets)
    pairs = draw_pairs(test, max_pairs=20, folds=3)
    return cross_quality(tiny, train, test, [pairs], folder, CONFIG, TrialOptions((0, 1), draws=20))


@pytest.fixture(scope="session")
def finished(
    tiny: FrozenBackbone, sets: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> CrossQuality:
    return run(tiny, sets, tmp_path_factory.mktemp("run"))
