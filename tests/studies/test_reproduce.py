"""The complete reproduction on a tiny recogniser and a handful of people."""

from pathlib import Path

import numpy as np
import pytest
from studies.graded import divide
from studies.reproduce import Reproduction, ReproductionOptions, reproduce
from studies.reproduce_report import present_reproduction, reproduction_tables
from studies.templates import TemplatePlan
from tests.studies.conftest import CONFIG, make_people

from spherecf.data import draw_pairs, open_source
from spherecf.demo.trial import BASELINES
from spherecf.errors import InputError
from spherecf.models import FrozenBackbone
from spherecf.report import Table
from spherecf.training import prepare

PLANS = (TemplatePlan("2 images, half degraded", 2, 0.5, 3),)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("people")
    return make_people(root / "train", 24, 6, 0), make_people(root / "test", 8, 6, 9000)


@pytest.fixture(scope="module")
def finished(
    tiny: FrozenBackbone, people: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Reproduction:
    train, test = map(open_source, people)
    pairs = draw_pairs(test, max_pairs=30, folds=3)
    return reproduce(
        [tiny], train, test, [pairs], tmp_path_factory.mktemp("run"), CONFIG,
        ReproductionOptions((0, 1), 1, test_plans=PLANS, held_out_plans=PLANS, draws=20),
    )  # fmt: skip


def test_every_head_is_trained_and_scored_by_its_own_objective(finished: Reproduction) -> None:
    heads = [variant.score for variant in BASELINES]
    assert {(seed, score) for _, seed, score in finished.models} == {(s, h) for s in (0, 1) for h in heads}
    objectives = [finished.models["tiny", 0, h].record["config"]["loss"]["objective"] for h in heads]
    assert objectives == ["scf", "scf", "scf-gaussian", "pfe-vmf", "pfe-gaussian"]
    report = finished.reports[0]
    assert list(report.scores) == ["cosine", *heads]
    trial = finished.templates[0]
    assert list(trial.pairs) == ["", *heads] == list(trial.searches)
    rows = {head: [entry.name for entry in result.results] for head, result in trial.pairs.items()}
    assert rows[""] == ["mean, cosine", "norm, cosine", "detector, cosine"]
    assert rows["pfe_v"] == ["kappa, cosine", "kappa, mls"]
    assert rows["pfe_g"] == rows["scf_g"] == ["precision, cosine", "precision, pfe"]


def test_tested_people_are_excluded_from_training(finished: Reproduction, people: tuple[Path, Path]) -> None:
    facts = finished.facts["tiny"]
    assert facts["train_people"] + facts["held_out_people"] == 24
    counts = finished.models["tiny", 0, "mls"].record["counts"]
    assert counts["train_rows"] + counts["held_out_rows"] == facts["train_images"] * 2  # clean and degraded
    assert [trial.plan for trial in finished.templates[:4:2]] == [
        "test, 2 images, half degraded",
        "train, 2 images, half degraded",
    ]


def test_tables_contain_means_and_paired_differences(finished: Reproduction) -> None:
    by_title = {table.title: table for table in reproduction_tables(finished)}
    pairs = next(table for title, table in by_title.items() if title.startswith("Pairs"))
    assert len(pairs.rows) == 5 * 6  # conditions times methods
    templates = by_title["Templates 1:1: tiny"]
    assert len(templates.rows) == 2 * (3 + 2 * 5)
    check_means(finished, templates)
    assert [row[1] for row in by_title["Rejection in open-set search: tiny"].rows][-1] == "oracle"


def check_means(finished: Reproduction, table: Table) -> None:
    trials = [trial for trial in finished.templates if trial.plan.startswith("test")]
    values = [trial.pairs["mls"].results[1].tmr[0].tmr for trial in trials]
    row = next(row for row in table.rows if row[0].startswith("test") and row[1] == "SCF: kappa, mls")
    expected = "–" if None in values else f"{np.mean(values):.3f} ± {np.std(values):.3f}"
    assert row[2] == expected


def test_the_report_contains_the_results_of_every_seed(finished: Reproduction, tmp_path: Path) -> None:
    import json

    files = present_reproduction(finished, tmp_path, {})
    content = json.loads(files.json.read_text())
    assert len(content["results"]["templates"]) == 4
    assert {run["seed"] for run in content["results"]["templates"]} == {0, 1}
    assert "SCF exact minus SCF as released" in files.html.read_text()
    titles = [strip["title"] for strip in content["strips"]]
    assert titles[:2] == ["tiny, clean: by increasing kappa", "tiny, cross-v1/0: by increasing kappa"]
    assert len(titles) == 4 and all("clean/cross: mls: the " in title for title in titles[2:])


def test_people_of_both_sets_are_held_out(
    tiny: FrozenBackbone, people: tuple[Path, Path], tmp_path: Path
) -> None:
    """The test set contains three people of the training set under other names."""
    train = open_source(people[0])
    test = train.subset(np.flatnonzero(np.isin(train.labels, [2, 5, 7])))
    test.identities = [f"stranger {name}" for name in test.identities]
    prepared_train, prepared_test = (
        prepare(tiny, source, CONFIG, tmp_path / source.name) for source in (train, test)
    )
    division = divide(prepared_train.cache, prepared_test.cache, share=0.0)
    held_labels = set(prepared_train.cache.source.labels[division.held_out].tolist())
    assert {2, 5, 7} <= held_labels and len({pair.right for pair in division.shared}) == 3
    training_labels = division.training(prepared_train).cache.source.labels
    assert not held_labels & set(training_labels[training_labels >= 0].tolist())


def test_nothing_to_compare_is_refused(
    tiny: FrozenBackbone, people: tuple[Path, Path], tmp_path: Path
) -> None:
    train, test = map(open_source, people)
    with pytest.raises(InputError, match=r"at least one backbone, seed and pair list .* got 1, 6, 0"):
        reproduce([tiny], train, test, [], tmp_path)
