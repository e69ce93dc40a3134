"""Tables of the effect of each confidence on a pair list."""

import numpy as np
from tests.evaluation.conftest import Toy

from spherecf.report import pair_rejection_tables

NAMES = ["kappa", "mean_resultant", "norm", "random", "oracle", "sharpness"]


def test_table_entries_equal_the_report(toy: Toy) -> None:
    report = toy.report(toy.clean, toy.degraded, confidences=NAMES)
    rejected, discarded = pair_rejection_tables(report)
    entry = next(
        r for r in report.rejection if (r.score, r.confidence, r.curve.target) == ("mls", "norm", 0.01)
    )
    row = next(r for r in rejected.rows if r[:3] == ["mls", "norm", "0.01"])
    assert row[3] == f"{entry.curve.tmr[0]:.4f}" and row[5] == f"{entry.curve.tmr[2]:.4f}"
    assert not any(r[2] == "0.001" for r in rejected.rows)  # not resolved by 200 non-mated pairs
    discard = next(d for d in report.edc if (d.score, d.confidence) == ("cosine", "kappa"))
    row = next(r for r in discarded.rows if r[:2] == ["cosine", "kappa"])
    assert row[2:] == [
        discard.start,
        f"{discard.edc.start:.4f}",
        *(f"{v:.3f}" for v in discard.edc.pauc_normalised.values()),
    ]
    assert discarded.header[-2:] == ["pAUC to 20%", "pAUC to 30%"]
    assert all("score:" + row[0] in line for row, line in zip(rejected.rows, rejected.signatures))


def test_the_oracle_is_best_and_mean_resultant_equals_kappa(toy: Toy) -> None:
    report = toy.report(toy.clean, toy.degraded, confidences=NAMES)
    assert report.absent_confidences == ["sharpness"]
    for score in report.scores:
        areas = {
            d.confidence: d.edc.pauc["0.2"]
            for d in report.edc
            if d.score == score and d.start == "fnmr<=0.05"
        }
        assert areas["oracle"] == min(areas.values()) < areas["kappa"] == areas["mean_resultant"]
        curves = {
            r.confidence: r.curve for r in report.rejection if r.score == score and r.curve.target == 0.01
        }
        assert curves["mean_resultant"] == curves["kappa"]
        assert curves["oracle"].tmr[0] == curves["kappa"].tmr[0]
        tmr = {name: [v for v in curve.tmr[:10] if v is not None] for name, curve in curves.items()}
        assert np.mean(tmr["oracle"]) > max(np.mean(tmr[name]) for name in ("kappa", "norm", "random"))
