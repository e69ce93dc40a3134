import dataclasses
import io
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from tests.evaluation.conftest import Toy

from spherecf.demo.run import edc_table, kappa_strips, present, show_tables, summarise, tables
from spherecf.demo.trial import CrossQuality
from spherecf.evaluation import interval


def test_cells_are_means_over_seeds(finished: CrossQuality) -> None:
    cells = {(c.condition, c.score, c.metric): c for c in summarise(finished.reports)}
    cell = cells["clean/cross", "mls", "accuracy"]
    reports = [r for r in finished.reports if r.condition == "clean/cross"]
    values = [r.scores["mls"].tenfold.mean for r in reports]
    cosines = [r.scores["cosine"].tenfold.mean for r in reports]
    assert cell.mean == np.mean(values) and cell.spread == np.std(values)
    assert cell.gain == np.mean(values) - np.mean(cosines)
    draws = [r.resampled["mls:accuracy"] - r.resampled["cosine:accuracy"] for r in reports]
    assert cell.interval == interval((draws[0] + draws[1]) / 2)
    assert cells["clean/cross", "cosine", "accuracy"].interval is None


def test_unresolved_targets_have_no_number(finished: CrossQuality) -> None:
    cells = {(c.condition, c.score, c.metric): c for c in summarise(finished.reports)}
    assert cells["clean/clean", "mls", "tmr@0.001"].mean is None
    scores = tables(finished)[0]
    assert all(entry.endswith("/ – / –") for row in scores.rows for entry in row[2:])


def test_strips_are_sorted_by_kappa(finished: CrossQuality) -> None:
    strips = kappa_strips(finished, count=4)
    assert [strip.title for strip in strips] == ["clean", "cross-v1/0", "unseen-v1/0"]
    for strip in strips:
        kappas = [float(caption.removeprefix("κ ").replace(",", "")) for caption in strip.captions]
        assert len(kappas) == 4 and kappas == sorted(kappas)


def test_the_report_contains_the_tables(finished: CrossQuality, tmp_path: Path) -> None:
    files = present(finished, tmp_path, title="tiny", notes=["a note"], provenance={"made": "here"})
    content = json.loads(files.json.read_text())
    assert [table["title"] for table in content["tables"]][:1] == ["Scores"]
    assert "mls-seed0" in content["provenance"]["models"] and content["provenance"]["made"] == "here"
    assert any("p0/0.jpg" in note for note in content["notes"])
    assert "a note" in files.html.read_text()


def test_the_terminal_shows_every_table(finished: CrossQuality) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    show_tables(tables(finished), console)
    text = " ".join(console.export_text().split())  # titles may be wrapped
    assert all(table.title in text for table in tables(finished))
    assert all(row[0] in text and row[-1] in text for table in tables(finished) for row in table.rows)


def test_areas_under_edc_are_shown_for_every_confidence(finished: CrossQuality, toy: Toy) -> None:
    """The few pairs of the finished experiment resolve no threshold, those of the toy do."""
    assert edc_table(finished, "fmr<=0.001").rows == []
    reports = [toy.report(toy.clean, toy.degraded, label=f"seed {seed}", condition="a/b") for seed in (0, 1)]
    table = edc_table(dataclasses.replace(finished, reports=reports), "fnmr<=0.05")
    areas = {
        item.confidence: item.edc.pauc_normalised["0.2"]
        for item in reports[0].edc
        if (item.score, item.start) == ("cosine", "fnmr<=0.05")
    }
    assert table.header == ["pairs", "left/right", *areas] and "kappa" in areas
    assert table.rows == [["toy", "a/b", *(f"{area:.3f}" for area in areas.values())]]
