from pathlib import Path

import pytest
from tests.data.conftest import picture

from spherecf.audit import find_duplicates, scan_images
from spherecf.audit.checks import find_odd_sizes
from spherecf.data import IdentityFolder, ImageSource, SyntheticImages, decode_image, encode_image


def write(root: Path, files: dict[str, bytes]) -> IdentityFolder:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return IdentityFolder(root)


@pytest.fixture
def source(tmp_path: Path) -> IdentityFolder:
    first, second, third = picture(1, ".png"), picture(2, ".png"), picture(3, ".png")
    return write(
        tmp_path / "train",
        {
            "ann/1.png": first,
            "ann/2.png": second,
            "ann/again.png": first,
            "bob/1.bmp": encode_image(decode_image(second), ".bmp"),
            "bob/2.png": third,
            "bob/large.png": picture(4, ".png", height=20),
            "cleo/broken.png": first[:-20],
            "cleo/text.jpg": b"this is text",
        },
    )


def test_corrupt_images_are_listed_with_reasons(source: IdentityFolder) -> None:
    reasons = scan_images(source).reasons
    assert list(reasons) == ["cleo/broken.png", "cleo/text.jpg"]
    assert "truncated" in reasons["cleo/broken.png"] and "not an image" in reasons["cleo/text.jpg"]


def test_images_of_an_unusual_size_are_listed(source: IdentityFolder) -> None:
    assert find_odd_sizes(scan_images(source)) == [("bob/large.png", "20x16")]


def test_duplicates_are_found_by_bytes_and_by_pixels(source: IdentityFolder) -> None:
    groups = {tuple(group.keys): group for group in find_duplicates(scan_images(source))}
    assert set(groups) == {("ann/1.png", "ann/again.png"), ("ann/2.png", "bob/1.bmp")}
    within, across = groups["ann/1.png", "ann/again.png"], groups["ann/2.png", "bob/1.bmp"]
    assert (within.same, within.identities, within.across_identities) == ("bytes", ["ann"], False)
    assert (across.same, across.identities, across.across_identities) == ("pixels", ["ann", "bob"], True)


def test_duplicates_between_two_sets_are_found(source: IdentityFolder, tmp_path: Path) -> None:
    test = write(
        tmp_path / "test",
        {"x/1.png": picture(3, ".png"), "x/2.png": picture(9, ".png"), "y/1.png": picture(9, ".png")},
    )
    (group,) = find_duplicates(scan_images(source), scan_images(test))
    assert (group.keys, group.against, group.identities) == (["bob/2.png"], ["x/1.png"], ["bob", "x"])


def test_an_interrupted_scan_is_resumed(tmp_path: Path) -> None:
    reads: list[int] = []

    class Interrupting(SyntheticImages):
        last = 150

        def read(self, index: int) -> bytes:
            if index >= self.last:
                raise KeyboardInterrupt
            reads.append(index)
            return super().read(index)

    source: ImageSource = Interrupting(300, 3, (8, 8))
    source.fingerprint = lambda: "same"  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        scan_images(source, tmp_path / "scan", workers=1)
    Interrupting.last = 300
    reads.clear()
    resumed = scan_images(source, tmp_path / "scan", workers=1)
    assert min(reads) == 128, "the two complete chunks are not read again"
    uninterrupted = scan_images(SyntheticImages(300, 3, (8, 8)))
    assert (resumed.pixels == uninterrupted.pixels).all() and (resumed.size == 8).all()
