"""Feature files of other tools: common shapes and names, invalid rows listed, invalid files refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spherecf.data import read_features
from spherecf.errors import FileFormatError, InputError

RNG = np.random.default_rng(0)
RAW = RNG.normal(size=(6, 8)) * RNG.uniform(5, 30, (6, 1))
KEYS = [f"{n}.jpg" for n in range(1, 7)]


def dump(folder: Path, **arrays: Any) -> Path:
    path = folder / "dump.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_plain_features_are_normalised(tmp_path: Path, dtype: str, suffix: str) -> None:
    path = tmp_path / f"dump.{suffix}"
    (np.save if suffix == "npy" else np.savez)(
        path, **{"arr" if suffix == "npy" else "embeddings": RAW.astype(dtype)}
    )
    e = read_features(path, KEYS)
    features = RAW.astype(dtype).astype(float)
    length = np.linalg.norm(features, axis=1)
    assert e.mu == pytest.approx(features / length[:, None], abs=1e-6)
    assert e.extras["norm"] == pytest.approx(length, rel=1e-6) and list(e.keys) == KEYS
    assert not e.log_kappa.any() and e.provenance["log_kappa"] == "constant" and "flip" not in e.provenance


def test_halves_are_summed_or_only_the_first_is_used(tmp_path: Path) -> None:
    path = tmp_path / "dump.npy"
    np.save(path, RAW)
    total = RAW[:, :4] + RAW[:, 4:]
    summed = read_features(path, KEYS, halves=True, flip="sum")
    assert summed.mu == pytest.approx(total / np.linalg.norm(total, axis=1, keepdims=True), abs=1e-6)
    assert summed.extras["norm"] == pytest.approx(np.linalg.norm(total, axis=1) / 2, rel=1e-6)
    first_half = read_features(path, KEYS, halves=True, flip="none")
    assert first_half.extras["norm"] == pytest.approx(np.linalg.norm(RAW[:, :4], axis=1), rel=1e-6)
    assert summed.provenance["flip"] == "sum" and first_half.provenance["flip"] == "none"
    assert read_features(path, KEYS, flip="sum").dim == 8  # describes the file; nothing is summed


@pytest.mark.parametrize("shift", [0.0, 5.0])  # features that are all positive agree in sign, no more
def test_halves_that_contradict_the_option_are_refused(tmp_path: Path, shift: float) -> None:
    rng, path = np.random.default_rng(1), tmp_path / "dump.npy"
    image = rng.normal(size=(6, 128)) + shift
    np.save(path, np.concatenate([image, image + 0.3 * rng.normal(size=image.shape)], axis=1))
    with pytest.raises(InputError, match=r"median cosine 0\.9.*--halves --flip sum.*--no-halves"):
        read_features(path, KEYS)
    assert read_features(path, KEYS, halves=False).dim == 256
    assert read_features(path, KEYS, halves=True, flip="sum").dim == 128
    np.save(path, image)
    assert read_features(path, KEYS).dim == 128
    with pytest.raises(InputError, match="rows of 128 features are unrelated"):
        read_features(path, KEYS, halves=True, flip="sum")
    np.save(path, np.tile(image[:1], 2))
    assert read_features(path, KEYS[:1]).dim == 256  # of one row nothing can be said


@pytest.mark.parametrize("name", ["embeddings", "features", "feats", "img_feats"])
@pytest.mark.parametrize("keys", ["names", "keys", "paths", "image_names"])
@pytest.mark.parametrize("score", ["faceness_scores", "detector_score"])
def test_common_array_names_are_recognised(tmp_path: Path, name: str, keys: str, score: str) -> None:
    path = dump(tmp_path, **{name: RAW, keys: np.array(KEYS), score: np.linspace(0.5, 1, 6)[:, None]})
    e = read_features(path)
    assert list(e.keys) == KEYS and e.extras["detector_score"] == pytest.approx(np.linspace(0.5, 1, 6))


@pytest.mark.parametrize(
    ("name", "column", "log_kappa"),
    [
        ("kappa", np.full(6, 100.0), np.log(100)),
        ("log_kappa", np.full((6, 1), 4.5), 4.5),
        ("sigma", np.full(6, 0.1), np.log(100)),
        ("sigma_sq", np.full(6, 0.01), np.log(100)),
        ("log_sigma_sq", np.full(6, -4.0), 4.0),
    ],
)
def test_concentrations_are_read_in_every_parametrisation(
    tmp_path: Path, name: str, column: np.ndarray, log_kappa: float
) -> None:
    e = read_features(dump(tmp_path, features=RAW, names=KEYS, **{name: column}))
    assert e.log_kappa == pytest.approx(log_kappa) and name in e.provenance["log_kappa"]
    assert e.log_precision is None


def test_variances_per_dimension_become_pfe_precisions(tmp_path: Path) -> None:
    variance = RNG.uniform(0.01, 0.1, (6, 8))
    e = read_features(dump(tmp_path, features=RAW, names=KEYS, sigma_sq=variance))
    assert e.log_precision == pytest.approx(-np.log(variance), abs=1e-6)
    assert e.kappa == pytest.approx((1 / variance).mean(1), rel=1e-5)


def test_names_may_be_bytes_and_people_unknown(tmp_path: Path) -> None:
    labels = np.array([b"Ann", b"", b"-1", b"Bo", b"Ann", b"Z\xc3\xbc"])
    e = read_features(dump(tmp_path, features=RAW, names=np.array(KEYS, "S"), labels=labels))
    assert list(e.keys) == KEYS and e.identities == ["Ann", "Bo", "Zü"]
    assert e.labels.tolist() == [0, -1, -1, 1, 0, 2]  # two unlabelled images do not share an identity


def test_invalid_rows_are_skipped_and_listed(tmp_path: Path) -> None:
    features = RAW.copy()
    features[1], features[3, 2], features[4, 0] = 0, np.nan, np.inf
    path = dump(
        tmp_path, features=features, names=KEYS, kappa=[1, -1, 1, np.nan, 1, 2], labels=[3, 3, 4, 5, 5, 5]
    )
    e = read_features(path)
    assert list(e.keys) == ["1.jpg", "3.jpg", "6.jpg"] and e.kappa == pytest.approx([1, 1, 2])
    assert [key for key, _ in e.skipped] == ["2.jpg", "4.jpg", "5.jpg"]
    assert [reason for _, reason in e.skipped] == ["all features are 0", *["NaN or infinite features"] * 2]
    assert e.subjects().tolist() == ["3", "4", "5"]
    opposite = np.concatenate([RAW[:, :4], -RAW[:, :4]], 1)
    cancelled = read_features(
        dump(tmp_path, features=np.vstack([RAW[:1], opposite[:1]]), names=KEYS[:2]), halves=True, flip="sum"
    )
    assert cancelled.skipped == [("2.jpg", "both halves cancel")]


@pytest.mark.parametrize(
    ("arrays", "options", "error", "message"),
    [
        ({"x": RAW}, {}, FileFormatError, "an array named embeddings or .*, but the file has only x"),
        ({"features": RAW, "feats": RAW}, {}, FileFormatError, "several arrays could be the features"),
        ({"features": RAW}, {}, FileFormatError, "its 6 rows have no keys"),
        ({"features": RAW[0]}, {}, FileFormatError, r"expected features \(n, d\).*shape \(8,\)"),
        ({"features": RAW.astype(int)}, {}, FileFormatError, "float type, got int64"),
        ({"features": RAW, "names": KEYS[:5]}, {}, FileFormatError, "keys: expected 6 names"),
        ({"features": RAW, "names": KEYS[:5] * 2}, {}, FileFormatError, "keys: expected 6 names"),
        ({"features": RAW, "names": KEYS, "labels": [1] * 7}, {}, FileFormatError, "labels: expected 6"),
        ({"features": RAW, "names": KEYS, "labels": [0.5] * 6}, {}, FileFormatError, "got float64"),
        ({"features": RAW, "names": np.full(6, b"\xff")}, {}, FileFormatError, "UTF-8 text, the keys"),
        ({"features": RAW, "names": KEYS[:5] + KEYS[:1]}, {}, InputError, "duplicates, first '1.jpg'"),
        ({"features": RAW[:, :7], "names": KEYS}, {"halves": True, "flip": "sum"}, InputError, "even number"),
        ({"features": RAW, "names": KEYS}, {"halves": True}, InputError, "how the two halves are combined"),
        ({"features": RAW, "names": KEYS}, {"flip": "max"}, InputError, "expected 'none' or 'sum'"),
        ({"features": RAW, "names": KEYS, "kappa": [-1.0] * 6}, {}, InputError, "kappa: .* 6 of 6 are not"),
        ({"features": RAW, "names": KEYS, "kappa": [np.inf] * 6}, {}, InputError, "kappa: .* 6 of 6 are not"),
        ({"features": RAW, "names": KEYS, "kappa": [1.0] * 5}, {}, FileFormatError, "expected 6 numb"),
        ({"features": RAW, "names": KEYS, "log_kappa": [99.0] * 6}, {}, InputError, "outside -60 .. 60"),
        ({"features": RAW, "names": KEYS, "kappa": [1.0], "sigma": [1.0]}, {}, FileFormatError, "several"),
        ({"features": RAW, "names": np.array(KEYS, object)}, {}, FileFormatError, "pickles are not opened"),
    ],
)  # fmt: skip
def test_invalid_feature_files_are_refused(
    tmp_path: Path, arrays: dict, options: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        read_features(dump(tmp_path, **arrays), **options)


def test_truncated_pickled_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = dump(tmp_path, features=RAW, names=KEYS)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileFormatError, match=r"not readable as a .np[yz]"):
        read_features(path)
    np.savez_compressed(path, features=RAW, names=KEYS)
    content = bytearray(path.read_bytes())
    content[100:140] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"not readable as a .np[yz]"):
        read_features(path)
    np.save(tmp_path / "dump.npy", RAW)
    (tmp_path / "dump.npy").write_bytes((tmp_path / "dump.npy").read_bytes()[:-40])
    with pytest.raises(FileFormatError, match=r"not readable as a .np[yz]"):
        read_features(tmp_path / "dump.npy", KEYS)
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(FileFormatError, match="pickles are not opened"):
        read_features(tmp_path / "object.npy", KEYS)
    with pytest.raises(FileFormatError, match="no such file"):
        read_features(tmp_path / "none.npy", KEYS)
