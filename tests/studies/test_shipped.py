"""The shipped head's whole way on a tiny recogniser and people that are easy to tell apart."""

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


def look_alikes(root: Path, people: int, pictures: int, first: int) -> Path:
    """Each person is one picture, a little different every time; in two groups."""
    rng = np.random.default_rng(first)
    for person in range(people):
        base = picture(first + person).astype(float)
        for number in range(pictures):
            path = root / f"p{person:02d}" / ("left", "right")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shown = np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8)
            path.write_bytes(cv2.imencode(".png", shown)[1].tobytes())
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


def run(tiny: FrozenBackbone, people: tuple[Path, Path, Path], out: Path) -> Shipped:
    train, test, others = map(open_source, people)
    return ship(
        tiny, train, test, out, CONFIG, foreign={"others": others}, realign=lambda source: source, draws=20
    )


def test_the_model_carries_everything_promised(finished: tuple[Shipped, Path], tiny: FrozenBackbone) -> None:
    model = scf.load(finished[1] / MODEL_FILE, tiny)
    found = model.calibration
    assert found is not None and found.model == model.fingerprint()
    assert list(found.thresholds) == ["mls", "cosine", "mls-template"]
    evidence = ["evidence", "evidence-template", "evidence-templates"]
    assert list(found.likelihood) == [*found.thresholds, *evidence]
    assert {rule.score for rule in found.decisions} >= {"evidence", "mls"}
    assert [entry.target for entry in found.thresholds["mls"].entries] == [10.0**-e for e in range(1, 7)]
    assert found.kappa is not None and found.kappa.images == 20 * 10 * 4  # a half, in four grades
    assert "200 pictures of 20 people of test" in found.kappa.population
    rule = found.decision("mls", error="fmr", alpha=1e-2)
    assert rule.fnmr == 0.01 and rule.decides and rule.radius == 64.0
    assert all(count.upper <= 0.01 for count in rule.counts)
    card = model.record["card"]
    assert "research use" in card["licence"]
    assert card["people"]["train_people"] == 12 - card["people"]["people_of_both"]


def test_the_halves_share_nobody() -> None:
    person = np.repeat(np.arange(11), 3)
    first, second = halves(person)
    assert (first ^ second).all() and not set(person[first]) & set(person[second])
    assert len(set(person[first])) == 5


def test_every_grade_is_checked_on_the_other_half(finished: tuple[Shipped, Path]) -> None:
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


def test_other_sets_groups_and_crops_detected_again(finished: tuple[Shipped, Path]) -> None:
    found = {one.name: one for one in finished[0].foreign}
    assert list(found) == ["left/left", "left/right", "right/right", "others", "detected again"]
    assert found["others"].images == 18 and found["left/right"].images == 100 * 100
    np.testing.assert_allclose(found["detected again"].ratio, 1, rtol=0.02)  # the summaries are float16
    assert set(finished[0].kappas) >= {"none", "unseen", "none, left"}


@pytest.mark.slow
def test_a_second_run_takes_what_is_there_and_says_the_same(
    finished: tuple[Shipped, Path], tiny: FrozenBackbone, people: tuple[Path, Path, Path]
) -> None:
    before = (finished[1] / MODEL_FILE).read_bytes()
    again = run(tiny, people, finished[1])
    assert (finished[1] / MODEL_FILE).read_bytes() == before
    assert again.decisions == finished[0].decisions


def test_the_report_has_every_number(finished: tuple[Shipped, Path], tmp_path: Path) -> None:
    tables = {table.title: table for table in shipped_tables(finished[0])}
    assert len(tables["Image against image, false matches at most 0.01"].rows) == 9
    assert len(tables["Thresholds"].rows) == 18 and tables["Rules"].rows
    assert {row[0] for row in tables["Groups, other sets, and crops detected again"].rows} >= {"others"}
    files = present_shipped(finished[0], tmp_path, {"config": CONFIG.to_dict()})
    said = json.loads(files.json.read_text())
    assert said["results"]["decisions"][0]["condition"] == "none"
    assert "The confidence head that ships" in files.markdown.read_text()


def test_rules_say_what_was_counted(finished: tuple[Shipped, Path]) -> None:
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
    who = rng.integers(0, 9, (2, scores.size))
    confidence = (rule.min_confidence + rng.normal(1, 2, scores.size)).astype(np.float32)
    pairs = ScoredPairs({"mls": scores}, (confidence, confidence + 1), who[0] == who[1], who[0], who[1])
    found = count_decisions(pairs, rule, "image", Condition("none", "none"), "rule", draws=0)
    said = rule.decide(scores, confidence)
    assert found.wrong_matches == ((said == Decision.MATCH) & ~pairs.mated).sum()
    assert found.wrong_non_matches == ((said == Decision.NON_MATCH) & pairs.mated).sum()
    assert found.undecided_non_mated == pytest.approx((said == Decision.UNDECIDED)[~pairs.mated].mean())


def test_too_few_people_are_refused(
    tiny: FrozenBackbone, people: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    train, _, others = map(open_source, people)
    with pytest.raises(InputError, match="support no rule"):
        ship(tiny, train, others, tmp_path, CONFIG, draws=5)
