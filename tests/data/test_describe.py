import json
import pickle
from pathlib import Path

from tests.data.conftest import picture

from spherecf.data import IdentityFolder, PairBin, describe


def test_a_folder_is_described_with_counts_sizes_and_broken_images(folder: Path) -> None:
    (folder / "readme.md").write_text("x")
    (folder / "bob/2.jpg").write_text("text")
    (folder / "cleo/1.jpg").write_bytes(picture(0, height=20))
    facts = describe(IdentityFolder(folder), decode=True, workers=2)
    assert (facts["kind"], facts["images"], facts["identities"], facts["without_identity"]) == (
        "IdentityFolder",
        6,
        3,
        0,
    )
    assert (
        facts["images_per_identity"]["histogram"] | {"1": 1, "2": 1, "3-4": 1}
        == facts["images_per_identity"]["histogram"]
    )
    assert (facts["images_per_identity"]["least"], facts["images_per_identity"]["most"]) == (1, 3)
    assert facts["picture_sizes"] == {"16x16": 4, "20x16": 1}
    assert [item["key"] for item in facts["broken"]] == ["bob/2.jpg"] and facts["ignored"] == ["readme.md"]
    assert facts["bytes"] == sum(path.stat().st_size for path in folder.rglob("*.jpg"))
    json.dumps(facts)


def test_without_decoding_sizes_are_estimated_from_a_sample(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(70):
        (tmp_path / f"a/{number:02d}.jpg").write_bytes(picture(number))
    facts = describe(IdentityFolder(tmp_path))
    assert facts["decoded"] == 64 and facts["picture_sizes"] == {"16x16": 64}


def test_a_pair_file_is_described_with_its_pairs(tmp_path: Path, pictures: list[bytes]) -> None:
    (tmp_path / "toy.bin").write_bytes(pickle.dumps((pictures, [True, False, True])))
    facts = describe(PairBin(tmp_path / "toy.bin"))
    assert facts["pairs"] == {"pairs": 3, "mated": 2, "folds": 3}
    assert facts["images_per_identity"] is None and facts["without_identity"] == 6
