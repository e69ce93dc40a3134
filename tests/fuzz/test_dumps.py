"""Feature dumps of other tools (.npy, .npz, text): unit directions with one key each, or a refusal."""

import io

import numpy as np
from tests.fuzz.harness import fuzz, write

from spherecf.data import read_features

_FEATURES = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
_NAMES = np.array(["a/1.jpg", "a/2.jpg", "b/1.jpg", "Jos\u00e9.jpg"])


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _text(separator: str, header: str = "") -> bytes:
    rows = [separator.join([name, *map(str, row)]) for name, row in zip(_NAMES, _FEATURES.tolist())]
    return (header + "\n".join(rows) + "\n").encode()


def _use(name: str, data: bytes, keys: list[str] | None) -> None:
    embeddings = read_features(write(name, data), keys)
    reloaded = type(embeddings).load(embeddings.save(write("dump.safetensors", b"")))
    assert reloaded.fingerprint() == embeddings.fingerprint() and len(reloaded.keys) == len(reloaded.mu)
    assert np.allclose(np.linalg.norm(reloaded.mu, axis=1), 1, atol=1e-3)
    assert keys is None or {*reloaded.keys, *(key for key, _ in reloaded.skipped)} == {*keys}


@fuzz(
    {
        "float32": _npy(_FEATURES),
        "float64": _npy(_FEATURES.astype(np.float64)),
        "Fortran": _npy(np.asfortranarray(_FEATURES)),
        "float16": _npy(_FEATURES.astype(np.float16)),
    },
    name="feature dumps, .npy",
    tokens=[b"'<f4'", b"'|O'", b"'<U9'", b"(4, 3)", b"(-4, -3)", b"True", b"[('a', '<f4')]"],
)
def test_npy(data: bytes) -> None:
    _use("dump.npy", data, [*_NAMES.tolist()])


@fuzz(
    {
        "plain": _npz(features=_FEATURES, names=_NAMES),
        "more": _npz(
            feats=_FEATURES, paths=_NAMES.astype("U20"), labels=np.array([0, 0, 1, -1]), kappa=np.ones(4),
            norm=np.ones(4), labels_=np.zeros(2),
        ),
        "bytes": _npz(mu=_FEATURES, keys=np.char.encode(_NAMES, "utf-8"), sigma_sq=np.ones((4, 3))),
    },
    name="feature dumps, .npz",
)  # fmt: skip
def test_npz(data: bytes) -> None:
    _use("dump.npz", data, None)


@fuzz(
    {
        "feat.list": _text(" "),
        "tabs": _text("\t"),
        "csv": _text(",", "image,f0,f1,f2\n"),
        "pandas": _text(",", ",0,1,2\n"),
    },
    name="feature dumps, text",
)
def test_text(data: bytes) -> None:
    _use("feat.list", data, None)
