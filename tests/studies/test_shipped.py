"""The training of the shipped head on a tiny recogniser and people who are easy to distinguish."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from studies.shipped import MODEL_FILE, Shipped, halves, ship
from studies.shipped_report import present_shipped, shipped_tables
from tests.tiny import picture

import spherecf as scf
from spherecf.calibration import Decision
from spherecf.data import open_source
from spherecf.errors import InputError
from spherecf.models import FrozenBackbone
from spherecf.training import ConfidenceConfig

pytestmark = pytest.mark.slow

CONFIG = ConfidenceConfig.from_dict(
    {
        "views": {"degraded": 3},
        "fit": {"epochs": 12, "batch_size": 32, "held_out": 0.3},
        "optimizer": {"lr": 3e-3},
    }
)


def look_alikes(root: Path, people: int, images: int, first_seed: int) -> Path:
    """Each person is one base image with noise; the images are in two groups."""
    rng = np.random.default_rng(first_seed)
    for person in range(people):
        base = picture(first_seed + person).astype(float)
        for number in range(images):
            path = root / f"p{person:02d}" / ("left", "right")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noisy = np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8)
            path.write_bytes(cv2.imencode(".png", noisy)[1].tobytes())
    return root


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("people")
    sizes = {"train": (12, 3, 0), "test": (40, 10, 5000), "others": (6, 3, 9000)}
    first, second, third = (look_alikes(root / name, *size) for name, size in sizes.items())
    return first, second, third


@pytest.fixture(scope="module")
def finished(
    tiny: FrozenBackbone, people: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Shipped, Path]:
    out = tmp_path_factory.mktemp("run")
    return run(tiny, people, out), out


def run(tiny: FrozenBackbone, people: tuple[Path, Path, Path], folder: Path) -> Shipped:
    train, test, foreign = map(open_source, people)
    return ship(
        tiny,
        train,
        test,
        folder,
        CONFIG,
        foreign={"others": foreign},
        realign=lambda source: source,
        draws=20,
    )


def test_the_model_contains_every_part_of_the_calibration(
    finished: tuple[Shipped, Path], tiny: FrozenBackbone
) -> None:
    model = scf.load(finished[1] / MODEL_FILE, tiny)
    calibration = model.calibration
    assert calibration is not None and calibration.model == model.fingerprint()
    assert list(calibration.thresholds) == ["mls", "cosine", "mls-template"]
    evidence = ["evidence", "evidence-template", "evidence-templates"]
    assert list(calibration.likelihood) == [*calibration.thresholds, *evidence]
    assert {rule.score for rule in calibration.decisions} >= {"evidence", "mls"}
    assert [entry.target for entry in calibration.thresholds["mls"].entries] == [
        10.0**-e for e in range(1, 7)
    ]
    # half of the people, in four grades
    assert calibration.kappa is not None and calibration.kappa.images == 20 * 10 * 4
    assert "200 pictures of 20 people of test" in calibration.kappa.population
    rule = calibration.decision("mls", error="fmr", alpha=1e-2)
    assert rule.fnmr == 0.01 and rule.decides and rule.radius == 64.0
    assert all(count.upper <= 0.01 for count in rule.counts)
    card = model.record["card"]
    assert "research use" in card["licence"]
    assert card["people"]["train_people"] == 12 - card["people"]["people_of_both"]


def test_the_halves_share_no_person() -> None:
    person = np.repeat(np.arange(11), 3)
    first, second = halves(person)
    assert (first ^ second).all() and not set(person[first]) & set(person[second])
    assert len(set(person[first])) == 5


def test_every_grade_is_tested_on_the_other_half(finished: tuple[Shipped, Path]) -> None:
    counts = [count for count in finished[0].decisions if count.method == "rule" and count.alpha == 1e-2]
    images = [count for count in counts if count.pairs == "image"]
    assert [count.condition for count in images] == [
        "none", "none/mild", "mild", "none/medium", "medium", "none/strong", "strong", "none/unseen",
        "unseen",
    ]  # fmt: skip
    assert {(count.mated, count.non_mated) for count in images} == {(20 * 45, 200 * 199 // 2 - 20 * 45)}
    assert sum(count.matches for count in images) > 0
    for count in images:
        undecided = round(count.undecided_mated * count.mated)
        assert count.matches + count.wrong_non_matches + undecided == count.mated
        assert count.wrong_match_ends is not None
        low, high = count.wrong_match_ends
        assert low <= count.false_match_rate <= high or count.wrong_matches < 3
    cosine = [count for count in finished[0].decisions if count.method == "cosine"]
    assert cosine and all(count.undecided_mated == 0 for count in cosine)


def test_other_sets_groups_and_realigned_crops_are_measured(finished: tuple[Shipped, Path]) -> None:
    by_name = {entry.name: entry for entry in finished[0].foreign}
    assert list(by_name) == ["left/left", "left/right", "right/right", "others", "detected again"]
    assert by_name["others"].images == 18 and by_name["left/right"].images == 100 * 100
    # summaries are stored as float16
    np.testing.assert_allclose(by_name["detected again"].ratio, 1, rtol=0.02)
    assert set(finished[0].kappas) >= {"none", "unseen", "none, left"}


@pytest.mark.slow
def test_a_second_run_reuses_files_and_gives_the_same_results(
    finished: tuple[Shipped, Path], tiny: FrozenBackbone, people: tuple[Path, Path, Path]
) -> None:
    content = (finished[1] / MODEL_FILE).read_bytes()
    second = run(tiny, people, finished[1])
    assert (finished[1] / MODEL_FILE).read_bytes() == content
    assert second.decisions == finished[0].decisions


def test_the_report_contains_every_table(finished: tuple[Shipped, Path], tmp_path: Path) -> None:
    tables = {table.title: table for table in shipped_tables(finished[0])}
    assert len(tables["Image against image, FMR at most 0.01"].rows) == 9
    assert len(tables["Thresholds"].rows) == 18 and tables["Rules"].rows
    assert {row[0] for row in tables["Groups, other data sets, and crops detected again"].rows} >= {"others"}
    files = present_shipped(finished[0], tmp_path, {"config": CONFIG.to_dict()})
    content = json.loads(files.json.read_text())
    assert content["results"]["decisions"][0]["condition"] == "none"
    assert "The shipped confidence head" in files.markdown.read_text()


def test_decision_counts_equal_direct_counts(finished: tuple[Shipped, Path]) -> None:
    from studies.graded import Condition, ScoredPairs
    from studies.shipped import count_decisions

    assert finished[0].model.calibration is not None
    rule = finished[0].model.calibration.decision("mls")
    rng = np.random.default_rng(0)
    steps = rng.normal(0, 15, 500).astype(np.float32)
    scores = np.append(np.float32(rule.accept or 0), np.float32(rule.accept or 0) + steps)
    scores = np.append(
        scores, np.float32([rule.reject, np.nextafter(np.float32(rule.reject), np.float32(-1e9))])
    )
    subjects = rng.integers(0, 9, (2, scores.size))
    confidence = (rule.min_confidence + rng.normal(1, 2, scores.size)).astype(np.float32)
    pairs = ScoredPairs(
        {"mls": scores}, (confidence, confidence + 1), subjects[0] == subjects[1], subjects[0], subjects[1]
    )
    counts = count_decisions(pairs, rule, "image", Condition("none", "none"), "rule", draws=0)
    decisions = rule.decide(scores, confidence)
    assert counts.wrong_matches == ((decisions == Decision.MATCH) & ~pairs.mated).sum()
    assert counts.wrong_non_matches == ((decisions == Decision.NON_MATCH) & pairs.mated).sum()
    assert counts.undecided_non_mated == pytest.approx((decisions == Decision.UNDECIDED)[~pairs.mated].mean())


def test_too_few_people_are_refused(
    tiny: FrozenBackbone, people: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    train, _, foreign = map(open_source, people)
    with pytest.raises(InputError, match="support no rule"):
        ship(tiny, train, foreign, tmp_path, CONFIG, draws=5)
