from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.models.test_checkpoint import Hostile
from tests.reference.original_networks import original
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.errors import FileFormatError, InputError
from spherecf.models import load_prototypes

MATRIX = torch.tensor([[3.0, 4.0], [0.0, -2.0], [1.0, 0.0]])


def write(path: Path) -> Path:
    if path.suffix == ".npy":
        np.save(path, MATRIX.numpy())
    elif path.suffix == ".safetensors":
        save_file({"weight": MATRIX, "other": torch.ones(2, 2)}, path)
    elif path.suffix == ".pth":
        torch.save({"epoch": 3, "arc_face_state_dict": {"weight": MATRIX, "m": torch.ones(4, 4)}}, path)
    else:
        torch.save(MATRIX, path)
    return path


@pytest.mark.parametrize("name", ["w.npy", "w.safetensors", "w.pth", "w.pt"])
def test_common_files_are_loaded(tmp_path: Path, name: str) -> None:
    prototypes = load_prototypes(write(tmp_path / name))
    torch.testing.assert_close(prototypes, torch.tensor([[0.6, 0.8], [0.0, -1.0], [1.0, 0.0]]))


def test_several_matrices_require_a_key(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": MATRIX, "b": MATRIX + 1}, path)
    with pytest.raises(FileFormatError, match=r"found a \(3, 2\), b \(3, 2\)"):
        load_prototypes(path)
    torch.testing.assert_close(load_prototypes(path, key="b"), normalize(MATRIX + 1, dim=1))


def test_malicious_and_damaged_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Hostile()}, "evil.pt")
    np.save("evil.npy", np.array([{"a": 1}], dtype=object))
    Path("short.safetensors").write_bytes(write(tmp_path / "w.safetensors").read_bytes()[:-9])
    Path("short.pt").write_bytes(write(tmp_path / "w.pt").read_bytes()[:200])
    np.save("nan.npy", np.full((2, 3), np.nan))
    for name in ("evil.pt", "evil.npy", "short.safetensors", "short.pt", "nan.npy", "absent.npy", "w.txt"):
        with pytest.raises(FileFormatError, match=name):
            load_prototypes(name)
    assert not Path("owned").exists()


def test_files_without_a_real_array_are_identified(tmp_path: Path) -> None:
    (tmp_path / "page.npy").write_text("<html>sign in</html>")
    with pytest.raises(FileFormatError, match="HTML page"):
        load_prototypes(tmp_path / "page.npy")
    np.save(tmp_path / "complex.npy", np.eye(2, dtype=complex))
    with pytest.raises(FileFormatError, match="complex"):
        load_prototypes(tmp_path / "complex.npy")


def network(prefix: str, name: str = "r18") -> dict[str, Tensor]:
    """A network stored beside a classifier, whose own matrix must not be taken for the classifier."""
    table, _ = original(name, width=0.125, dim=4, side=1)
    return {f"{prefix}{key}": tensor for key, tensor in table.items()}


LAYOUTS = {
    "the reference": {"arc_face_state_dict": {"weight": MATRIX}, "head": {"other": torch.ones(3, 3)}},
    "AdaFace": {
        "state_dict": {**network("model.", "tface-ir-18"), "head.kernel": MATRIX.T, "head.t": torch.zeros(1)}
    },
    "MagFace": {"state_dict": {**network("module.features.module."), "module.fc.weight": MATRIX.T}},
    "MagFace, features in parallel": {
        "state_dict": {**network("features.module."), "module.fc.weight": MATRIX.T}
    },
    "MagFace, prefixes stripped": {**network("features."), "fc.weight": MATRIX.T},
    "TFace, one device": {"kernel": MATRIX.T},
    "arcface_torch": {
        "state_dict_backbone": network(""),
        "state_dict_softmax_fc": {"weight": MATRIX},
        "state_optimizer": {"state": {0: {"momentum_buffer": torch.ones(6, 6)}}},
    },
    "a linear layer": {"fc.weight": MATRIX, "fc.bias": torch.zeros(3)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(tmp_path: Path, layout: str) -> None:
    """With a square matrix, only the name of a tensor tells whether it is transposed."""
    square = torch.cat([MATRIX, MATRIX.flip(0)], 1)[:, :3]
    for matrix in (MATRIX, square):
        content = with_matrix(LAYOUTS[layout], matrix)
        torch.save(content, tmp_path / "w.pth")
        torch.testing.assert_close(load_prototypes(tmp_path / "w.pth"), normalize(matrix, dim=1))


def with_matrix(content: object, matrix: Tensor) -> object:
    if isinstance(content, dict):
        return {name: with_matrix(value, matrix) for name, value in content.items()}
    if content is MATRIX:
        return matrix
    is_transposed = isinstance(content, Tensor) and content.shape == (2, 3) and torch.equal(content, MATRIX.T)
    return matrix.T if is_transposed else content


def test_a_recogniser_without_classifier_is_refused(tmp_path: Path) -> None:
    torch.save(network(""), tmp_path / "backbone.pth")
    with pytest.raises(FileFormatError, match=r"expected one matrix .* found none"):
        load_prototypes(tmp_path / "backbone.pth")


SHARDS = {
    "checkpoint_gpu_{}.pt": lambda rows: {"epoch": 1, "state_dict_softmax_fc": {"weight": rows}},
    "softmax_fc_gpu_{}.pt": lambda rows: {"weight": rows},
    "rank_{}_softmax_weight.pt": lambda rows: rows,
    "rank:{}_softmax_weight.pt": lambda rows: rows,
}


@pytest.mark.parametrize("pattern", SHARDS)
def test_shards_are_joined_in_rank_order(tmp_path: Path, pattern: str) -> None:
    """With twelve ranks, 10 would come before 2 in alphabetical order."""
    rows = torch.randn(25, 4, generator=torch.Generator().manual_seed(0))
    parts = torch.tensor_split(rows, 12)
    files = [tmp_path / pattern.format(rank) for rank in range(12)]
    for file, part in zip(files, parts):
        torch.save(SHARDS[pattern](part.clone()), file)
    torch.save(rows, tmp_path / "rank_0_softmax_weight_mom.pt")
    for source in (tmp_path, files[0], files[7], files[::-1], [str(f) for f in files]):
        torch.testing.assert_close(load_prototypes(source), normalize(rows, dim=1))
    files[3].unlink()
    with pytest.raises(FileFormatError, match=r"the file of rank 3 is missing, there are"):
        load_prototypes(tmp_path)
    torch.save(SHARDS[pattern](rows[:, :3].clone()), files[3])
    with pytest.raises(FileFormatError, match=r"its rows have 3 dimensions, those of .* 4: not parts of one"):
        load_prototypes(files[0])


def test_ambiguous_folders_and_empty_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"in files by rank, such as .* found none"):
        load_prototypes(tmp_path)
    torch.save(MATRIX, tmp_path / "rank_0_softmax_weight.pt")
    torch.save({"weight": MATRIX}, tmp_path / "softmax_fc_gpu_0.pt")
    with pytest.raises(FileFormatError, match=r"found softmax_fc_gpu_0.pt, rank_0_softmax_weight.pt"):
        load_prototypes(tmp_path)
    with pytest.raises(InputError, match="at least one file"):
        load_prototypes([])
    np.save(tmp_path / "a.npy", MATRIX.numpy())
    np.save(tmp_path / "b.npy", -MATRIX.numpy())
    joined = load_prototypes([tmp_path / "b.npy", tmp_path / "a.npy"])
    torch.testing.assert_close(joined, normalize(torch.cat([-MATRIX, MATRIX]), dim=1))
