from pathlib import Path

import numpy as np
from tests.tiny import spoil, tiny_model, write_people

from spherecf.audit.checks import embed_directions
from spherecf.data import IdentityFolder


def test_directions_are_the_recognisers(tmp_path: Path) -> None:
    backbone, source = tiny_model(tmp_path).backbone, IdentityFolder(write_people(tmp_path))
    found = embed_directions(backbone, source)
    images = np.stack([source.image(row) for row in range(len(source))])
    np.testing.assert_allclose(found.mu, backbone(images).mu.numpy(), atol=1e-5)
    assert found.keys == list(source.keys) and found.subjects().tolist()[:4] == ["p0"] * 3 + ["p1"]
    assert not found.log_kappa.any() and found.provenance["head"] is None


def test_bad_images_are_listed_and_a_kept_pass_is_reused(tmp_path: Path) -> None:
    root = write_people(tmp_path)
    bad = spoil(root)
    backbone, source = tiny_model(tmp_path).backbone, IdentityFolder(root)
    first = embed_directions(backbone, source, tmp_path / "pass")
    before = (tmp_path / "pass/mu.bin").stat().st_mtime_ns
    again = embed_directions(backbone, source, tmp_path / "pass")
    assert dict(first.skipped).keys() == bad.keys() and len(first) == 9
    assert np.array_equal(first.mu, again.mu) and (tmp_path / "pass/mu.bin").stat().st_mtime_ns == before
