"""Keys and sealed files: every alteration is detected, and no message shows the key."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import spherecf.common.sealing as sealing_module
from spherecf.common.files import write_atomically
from spherecf.common.sealing import (
    KEY,
    KEY_FILE,
    Key,
    current_key,
    make_key,
    matching_key,
    read_key,
    reject_plain,
    reseal,
    sealed_with,
    sealing,
    unsealed,
)
from spherecf.common.tensorfile import sealed_tensors
from spherecf.errors import FileFormatError, InputError, MissingDependencyError, SpherecfError, StorageError

CHUNK = 64
HEAD = 56


def test_files_of_a_newer_format_are_not_taken_for_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"spherecf.sealed2" + bytes(100))
    with pytest.raises(FileFormatError, match="Update spherecf"):
        sealed_with(tmp_path / "a")


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Key:
    monkeypatch.setattr(sealing_module, "_CHUNK", CHUNK)
    return Key(bytes(range(32)), "the test")


def seal(path: Path, data: bytes, key: Key) -> bytes:
    def write(stream: object) -> None:
        with sealing(stream, key) as target:  # type: ignore[arg-type]
            for start in range(0, len(data), 40):
                target.write(data[start : start + 40])

    return write_atomically(path, write).read_bytes()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 7])
def test_sealed_data_round_trips(key: Key, tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    stored = seal(tmp_path / "a", data, key)
    assert unsealed(tmp_path / "a", key).tobytes() == data
    assert len(stored) == HEAD + size + 16 * max(1, -(-size // CHUNK))
    assert sealed_with(tmp_path / "a") == key.id and not (size > 8 and data in stored)
    assert seal(tmp_path / "b", data, key) != stored  # a different salt gives a different key and ciphertext
    assert stored[HEAD:] != (tmp_path / "b").read_bytes()[HEAD:]


def test_every_alteration_is_refused(key: Key, tmp_path: Path) -> None:
    sealed = seal(tmp_path / "a", np.random.default_rng(0).bytes(3 * CHUNK + 9), key)
    chunk = CHUNK + 16
    pieces = [sealed[HEAD + i * chunk : HEAD + (i + 1) * chunk] for i in range(4)]
    head = sealed[:HEAD]
    other_file = seal(tmp_path / "b", np.random.default_rng(1).bytes(3 * CHUNK + 9), key)
    altered = [sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :] for i in range(len(sealed))]
    altered += [sealed[:size] for size in range(len(sealed))]
    altered += [
        head + b"".join(pieces[i] for i in order) for order in ([1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3])
    ]
    altered += [
        sealed + b"\0",
        sealed + pieces[3],
        head + b"".join(pieces[:3]),
        head + pieces[0] + sealed[HEAD:],
    ]
    altered += [other_file[:HEAD] + sealed[HEAD:], sealed[:HEAD] + other_file[HEAD:]]
    for data in altered:
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(SpherecfError) as refusal:
            unsealed(tmp_path / "a", matching_key(key, tmp_path / "a", sealed_with(tmp_path / "a") or ""))
        assert isinstance(refusal.value, FileFormatError | InputError)
    (tmp_path / "a").write_bytes(sealed)
    assert len(unsealed(tmp_path / "a", key)) == 3 * CHUNK + 9


def test_the_position_of_the_damage_is_reported(key: Key, tmp_path: Path) -> None:
    sealed = bytearray(seal(tmp_path / "a", bytes(10 * CHUNK), key))
    sealed[HEAD + 3 * (CHUNK + 16) + 5] ^= 1
    (tmp_path / "a").write_bytes(sealed)
    with pytest.raises(FileFormatError, match=f"was altered, near byte {HEAD + 3 * (CHUNK + 16)}"):
        unsealed(tmp_path / "a", key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"__metadata__": {"kind": 1}}, "its metadata are not text"),
        ({"b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}, "offsets of tensor 'b' do not fit"),
        ({"b": {"dtype": "F32", "shape": [3], "data_offsets": [8, 16]}}, "offsets of tensor 'b' do not fit"),
        ({"b": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [8, 16]}}, "offsets of tensor 'b' do not"),
        ({"b": {"dtype": "F32", "shape": [3], "data_offsets": [8, 20]}}, "it is truncated"),
    ],
)
def test_sealed_tensors_are_checked_before_they_are_used(
    key: Key, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    def sealed(header: dict[str, object]) -> Path:
        text = json.dumps(header).encode()
        seal(
            tmp_path / "a", len(text).to_bytes(8, "little") + text + np.arange(4, dtype="<f4").tobytes(), key
        )
        return tmp_path / "a"

    header: dict[str, object] = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": [start, start + 8]}
        for name, start in (("a", 0), ("b", 8))
    }
    assert sealed_tensors(sealed(header), key, "toys")[0]["b"].tolist() == [2, 3]
    with pytest.raises(FileFormatError, match=f"not readable as toys.*{message}"):
        sealed_tensors(sealed(header | change), key, "toys")


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_key(tmp_path / "key") == key and read_key(tmp_path / "key").secret == key.secret
    assert key.secret.hex() not in repr(key) and key.secret != make_key(tmp_path / "other").secret
    with pytest.raises(StorageError, match="never overwritten"):
        make_key(tmp_path / "key")
    with pytest.raises(StorageError, match="could not be written"):
        make_key(tmp_path / "nowhere" / "key")
    assert read_key(tmp_path / "key") == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    make_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(InputError, match=r"other users can read .*chmod 600"):
        read_key(tmp_path / "key")


@pytest.mark.parametrize(
    "text", ["", "ab" * 32, "spherecf-key-1 " + "ab" * 31, "spherecf-key-1 " + "xy" * 32]
)
def test_invalid_keys_are_refused_without_showing_them(tmp_path: Path, text: str) -> None:
    with os.fdopen(os.open(tmp_path / "key", os.O_CREAT | os.O_WRONLY, 0o600), "w") as stream:
        stream.write(text)
    with pytest.raises(InputError, match="expected a key") as refusal:
        read_key(tmp_path / "key")
    assert "ab" * 8 not in str(refusal.value)


def test_the_current_key_comes_from_one_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path / "key")
    monkeypatch.delenv(KEY_FILE, raising=False)
    monkeypatch.delenv(KEY, raising=False)
    assert current_key() is None
    monkeypatch.setenv(KEY, (tmp_path / "key").read_text())
    assert (current_key() or key).origin == KEY and (current_key() or key).secret == key.secret
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "key"))
    with pytest.raises(InputError, match="unset one"):
        current_key()
    monkeypatch.delenv(KEY)
    assert current_key() == key
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot be read"):
        current_key()


def test_messages_name_the_key_that_a_file_needs(key: Key) -> None:
    with pytest.raises(InputError, match=r"encrypted with the key 0123.*SPHERECF_KEY_FILE"):
        matching_key(None, "f", "0123")
    with pytest.raises(InputError, match=f"0123, but the test is the key {key.id}"):
        matching_key(key, "f", "0123")
    with pytest.raises(InputError, match="`spherecf key encrypt f`, or unset"):
        reject_plain("f", key)
    reject_plain("f", None)
    assert matching_key(key, "f", key.id) is key


def test_resealing_is_atomic(key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, other_key = np.random.default_rng(0).bytes(3 * CHUNK), Key(bytes(32), "another")
    (tmp_path / "a").write_bytes(data)
    reseal(tmp_path / "a", None, key)
    reseal(tmp_path / "a", key, other_key)
    assert unsealed(tmp_path / "a", other_key).tobytes() == data
    sealed = (tmp_path / "a").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Key, "cipher", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            reseal(tmp_path / "a", other_key, key)
    assert (tmp_path / "a").read_bytes() == sealed and [f.name for f in tmp_path.iterdir()] == ["a"]
    reseal(tmp_path / "a", other_key, None)
    assert (tmp_path / "a").read_bytes() == data


def test_a_missing_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.hashes", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "spherecf\[encryption\]"'):
        Key(bytes(32), "x").id  # noqa: B018
