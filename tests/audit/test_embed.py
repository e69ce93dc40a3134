from pathlib import Path

import numpy as np
from tests.tiny import spoil, tiny_model, write_people

from spherecf.audit.checks import embed_directions
from spherecf.data import IdentityFolder


def test_directions_equal_the_recogniser_output(tmp_path: Path) -> None:
    backbone, source = tiny_model(tmp_path).backbone, IdentityFolder(write_people(tmp_path))
    embedded = embed_directions(backbone, source)
    images = np.stack([source.image(row) for row in range(len(source))])
    np.testing.assert_allclose(embedded.mu, backbone(images).mu.numpy(), atol=1e-5)
    assert embedded.keys == list(source.keys) and embedded.subjects().tolist()[:4] == ["p0"] * 3 + ["p1"]
    assert not embedded.log_kappa.any() and embedded.provenance["head"] is None


def test_bad_images_are_listed_and_a_finished_pass_is_reused(tmp_path: Path) -> None:
    root = write_people(tmp_path)
    bad_images = spoil(root)
    backbone, source = tiny_model(tmp_path).backbone, IdentityFolder(root)
    first = embed_directions(backbone, source, tmp_path / "pass")
    written_at = (tmp_path / "pass/mu.bin").stat().st_mtime_ns
    reused = embed_directions(backbone, source, tmp_path / "pass")
    assert dict(first.skipped).keys() == bad_images.keys() and len(first) == 9
    assert np.array_equal(first.mu, reused.mu) and (tmp_path / "pass/mu.bin").stat().st_mtime_ns == written_at
