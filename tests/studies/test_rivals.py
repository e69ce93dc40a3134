"""The study of rival confidences on a tiny recogniser; its measures against those of the package."""

import json
from pathlib import Path

import numpy as np
import pytest
from studies.__main__ import app
from studies.rivals import (
    HEADS,
    NAMES,
    SETTINGS,
    Effort,
    Faces,
    Rivals,
    compare_rivals,
    discard_pairs,
    partial_areas,
    pool_by,
    present_rivals,
    reject_probes,
    rival_tables,
)
from tests.models.conftest import save_described
from tests.studies.conftest import CONFIG, make_people
from typer.testing import CliRunner

from spherecf.data import open_source
from spherecf.errors import InputError
from spherecf.evaluation import edc, prediction_rejection_ratio
from spherecf.evaluation.open_set import decide, fpir_threshold
from spherecf.models import FrozenBackbone
from spherecf.scoring import pool

DEAR = ["grafiqs", "ser_fiq", "faceqan"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("people")
    return make_people(root / "train", 12, 4, 0), make_people(root / "test", 8, 6, 9000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


def run(tiny: FrozenBackbone, people: tuple[Path, Path], folder: Path) -> Rivals:
    """Few images of noise, so the false match rate is 0.3 for some pairs to match."""
    train, test = map(open_source, people)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("studies.rivals.FMR", 0.3)
        return compare_rivals(tiny, train, test, folder, CONFIG, Effort(2, DEAR, people=4, draws=20))


@pytest.fixture(scope="module")
def finished(tiny: FrozenBackbone, people: tuple[Path, Path], folder: Path) -> Rivals:
    return run(tiny, people, folder)


def test_every_confidence_is_measured_in_the_same_way(finished: Rivals) -> None:
    cheap = [*(variant.score for variant in HEADS), "norm", "sharpness", "random"]
    measures = [f"{measure}, {setting}" for setting in SETTINGS
                for measure in ("EDC pairs", "TMR as it is", "TMR by rank", "PRR")]  # fmt: skip
    assert list(finished.measured) == [
        (faces, measures[4 * index + i]) for index in range(3) for faces in ("all", "some") for i in range(4)
    ]
    for (faces, _), runs in finished.measured.items():
        assert list(runs) == (cheap if faces == "all" else cheap + DEAR)
        assert all(values.shape == (21,) for values in runs.values())
    assert list(finished.seconds) == ["recogniser", "norm", *(v.score for v in HEADS), *DEAR]
    assert finished.facts["tested_people"] == 8


def test_tables_and_report_contain_every_measure(finished: Rivals, tmp_path: Path) -> None:
    tables = rival_tables(finished)
    assert [len(table.rows) for table in tables] == [9, 9, 9, 12, 12, 12, 10]
    assert [row[0] for row in tables[3].rows[1:]] == list(NAMES.values())
    content = json.loads(present_rivals(finished, tmp_path, {}).json.read_text())
    for (faces, measure), runs in finished.measured.items():
        values_by_name = content["results"]["value_and_interval"][f"{faces}: {measure}"]
        for name, values in runs.items():
            assert values_by_name[name][0] == (values[0] if np.isfinite(values[0]) else None)
    assert all(np.isfinite(values[0]) for values in finished.measured["all", "EDC pairs, clean"].values())


def test_finished_measurements_are_not_repeated(
    finished: Rivals, tiny: FrozenBackbone, people: tuple[Path, Path], folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("studies.rivals.BY_RECOGNISER", dict.fromkeys(DEAR))  # calling any of them would fail
    monkeypatch.setattr("studies.rivals._cost", lambda *_: {})
    repeated = run(tiny, people, folder)
    for key, runs in finished.measured.items():
        for name, values in runs.items():
            np.testing.assert_array_equal(repeated.measured[key][name], values)


def test_the_command_prints_the_tables(people: tuple[Path, Path], tmp_path: Path) -> None:
    save_described(tmp_path / "tiny.onnx")
    (tmp_path / "recipe.toml").write_text(
        "[views]\ndegraded = 1\n[fit]\nepochs = 1\nbatch_size = 8\nheld_out = 0.3\n"
    )
    options = {
        "--recipe": tmp_path / "recipe.toml", "--backbone": tmp_path / "tiny.onnx", "--out": tmp_path / "out",
        "--seeds": 1, "--people": 4, "--draws": 5, "--ask": "grafiqs",
    }  # fmt: skip
    arguments = ["rivals", *map(str, people), "--json", *(str(x) for pair in options.items() for x in pair)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    tables = json.loads(result.stdout)
    assert result.exit_code == 0 and (tmp_path / "out" / "report" / "report.html").exists()
    assert [len(table["rows"]) for table in tables] == [9, 9, 9, 10, 10, 10, 10]
    assert tables[3]["rows"][-1][0] == "GraFIQs"


@pytest.fixture
def world() -> Faces:
    """60 people whose poor images are misplaced; one confidence is informed about their quality."""
    rng = np.random.default_rng(1)
    person = np.repeat(np.arange(60), 8)
    noise = rng.uniform(0.1, 0.6, len(person))
    centre = rng.normal(size=(60, 16))
    mu = centre[person] / 4 + noise[:, None] * rng.normal(size=(len(person), 16))
    mu = (mu / np.linalg.norm(mu, axis=1, keepdims=True)).astype(np.float32)
    informed, uninformed = -np.log(noise) * 2, rng.normal(size=len(person))
    return Faces(mu, person, np.full(len(person), ""), {"mls": [informed], "random": [uninformed]}, mu)


def test_partial_areas_equal_edc_and_weights_repeat_pairs() -> None:
    """On a scale from 0 (the oracle, which discards errors first) to 1 (an uninformative quality)."""
    rng = np.random.default_rng(0)
    scores, quality = rng.normal(size=200), rng.integers(0, 40, 200).astype(float)
    counts = rng.integers(0, 4, 200)
    for times in (np.ones(200, int), counts):
        s, q = np.repeat(scores, times), np.repeat(quality, times)
        is_error = scores < -0.5
        area, oracle = (
            edc(
                np.append(s, 0.0), np.append(np.ones(len(s)), 0), np.append(order, 9),
                start_fnmr=np.repeat(is_error, times).mean(),
            ).pauc_normalised["0.3"]
            for order in (q, np.repeat(~is_error, times) + 1e-6 * rng.random(len(s)))
        )  # fmt: skip
        actual = partial_areas(is_error, quality, times[None].astype(float))[0]
        assert actual == pytest.approx((area - oracle) / (1 - oracle), abs=2e-2)
    perfect, opposite, constant = (
        partial_areas(is_error, order, np.ones((1, 200)))[0] for order in (scores, -scores, np.ones(200))
    )
    assert perfect == pytest.approx(0, abs=0.02) and opposite > 1 and constant == pytest.approx(1)
    assert np.isnan(partial_areas(np.zeros(200, bool), quality, np.ones((1, 200)))[0])


def test_discarding_uses_all_pairs_at_a_common_threshold(world: Faces) -> None:
    left, right = np.triu_indices(len(world.person), 1)
    scores = (world.mu[left] * world.mu[right]).sum(1)
    mated = world.person[left] == world.person[right]
    informed = world.confidence["mls"][0]
    threshold = edc(scores, mated, np.minimum(informed[left], informed[right]), fmr=1e-3).threshold
    runs, start = discard_pairs(world, (np.arange(480), np.arange(480)), 10)
    assert start == pytest.approx((scores[mated] < threshold).mean(), abs=1e-3)
    expected = partial_areas(
        scores[mated] < threshold,
        np.minimum(informed[left], informed[right])[mated],
        np.ones((1, mated.sum())),
    )
    assert runs["mls"][0] == pytest.approx(expected[0], abs=5e-3)
    assert runs["mls"].max() < runs["random"].min()


def test_pooling_with_an_informed_confidence_beats_the_mean(world: Faces) -> None:
    for by_rank in (False, True):
        runs, mean = pool_by(world, by_rank, 10)
        assert runs["mls"][0] > mean + 0.02 and runs["mls"][0] > runs["random"][0] + 0.02


def test_pooling_by_rank_depends_only_on_the_order(world: Faces) -> None:
    confidences = {"mls": world.confidence["mls"], "norm": [world.confidence["mls"][0] ** 3]}
    runs, _ = pool_by(Faces(world.mu, world.person, world.group, confidences, world.clean), True, 5)
    np.testing.assert_array_equal(runs["mls"], runs["norm"])


def test_rejection_equals_that_of_the_package(world: Faces) -> None:
    runs, _ = reject_probes(world, 10)
    enrolled = np.arange(0, 60, 2)
    gallery_rows = np.concatenate([np.flatnonzero(world.person == subject)[:3] for subject in enrolled])
    gallery = pool(world.mu[gallery_rows], np.ones(len(gallery_rows), np.float32), world.person[gallery_rows])
    probes = np.setdiff1d(np.arange(480), gallery_rows)
    cosine = world.mu[probes] @ gallery.mu.T
    is_mated = np.isin(world.person[probes], enrolled)
    threshold = fpir_threshold(cosine.max(1), is_mated, 0.1)[0]
    is_right = gallery.groups[cosine.argmax(1)] == world.person[probes]
    decisions = decide(cosine.max(1), is_right, is_mated, threshold)
    expected = prediction_rejection_ratio(world.confidence["mls"][0][probes], decisions)
    assert runs["mls"][0] == pytest.approx(expected)


def test_too_small_studies_are_refused() -> None:
    with pytest.raises(InputError, match="seeds >= 1, draws >= 2 and people >= 4, got 2, 200, 3"):
        Effort(people=3)
    with pytest.raises(InputError, match="ask: expected some of grafiqs, ser_fiq, faceqan, got crystal ball"):
        Effort(ask=["crystal ball"])


def test_a_search_requires_images_beyond_the_gallery(world: Faces) -> None:
    three_images = world.only(np.flatnonzero(np.arange(480) % 8 < 3))
    with pytest.raises(InputError, match="expected people with more than 3 images"):
        reject_probes(three_images, 2)
