import json
from pathlib import Path

from tests.tiny import spoil, tiny_model, write_people

from spherecf.audit import check
from spherecf.data import IdentityFolder


def test_the_report_contains_every_check_and_is_valid_json(tmp_path: Path) -> None:
    root = write_people(tmp_path)
    bad_images = spoil(root)
    (root / "p2/again.png").write_bytes((root / "p0/0.png").read_bytes())
    test = tmp_path / "test/p0/x.png"
    test.parent.mkdir(parents=True)
    test.write_bytes((root / "p0/0.png").read_bytes())
    backbone = tiny_model(tmp_path).backbone
    report = check(
        IdentityFolder(root), IdentityFolder(tmp_path / "test"), backbone, tmp_path / "passes", fpir=0.2
    )
    assert json.loads(json.dumps(report)) == report
    assert report["source"]["images"] == 13 and report["against"]["images"] == 1
    assert {item["key"] for item in report["corrupt"]} == bad_images.keys() - {"p3/2.png"}
    assert report["odd_sizes"] == [{"key": "p3/2.png", "size": "20x20"}]
    (group,) = report["duplicates"]
    assert group["keys"] == ["p0/0.png", "p2/again.png"] and group["across_identities"]
    assert report["duplicates_against"][0]["against"] == ["p0/x.png"]
    assert report["shared_names"] == ["p0"]
    assert report["faces"]["unusable"] == 3 and report["faces"]["thresholds"]["fpir"] == 0.2
    assert sorted(path.name for path in (tmp_path / "passes").iterdir()) == [
        "against-faces", "against-images", "faces", "images",
    ]  # fmt: skip


def test_without_recogniser_only_pixels_and_names_are_checked(tmp_path: Path) -> None:
    report = check(IdentityFolder(write_people(tmp_path)))
    assert report["faces"] is None and report["shared_names"] is None and report["duplicates_against"] == []
