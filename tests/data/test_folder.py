import unicodedata
from pathlib import Path

import pytest
from tests.conformance.sources import ImageSourceConformance

from spherecf.data import IdentityFolder, ImageError, describe
from spherecf.errors import FileFormatError


class TestIdentityFolder(ImageSourceConformance):
    @pytest.fixture
    def source(self, folder: Path) -> IdentityFolder:
        return IdentityFolder(folder)


def test_order_keys_and_labels(folder: Path) -> None:
    source = IdentityFolder(folder)
    assert source.name == "faces"
    assert source.keys == ["ann/1.jpg", "ann/2.jpg", "ann/deep/3.jpg", "bob/1.jpg", "bob/2.jpg", "cleo/1.jpg"]
    assert source.identities == ["ann", "bob", "cleo"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 2]


def test_images_in_the_root_have_no_identity_and_other_files_are_listed(folder: Path) -> None:
    (folder / "loose.PNG").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    (folder / "bob" / ".hidden.jpg").write_bytes(b"x")
    source = IdentityFolder(folder)
    assert dict(zip(source.keys, source.labels.tolist()))["loose.PNG"] == -1
    assert source.ignored == ["notes.txt"] and len(source) == 7


def test_unicode_forms_of_one_name_are_one_person(folder: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Zo\u00eb") for form in ("NFC", "NFD"))
    for number, name in enumerate((nfc, nfd)):
        (folder / name).mkdir()
        (folder / name / f"{number}.jpg").write_bytes((folder / "ann/1.jpg").read_bytes())
    source = IdentityFolder(folder)
    people = {key: source.identities[label] for key, label in zip(source.keys, source.labels)}
    assert source.identities == [nfc, "ann", "bob", "cleo"] and len(source.notes) == 1
    assert people[f"{nfc}/0.jpg"] == people[f"{nfd}/1.jpg"] == nfc
    assert all(source.read(row) for row in range(len(source))) and describe(source)["notes"] == source.notes


def test_a_recursive_link_adds_no_images(folder: Path) -> None:
    (folder / "ann" / "loop").symlink_to(folder / "ann")
    assert len(IdentityFolder(folder)) == 6


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="expected a folder"):
        IdentityFolder(tmp_path / "none")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(FileFormatError, match="1 files and no image"):
        IdentityFolder(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def iterdir(path: Path) -> object:  # tests may run as root, who can read every folder
        if path.name == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return real_iterdir(path)

    real_iterdir, locked = Path.iterdir, IdentityFolder(folder).identities[0]
    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(FileFormatError, match=rf"{locked}: cannot read the folder \(Permission denied\)"):
        IdentityFolder(folder)


def test_a_deleted_image_raises_image_error(folder: Path) -> None:
    source = IdentityFolder(folder)
    source.path(3).unlink()
    with pytest.raises(ImageError, match=r"faces:bob/1\.jpg.*No such file"):
        source.read(3)
    assert source.sizes()[3] == -1


@pytest.mark.parametrize("size", [(1 << 16) - 1, 1 << 16, 3 << 16])
def test_files_of_any_size_are_read_whole(folder: Path, size: int) -> None:
    content = (bytes(range(251)) * (1 + size // 251))[:size]
    (folder / "ann/1.jpg").write_bytes(content)
    assert IdentityFolder(folder).read(0) == content


def test_fingerprint_changes_with_content_of_equal_size(folder: Path) -> None:
    original = IdentityFolder(folder).fingerprint()
    data = bytearray((folder / "bob/1.jpg").read_bytes())
    data[-5] ^= 1
    (folder / "bob/1.jpg").write_bytes(data)
    assert IdentityFolder(folder).fingerprint() != original


@pytest.mark.slow
def test_cfp_counts_match_the_published_set(shared: Path) -> None:
    source = IdentityFolder(shared / "data" / "cfp")
    assert (len(source), len(source.identities)) == (7000, 500)
    assert source.keys[0] == "001/frontal/01.jpg" and source.image(0).shape == (112, 112, 3)
