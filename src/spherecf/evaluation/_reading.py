"""How to read the page: one entry per thing it may show, of which those that it shows are printed."""

import re

_OPENING = """
<p>All numbers are exact counts over the listed pairs or searches, from sorted scores; no score is
transformed, no threshold grid is used. Brackets are 95 % intervals from resampling people, not pairs, because
pairs that share a person are not independent.</p>
"""

_ENTRIES = {
    "Accuracy": """
<b>Accuracy</b>: the threshold is chosen on all folds but one and used on that one; mean ±
standard deviation over folds.""",
    "TMR": """
<b>TMR (TAR) at FMR (FAR) ≤ x</b>: the largest share of mated pairs accepted by a threshold that
accepts at most the share x of the non-mated ones. With fewer than 1/x non-mated pairs this is
<i>unresolved</i>: no number is given.""",
    "EER": """
<b>EER</b>: where both error rates are equal.""",
    "AUC": """
<b>AUC</b>: the chance that a mated pair scores above a non-mated one.""",
    "Minus cosine": """
<b>Minus cosine</b>: both scores on the same draws of people. Green or red: the whole
interval lies on one side of zero.""",
    "DET": """
<b>DET</b>: both error rates at every threshold, on normal-deviate axes.""",
    "FNIR": """
<b>FNIR at FPIR ≤ x</b>: the smallest share of enrolled probes that are not found (or not first),
at a threshold that reports a match for at most the share x of the probes that nobody enrolled.""",
    "CMC": """
<b>CMC, rank-k</b>: the share of enrolled probes whose own entry is among the k best of the
gallery.""",
    "EDC": """
<b>Error versus discard (EDC)</b>: the threshold stays; mated pairs are discarded by the smaller
confidence of their two images. A confidence that knows where the errors are brings the line down fast.
The table gives the area up to 20 % discarded over that of a confidence that knows nothing: 1 tells
nothing, smaller is better.""",
    "Rejection": """
<b>Rejection</b>: images are rejected from the least sure on, and TMR at FMR is measured anew
on the pairs whose images both remain.""",
    "PRR": """
<b>PRR</b>: the area between a rejection curve and that of random rejection, over the same area of
an oracle that rejects the mistakes first: 1 is the oracle, 0 tells nothing.""",
    "Cllr": """
<b>Cllr</b>: the cost, in bits, of scores read as log-likelihood ratios: 0 is perfect, 1 is what a
constant costs. Minimum Cllr: the same after the best monotone map, so the difference is what calibration
loses.""",
    "κ": """
<b>κ</b>: the concentration of the von Mises-Fisher distribution around the image's direction. Larger
is surer.""",
    "signature": """
<b>Signature</b>: everything the number depends on. Compare two numbers only if their
signatures agree in what you do not mean to compare.""",
}


def reading(body: str) -> str:
    """HTML that explains the terms which stand in the body of a page."""
    said = re.sub(r'base64,[^"]*', "", body)  # pictures may spell anything
    shown = "".join(f"<li>{text.strip()}</li>\n" for term, text in _ENTRIES.items() if term in said)
    return f"{_OPENING}<ul>\n{shown}</ul>" if shown else _OPENING
