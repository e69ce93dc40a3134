"""What every confidence buys on a pair list, as tables: TMR at FMR after rejection, and areas of the EDC."""

from spherecf.evaluation._parts import Table
from spherecf.evaluation._result import PairReport

_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


def pair_rejection_tables(report: PairReport) -> list[Table]:
    """Two tables of a `PairReport`: a row per score and confidence.

    Args:
        report: from `evaluate_pairs`.

    Example:
        >>> import numpy as np
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.evaluation import evaluate_pairs
        >>> e = Embeddings(np.eye(8, 9), np.full(8, 5.0), list("abcdefgh"))
        >>> report = evaluate_pairs(
        ...     e, e, list("abcd"), list("efgh"), [1, 0, 1, 0], [0, 0, 1, 1], name="toy", draws=0
        ... )
        >>> [table.title for table in pair_rejection_tables(report)]
        ['toy: TMR after rejecting images', 'toy: area under error versus discard']
    """
    signatures = {score: result.signature for score, result in report.scores.items()}
    rows, signed = [], []
    for entry in report.rejection:
        at = dict(zip(entry.curve.fractions, entry.curve.tmr, strict=True))
        if all(value is None for value in entry.curve.tmr):
            continue  # the target is beyond the number of pairs
        cells = ["–" if at.get(share) is None else f"{at[share]:.4f}" for share in _SHARES]
        rows.append([entry.score, entry.confidence, f"{entry.curve.target:g}", *cells])
        signed.append(signatures[entry.score])
    header = ["score", "confidence", "FMR ≤", *(f"{100 * share:g} % rejected" for share in _SHARES)]
    rejected = Table(f"{report.name}: TMR after rejecting images", header, rows, signatures=signed)
    rows, signed = [], []
    for found in report.edc:
        if found.edc.pauc_normalised:
            areas = [f"{value:.3f}" for value in found.edc.pauc_normalised.values()]
            rows.append([found.score, found.confidence, found.start, f"{found.edc.start:.4f}", *areas])
            signed.append(signatures[found.score])
    limits = next((list(f.edc.pauc_normalised) for f in report.edc if f.edc.pauc_normalised), [])
    header = ["score", "confidence", "start", "FNMR", *(f"pAUC to {float(limit):.0%}" for limit in limits)]
    note = "Over a flat line: 1 tells nothing, smaller is better."
    discarded = Table(f"{report.name}: area under error versus discard", header, rows, note, signed)
    return [rejected, discarded]
