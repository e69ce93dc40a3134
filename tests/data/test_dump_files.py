"""Feature files of other tools: MagFace text, CSV, arrays in any memory order, and files that are refused."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from spherecf.data import read_features
from spherecf.errors import FileFormatError, InputError, SpherecfError

FEATURES = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
NAMES = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c.jpg"]
LENGTHS = np.linalg.norm(FEATURES.astype(float), axis=1)


def text(separator: str = " ", header: str = "", names: list[str] = NAMES) -> str:
    rows = [
        separator.join([*([name] if name else []), *map(repr, row)])
        for name, row in zip(names, FEATURES.tolist())
    ]
    return header + "\n".join(rows) + "\n"


def write(folder: Path, content: str | bytes, name: str = "feat.list") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        text(),
        text("\t"),
        text(",").replace("\n", "\r\n"),
        text(", "),
        "\ufeff" + text(";"),
        text(",", "image,f0,f1,f2,f3,f4,f5\n"),
        text(",", "path,feature_1,feature_2,feature_3,feature_4,feature_5,feature_6\n"),
        text(",", ",0,1,2,3,4,5\n"),
        text(" ", names=[name.replace("/", "\\") for name in NAMES]),
    ],
)
def test_magface_text_and_csv_are_read(tmp_path: Path, content: str) -> None:
    e = read_features(write(tmp_path, content))
    assert list(e.keys) == NAMES and e.extras["norm"] == pytest.approx(LENGTHS, rel=1e-6)
    assert e.mu == pytest.approx(FEATURES / LENGTHS[:, None], abs=1e-6)


def test_csv_names_may_contain_spaces_and_commas(tmp_path: Path) -> None:
    e = read_features(write(tmp_path, text(",", names=['"Lee, Ann/1.jpg"', "b c.jpg", "d.jpg", "e.jpg"])))
    assert list(e.keys)[:2] == ["Lee, Ann/1.jpg", "b c.jpg"]


def test_text_without_names_uses_the_keys_given(tmp_path: Path) -> None:
    path = write(tmp_path, text(names=[""] * 4))
    e = read_features(path, NAMES)
    assert e.mu == pytest.approx(FEATURES / LENGTHS[:, None], abs=1e-6) and list(e.keys) == NAMES
    with pytest.raises(FileFormatError, match="rows have no keys"):
        read_features(path)
    numbered = write(tmp_path, text(names=["1", "2", "3", "4"]))
    assert list(read_features(numbered).keys) == ["1", "2", "3", "4"]
    with pytest.raises(FileFormatError, match="image names or features"):
        read_features(numbered, NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text() + "d.jpg 1 2 3\n", "line 5: expected 7 cells as on line 1, got 4"),
        (text() + "d.jpg 1 2 3 x 5 6\n", "line 5.*'x'"),
        (text() + "d e.jpg 1 2 3 4 5 6\n", "line 5.*spaces"),
        (text(",", "image,label,f1,f2,f3,f4,f5\n"), "image,label"),  # a label column is not a feature
        (text(",", "image,f0,f2,f4,f6,f8,f10\n"), "image,f0"),
        ("<!DOCTYPE html>\n<html></html>\n", "HTML"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        (pickle.dumps({"a": [1.0, 2.0]}), "a pickle.*not opened"),
        (b"", "empty"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64" + bytes(50), "a MATLAB file"),
        (("\ufeff" + text(",")).encode("utf-16-le"), "this is UTF-16"),
        (text(names=["a b.jpg"]), r"line 1: .* but cell 2 of 8 is 'b\.jpg'"),
        (text(",").replace("\n", ",\n"), "line 1: .* but cell 8 of 8 is ''"),
        (text(";").replace("0.", "0,").replace("1.", "1,"), "with decimal points"),
    ],
)
def test_files_without_features_are_refused_with_their_type(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_features(write(tmp_path, content))


def npy(array: np.ndarray, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "array",
    [FEATURES, np.asfortranarray(FEATURES), FEATURES.astype(">f8"), FEATURES[::-1][::-1]],
    ids=["C", "Fortran", "big endian", "strided"],
)
def test_arrays_in_any_memory_order_are_read(tmp_path: Path, array: np.ndarray) -> None:
    e = read_features(write(tmp_path, npy(array)), NAMES)
    assert e.mu == pytest.approx(FEATURES / LENGTHS[:, None], abs=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(FEATURES) + npy(FEATURES), "several arrays"),
        (npy(FEATURES)[:-4], "96 bytes, but it has 92"),
        (npy(FEATURES).replace(b"(4, 6)", b"(4, -"), "not readable"),
        (npy(FEATURES).replace(b"(4, 6), }", b"(9**9, 9)"), "not readable"),
        (npy(FEATURES).replace(b"(4, 6), }   ", b"(4000, 6), }"), "96000 bytes"),
        (npy(np.array([{}]), allow_pickle=True), "stored as a pickle"),
        (npy(np.zeros(4, [("a", "f4"), ("b", "f4")])), "float type"),
        (npy(np.zeros((0, 6), np.float32)), r"expected features .* got float32 of shape \(0, 6\)"),
        (npy(FEATURES).replace(b"\x76\0", b"\xff\xff"), "no valid header"),
    ],
)
def test_wrong_npy_headers_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message) as refused:
        read_features(write(tmp_path, content, "x.npy"), NAMES)
    assert "allow_pickle" not in str(refused.value) and "trust" not in str(refused.value)


def test_torch_files_are_named_as_such(tmp_path: Path) -> None:
    torch.save(torch.zeros(4, 6), tmp_path / "feats.pt")
    with pytest.raises(FileFormatError, match="this is a torch file"):
        read_features(tmp_path / "feats.pt")


def test_keys_that_contradict_the_names_in_the_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, text())
    assert list(read_features(path, ["x/1.png", "x/2.png", "y/1.png", "x/c.png"]).keys)[3] == "x/c.png"
    with pytest.raises(InputError, match=r"row 2 is of 'a/2\.jpg', but the key passed for it is '3\.jpg'"):
        read_features(path, ["1.jpg", "3.jpg", "2.jpg", "c.jpg"])
    with pytest.raises(InputError, match="expected one key per row, got 3 keys for 4 rows of features"):
        read_features(path, ["1.jpg", "2.jpg", "c.jpg"])


def test_names_with_invalid_code_points_are_refused(tmp_path: Path) -> None:
    for number in (0x110000, 0xD800):
        names = np.frombuffer(np.full((4, 1), number, "<u4").tobytes(), "<U1")
        np.savez(tmp_path / "x.npz", features=FEATURES, names=names)
        with pytest.raises(SpherecfError, match="keys"):
            read_features(tmp_path / "x.npz")


def test_integral_float_labels_are_sorted_numerically(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=FEATURES, names=NAMES, labels=np.array([10.0, 9.0, -1.0, 10.0]))
    e = read_features(tmp_path / "x.npz")
    assert e.identities == ["9", "10"] and e.labels is not None and e.labels.tolist() == [1, 0, -1, 1]
