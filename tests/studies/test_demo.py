import json
import shutil
from pathlib import Path

import pytest
from tests.studies.conftest import CONFIG, make_people

from spherecf.data import orl_faces
from spherecf.demo import demo
from spherecf.errors import InputError
from spherecf.models import FrozenBackbone


def test_a_folder_of_ones_own(tiny: FrozenBackbone, tmp_path: Path) -> None:
    data = make_people(tmp_path / "mine", 8, 3, 0)
    found = demo(tmp_path / "out", data, draws=10, config=CONFIG, backbone=tiny)
    assert "trained on 4 people (12 images) and tested on 4 other people (12 images)" in found.notes[0]
    assert [report.condition for report in found.result.reports] == [
        "clean/clean",
        "clean/cross",
        "cross/cross",
    ]
    content = json.loads(found.files.json.read_text())
    assert content["notes"][1].startswith("This is a small data set")
    people = {key.split("/")[0] for key in found.result.test.source.keys}
    record = found.result.models[0, "mls"].record["data"]
    assert len(people) == 4 and record["used"] == 12


def test_too_few_people(tiny: FrozenBackbone, tmp_path: Path) -> None:
    data = make_people(tmp_path / "mine", 3, 3, 0)
    with pytest.raises(InputError, match=r"at least 4 people with two or more images .* got 3"):
        demo(tmp_path / "out", data, config=CONFIG, backbone=tiny)


@pytest.mark.slow
def test_on_the_faces_that_pip_installs(tmp_path: Path) -> None:
    """SFace and twelve people of the ORL faces; kappa must know which pictures were degraded."""
    for person in range(1, 13):
        shutil.copytree(orl_faces().root / f"s{person}", tmp_path / "faces" / f"s{person}")
    found = demo(tmp_path / "out", tmp_path / "faces", draws=100)
    report = next(r for r in found.result.reports if r.condition == "clean/cross")
    clean, *graded = report.kappa_histograms
    assert clean.label == "clean" and clean.quartiles[0] > graded[-1].quartiles[2]
    assert report.scores["mls"].auc.value > report.scores["cosine"].auc.value
    assert found.files.html.stat().st_size > 50_000
