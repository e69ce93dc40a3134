import io
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conformance.sources import ImageSourceConformance

from spherecf.data import PairBin, describe
from spherecf.errors import FileFormatError


def write(folder: Path, content: Any, protocol: int = 4) -> Path:
    path = folder / "toy.bin"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


class TestPairBin(ImageSourceConformance):
    @pytest.fixture
    def source(self, tmp_path: Path, pictures: list[bytes]) -> PairBin:
        return PairBin(write(tmp_path, (pictures, [True, False, True])))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["bytes", "bytearray", "array", "object array"])
def test_all_pickle_protocols_and_image_types_are_read(
    tmp_path: Path, pictures: list[bytes], protocol: int, kind: str
) -> None:
    arrays = [np.frombuffer(data, np.uint8) for data in pictures]
    images: Any = {
        "bytes": pictures,
        "bytearray": [bytearray(data) for data in pictures],
        "array": arrays,
        "object array": np.array([*arrays, None], object)[:-1],
    }[kind]
    source = PairBin(write(tmp_path, (images, [True, False, True]), protocol))
    assert [source.read(row) for row in range(6)] == pictures
    assert source.keys[:2] == ["toy/000000", "toy/000001"]
    assert source.pairs.mated.tolist() == [True, False, True] and source.pairs.left[1] == "toy/000002"


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "flags",
    [
        [1, 0, 1],
        [1.0, 0.0, 1.0],
        np.array([True, False, True]),
        np.array([1.0, 0.0, 1.0], np.float32),
        list(np.array([True, False, True])),
        list(np.array([1, 0, 1], np.int32)),
    ],
)
def test_all_flag_types_are_read(tmp_path: Path, pictures: list[bytes], flags: Any, protocol: int) -> None:
    assert PairBin(write(tmp_path, (pictures, flags), protocol)).pairs.mated.tolist() == [True, False, True]


def test_python_2_strings_are_read(tmp_path: Path, pictures: list[bytes]) -> None:
    """Python 2 pickles str as BINSTRING (T) and SHORT_BINSTRING (U), which Python 3 never writes."""
    stream = io.BytesIO()
    stream.write(b"\x80\x02]")
    for data in pictures:
        short = len(data) < 256
        stream.write(b"U" + bytes([len(data)]) if short else b"T" + len(data).to_bytes(4, "little"))
        stream.write(data + b"a")
    stream.write(b"]" + b"\x88a\x89a\x88a" + b"\x86.")
    source = PairBin(write(tmp_path, stream.getvalue()))
    assert [source.read(row) for row in range(6)] == pictures


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_empty_and_quoted_bytes_are_read(tmp_path: Path, protocol: int) -> None:
    """Python 3 writes b"" as a call in protocols 0 to 2; Python 2 writes its strings quoted in protocol 0."""
    source = PairBin(write(tmp_path, ([b"", b"\xff'"], [True]), protocol))
    assert [source.read(0), source.read(1)] == [b"", b"\xff'"]
    source = PairBin(write(tmp_path, b"((lS\"\\xff'\"\naS'b'\na(lI01\nat."))
    assert [source.read(0), source.read(1)] == [b"\xff'", b"b"]


