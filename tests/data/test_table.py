"""Text tables: read in bulk if valid, refused with the line number if not."""

from pathlib import Path

import numpy as np
import pytest

from spherecf.data.text import line_number, read_table
from spherecf.errors import FileFormatError

INTEGERS = {"template": "i4", "other": "i4", "label": "i4"}


def written(folder: Path, text: str) -> Path:
    path = folder / "table.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text", ["1 2 0\n3 4 1\n", "1\t2\t0\r\n3\t4\t1", "\ufeff1 2 0\n\n  3  4 1 \n\n", "1 2 0\n3 4 1"]
)
def test_layouts_of_one_table_are_read_alike(tmp_path: Path, text: str) -> None:
    rows = read_table(written(tmp_path, text), INTEGERS)
    assert rows["template"].tolist() == [1, 3] and rows["label"].tolist() == [0, 1]


def test_rows_may_mix_names_and_numbers(tmp_path: Path) -> None:
    rows = read_table(written(tmp_path, "1.jpg 1.5 -2\n"), {"file": "O", "x": "f4", "y": "f4"})
    assert rows["file"].tolist() == ["1.jpg"] and rows["x"].tolist() == [1.5] and rows["y"].tolist() == [-2]


def test_extra_csv_columns_are_ignored(tmp_path: Path) -> None:
    path = written(tmp_path, 'TEMPLATE,SUBJECT,FILE\n1,7,"a, b"\n2,8\n')
    rows = read_table(path, {"template": "i4", "subject": "i4"}, delimiter=",", header=True)
    assert rows["template"].tolist() == [1, 2] and rows["subject"].tolist() == [7, 8]
    assert line_number(path, 1, header=True) == 3
    path = written(tmp_path, "\n \nTEMPLATE,SUBJECT\n\n1,7\n2,8\n")
    rows = read_table(path, {"template": "i4", "subject": "i4"}, delimiter=",", header=True)
    assert rows["subject"].tolist() == [7, 8] and line_number(path, 1, header=True) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 0\n3 4\n", "line 2: expected `template other label`, got '3 4': 2 fields instead of 3"),
        ("1 2 0\n3 4 1 5\n", "line 2: .*4 fields instead of 3"),
        ("1 2 0\n\n3 x 1\n", "line 3: .*other 'x' is not a 32-bit whole number"),
        ("1 2.5 0\n", "line 1: .*other '2.5' is not a 32-bit whole number"),
        ("1 2 0\n99999999999 4 1\n", "line 2: .*template '99999999999' is not a 32-bit whole number"),
        ("1 2 0\n3 1_0 1\n", "line 2: .*other '1_0' is not a 32-bit whole number"),
        ("1 2 0\n3 \u0664 1\n", "line 2: .*other '\u0664' is not a 32-bit whole number"),
        ("", "expected lines `template other label`, but the file has none"),
        ("\n \n", "the file has none"),
    ],
)
def test_errors_state_the_invalid_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_table(written(tmp_path, text), INTEGERS)


@pytest.mark.parametrize("value", ["nan", "inf", "x", "1_0"])
def test_numbers_must_be_finite(tmp_path: Path, value: str) -> None:
    path = written(tmp_path, f"a 1\nb {value}\n")
    with pytest.raises(FileFormatError, match=f"line 2: .*score '{value}' is not a finite number"):
        read_table(path, {"file": "O", "score": "f4"})


def test_a_missing_header_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path, "1,7\n2,8\n")
    with pytest.raises(FileFormatError, match=r"line 1: expected a header line, then `template,subject,...`"):
        read_table(path, {"template": "i4", "subject": "i4"}, delimiter=",", header=True)
    path = written(tmp_path, "TEMPLATE,SUBJECT\n1\n")
    with pytest.raises(FileFormatError, match=r"line 2: .*1 fields instead of 2"):
        read_table(path, {"template": "i4", "subject": "i4"}, delimiter=",", header=True)
    for text in ("", "TEMPLATE,SUBJECT\n"):
        with pytest.raises(FileFormatError, match=r"expected lines `template,subject,\.\.\.`, but .* none"):
            read_table(
                written(tmp_path, text), {"template": "i4", "subject": "i4"}, delimiter=",", header=True
            )


def test_binary_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_bytes(b"1 2 0\n\xff\xfe\n")
    with pytest.raises(FileFormatError, match="UTF-8"):
        read_table(path, INTEGERS)
    with pytest.raises(FileFormatError, match="cannot read"):
        read_table(tmp_path / "none.txt", INTEGERS)


def test_a_large_table_round_trips(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 30000, (5000, 3))
    path = written(tmp_path, "\n".join(" ".join(map(str, row)) for row in numbers.tolist()))
    rows = read_table(path, INTEGERS)
    assert np.array_equal(np.stack([rows[name] for name in INTEGERS], 1), numbers)
