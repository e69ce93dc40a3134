"""Embeddings files: round trip, memory mapping, encryption, and refusal of invalid files."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from spherecf.common.sealing import KEY_FILE, Key, make_key
from spherecf.common.tensorfile import write_tensors
from spherecf.embeddings import Embeddings, reseal_embeddings
from spherecf.errors import FileFormatError, InputError, StorageError


def make(n: int = 7, dim: int = 5, seed: int = 0, **changes: object) -> Embeddings:
    rng = np.random.default_rng(seed)
    mu = rng.normal(size=(n, dim))
    fields: dict[str, object] = {
        "mu": (mu / np.linalg.norm(mu, axis=1, keepdims=True)).astype(np.float32),
        "log_kappa": rng.normal(6, 1, n).astype(np.float32),
        "keys": [f"{i:03d}/ünï.jpg" for i in range(n)],
        "labels": np.arange(n) % 3,
        "identities": ["ann", "bob", "çem"],
        "extras": {"norm": rng.random(n).astype(np.float32)},
        "skipped": [("bad.jpg", "not a JPEG")],
        "provenance": {"model": "abc", "flip": "none"},
    }
    return Embeddings(**{**fields, **changes})  # type: ignore[arg-type]


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    before = make()
    after = Embeddings.load(before.save(tmp_path / "e.safetensors"))
    np.testing.assert_array_equal(after.mu, before.mu)
    np.testing.assert_array_equal(after.log_kappa, before.log_kappa)
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.extras["norm"], before.extras["norm"])
    assert (after.keys, after.identities) == (before.keys, before.identities)
    assert (after.skipped, after.provenance) == (before.skipped, before.provenance)
    assert after.fingerprint() == before.fingerprint()
    assert after.subjects().tolist() == [["ann", "bob", "çem"][i % 3] for i in range(7)]


def test_round_trip_keeps_per_coordinate_precisions(tmp_path: Path) -> None:
    log_precisions = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
    before = make(log_precision=log_precisions)
    after = Embeddings.load(before.save(tmp_path / "e.safetensors"))
    assert isinstance(after.log_precision, np.memmap) or isinstance(after.log_precision.base, np.memmap)
    np.testing.assert_array_equal(after.log_precision, log_precisions)
    np.testing.assert_array_equal(after.select([4, 1]).log_precision, log_precisions[[4, 1]])
    assert after.fingerprint() == before.fingerprint() != make().fingerprint()
    assert make(log_precision=log_precisions + 1).fingerprint() != before.fingerprint()


def test_any_safetensors_reader_opens_it(tmp_path: Path) -> None:
    e = make()
    with safe_open(e.save(tmp_path / "e.safetensors"), framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("mu"), e.mu)
        assert "extra.norm" in file.keys()  # noqa: SIM118 (not a dict)


def test_mu_is_mapped_and_not_copied(tmp_path: Path) -> None:
    mu = Embeddings.load(make().save(tmp_path / "e.safetensors")).mu
    base: object = mu
    while not isinstance(base, np.memmap):
        base = base.base  # type: ignore[attr-defined]
    assert not mu.flags.writeable and mu.flags.aligned


def test_rows_and_select_keep_the_requested_order() -> None:
    e = make()
    rows = e.rows([e.keys[4], e.keys[1]])
    selection = e.select(rows)
    assert rows.tolist() == [4, 1]
    np.testing.assert_array_equal(selection.mu, e.mu[[4, 1]])
    assert selection.keys == [e.keys[4], e.keys[1]] and selection.extras["norm"].shape == (2,)


def test_unknown_keys_are_counted_and_skipped_ones_explained() -> None:
    with pytest.raises(InputError, match=r"2 of 3 keys .*'bad.jpg' \(not a JPEG\), 'nowhere'"):
        make().rows([make().keys[0], "bad.jpg", "nowhere"])


def test_fingerprint_depends_on_the_content() -> None:
    e = make()
    assert make(provenance={}).fingerprint() == e.fingerprint()
    assert make(seed=1).fingerprint() != e.fingerprint()
    assert e.select([1, 0]).fingerprint() != e.select([0, 1]).fingerprint()


def test_empty_file_is_allowed(tmp_path: Path) -> None:
    e = Embeddings(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [], skipped=[("a", "dark")])
    reloaded = Embeddings.load(e.save(tmp_path / "e.safetensors"))
    assert len(reloaded) == 0 and reloaded.dim == 4 and reloaded.skipped == [("a", "dark")]


def _nan(row: int) -> np.ndarray:
    mu = np.array(make().mu)
    mu[row, 0] = np.nan
    return mu


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": _nan(3)}, r"1 of 7 .* NaN .*row 3, '003/"),
        ({"mu": 2 * make().mu}, "7 of 7 .* another length"),
        ({"mu": make().mu[:5]}, r"n = 7 keys .*\(5, 5\)"),
        ({"mu": make().mu[0]}, "expected .n, dim."),
        ({"log_kappa": np.full(7, np.inf)}, "log_kappa: 7 of 7 values are NaN or infinite"),
        ({"log_kappa": np.log(np.full(7, -1.0, np.float32), where=False, out=np.full(7, np.nan))}, "NaN"),
        ({"log_kappa": np.full(7, 400.0)}, "is this kappa itself"),
        ({"log_kappa": np.zeros(6)}, r"log_kappa: expected shape \(7,\)"),
        ({"keys": ["a"] * 7}, "6 duplicates, first 'a'"),
        ({"keys": "abcdefg"}, "keys: expected a list of strings, got str"),
        ({"identities": None}, "identities: expected a list of strings, got NoneType"),
        ({"extras": ["norm"]}, "extras: expected a dict of columns by name, got list"),
        ({"skipped": ["a.jpg"]}, "skipped: expected pairs .key, reason."),
        ({"labels": np.full(7, 3)}, r"expected -1 .unknown. .. 2 .*got 3 .. 3"),
        ({"extras": {"norm": np.full(7, np.nan)}}, "norm: 7 of 7"),
        ({"log_precision": np.zeros((7, 4))}, r"one value per coordinate, shape \(7, 5\), got \(7, 4\)"),
        ({"log_precision": np.full((7, 5), np.inf)}, "7 of 7 rows contain NaN or infinity, .*000/"),
    ],
)
def test_invalid_content_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**changes)


@pytest.mark.parametrize("keep", [0, 5, 40, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, keep: float) -> None:
    path = make().save(tmp_path / "e.safetensors")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(FileFormatError, match="not readable as an embeddings file"):
        Embeddings.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"mu": np.eye(3, dtype=np.float32)}, path)
    with pytest.raises(FileFormatError, match="not embeddings/1"):
        Embeddings.load(path)
    save_file({"mu": np.eye(3, dtype=np.float32)}, path, metadata={"spherecf": "embeddings/2"})
    with pytest.raises(FileFormatError, match=r"\(got embeddings/2\)\. Update spherecf\."):
        Embeddings.load(path)
    save_file({"mu": np.eye(3, dtype=np.float32)}, path, metadata={"spherecf": "embeddings/1"})
    with pytest.raises(FileFormatError, match="lacks 'keys'"):
        Embeddings.load(path)
    with pytest.raises(FileFormatError, match="no such file"):
        Embeddings.load(tmp_path / "absent")


def test_content_is_validated_on_load(tmp_path: Path) -> None:
    path = make().save(tmp_path / "e.safetensors")
    raw = bytearray(path.read_bytes())
    offset = raw.find(make().mu.tobytes())
    raw[offset : offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match=r"1 of 7 .* NaN"):
        Embeddings.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make().save(tmp_path / "e.safetensors")

    def raise_disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spherecf.common.tensorfile._write", raise_disk_full)
    with pytest.raises(StorageError, match="No space left"):
        make(seed=1).save(path)
    assert Embeddings.load(path).fingerprint() == make().fingerprint()
    assert [p.name for p in tmp_path.iterdir()] == ["e.safetensors"]


def test_some_identities_may_be_unknown(tmp_path: Path) -> None:
    mu = np.eye(3, 4, dtype=np.float32)
    e = Embeddings(mu, np.zeros(3), ["a", "b", "c"], labels=np.array([1, -1, 0]), identities=["ann", "bob"])
    reloaded = Embeddings.load(e.save(tmp_path / "e.safetensors"))
    assert reloaded.subjects().tolist() == ["bob", "", "ann"]
    with pytest.raises(InputError, match=r"expected -1 \(unknown\) \.\. 1"):
        Embeddings(mu, np.zeros(3), ["a", "b", "c"], labels=np.array([1, -2, 0]), identities=["ann", "bob"])


def test_round_trip_keeps_names_that_are_not_utf8(tmp_path: Path) -> None:
    invalid_utf8 = b"caf\xe9/1.jpg".decode("utf-8", "surrogateescape")
    before = make(
        n=2,
        keys=[invalid_utf8, "b"],
        labels=None,
        skipped=[(invalid_utf8, "dark")],
        provenance={"data": invalid_utf8},
        identities=[invalid_utf8],
    )
    after = Embeddings.load(before.save(tmp_path / "e.safetensors"))
    assert after.keys == [invalid_utf8, "b"] and after.fingerprint() == before.fingerprint()
    assert (after.skipped, after.identities) == (before.skipped, before.identities)
    assert after.provenance == before.provenance


def test_content_that_could_not_be_read_again_is_refused() -> None:
    for changes in (
        {"provenance": {"x": float("nan")}},
        {"provenance": {"x": {1, 2}}},
        {"keys": ["\ud800", *"abcdef"]},
    ):
        with pytest.raises(InputError, match="cannot be written"):
            make(**changes)
    with pytest.raises(InputError, match=r"-1 \(unknown\) or more, got -2"):
        make(labels=np.full(7, -2), identities=[])


def test_large_label_numbers_without_names() -> None:
    subjects = make(labels=np.array([2**62, -1, 0, 1, 2, 3, 4]), identities=[]).subjects()
    assert subjects is not None and subjects.tolist()[:3] == [str(2**62), "", "0"]


def write_damaged(folder: Path, tensors: dict[str, np.ndarray] | None = None, **facts: str) -> Path:
    tensors = {
        "mu": np.eye(2, dtype=np.float32), "log_kappa": np.zeros(2, np.float32),
        "keys": np.frombuffer(b"ab", np.uint8), "key_ends": np.array([1, 2]), **(tensors or {}),
    }  # fmt: skip
    metadata = {"spherecf": "embeddings/1", "identities": "[]", "skipped": "[]", "provenance": "{}", **facts}
    save_file(tensors, folder / "e.safetensors", metadata)
    return folder / "e.safetensors"


@pytest.mark.parametrize(
    ("tensors", "facts", "message"),
    [
        ({}, {"provenance": "[" * 5000 + "]" * 5000}, "provenance"),
        ({}, {"provenance": '{"a":' * 300 + "1" + "}" * 300}, "provenance"),
        ({}, {"provenance": "[]"}, "provenance"),
        ({}, {"provenance": '{"a": NaN}'}, "provenance"),
        ({}, {"identities": '{"a": 1}'}, "identities"),
        ({}, {"identities": "[1]"}, "identities"),
        ({}, {"skipped": '[["a"]]'}, "skipped"),
        ({}, {"skipped": '["ab"]'}, "skipped"),
        ({"key_ends": np.array([2, 1])}, {}, "key_ends"),
        ({"key_ends": np.array([1, 3])}, {}, "key_ends"),
        ({"key_ends": np.array([-1, 2])}, {}, "key_ends"),
        ({"key_ends": np.array([1.0, 2.0])}, {}, "key_ends.*float64"),
        ({"labels": np.array([0.0, 1.0])}, {}, "labels.*float64"),
        ({"labels": np.array([-5, 1])}, {}, "-5"),
        ({"mu": np.eye(2, dtype=np.float16)}, {}, "mu.*float16"),
        ({"extra.norm": np.ones((2, 2), np.float32)}, {}, "norm"),
    ],
)
def test_damaged_metadata_is_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], facts: dict[str, str], message: str
) -> None:
    assert len(Embeddings.load(write_damaged(tmp_path))) == 2
    with pytest.raises(FileFormatError, match=message):
        Embeddings.load(write_damaged(tmp_path, tensors, **facts))


def test_too_long_file_names_are_reported_as_missing() -> None:
    with pytest.raises(FileFormatError, match="no such file"):
        Embeddings.load("x" * 300)


def test_stored_directions_need_unit_length_within_a_thousandth() -> None:
    mu = make().mu
    assert len(make(mu=mu * np.float32(1.0009))) == 7
    with pytest.raises(InputError, match="7 of another length"):
        make(mu=mu * np.float32(1.0015))


def test_repr_is_one_short_line() -> None:
    text = repr(make())
    assert text.startswith("Embeddings(7 images of ") and "skipped)" in text and len(text) < 120


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Key:
    """An encryption key, configured through the environment."""
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "key"))
    return make_key(tmp_path / "key")


def test_encrypted_round_trip_keeps_everything_and_reveals_nothing(tmp_path: Path, key: Key) -> None:
    before = make(200, log_precision=np.zeros((200, 5), np.float32))
    after = Embeddings.load(before.save(tmp_path / "e.safetensors"))
    assert after.fingerprint() == before.fingerprint() and after.keys == before.keys
    assert (after.skipped, after.provenance) == (before.skipped, before.provenance)
    assert after.identities == before.identities and after.labels.tolist() == before.labels.tolist()
    np.testing.assert_array_equal(after.extras["norm"], before.extras["norm"])
    stored = (tmp_path / "e.safetensors").read_bytes()
    secrets = [b"ann", "ünï.jpg".encode(), b"bad.jpg", b"provenance", before.mu[7].tobytes()]
    assert not any(secret in stored for secret in secrets)
    assert len(Embeddings.load(make(0, identities=[], labels=None).save(tmp_path / "empty"))) == 0


def test_resealing_encrypts_and_restores_plain_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make().save(tmp_path / "plain").read_bytes()
    first_key, second_key = make_key(tmp_path / "1"), make_key(tmp_path / "2")
    assert reseal_embeddings(tmp_path / "plain", None, first_key)
    assert reseal_embeddings(tmp_path / "plain", first_key, second_key)
    assert not reseal_embeddings(tmp_path / "plain", first_key, second_key)
    with pytest.raises(InputError, match=f"encrypted with the key {second_key.id}, but"):
        reseal_embeddings(tmp_path / "plain", first_key, None)
    with pytest.raises(InputError, match=f"encrypted with the key {second_key.id}, but no key is set"):
        Embeddings.load(tmp_path / "plain")
    assert reseal_embeddings(tmp_path / "plain", second_key, None)
    assert (tmp_path / "plain").read_bytes() == plain
    monkeypatch.setenv(KEY_FILE, first_key.origin)
    with pytest.raises(InputError, match="is not encrypted, but a key is set"):
        Embeddings.load(tmp_path / "plain")
    (tmp_path / "other").write_bytes(b"\x89PNG....")
    with pytest.raises(FileFormatError, match="it is a PNG image"):
        reseal_embeddings(tmp_path / "other", None, first_key)
    assert (tmp_path / "other").read_bytes() == b"\x89PNG...."
    with pytest.raises(FileFormatError, match="no such file"):
        Embeddings.load(tmp_path / "none")


def test_altered_encrypted_files_are_refused(tmp_path: Path, key: Key) -> None:
    content = make().save(tmp_path / "e").read_bytes()
    for position in range(0, len(content), 7):
        changed = bytes([content[position] ^ 1])
        (tmp_path / "e").write_bytes(content[:position] + changed + content[position + 1 :])
        with pytest.raises((FileFormatError, InputError)):
            Embeddings.load(tmp_path / "e")
    for size in range(0, len(content), 17):
        (tmp_path / "e").write_bytes(content[:size])
        with pytest.raises((FileFormatError, InputError)):
            Embeddings.load(tmp_path / "e")


def test_encrypted_files_of_another_kind_are_refused(tmp_path: Path, key: Key) -> None:
    write_tensors(tmp_path / "e", {"mu": np.zeros(3, np.float32)}, {"spherecf": "other"}, key)
    with pytest.raises(FileFormatError, match=r"not embeddings/1 \(got other\)"):
        Embeddings.load(tmp_path / "e")
