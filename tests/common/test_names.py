"""Image names in different spellings: matched if unambiguous, refused if two images could be meant."""

import unicodedata

import pytest

from spherecf.common.parsing import match_keys, normalised_path
from spherecf.errors import InputError

NFC, NFD = (unicodedata.normalize(form, "Jos\u00e9/1.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("names", "keys", "rows"),
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
def test_unambiguous_names_are_matched(names: list[str], keys: list[str], rows: list[int]) -> None:
    assert [match_keys(names, keys, "list")[name] for name in names] == rows


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["a/1.jpg"], ["a/1.png", "a/1.jpeg"]),
        (["lfw/a/1.jpg"], ["lfw/a/1.png", "lfw\\a\\1.bmp"]),
        (["a/1.jpg"], ["lfw/a/1.jpg", "cfp/a/1.jpg"]),
        (["a/1.jpg", "a/1.png"], ["a/1.jpg"]),
        (["a/1.jpg", "a/1.png"], ["a/1.bmp"]),
    ],
)
def test_ambiguous_names_are_refused(names: list[str], keys: list[str]) -> None:
    with pytest.raises(InputError, match=r"^list: "):
        match_keys(names, keys, "list")


@pytest.mark.parametrize(
    ("names", "keys", "unmatched"),
    [
        (["a/1.jpg"], ["b/1.jpg"], ["a/1.jpg"]),
        (["a/1.jpg"], ["ba/1.jpg"], ["a/1.jpg"]),  # folder names match as a whole only
        (
            ["a/1.jpg", "b/1.jpg"],
            ["a/1.jpg", "other/b/1.jpg"],
            ["b/1.jpg"],
        ),  # the image of another set does not count
        (["a/1.jpg", "b/1.jpg"], ["x/a/1.jpg"], ["b/1.jpg"]),
        (["p/John.Smith"], ["p/John.Brown"], ["p/John.Smith"]),
    ],
)
def test_names_without_a_match_are_omitted(names: list[str], keys: list[str], unmatched: list[str]) -> None:
    assert [name for name in names if name not in match_keys(names, keys, "list")] == unmatched


def test_paths_are_normalised_to_one_spelling() -> None:
    assert (
        normalised_path(NFD) == normalised_path(NFC.replace("/", "\\")) == NFC
        and normalised_path("/a//./b.jpg") == "/a/b.jpg"
    )
