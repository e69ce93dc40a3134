"""The contact sheet of ranked faces, as HTML page and as image."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from tests.faces.pictures import jpeg, portrait

from spherecf.data import decode_image
from spherecf.errors import InputError
from spherecf.faces import FaceDetector, acquire
from spherecf.photos import outputs as outputs_module, write_sheet


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], dict[str, Path]]:
    folder, detector = tmp_path_factory.mktemp("photos"), FaceDetector()
    rows, files = [], {}
    for rank, name in enumerate(("best<b>.jpg", "worst.jpg"), 1):
        files[name] = folder / f"{rank}.jpg"
        files[name].write_bytes(jpeg(portrait(rank * 20)))
        (face,) = acquire(files[name], detector).faces
        facts = {
            "quality": 90 // rank,
            "percentile": 90.0 / rank,
            "kappa": 100.0,
            "reasons": ["blurred"] * (rank - 1),
        }
        rows.append({"rank": rank, "photo": name, "face": 0, "landmarks": face.landmarks.tolist(), **facts})
    rows.append({"rank": None, "photo": "wall.jpg", "face": None, "reason": "no face found in <1x1> px."})
    return rows, files


def test_page_has_all_faces_and_failures(rows: tuple[list[dict], dict[str, Path]], tmp_path: Path) -> None:
    page = write_sheet(tmp_path / "s.html", *rows).read_text()
    assert page.index("best&lt;b&gt;.jpg") < page.index("worst.jpg") < page.index("wall.jpg")
    assert "90 %" in page and "45 %" in page and "blurred" in page and "in &lt;1x1&gt; px" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page
    crops = [decode_image(base64.b64decode(data)) for data in re.findall(r"base64,([^\"]+)", page)]
    assert len(crops) == 2 and all(crop.shape == (112, 112, 3) for crop in crops)
    expected = acquire(rows[1]["worst.jpg"], FaceDetector()).faces[0].crop
    assert np.abs(crops[1].astype(int) - expected).mean() < 4


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_image_has_all_faces_and_failures(
    rows: tuple[list[dict], dict[str, Path]], tmp_path: Path, suffix: str
) -> None:
    sheet = decode_image(write_sheet(tmp_path / f"s{suffix}", *rows).read_bytes())
    expected = acquire(rows[1]["best<b>.jpg"], FaceDetector()).faces[0].crop
    assert np.abs(sheet[8:120, 8:120].astype(int) - expected).mean() < 4
    assert sheet[:, 400:].min() > 200 or sheet.shape[1] > 400
    assert (sheet[-30:] < 100).any()  # the failure is listed at the bottom


def test_long_reasons_take_two_lines_of_the_image(
    rows: tuple[list[dict], dict[str, Path]], tmp_path: Path
) -> None:
    text = "blurred, dark, low contrast, eyes too close"
    assert list(outputs_module._wrap(text, 24, 2)) == ["blurred, dark, low", "contrast, eyes too close"]
    assert list(outputs_module._wrap(text, 12, 2)) == ["blurred,", "dark, low"]
    long = {**rows[0][0], "reasons": text.split(", ")}
    short, both = (
        decode_image(write_sheet(tmp_path / "s.png", [{**long, "reasons": reasons}], {}).read_bytes())
        for reasons in (["blurred"], long["reasons"])
    )
    ink = [(sheet[120:] < 100).any(2).any(1) for sheet in (short, both)]
    assert ink[1].sum() > ink[0].sum()  # one line more


def test_a_missing_photo_is_grey(rows: tuple[list[dict], dict[str, Path]], tmp_path: Path) -> None:
    sheet = decode_image(write_sheet(tmp_path / "s.png", rows[0], {}).read_bytes())
    assert (sheet[8:120, 8:120] == 128).all()


def test_too_many_faces_are_reduced_to_both_ends(
    rows: tuple[list[dict], dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs_module, "MAX_FACES", 4)
    many = [{**rows[0][0], "rank": rank, "photo": f"p{rank}"} for rank in range(1, 10)]
    page = write_sheet(tmp_path / "s.html", many, {}).read_text()
    assert (
        re.findall(r"<b>(\d) ·", page) == ["1", "2", "8", "9"]
        and "the first and the last 2 faces are shown" in page
    )


def test_only_failures_are_accepted_and_unknown_suffixes_refused(
    rows: tuple[list[dict], dict[str, Path]], tmp_path: Path
) -> None:
    for suffix in ("html", "png"):
        assert write_sheet(tmp_path / f"s.{suffix}", rows[0][2:], {}).stat().st_size > 300
    with pytest.raises(InputError, match=r"\.html, \.png or \.jpg"):
        write_sheet(tmp_path / "s.pdf", *rows)
