from pathlib import Path

import pytest

from spherecf.data import read_groups
from spherecf.errors import FileFormatError


@pytest.mark.parametrize("head", ["key", "image"])
def test_names_may_contain_commas(tmp_path: Path, head: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(f"{head},group\n\na, b.jpg , A\nc.jpg,B\nc.jpg,B\n")
    assert read_groups(path) == ("image", {"a, b.jpg": "A", "c.jpg": "B"})


def test_names_are_normalised_to_one_spelling(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text('image,group\n"Lee, Jose\u0301\\1.jpg","A"\n', encoding="utf-8-sig")
    assert read_groups(path).groups == {"Lee, Jos\u00e9/1.jpg": "A"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file has none"),
        ("subject,group\n", "the file has none"),
        ("a.jpg,A\n", "line 1: expected the header"),
        ("subject,race\n", "line 1: expected the header"),
        ("subject,group\n1,A\n2\n", "line 3: expected `subject,group`, got '2'"),
        ("template,group\n1,A\n\n1,B\n", "line 4: template '1' is in group 'B' here and in 'A' above"),
    ],
)
def test_invalid_group_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=message):
        read_groups(path)
