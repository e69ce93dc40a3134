import json
import shutil
from pathlib import Path

import pytest
from tests.studies.conftest import CONFIG, make_people

from spherecf.data import orl_faces
from spherecf.demo import demo
from spherecf.demo.run import _notes
from spherecf.errors import InputError
from spherecf.models import FrozenBackbone


def test_the_demo_runs_on_a_given_folder(tiny: FrozenBackbone, tmp_path: Path) -> None:
    data = make_people(tmp_path / "mine", 8, 3, 0)
    result = demo(tmp_path / "out", data, draws=10, config=CONFIG, backbone=tiny)
    assert "trained on 4 people (12 images) and tested on 4 other people (12 images)" in result.notes[0]
    assert [report.condition for report in result.result.reports] == [
        "clean/clean",
        "clean/cross",
        "cross/cross",
    ]
    content = json.loads(result.files.json.read_text())
    assert content["notes"][1].startswith("This is a small data set")
    people = {key.split("/")[0] for key in result.result.test.source.keys}
    record = result.result.models[0, "mls"].record["data"]
    assert len(people) == 4 and record["used"] == 12


def test_too_few_people_are_refused(tiny: FrozenBackbone, tmp_path: Path) -> None:
    data = make_people(tmp_path / "mine", 3, 3, 0)
    with pytest.raises(InputError, match=r"at least 4 people with two or more images .* got 3"):
        demo(tmp_path / "out", data, config=CONFIG, backbone=tiny)


@pytest.mark.slow
def test_the_demo_ranks_degraded_orl_faces_lower(tmp_path: Path) -> None:
    """SFace and twelve people of the ORL faces: kappa must separate clean from degraded images."""
    for person in range(1, 13):
        shutil.copytree(orl_faces().root / f"s{person}", tmp_path / "faces" / f"s{person}")
    result = demo(tmp_path / "out", tmp_path / "faces", draws=100)
    report = next(r for r in result.result.reports if r.condition == "clean/cross")
    clean, *graded = report.kappa_histograms
    assert clean.label == "clean" and clean.quartiles[0] > graded[-1].quartiles[2]
    assert report.scores["mls"].auc.value > report.scores["cosine"].auc.value
    assert result.files.html.stat().st_size > 50_000


def test_photos_are_aligned_to_the_size_of_the_recogniser(tiny: FrozenBackbone, tmp_path: Path) -> None:
    for person in range(1, 5):
        (tmp_path / "mine" / f"s{person}").mkdir(parents=True)
        for number in range(1, 4):
            photo = f"s{person}/{number}.pgm"
            shutil.copy(orl_faces().root / photo, tmp_path / "mine" / photo)
    result = demo(tmp_path / "out", tmp_path / "mine", draws=10, config=CONFIG, backbone=tiny)
    assert result.result.test.source.image(0).shape == (16, 16, 3)
    assert result.result.models[0, "mls"].record["data"]["used"] == 6


def test_a_report_on_the_orl_faces_says_what_they_are() -> None:
    people = orl_faces().subset(range(20))
    assert any(
        "The ORL faces are frontal grey studio images" in note for note in _notes(people, people, True)
    )
    assert not any("ORL" in note for note in _notes(people, people, False))
