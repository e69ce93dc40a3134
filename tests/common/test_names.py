"""Names across spellings: found where they can only mean one image, refused where they could mean two."""

import unicodedata

import pytest

from spherecf.common.parsing import match_keys, normalised_path
from spherecf.errors import InputError

NFC, NFD = (unicodedata.normalize(form, "Jos\u00e9/1.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("wanted", "keys", "rows"),
    [
        (["a/1.jpg"], ["a/2.jpg", "a/1.jpg"], [1]),
        (["a/1.jpg"], ["a/2.png", "a/1.png"], [1]),
        (["a/1.jpg"], ["a/1.JPG"], [0]),
        (["a/1.jpg"], ["a/1"], [0]),
        (["a/1"], ["a/1.jpeg"], [0]),
        (["a/1.jpg"], ["a\\1.jpg"], [0]),
        (["a\\1.jpg"], ["./a/1.jpg"], [0]),
        ([NFC], [NFD], [0]),
        ([NFD, NFC], [NFC], [0, 0]),
        ([NFC], [NFD, NFC], [1]),
        (["a/1.jpg"], ["a/1.png", "a/1.jpg"], [1]),
        (["a/1.jpg", "b/1.jpg"], ["lfw/b/1.png", "lfw/a/1.png"], [1, 0]),
        (["/data/lfw/a/1.jpg", "/data/lfw/b/1.jpg"], ["a/1.jpg", "b/1.jpg"], [0, 1]),
        (["a/v1.2", "a/v1.3"], ["a/v1.3", "a/v1.2.png"], [1, 0]),
    ],
)
def test_one_image_is_meant(wanted: list[str], keys: list[str], rows: list[int]) -> None:
    assert [match_keys(wanted, keys, "list")[name] for name in wanted] == rows


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        (["a/1.jpg"], ["a/1.png", "a/1.jpeg"]),
        (["lfw/a/1.jpg"], ["lfw/a/1.png", "lfw\\a\\1.bmp"]),
        (["a/1.jpg"], ["lfw/a/1.jpg", "cfp/a/1.jpg"]),
        (["a/1.jpg", "a/1.png"], ["a/1.jpg"]),
        (["a/1.jpg", "a/1.png"], ["a/1.bmp"]),
    ],
)
def test_two_images_could_be_meant(wanted: list[str], keys: list[str]) -> None:
    with pytest.raises(InputError, match=r"^list: "):
        match_keys(wanted, keys, "list")


@pytest.mark.parametrize(
    ("wanted", "keys", "left"),
    [
        (["a/1.jpg"], ["b/1.jpg"], ["a/1.jpg"]),
        (["a/1.jpg"], ["ba/1.jpg"], ["a/1.jpg"]),  # a folder's name is whole or another's
        (["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "other/b/1.jpg"], ["b/1.jpg"]),  # b lacks: not another set's b
        (["a/1.jpg", "b/1.jpg"], ["x/a/1.jpg"], ["b/1.jpg"]),
        (["p/John.Smith"], ["p/John.Brown"], ["p/John.Smith"]),
    ],
)
def test_what_is_not_there_is_left_out(wanted: list[str], keys: list[str], left: list[str]) -> None:
    assert [name for name in wanted if name not in match_keys(wanted, keys, "list")] == left


def test_one_spelling() -> None:
    assert (
        normalised_path(NFD) == normalised_path(NFC.replace("/", "\\")) == NFC
        and normalised_path("/a//./b.jpg") == "/a/b.jpg"
    )
