"""From images to stored rows and embeddings files: bad images, interruption, resumption and encryption."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tests.tiny import TINY, spoil, tiny_file, tiny_model, write_people

from spherecf.calibration import Calibration
from spherecf.common.rowstore import RowStore, SealedRows
from spherecf.common.sealing import KEY_FILE, Key, make_key, sealed_with
from spherecf.data import Degradation, IdentityFolder, View, sharpness, training_views
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError, StorageError
from spherecf.extract import embed, run_backbone
from spherecf.models import BackboneOutput, ConfidenceModel, FrozenBackbone, Preprocessing, make_head

VIEWS = training_views(2)


class Recorder:
    """A recorder that stores the direction and norm of each image."""

    def __init__(self, version: int = 1) -> None:
        self.columns = {"mu": ((48,), "float32"), "norm": ((), "float32")}
        self.identity: dict[str, Any] = {"version": version}

    def __call__(self, output: BackboneOutput) -> dict[str, torch.Tensor]:
        return {"mu": output.mu, "norm": output.norm}

    def check(self, columns: dict[str, np.ndarray]) -> None:
        pass


@pytest.fixture
def model(tmp_path: Path) -> ConfidenceModel:
    return tiny_model(tmp_path)


@pytest.fixture
def backbone(model: ConfidenceModel) -> FrozenBackbone:
    return model.backbone


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_people(tmp_path)


class Calls(list[int]):
    """Batch sizes of all calls of the backbone; after ``limit`` calls, the next one raises ``error``."""

    limit = sys.maxsize
    error: BaseException = KeyboardInterrupt()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    recorded, original_run = Calls(), FrozenBackbone.run

    def run(self: FrozenBackbone, images: Any) -> tuple[BackboneOutput, torch.Tensor]:
        if len(recorded) >= recorded.limit:
            raise recorded.error
        recorded.append(len(images))
        return original_run(self, images)

    monkeypatch.setattr(FrozenBackbone, "run", run)
    return recorded


@pytest.fixture(autouse=True)
def no_reader_thread_is_left() -> Iterator[None]:
    before = threading.enumerate()  # threads of other tests
    yield
    new_threads = [thread for thread in threading.enumerate() if thread not in before]
    assert not [thread.name for thread in new_threads if thread.name.startswith("read")]


def contents(store: RowStore) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in store.arrays.items()}


def equal_columns(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_rows_are_the_views_of_each_image(backbone: FrozenBackbone, people: Path, tmp_path: Path) -> None:
    source = IdentityFolder(people)
    rows = contents(run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / "rows"))
    assert rows["valid"].all() and len(rows["valid"]) == 36
    for index, key in enumerate(source.keys):
        for view_index, view in enumerate(VIEWS):
            viewed, row = view(source.image(index), key), 3 * index + view_index
            output = backbone(viewed.image[None])
            assert np.allclose(rows["mu"][row], output.mu[0], atol=1e-6)
            assert rows["norm"][row] == pytest.approx(float(output.norm[0]), rel=1e-5)
            assert rows["severity"][row] == np.float32(viewed.severity)
            assert rows["sharpness"][row] == np.float32(sharpness(viewed.image))


def test_unusable_images_are_listed_and_their_rows_are_empty(
    backbone: FrozenBackbone, people: Path, tmp_path: Path, calls: Calls
) -> None:
    expected = contents(run_backbone(backbone, IdentityFolder(people), VIEWS, Recorder(), tmp_path / "whole"))
    reasons = spoil(people)
    calls.clear()
    source = IdentityFolder(people)
    store = run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / "rows", batch_size=12)
    rows, skipped = contents(store), store.notes["skipped"]
    assert skipped.keys() == reasons.keys() and all(reasons[key] in skipped[key] for key in reasons)
    assert sum(calls) == 27  # the backbone does not run on unusable images
    bad = np.repeat([key in reasons for key in source.keys], 3)
    assert np.array_equal(rows["valid"], ~bad)
    for name, column in rows.items():
        assert not column[bad].any() and np.allclose(column[~bad], expected[name][~bad], atol=1e-5)


def test_a_batch_may_consist_of_unusable_images_only(
    backbone: FrozenBackbone, people: Path, tmp_path: Path
) -> None:
    for path in (people / "p0").iterdir():
        path.write_text("this is text")
    store = run_backbone(
        backbone, IdentityFolder(people), [View()], Recorder(), tmp_path / "rows", batch_size=3
    )
    assert store.arrays["valid"].tolist() == [False] * 3 + [True] * 9


def test_no_usable_image_is_an_error_and_leaves_no_files(
    backbone: FrozenBackbone, people: Path, tmp_path: Path
) -> None:
    for path in people.glob("*/*.png"):
        path.write_bytes(cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes())
    with pytest.raises(InputError, match=r"none of its 12 .* p0/0\.png: expected an image of 16x16.*Align"):
        run_backbone(backbone, IdentityFolder(people), VIEWS, Recorder(), tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_an_image_with_nan_output_does_not_affect_its_batch(
    backbone: FrozenBackbone, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    white = cv2.imencode(".png", np.full((16, 16, 3), 255, np.uint8))[1].tobytes()
    source = IdentityFolder(people)
    expected = contents(run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / "whole"))
    (people / "p1" / "1.png").write_bytes(white)
    engine = backbone._engine

    class Overflowing:
        name, device = engine.name, engine.device

        def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            embedding, features = engine(x)
            embedding[(x > 0.99).flatten(1).all(1)] = float("nan")
            return embedding, features

    monkeypatch.setattr(backbone, "_engine", Overflowing())
    store = run_backbone(backbone, IdentityFolder(people), VIEWS, Recorder(), tmp_path / "rows")
    assert list(store.notes["skipped"]) == ["p1/1.png"] and "not finite" in store.notes["skipped"]["p1/1.png"]
    bad = np.repeat([key == "p1/1.png" for key in source.keys], 3)
    assert np.array_equal(store.arrays["valid"], ~bad) and not store.arrays["mu"][bad].any()
    assert np.allclose(store.arrays["mu"][~bad], expected["mu"][~bad], atol=1e-5)


@pytest.mark.parametrize("after", [0, 1, 2, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_resumed_pass_is_bit_identical(
    backbone: FrozenBackbone, people: Path, tmp_path: Path, calls: Calls, after: int, error: BaseException
) -> None:
    spoil(people)
    source = IdentityFolder(people)
    expected = run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / "whole", batch_size=6)
    expected_calls = list(calls)
    assert len(expected_calls) == 6
    calls.clear()
    calls.limit, calls.error = after, error
    with pytest.raises(type(error)):
        run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / "rows", batch_size=6)
    calls.limit = sys.maxsize
    # The new batch size is ignored: the pass continues with the old one, since bits could differ.
    store = run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / "rows", batch_size=30)
    assert equal_columns(contents(store), contents(expected))
    assert calls == expected_calls  # no batch is computed twice
    assert store.notes["skipped"] == expected.notes["skipped"]
    calls.clear()
    reopened = run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / "rows")
    assert equal_columns(contents(reopened), contents(expected)) and calls == []


def test_repeatedly_interrupted_pass_is_bit_identical(
    backbone: FrozenBackbone, people: Path, tmp_path: Path, calls: Calls
) -> None:
    source = IdentityFolder(people)
    expected = run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / "whole", batch_size=6)
    calls.clear()
    for count in range(1, 6):
        calls.limit = count
        with pytest.raises(KeyboardInterrupt):
            run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / "rows", batch_size=6)
    calls.limit = sys.maxsize
    store = run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / "rows", batch_size=6)
    assert equal_columns(contents(store), contents(expected)) and len(calls) == 6


def test_pass_resumes_after_kill_9(model: ConfidenceModel, people: Path, tmp_path: Path) -> None:
    spoil(people)
    expected = embed(model, IdentityFolder(people), tmp_path / "whole.safetensors", batch_size=2)
    model_path, out = model.save(tmp_path / "model.safetensors"), tmp_path / "out.safetensors"
    script = textwrap.dedent(f"""
        import os, signal
        import spherecf
        from spherecf.common import rowstore
        from spherecf.data import IdentityFolder
        from spherecf.extract import embed
        from spherecf.models import FrozenBackbone, Preprocessing
        rowstore._COMMIT_SECONDS = 0.0
        calls, genuine = [], FrozenBackbone.run
        def call(self, images):
            calls.append(images)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return genuine(self, images)
        FrozenBackbone.run = call
        pixels = Preprocessing("rgb", 127.5, 127.5, (16, 16))
        backbone = FrozenBackbone.from_onnx({str(tmp_path / "tiny.onnx")!r}, preprocessing=pixels)
        model = spherecf.load({str(model_path)!r}, backbone)
        embed(model, IdentityFolder({str(people)!r}), {str(out)!r}, batch_size=2)
    """)
    completed = subprocess.run([sys.executable, "-c", script], timeout=600, check=False)
    assert completed.returncode == -signal.SIGKILL and not out.exists()
    n_done = RowStore(*_store_arguments(tmp_path / "out.safetensors.partial")).done
    assert n_done == 6  # three batches
    resumed = embed(model, IdentityFolder(people), out, batch_size=2)
    assert resumed.fingerprint() == expected.fingerprint() and resumed.skipped == expected.skipped
    for name, column in expected.extras.items():
        assert np.array_equal(resumed.extras[name], column)


@pytest.mark.parametrize("bad", [False, True])
def test_pipelined_batches_store_the_same_rows(
    model: ConfidenceModel, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bool
) -> None:
    """As on a GPU, which starts each batch before the results of the previous one are read."""
    source, original_run = IdentityFolder(people), FrozenBackbone.run

    def run_with_dark_images_unusable(
        self: FrozenBackbone, images: Any
    ) -> tuple[BackboneOutput, torch.Tensor]:
        output, usable = original_run(self, images)
        dark = torch.as_tensor(images).float().mean((1, 2, 3)) < 127
        return output, usable & ~dark if bad else usable

    monkeypatch.setattr(FrozenBackbone, "run", run_with_dark_images_unusable)
    expected = run_backbone(model.backbone, source, VIEWS, Recorder(), tmp_path / "rows", batch_size=6)
    device = type("Elsewhere", (), {"type": "other"})()
    monkeypatch.setattr(FrozenBackbone, "device", property(lambda self: device))
    pipelined = run_backbone(model.backbone, source, VIEWS, Recorder(), tmp_path / "ahead", batch_size=6)
    assert equal_columns(contents(pipelined), contents(expected))
    assert pipelined.notes["skipped"] == expected.notes["skipped"]
    assert 0 < len(expected.notes["skipped"]) < len(source) if bad else not expected.notes["skipped"]


def _store_arguments(folder: Path) -> tuple[Path, int, dict[str, Any], dict[str, Any]]:
    """Arguments that open an existing store without changing it."""
    identity = json.loads((folder / "state.json").read_text())["identity"]
    columns = {name: (tuple(shape), dtype) for name, (shape, dtype) in identity.pop("columns").items()}
    return folder, identity.pop("rows"), columns, identity


def test_rows_do_not_depend_on_the_batch_size(backbone: FrozenBackbone, people: Path, tmp_path: Path) -> None:
    spoil(people)
    source = IdentityFolder(people)
    single, sevens, one_batch = (
        run_backbone(backbone, source, VIEWS, Recorder(), tmp_path / str(size), batch_size=size)
        for size in (1, 7, 500)
    )
    for other in (sevens, one_batch):
        assert single.notes["skipped"] == other.notes["skipped"]
        for name, column in single.arrays.items():
            assert np.allclose(column, other.arrays[name], rtol=1e-5, atol=1e-6)


def test_other_images_views_backbone_or_recorder_restart_the_pass(
    backbone: FrozenBackbone, people: Path, tmp_path: Path, calls: Calls
) -> None:
    source, folder = IdentityFolder(people), tmp_path / "rows"
    pixels = Preprocessing("bgr", 127.5, 127.5, (16, 16))
    bgr = FrozenBackbone.from_onnx(tiny_file(tmp_path), preprocessing=pixels)
    other_map = FrozenBackbone.from_onnx(tiny_file(tmp_path), preprocessing=TINY, features="b_conv2")
    for arguments in (
        (backbone, source, VIEWS, Recorder()),
        (backbone, source.subset(range(11)), VIEWS, Recorder()),
        (backbone, source, VIEWS[:2], Recorder()),
        (backbone, source, VIEWS, Recorder(2)),
        (bgr, source, VIEWS, Recorder()),
        (other_map, source, VIEWS, Recorder()),
    ):
        calls.clear()
        first = contents(run_backbone(*arguments, folder))
        assert sum(calls) == len(arguments[1]) * len(arguments[2])
        assert equal_columns(contents(run_backbone(*arguments, folder)), first)
        assert sum(calls) == len(arguments[1]) * len(arguments[2])  # the second run computes nothing


@pytest.mark.parametrize(("rows", "views", "batch"), [([], VIEWS, 8), ([0, 1], [], 8), ([0, 1], VIEWS, 0)])
def test_empty_passes_and_batch_size_0_are_refused(
    backbone: FrozenBackbone, people: Path, tmp_path: Path, rows: list[int], views: list[View], batch: int
) -> None:
    with pytest.raises(InputError, match=r"nothing to embed|batch_size"):
        run_backbone(
            backbone,
            IdentityFolder(people).subset(rows),
            views,
            Recorder(),
            tmp_path / "rows",
            batch_size=batch,
        )
    assert not (tmp_path / "rows").exists()


def test_a_full_disk_is_reported_before_the_first_image(
    model: ConfidenceModel, people: Path, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)
    with pytest.raises(StorageError, match="No space left on device"):
        embed(model, IdentityFolder(people), tmp_path / "new" / "out.safetensors")
    assert calls == [] and not (tmp_path / "new").exists()


def test_a_failed_save_keeps_the_computed_rows(
    model: ConfidenceModel, people: Path, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"

    def raise_no_space(self: Embeddings, path: Any) -> Path:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Embeddings, "save", raise_no_space)
        with pytest.raises(StorageError):
            embed(model, IdentityFolder(people), out)
    count = len(calls)
    assert len(embed(model, IdentityFolder(people), out)) == 12 and len(calls) == count


def test_embed_writes_the_outputs_of_the_model(model: ConfidenceModel, people: Path, tmp_path: Path) -> None:
    reasons = spoil(people)
    source = IdentityFolder(people)
    result = embed(model, source, tmp_path / "out.safetensors")
    good = [row for row, key in enumerate(source.keys) if key not in reasons]
    outputs = model.outputs(np.stack([source.image(row) for row in good]))
    assert result.keys == [source.keys[row] for row in good]
    assert np.allclose(result.mu, outputs.mu, atol=1e-6)
    assert np.allclose(result.log_kappa, outputs.log_kappa, atol=1e-5)
    assert np.allclose(result.extras["norm"], outputs.norm, rtol=1e-5)
    assert np.ptp(result.log_kappa) > 1e-3  # without differences, the comparison would prove little
    assert result.subjects().tolist() == [key.split("/")[0] for key in result.keys]
    assert [key for key, _ in result.skipped] == list(reasons)
    assert result.provenance["data"] == source.fingerprint()
    assert result.provenance["model"] == model.fingerprint()
    assert result.provenance["degradation"] is None and result.provenance["flip"] == "none"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "people", "tiny.onnx"]


def test_embed_stores_the_calibration(model: ConfidenceModel, people: Path, tmp_path: Path) -> None:
    calibration = Calibration(model.fingerprint(), "d" * 64)
    calibrated = model.with_calibration(calibration)
    result = embed(calibrated, IdentityFolder(people), tmp_path / "out.safetensors")
    stored, fingerprint = result.provenance["calibration"], result.provenance["model"]
    assert Calibration.from_dict(stored, model=fingerprint) == calibration


def test_embed_a_degraded_view(model: ConfidenceModel, people: Path, tmp_path: Path) -> None:
    source, view = IdentityFolder(people), View(Degradation("cross", 5))
    result = embed(model, source, tmp_path / "out.safetensors", view=view)
    viewed = [view(source.image(row), source.keys[row]) for row in range(len(source))]
    assert np.allclose(result.mu, model.outputs(np.stack([image.image for image in viewed])).mu, atol=1e-6)
    assert np.allclose(result.extras["severity"], [image.severity for image in viewed])
    assert result.provenance["view"] == result.provenance["degradation"] == "cross-v1/5"


@pytest.mark.parametrize("view", [None, View(flip=True), View(Degradation("cross", 1))])
def test_flip_adds_the_mirrored_embedding(
    model: ConfidenceModel, people: Path, tmp_path: Path, view: View | None
) -> None:
    spoil(people)
    source = IdentityFolder(people)
    result = embed(model, source, tmp_path / "out.safetensors", view=view, flip=True)
    for row, key in enumerate(result.keys):
        image = (view or View())(source.image(source.keys.index(key)), key).image
        original, mirrored = (
            model.outputs(np.ascontiguousarray(pixels)[None]) for pixels in (image, image[:, ::-1])
        )
        total = (original.mu * original.norm + mirrored.mu * mirrored.norm)[0]
        assert np.allclose(result.mu[row], total / total.norm(), atol=1e-5)
        assert result.extras["norm"][row] == pytest.approx(float(total.norm()) / 2, rel=1e-4)
        mean = float(original.log_kappa + mirrored.log_kappa) / 2
        assert result.log_kappa[row] == pytest.approx(mean, abs=1e-4)
    assert result.provenance["flip"] == "sum" and len(result) == 9


@pytest.mark.parametrize("flip", [False, True])
def test_a_head_with_one_output_per_coordinate_stores_its_precisions(
    backbone: FrozenBackbone, people: Path, tmp_path: Path, flip: bool
) -> None:
    channels, height, width = backbone.feature_shape
    head = make_head("light", channels=channels, height=height, width=width, outputs=backbone.dim)
    model, source = ConfidenceModel(backbone, head), IdentityFolder(people)
    result = embed(model, source, tmp_path / "out.safetensors", flip=flip)
    images = np.stack([source.image(row) for row in range(len(source))])
    outputs_by_view = [
        model.outputs(images[:, :, :: 1 - 2 * mirrored].copy()) for mirrored in range(1 + flip)
    ]
    assert result.log_precision is not None and result.log_precision.shape == result.mu.shape
    mean_log_precision = sum(outputs.log_precision for outputs in outputs_by_view) / len(outputs_by_view)
    assert np.allclose(result.log_precision, mean_log_precision, atol=1e-4)
    kappas = [outputs.log_precision.double().exp().mean(1) for outputs in outputs_by_view]
    log_kappa = sum(kappa.log() for kappa in kappas) / len(kappas)
    assert np.allclose(result.log_kappa, log_kappa, atol=1e-4)


def test_a_head_with_nan_output_is_an_error(model: ConfidenceModel, people: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        model.head.final.bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"none of its 12 images .*log kappa that is not finite"):
        embed(model, IdentityFolder(people), tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("out*"))


def test_an_output_path_that_is_a_folder_is_refused_first(
    model: ConfidenceModel, people: Path, tmp_path: Path, calls: Calls
) -> None:
    with pytest.raises(InputError, match="this is a folder"):
        embed(model, IdentityFolder(people), people)
    assert calls == []


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Key:
    """A configured encryption key; every batch is committed."""
    monkeypatch.setattr("spherecf.common.rowstore._COMMIT_SECONDS", 0.0)
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "key"))
    return make_key(tmp_path / "key")


def test_encrypted_rows_are_resumed_and_reveal_nothing(
    model: ConfidenceModel,
    people: Path,
    tmp_path: Path,
    calls: Calls,
    key: Key,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(people)
    out, partial = tmp_path / "out.safetensors", tmp_path / "out.safetensors.partial"
    with monkeypatch.context() as patched:
        patched.delenv(KEY_FILE)
        expected = embed(model, IdentityFolder(people), tmp_path / "plain", batch_size=2)
        calls.clear()
        calls.limit = 1
        with pytest.raises(KeyboardInterrupt):
            embed(model, IdentityFolder(people), out, batch_size=2)
        assert (partial / "mu.bin").exists()
    for limit in (2, 3):
        calls.limit = limit  # one call was made without a key; with a key, the first rows are computed again
        with pytest.raises(KeyboardInterrupt):
            embed(model, IdentityFolder(people), out, batch_size=2)
    files = sorted(partial.iterdir())
    assert [file.name for file in files] == ["rows-0.sealed", "rows-2.sealed"]
    assert {sealed_with(file) for file in files} == {key.id}
    stored = b"".join(file.read_bytes() for file in files)
    assert not any(mu.tobytes() in stored for mu in expected.mu) and b"png" not in stored
    (partial / "rows-4.sealed").write_bytes(files[0].read_bytes())  # ignored at another position
    calls.limit = sys.maxsize
    resumed = embed(model, IdentityFolder(people), out, batch_size=2)
    assert resumed.fingerprint() == expected.fingerprint() and resumed.skipped == expected.skipped
    assert sealed_with(out) == key.id and not partial.exists()


def test_rows_with_another_key_are_not_overwritten(tmp_path: Path, key: Key) -> None:
    columns = {"x": ((2,), "float32")}
    store = SealedRows(tmp_path / "rows", 4, columns, {}, key)
    store.append({"x": np.ones((2, 2), np.float32)})
    before = (tmp_path / "rows" / "rows-0.sealed").read_bytes()
    with pytest.raises(InputError, match=f"encrypted with the key {key.id}, but"):
        SealedRows(tmp_path / "rows", 4, columns, {}, make_key(tmp_path / "other"))
    assert (tmp_path / "rows" / "rows-0.sealed").read_bytes() == before
    assert SealedRows(tmp_path / "rows", 4, columns, {}, key).done == 2
    assert SealedRows(tmp_path / "rows", 4, columns, {"other": 1}, key).done == 0
    assert not list((tmp_path / "rows").glob("*"))
