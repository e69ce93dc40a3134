"""Decision of an identification from its candidates and limits."""

import json
import math

from spherecf.gallery.identification import Candidate, Identification, Limit, decide

LIMIT = Limit("mls", 1e-4, accept=10.0, reject=-20.0, min_kappa=50.0, strict_enough=True)


def candidate(name: str, score: float, kappa: float = 300.0, llr: float | None = None) -> Candidate:
    return Candidate(name, name.lower(), score, 0.5, kappa, llr)


def answer(*candidates: Candidate, limit: Limit = LIMIT, kappa: float = 300.0) -> tuple[str, str | None, str]:
    return decide(candidates, [limit] * len(candidates), kappa, 0.01)


def test_one_score_above_all_below_or_between_the_thresholds() -> None:
    assert answer(candidate("Ann", 12.0), candidate("Bob", 5.0))[:2] == ("identified", "Ann")
    assert answer(candidate("Ann", -21.0))[:2] == ("unknown", None)
    decision = answer(candidate("Ann", 9.0))
    assert decision[:2] == ("undecided", None) and "similar to Ann" in decision[2]
    assert decide([], [], 300.0, 0.01)[0] == "unknown"
    assert decide([candidate("Ann", 99.0)], None, 300.0, 0.01)[0] == "undecided"


def test_low_quality_probes_and_templates_are_undecided() -> None:
    decision = answer(candidate("Ann", 99.0), kappa=49.0)
    assert decision[0] == "undecided" and "quality of the photo is too low" in decision[2]
    decision = answer(candidate("Ann", 99.0, kappa=20.0), candidate("Bob", -30.0))
    assert decision[0] == "undecided" and "the score of Ann reaches the threshold" in decision[2]
    assert answer(candidate("Ann", -99.0, kappa=20.0))[0] == "unknown"
    decision = answer(candidate("Poor", 20.0, kappa=20.0), candidate("Ann", 12.0))
    assert decision[:2] == ("undecided", None)
    assert "similar to Ann, but at least as similar to Poor" in decision[2]
    assert answer(candidate("Ann", 12.0), candidate("Poor", 11.0, kappa=20.0))[1] == "Ann"


def test_two_scores_above_the_threshold_need_a_clear_winner() -> None:
    close = answer(candidate("Ann", 30.0, llr=9.0), candidate("Bob", 29.0, llr=8.0))
    assert close[0] == "undecided" and "Ann and Bob both" in close[2]
    clear = answer(candidate("Ann", 30.0, llr=9.0), candidate("Bob", 12.0, llr=9.0 - math.log(100)))
    assert clear[:2] == ("identified", "Ann") and "100 times" in clear[2]
    assert answer(candidate("Ann", 30.0), candidate("Bob", 12.0))[0] == "undecided"


def test_a_gallery_too_large_for_its_calibration_is_undecided() -> None:
    limit = Limit("mls", 1e-4, 10.0, -20.0, 50.0, strict_enough=False)
    decision = answer(candidate("Ann", 99.0), limit=limit)
    assert decision[0] == "undecided" and "FMR 0.0001" in decision[2]
    assert answer(candidate("Ann", -99.0), limit=limit)[0] == "unknown"


def test_result_is_valid_json() -> None:
    result = Identification("unknown", None, "nobody", (candidate("Ann", 1.0),), 0.01, 1)
    facts = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert facts["candidates"][0]["identity"] == "Ann" and facts["identity"] is None
