from pathlib import Path

import pytest
from tests.data.conftest import picture

from spherecf.audit import find_duplicates, scan_images
from spherecf.audit.checks import find_corrupt, find_odd_sizes
from spherecf.data import IdentityFolder, ImageSource, SyntheticImages, decode_image, encode_image


def write(root: Path, files: dict[str, bytes]) -> IdentityFolder:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return IdentityFolder(root)


@pytest.fixture
def source(tmp_path: Path) -> IdentityFolder:
    one, two, three = picture(1, ".png"), picture(2, ".png"), picture(3, ".png")
    return write(
        tmp_path / "train",
        {
            "ann/1.png": one,
            "ann/2.png": two,
            "ann/again.png": one,
            "bob/1.bmp": encode_image(decode_image(two), ".bmp"),
            "bob/2.png": three,
            "bob/large.png": picture(4, ".png", height=20),
            "cleo/broken.png": one[:-20],
            "cleo/text.jpg": b"this is text",
        },
    )


def test_corrupt_images_are_listed_with_the_reason(source: IdentityFolder) -> None:
    found = find_corrupt(scan_images(source))
    assert [item.key for item in found] == ["cleo/broken.png", "cleo/text.jpg"]
    assert "truncated" in found[0].reason and "not an image" in found[1].reason


def test_the_odd_size_is_named(source: IdentityFolder) -> None:
    assert [tuple(item) for item in find_odd_sizes(scan_images(source))] == [("bob/large.png", "20x16")]


def test_duplicates_by_bytes_and_by_pixels(source: IdentityFolder) -> None:
    groups = {tuple(group.keys): group for group in find_duplicates(scan_images(source))}
    assert set(groups) == {("ann/1.png", "ann/again.png"), ("ann/2.png", "bob/1.bmp")}
    same, across = groups["ann/1.png", "ann/again.png"], groups["ann/2.png", "bob/1.bmp"]
    assert (same.same, same.identities, same.across_identities) == ("bytes", ["ann"], False)
    assert (across.same, across.identities, across.across_identities) == ("pixels", ["ann", "bob"], True)


def test_duplicates_between_two_sets_only(source: IdentityFolder, tmp_path: Path) -> None:
    test = write(
        tmp_path / "test",
        {"x/1.png": picture(3, ".png"), "x/2.png": picture(9, ".png"), "y/1.png": picture(9, ".png")},
    )
    (group,) = find_duplicates(scan_images(source), scan_images(test))
    assert (group.keys, group.against, group.identities) == (["bob/2.png"], ["x/1.png"], ["bob", "x"])


def test_a_scan_goes_on_where_it_stopped(tmp_path: Path) -> None:
    reads: list[int] = []

    class Dying(SyntheticImages):
        last = 150

        def read(self, index: int) -> bytes:
            if index >= self.last:
                raise KeyboardInterrupt
            reads.append(index)
            return super().read(index)

    source: ImageSource = Dying(300, 3, (8, 8))
    source.fingerprint = lambda: "same"  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        scan_images(source, tmp_path / "scan", workers=1)
    Dying.last = 300
    reads.clear()
    again = scan_images(source, tmp_path / "scan", workers=1)
    assert min(reads) == 128, "the two whole chunks before the interruption are not read again"
    whole = scan_images(SyntheticImages(300, 3, (8, 8)))
    assert (again.pixels == whole.pixels).all() and (again.size == 8).all()