def test_python_2_arrays_are_read(tmp_path: Path) -> None:
    """What Python 2 and NumPy 1 write for ([array([1, 2], uint8)] * 2, [True])."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x02\x85cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x01\x02tb"
    )
    source = PairBin(write(tmp_path, b"\x80\x02](" + array + array + b"e]\x88a\x86."))
    assert [source.read(0), source.read(1)] == [b"\x01\x02"] * 2


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused_without_running_anything(tmp_path: Path, protocol: int) -> None:
    import os

    victim = tmp_path / "victim"
    path = write(tmp_path, _Call(os.system, f"touch {victim}"), protocol)
    with pytest.raises(FileFormatError, match=r"(posix|nt|os)\.system.*No code in the file was run"):
        PairBin(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "call",
    [
        _Call(eval, "1"),
        _Call(bytes, 10**12),
        _Call(bytearray, 10**12),
        _Call(np.zeros, 3),
        _Call(np.dtype, "O,O"),
        _Call(getattr, "x", "upper"),
    ],
    ids=["eval", "bytes(n)", "bytearray(n)", "zeros", "dtype", "getattr"],
)
def test_calls_outside_the_allowed_list_are_refused(tmp_path: Path, call: _Call) -> None:
    with pytest.raises(FileFormatError, match="rejected as a pair file"):
        PairBin(write(tmp_path, ([call, b"x"], [True])))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x",  # bytes longer than the file
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x",  # a bytearray
        b"\x80\x04\x8d" + (2**63 - 1).to_bytes(8, "little") + b"x",  # text
        b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"x",  # an integer
        b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"T\xff\xff\xff\xff",  # a frame; a length of -1
        b"\x80\x02Nr\xff\xff\xff\x7f" * 9,  # entries of the memo with large numbers
        b"\x80\x04" + b"\x8f" * 20_000 + b".",  # sets, 200 bytes each
        b"\x80\x04]" + b"\x94" * 20_000 + b".",  # entries of the memo
        b"\x80\x02)" + b"\x85" * 20_000 + b"}K\x01s.",  # tuples in tuples, and a dict
        b"\x80\x02c_codecs\nencode\nq\x00X\x00\x00\x10\x00" + b"a" * 2**20 + b"q\x01"
        + b"h\x00h\x01\x85R" * 2_000 + b".",  # one text, encoded repeatedly
        b"L" + b"9" * 20_000 + b"L\n.",
        b"\x80\x02cnumpy\ndtype\nU\x02u1\x85Rcnumpy.core.multiarray\nscalar\nq\x00.",
    ],
    ids=["bytes", "bytearray", "text", "integer", "frame", "memo numbers", "sets", "memo", "tuples", "encode",
         "digits", "cut"],
)  # fmt: skip
def test_pickles_with_excessive_lengths_allocate_no_memory(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    tracemalloc.start()
    with pytest.raises(FileFormatError):
        PairBin(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6 + 16 * len(data)


def test_repeated_images_are_stored_once(tmp_path: Path) -> None:
    for image in (b"x" * 2**20, np.zeros(2**20, np.uint8), "\xff" * 2**20):
        source = PairBin(write(tmp_path, ([image] * 2000, [True] * 1000)))
        assert len({id(source.read(row)) for row in range(2000)}) == 1


def test_nested_lists_are_reported_by_type_only(tmp_path: Path, pictures: list[bytes]) -> None:
    nested: Any = []
    for _ in range(60):  # its repr would have 2^60 brackets
        nested = [nested, nested]
    with pytest.raises(FileFormatError, match="flag 0: expected True or False, got list"):
        PairBin(write(tmp_path, (pictures[:2], [nested])))
    with pytest.raises(FileFormatError, match="image 0: expected encoded bytes, got list"):
        PairBin(write(tmp_path, ([nested, nested], [True])))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html>Sign in</html>", "HTML"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "torch"),  # torch.save before 1.6
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"\xff\xd8\xff\xe0" + bytes(90), "JPEG"),
    ],
)
def test_other_file_types_are_identified(tmp_path: Path, data: bytes, named: str) -> None:
    with pytest.raises(FileFormatError, match=f"(?i){named}"):
        PairBin(write(tmp_path, data))


def test_torch_weights_are_identified(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileFormatError, match="a torch file"):
        PairBin(tmp_path / "pytorch_model.bin")


def test_setting_the_state_of_an_allowed_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="state is set on a function"):
        PairBin(write(tmp_path, b"\x80\x02cnumpy\ndtype\n}U\x01xK\x01sb."))


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01"
U1 = b"cnumpy\ndtype\nU\x02u1\x85R"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (ARRAY + b"K\x02\x85N\x89U\x02abtb", "an array has no dtype"),
        (ARRAY + b"N" + U1 + b"\x89U\x02abtb", "an array has no valid shape"),
        (ARRAY + b"J\xff\xff\xff\xff\x85" + U1 + b"\x89U\x02abtb", "an array has no valid shape"),
        (ARRAY + b"K\x02\x85" + U1 + b"\x89Ntb", "the content of an array is of type NoneType"),
        (ARRAY + b"K\x03\x85" + U1 + b"\x89U\x02abtb", r"has 2 bytes .* do not fit the shape \[3\]"),
        (b"K\x01K\x02a", "expected a list on the stack, got a int"),
        (b"]e", "there is no mark on the stack"),
        (b"h\x07", "memo entry 7 was never stored"),
        (b"K\x01K\x02\x93", "a global name is not text"),
        (b"cnumpy.core.multiarray\nscalar\n" + U1 + b"\x85R", "a NumPy scalar has no value"),
        (b"Sab\n", "a string has no quotes"),
        (b"S'ab\"\n", "a string has no quotes"),
    ],
)
def test_invalid_instructions_are_refused(tmp_path: Path, pickled: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=f"rejected as a pair file near byte .*{message}"):
        PairBin(write(tmp_path, b"\x80\x02" + pickled + b"."))


def test_wrong_structures_are_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    for content, message in [
        ({"a": 1}, "got dict"),
        ((1, 2, 3), "got tuple"),
        ((pictures, 5), r"got \(list, int\)"),
        ((pictures, [True]), "got 6 images and 1 flags"),
        (([], []), "got 0 images and 0 flags"),
        (([1, 2], [True]), "image 0: expected encoded bytes, got int"),
        (([np.zeros((4, 4, 3), np.uint8)] * 2, [True]), r"image 0: .* got array uint8\[4, 4, 3\]"),
        ((pictures[:2], ["yes"]), "flag 0: expected True or False, got 'yes'"),
        ((pictures[:2], [2]), "flag 0"),
        ((["\u0100", b"x"], [True]), "image 0: expected encoded bytes, got text"),
    ]:
        with pytest.raises(FileFormatError, match=message):
            PairBin(write(tmp_path, content))


def test_damaged_and_missing_files_are_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    content = pickle.dumps((pictures, [True] * 3))
    for data in (content[:-100], content[:10], b"", b"no pickle at all", bytes(100)):
        with pytest.raises(FileFormatError, match="rejected as a pair file near byte"):
            PairBin(write(tmp_path, data))
    with pytest.raises(FileFormatError, match="No such file"):
        PairBin(tmp_path / "none.bin")


def test_pairs_form_ten_consecutive_folds(tmp_path: Path, pictures: list[bytes]) -> None:
    pairs = PairBin(write(tmp_path, (pictures * 10, [True] * 30))).pairs
    assert pairs.folds == 10 and pairs.fold.tolist() == [fold for fold in range(10) for _ in range(3)]


def test_lfw_counts_match_the_published_set(shared: Path) -> None:
    source = PairBin(shared / "data" / "lfw.bin")
    assert len(source) == 12000 and len(source.pairs) == 6000 and source.pairs.mated.sum() == 3000
    assert np.bincount(source.pairs.fold).tolist() == [600] * 10


def test_folds_with_one_kind_of_pairs_are_noted(tmp_path: Path, pictures: list[bytes]) -> None:
    by_kind = PairBin(write(tmp_path, (pictures * 10, [True] * 15 + [False] * 15)))
    assert "10 of 10 folds" in by_kind.notes[0]
    assert describe(by_kind)["notes"] == by_kind.notes
    assert PairBin(write(tmp_path, (pictures * 10, [True, False, True] * 10))).notes == []
