"""From scores and concentrations of known pairs to a calibration."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from numpy.typing import ArrayLike

from spherecf.calibration._calibration import CALIBRATORS, Calibration
from spherecf.calibration._decision import DecisionRule
from spherecf.calibration._kappa import KappaScale
from spherecf.calibration._thresholds import ThresholdTable
from spherecf.errors import InputError

Method = Literal["logistic", "isotonic"]
TARGETS = (1e-2, 1e-3, 1e-4)


def fit_calibration(
    *,
    model: str,
    data: str,
    scores: Mapping[str, ArrayLike],
    mated: ArrayLike,
    radius: float | None = None,
    kappa: ArrayLike | None = None,
    dim: int = 0,
    population: str = "",
    method: Method = "logistic",
    targets: Sequence[float] = TARGETS,
    decisions: Sequence[DecisionRule] = (),
    record: Mapping[str, Any] | None = None,
) -> Calibration:
    """Fit the scale of kappa, a calibrator and a threshold table per score.

    Args:
        model: fingerprint of the model.
        data: hash of the embeddings and pairs.
        scores: name to (n,) scores of the pairs, larger = more alike.
        mated: (n,) true where both show one person.
        radius: r of the score "mls".
        kappa: concentrations of the reference images; None for no scale.
        dim: dimension of the embeddings, with ``kappa``.
        population: what the reference images are, in words, with ``kappa``.
        method: "logistic" (two numbers, smooth tails) or "isotonic" (assumes only that it rises).
        targets: FMR targets.
        decisions: from `spherecf.evaluation.choose_decision`.
        record: facts about how it was made.

    Raises:
        InputError: no scores, NaN, one kind of pair only, or an unknown method.

    Example:
        >>> scores, mated = [0.1, 0.2, 0.5, 0.4, 0.7, 0.9], [0, 0, 0, 1, 1, 1]
        >>> c = fit_calibration(
        ...     model="f", data="d", scores={"cosine": scores}, mated=mated, method="isotonic"
        ... )
        >>> c.llr("cosine", [0.0, 0.45]).round(3).tolist(), c.kappa is None
        ([-1.099, 0.0], True)
    """
    if not scores:
        raise InputError("fit_calibration: expected at least one score, got none")
    if method not in CALIBRATORS:
        raise InputError(f"calibration method {method!r}: expected one of {', '.join(CALIBRATORS)}")
    radii = {name: radius if name == "mls" else None for name in scores}
    return Calibration(
        model,
        data,
        None if kappa is None else KappaScale.fit(kappa, dim=dim, population=population),
        {
            name: CALIBRATORS[method].fit(values, mated, score=name, radius=radii[name])
            for name, values in scores.items()
        },
        {
            name: ThresholdTable.fit(values, mated, targets, score=name, radius=radii[name])
            for name, values in scores.items()
        },
        tuple(decisions),
        dict(record or {}),
    )
