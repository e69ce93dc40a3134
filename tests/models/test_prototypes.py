from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.errors import FileFormatError, InputError
from spherecf.models import class_mean_prototypes, leave_one_out_prototypes, load_prototypes


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 0, 1, 2, 2, 0, 3, 3])
    return normalize(torch.randn(8, 5, generator=generator), dim=1), labels


def test_leave_one_out_equals_the_loop(samples: tuple[Tensor, Tensor]) -> None:
    mu, labels = samples
    prototypes, usable = leave_one_out_prototypes(mu, labels)
    for i in range(len(mu)):
        others = [j for j in range(len(mu)) if labels[j] == labels[i] and j != i]
        assert bool(usable[i]) == bool(others)
        expected = normalize(mu[others].mean(0), dim=0) if others else torch.zeros(5)
        torch.testing.assert_close(prototypes[i], expected)
    assert int((~usable).sum()) == 1


def test_class_means_equal_the_loop(samples: tuple[Tensor, Tensor]) -> None:
    mu, labels = samples
    expected = torch.stack([normalize(mu[labels == c].mean(0), dim=0) for c in range(4)])
    torch.testing.assert_close(class_mean_prototypes(mu, labels), expected)


def test_bad_samples(samples: tuple[Tensor, Tensor]) -> None:
    mu, labels = samples
    with pytest.raises(InputError, match="1 identities have no image, the first is 1"):
        class_mean_prototypes(mu, torch.where(labels == 1, 0, labels))
    with pytest.raises(InputError, match="from 0 on"):
        leave_one_out_prototypes(mu, labels - 1)
    mu[2, 0] = torch.nan
    with pytest.raises(InputError, match="1 of 8 directions"):
        leave_one_out_prototypes(mu, labels)
    with pytest.raises(InputError, match="at least one"):
        class_mean_prototypes(mu[:0], labels[:0])


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
def test_loads_what_people_have(tmp_path: Path, name: str) -> None:
    prototypes = load_prototypes(write(tmp_path / name))
    torch.testing.assert_close(prototypes, torch.tensor([[0.6, 0.8], [0.0, -1.0], [1.0, 0.0]]))


def test_several_matrices_need_a_key(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": MATRIX, "b": MATRIX + 1}, path)
    with pytest.raises(FileFormatError, match=r"found a \(3, 2\), b \(3, 2\)"):
        load_prototypes(path)
    torch.testing.assert_close(load_prototypes(path, key="b"), normalize(MATRIX + 1, dim=1))


class Hostile:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("owned"),))


def test_hostile_and_broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
