"""Stage 2 on cached, streamed and fine-tuned features: the same result for each source."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tests.training.rank_jobs import run

from spherecf import load
from spherecf.data import ImageError, SyntheticImages, View, training_views
from spherecf.errors import InputError, ModelError
from spherecf.extract import KeepDirection, open_store
from spherecf.models import (
    FrozenBackbone,
    Preprocessing,
    load_prototypes,
    make_backbone,
    save_backbone,
    save_prototypes,
)
from spherecf.models.heads import LightHead
from spherecf.training import (
    MODEL_FILE,
    ConfidenceConfig,
    Objectives,
    Ranks,
    StreamedFeatures,
    cache_bytes,
    prototypes_for,
    train_confidence,
)
from spherecf.training.cache import run_backbone_on_all
from spherecf.training.features import mean_prototypes

BASE: dict[str, Any] = {
    "views": {"degraded": 0, "flip": True, "per_epoch": "one"},
    "fit": {"epochs": 3, "batch_size": 16, "held_out": 0.25},
}
SIZE = (32, 32)


def images() -> SyntheticImages:
    return SyntheticImages(64, 8, size=SIZE)


def settings(**changes: dict[str, Any]) -> ConfidenceConfig:
    return ConfidenceConfig.from_dict(
        {name: {**BASE.get(name, {}), **changes.get(name, {})} for name in {*BASE, *changes}}
    )


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network, whose embeddings of one synthetic person are similar nevertheless."""
    torch.manual_seed(0)
    network = make_backbone("r18", 32, size=32, width=0.25)
    pixels = Preprocessing(size=SIZE)
    source = images()
    network.train()
    with torch.no_grad():  # adapts the batch statistics to these images
        for _ in range(20):
            network(pixels(np.stack([source.image(row) for row in range(32)])))
    return save_backbone(tmp_path_factory.mktemp("recogniser") / "backbone.safetensors", network, pixels)


