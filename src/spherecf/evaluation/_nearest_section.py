"""Both ways to count a TMR at an FMR side by side, for the report."""

from collections.abc import Mapping, Sequence

from spherecf.evaluation._nearest import NearestPoint
from spherecf.evaluation._parts import Section, Table
from spherecf.evaluation._rates import TmrAtFmr


def nearest_section(
    found: Mapping[str, tuple[Sequence[TmrAtFmr], Sequence[NearestPoint], str]],
) -> Section:
    """Both ways of counting side by side, for the report.

    Args:
        found: name of a score -> what `tmr_at_fmr` and `tmr_at_nearest_fmr` found for the same targets, and
            the signature of the first.

    Example:
        >>> from spherecf.evaluation import tmr_at_fmr, tmr_at_nearest_fmr
        >>> scores, mated = [0.9, 0.8, 0.7, 0.6], [True, False, True, False]
        >>> both = [count(scores, mated, 0.5) for count in (tmr_at_fmr, tmr_at_nearest_fmr)]
        >>> section = nearest_section({"cosine": (*both, "toy|fmr:at-most")})
        >>> section.tables[0].rows, section.tables[0].signatures
        ([['cosine', '0.5', '1.0000', '1.0000', '0.5', '+0.0 %']], ['toy|fmr:nearest'])
    """
    rows, signatures = [], []
    for name, (exact, nearest, signature) in found.items():
        for one, point in zip(exact, nearest):
            tmr = "unresolved" if one.tmr is None else f"{one.tmr:.4f}"
            excess = f"{100 * point.excess / point.target:+.1f} %"
            rows.append([name, f"{one.target:g}", tmr, f"{point.tmr:.4f}", f"{point.fmr:.3g}", excess])
            signatures.append(signature.replace("|fmr:at-most", "|fmr:nearest"))
    header = ["Score", "Target", "TMR at FMR ≤ target", "TMR at the nearest point", "FMR there", "Off by"]
    note = "Many papers take the point of the ROC nearest to the target, on either side of it."
    return Section("Comparing with old papers", tables=[Table("", header, rows, note, signatures)])