def curve(model: Any) -> np.ndarray:
    return np.array([[e["train_loss"], e["held_out_loss"]] for e in model.record["history"]])


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_streaming_equals_the_cache_of_both_flips(
    tmp_path: Path, recogniser: Path, leave_one_out: bool
) -> None:
    backbone = FrozenBackbone.from_checkpoint(recogniser)
    curves = {}
    for way in ("cache", "stream"):
        changes = {
            "features": {"source": way, "dtype": "float32"},
            "prototypes": {"leave_one_out": leave_one_out},
        }
        curves[way] = curve(train_confidence(backbone, images(), tmp_path / way, settings(**changes)))
    np.testing.assert_allclose(curves["stream"], curves["cache"], rtol=2e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_caches_give_similar_results(tmp_path: Path, recogniser: Path, dtype: str) -> None:
    backbone = FrozenBackbone.from_checkpoint(recogniser)
    curves = [
        curve(train_confidence(backbone, images(), tmp_path / kind, settings(features={"dtype": kind})))
        for kind in ("float32", dtype)
    ]
    np.testing.assert_allclose(curves[1], curves[0], rtol=5e-3)
    summary = tmp_path / dtype / "cache" / "summary.bin"
    assert summary.stat().st_size * 2 == (tmp_path / "float32" / "cache" / "summary.bin").stat().st_size


def test_summaries_beyond_the_range_of_float16_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = make_backbone("r18", 32, size=32, width=0.125)
    with torch.no_grad():
        network.bn2.weight.mul_(1e6)  # of the feature map
    backbone = FrozenBackbone.from_module(network.eval(), Preprocessing(size=SIZE))
    with pytest.raises(InputError, match=r"summaries exceed 65504, .*; set features\.dtype to bfloat16"):
        train_confidence(backbone, images(), tmp_path / "half", settings())
    model = train_confidence(backbone, images(), tmp_path / "wide", settings(features={"dtype": "bfloat16"}))
    assert np.isfinite(curve(model)).all()


def test_the_predicted_cache_size_is_exact(tmp_path: Path, recogniser: Path, capsys: Any) -> None:
    backbone = FrozenBackbone.from_checkpoint(recogniser)
    train_confidence(backbone, images(), tmp_path, settings())
    file_bytes = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.bin"))
    head = LightHead(*backbone.feature_shape)
    assert cache_bytes(head, backbone.dim, 128) == file_bytes
    assert "64 images x 2 views, 0.00 GiB as a cache" in " ".join(capsys.readouterr().err.split())


def test_features_that_do_not_fit_on_disk_are_streamed(
    tmp_path: Path, recogniser: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    backbone = FrozenBackbone.from_checkpoint(recogniser)
    changes = {"prototypes": {"file": str(classifier(tmp_path, recogniser))}}
    train_confidence(backbone, images(), tmp_path / "run", settings(**changes))
    assert "streaming instead" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "cache").exists()


def classifier(folder: Path, recogniser: Path, names: list[str] | None = None) -> Path:
    """Save prototypes that match the images: their class means."""
    source = images()
    mu = FrozenBackbone.from_checkpoint(recogniser)(np.stack([source.image(row) for row in range(64)])).mu
    labels = torch.from_numpy(source.labels)
    means = torch.stack([mu[labels == label].mean(0) for label in labels.unique()])
    prototypes = torch.nn.functional.normalize(means)
    return save_prototypes(folder / "prototypes.safetensors", prototypes, names or source.identities)


@pytest.mark.parametrize("objective", get_args(Objectives))
@pytest.mark.parametrize("head", ["light", "conv"])
def test_every_objective_learns_and_round_trips(
    tmp_path: Path, recogniser: Path, objective: str, head: str
) -> None:
    backbone = FrozenBackbone.from_checkpoint(recogniser)
    changes = {
        "loss": {"objective": objective},
        "head": {"kind": head},
        "views": {"per_epoch": "all", "degraded": 1},
        "fit": {"epochs": 4},
        "optimizer": {"lr": 2e-3},
    }
    model = train_confidence(backbone, images(), tmp_path, settings(**changes))
    losses = curve(model)
    assert np.isfinite(losses).all() and losses[-1, 0] < losses[0, 0]
    assert model.head.outputs == (32 if objective == "pfe-gaussian" else 1)
    reloaded = load(tmp_path / MODEL_FILE, recogniser)
    batch = np.stack([images().image(row) for row in range(4)])
    log_kappa = reloaded.embed(batch)[1]
    torch.testing.assert_close(log_kappa, model.embed(batch)[1])
    assert tuple(log_kappa.shape) == (4,)


def test_fine_tuning_changes_weights_but_not_batch_statistics(tmp_path: Path, recogniser: Path) -> None:
    backbone = FrozenBackbone.from_checkpoint(recogniser)
    changes = {
        "features": {"finetune": True},
        "optimizer": {"lr": 1e-3},
        "prototypes": {"file": str(classifier(tmp_path, recogniser))},
    }
    model = train_confidence(backbone, images(), tmp_path, settings(**changes))
    files = recogniser, tmp_path / "backbone.safetensors"
    before, after = (FrozenBackbone.from_checkpoint(path).trainable().state_dict() for path in files)
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
    assert torch.equal(before["features.weight"], after["features.weight"])
    assert load(tmp_path / MODEL_FILE, tmp_path / "backbone.safetensors").fingerprint() == model.fingerprint()
    # The loss falls because the cosines grow, which a frozen backbone does not allow.
    assert curve(model)[-1, 0] < curve(model)[0, 0]
    with pytest.raises(Exception, match="a head means nothing on another backbone"):
        load(tmp_path / MODEL_FILE, recogniser)


def test_only_checkpoints_can_be_fine_tuned(tmp_path: Path) -> None:
    backbone = FrozenBackbone.default()
    source = SyntheticImages(16, 4)
    with pytest.raises(Exception, match="cannot be fine-tuned"):
        train_confidence(backbone, source, tmp_path, settings(features={"finetune": True}))


@pytest.mark.parametrize(
    ("way", "size"),
    [("cache", 3), *(pytest.param(way, 2, marks=pytest.mark.slow) for way in ("stream", "pairs"))],
)
def test_several_ranks_give_the_loss_curve_of_one(
    tmp_path: Path, recogniser: Path, size: int, way: str
) -> None:
    changes: dict[str, Any] = {"features": {"source": "stream" if way == "stream" else "cache"}}
    if way == "pairs":
        changes |= {"loss": {"objective": "pfe-vmf"}, "views": {"per_epoch": "all"}}
    single = train_confidence(
        FrozenBackbone.from_checkpoint(recogniser), images(), tmp_path / "one", settings(**changes)
    )
    folder = tmp_path / "many"
    folder.mkdir()
    content = {"recogniser": str(recogniser), **settings(**changes).to_dict()}
    (folder / "config.json").write_text(json.dumps(content))
    run("confidence", folder, size)
    distributed = load(folder / MODEL_FILE, recogniser)
    assert distributed.record["ranks"] == size
    # Curves differ slightly, because the dropout of the head draws different numbers on each rank.
    np.testing.assert_allclose(curve(distributed), curve(single), rtol=2e-3)
    assert not list(folder.glob("cache/rows-*"))


def test_pairs_stay_together_when_a_batch_is_split(tmp_path: Path, recogniser: Path) -> None:
    backbone = FrozenBackbone.from_checkpoint(recogniser)
    changes = {"loss": {"objective": "pfe-vmf"}, "views": {"per_epoch": "all"}, "engine": {"accumulate": 3}}
    model = train_confidence(backbone, images(), tmp_path, settings(**changes))
    assert np.isfinite(curve(model)).all()
    too_many_per_identity = settings(**{**changes, "fit": {"per_identity": 20}})
    with pytest.raises(InputError, match=r"no identity has fit\.per_identity = 20 rows"):
        train_confidence(backbone, images(), tmp_path / "few", too_many_per_identity)


class BrokenImages(SyntheticImages):
    """Images 0 and 9 cannot be read, nor any but one image of the last person."""

    def image(self, index: int, size: tuple[int, int] | None = None) -> Any:
        if index in (0, 9) or (self.labels[index] == 7 and index > 7):
            raise ImageError(self.where(index), "truncated image.")
        return super().image(index, size)


def test_a_batch_without_a_readable_pair_has_no_loss(tmp_path: Path, recogniser: Path) -> None:
    """With a classifier's prototypes, unreadable images are noticed only in a batch, here of one pair."""
    source = BrokenImages(64, 8, size=SIZE)
    changes = {
        "loss": {"objective": "pfe-vmf"},
        "features": {"source": "stream"},
        "prototypes": {"file": str(classifier(tmp_path, recogniser))},
        "views": {"flip": False, "per_epoch": "all"},
        "fit": {"batch_size": 2, "per_identity": 2, "held_out": 0.0},
    }
    backbone = FrozenBackbone.from_checkpoint(recogniser)
    model = train_confidence(backbone, source, tmp_path / "run", settings(**changes))
    assert len(model.record["data"]["skipped"]) >= 7
    assert all(np.isfinite(epoch["train_loss"]) for epoch in model.record["history"])
    assert all(bool(torch.isfinite(value).all()) for value in model.head.state_dict().values())


@pytest.mark.parametrize("way", ["cache", "stream"])
def test_unusable_images_are_listed_for_cache_and_stream(tmp_path: Path, recogniser: Path, way: str) -> None:
    source = BrokenImages(64, 8, size=SIZE)
    backbone = FrozenBackbone.from_checkpoint(recogniser)
    data = train_confidence(backbone, source, tmp_path, settings(features={"source": way})).record["data"]
    expected = {0, 9, *(row for row in range(8, 64) if source.labels[row] == 7)}
    assert set(data["skipped"]) == {source.keys[row] for row in expected}
    assert data["single_image_identities"] == [source.keys[7]]


def test_one_invalid_embedding_does_not_stop_a_stream(
    tmp_path: Path, recogniser: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, run = FrozenBackbone.from_checkpoint(recogniser), FrozenBackbone.run
    bad_image = images().image(5)

    def run_or_fail(self: FrozenBackbone, batch: Any) -> Any:
        if any(np.array_equal(np.asarray(image), bad_image) for image in batch):
            raise ModelError("an embedding is not finite")
        return run(self, batch)

    changes = {"features": {"source": "stream"}, "views": {"flip": False, "per_epoch": "all"}}
    config = settings(**changes, prototypes={"file": str(classifier(tmp_path, recogniser))})
    monkeypatch.setattr(FrozenBackbone, "run", run_or_fail)
    model = train_confidence(backbone, images(), tmp_path / "run", config)
    assert list(model.record["data"]["skipped"]) == [images().keys[5]]


def test_another_backbone_precision_starts_a_new_run(tmp_path: Path, recogniser: Path) -> None:
    config = settings(
        features={"source": "stream"}, prototypes={"file": str(classifier(tmp_path, recogniser))}
    )
    curves = [
        curve(
            train_confidence(
                FrozenBackbone.from_checkpoint(recogniser, dtype=dtype), images(), tmp_path, config
            )
        )
        for dtype in ("float32", "bfloat16")
    ]
    assert not np.array_equal(curves[0], curves[1]), "the fit of the other precision was reused"


def test_a_distributed_pass_resumes_with_another_number_of_ranks(tmp_path: Path, recogniser: Path) -> None:
    """Finished pieces are kept in the same files, and the rows equal those of one process."""
    backbone, source = FrozenBackbone.from_checkpoint(recogniser), images()
    recorder = KeepDirection(32)
    full_store = open_store(backbone, source, [View()], recorder, tmp_path)
    piece = full_store.part(0, 1)
    piece.append(
        {**{n: np.zeros((1, *s), d) for n, (s, d) in full_store.columns.items()}, "mu": np.full((1, 32), 7.0)}
    )
    assert piece.complete
    store = run_backbone_on_all(Ranks(), backbone, source, [View()], recorder, tmp_path)
    expected = backbone(np.stack([source.image(row) for row in range(64)])).mu
    torch.testing.assert_close(torch.from_numpy(store.arrays["mu"][1:]), expected[1:], rtol=1e-4, atol=1e-5)
    assert (store.arrays["mu"][0] == 7).all() and store.complete
    assert not list(tmp_path.glob("rows-*"))


def test_prototypes_are_matched_by_name(tmp_path: Path, recogniser: Path) -> None:
    source = images()
    names = source.identities[::-1]
    path = classifier(tmp_path, recogniser, names)
    matched = prototypes_for(source, path)
    torch.testing.assert_close(matched, load_prototypes(path).flip(0))
    with pytest.raises(InputError, match=r"2 of 8 identities of .* have no prototype there \("):
        prototypes_for(source, classifier(tmp_path, recogniser, ["x", "y", *names[2:]]))


def test_a_classifier_of_another_data_set_is_refused_before_the_pass(
    tmp_path: Path, recogniser: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "few.npy", np.ones((5, 32), np.float32))
    backbone = FrozenBackbone.from_checkpoint(recogniser)
    monkeypatch.setattr(FrozenBackbone, "run", None)
    config = settings(prototypes={"file": str(tmp_path / "few.npy")})
    with pytest.raises(InputError, match="labels reach 7, but there are 5 prototypes"):
        train_confidence(backbone, images(), tmp_path / "run", config)


def test_streamed_features_equal_direct_backbone_outputs(tmp_path: Path, recogniser: Path) -> None:
    backbone, source = FrozenBackbone.from_checkpoint(recogniser), images()
    head = LightHead(*backbone.feature_shape)
    prototypes = mean_prototypes(backbone, source, tmp_path)
    features = StreamedFeatures(backbone, head, source, training_views(0, flip=True), prototypes)
    entries = np.array([5, 0, 127])
    (part,) = features.load([entries])
    mu = backbone(np.stack([source.image(row) for row in range(64)])).mu.double()
    for position, entry in enumerate(entries.tolist()):
        row, mirrored = divmod(entry, 2)
        image = View(flip=bool(mirrored))(source.image(row), "").image
        output = backbone(image[None])
        torch.testing.assert_close(part.data.mu[position], output.mu[0], rtol=1e-4, atol=1e-5)
        companions = [i for i in range(64) if source.labels[i] == source.labels[row] and i != row]
        prototype = mu[companions].sum(0) / mu[companions].sum(0).norm()
        expected = float(prototype @ output.mu[0].double())
        np.testing.assert_allclose(float(part.data.cosine[position]), expected, rtol=1e-4)
    assert features.keys(entries) == [source.keys[2], source.keys[0], source.keys[63]]


@pytest.mark.parametrize("features", ["map", "tokens"])
def test_heads_learn_from_transformer_tokens(tmp_path: Path, features: str) -> None:
    """Cached or streamed, as a grid or a column, the curves agree; a grid can also be fine-tuned."""
    torch.manual_seed(0)
    network = make_backbone("vit_t", dim=16, size=18, width=0.0625)
    torch.save(network.state_dict(), tmp_path / "vit.pt")
    backbone = FrozenBackbone.from_checkpoint(tmp_path / "vit.pt")
    if features == "tokens":
        network = backbone.trainable()
        embedding_only = torch.nn.Sequential(network, FirstOnly())
        backbone = FrozenBackbone.from_module(embedding_only, backbone.preprocessing, features="0.norm")
    assert backbone.feature_shape == ((16, 2, 2) if features == "map" else (16, 4, 1))
    source, curves = SyntheticImages(32, 4, size=(18, 18)), {}
    for way in ("cache", "stream"):
        config = settings(features={"source": way, "dtype": "float32"})
        model = train_confidence(backbone, source, tmp_path / way, config)
        curves[way] = [epoch["train_loss"] for epoch in model.record["history"]]
    np.testing.assert_allclose(curves["stream"], curves["cache"], rtol=2e-4)
    if features == "map":
        config = settings(features={"finetune": True})
        tuned = train_confidence(backbone, source, tmp_path / "tuned", config).backbone
        before, after = backbone(source.image(0)[None]), tuned(source.image(0)[None])
        assert not torch.equal(before.features, after.features)
    reloaded = load(tmp_path / "cache" / MODEL_FILE, backbone)
    assert reloaded.head.feature_shape == backbone.feature_shape


class FirstOnly(torch.nn.Module):
    def forward(self, results: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return results[0]
