"""Why a face is hard, in plain words: they explain a low confidence, they never change it."""

import math

from spherecf.faces import CaptureFacts

# Set from real faces: 150 of LFW, 80 frontal and 80 profile ones of CFP, 40 of those blurred by a Gaussian.
SMALL_EYES_PX = 24.0
"""The crop has its eyes 35 px apart: below two thirds of that it is mostly invented by enlarging."""
TURNED_DEGREES = 35.0
"""1 in 100 of LFW are turned by more than 31 degrees, 95 in 100 CFP profiles by more than 42."""
TILTED_DEGREES = 25.0
"""Of LFW's absolute pitch the 99th percentile is 22."""
UPSIDE_DOWN_DEGREES = 120.0
"""Of roll; detectors that know such faces give landmarks by which they are aligned all the same."""
BLURRED_SHARPNESS = 30.0
"""1 in 100 of LFW lie below 29; a blur of 2 px in the crop has the median 39, of 3 px 20."""
DARK_LEVEL, BRIGHT_LEVEL = 50.0, 200.0
"""Mean grey level: 1 in 100 of those 310 faces has less than 52, 1 in 100 more than 192."""
FLAT_CONTRAST = 18.0
"""Standard deviation of grey levels: 1 in 100 of LFW lie below 22."""
CUT_SHARE = 0.8
"""Share of the face's box in the picture; a whole face at the very edge of its crop still has 0.85."""


def explain(facts: CaptureFacts) -> tuple[str, ...]:
    """What may trouble a recogniser in a face, the gravest first; empty where nothing is conspicuous.

    Example:
        >>> explain(CaptureFacts(12.8, 52.0, 3.0, 1.0, 400.0, 120.0, 45.0, 1.0, (30, 40)))
        ('eyes 13 px apart', 'turned 52 degrees')
    """
    foreshortened = max(0.4, math.cos(math.radians(facts.yaw_degrees)))  # near, not small; 0.4 of NaN
    found = {
        "upside down": abs(facts.roll_degrees) > UPSIDE_DOWN_DEGREES,
        f"eyes {facts.eye_distance_px:.0f} px apart": facts.eye_distance_px < SMALL_EYES_PX * foreshortened,
        f"turned {abs(facts.yaw_degrees):.0f} degrees": abs(facts.yaw_degrees) > TURNED_DEGREES,
        f"looking {'down' if facts.pitch_degrees > 0 else 'up'}": abs(facts.pitch_degrees) > TILTED_DEGREES,
        "blurred": facts.sharpness < BLURRED_SHARPNESS,
        "dark": facts.brightness < DARK_LEVEL,
        "overexposed": facts.brightness > BRIGHT_LEVEL,
        "little contrast": facts.contrast < FLAT_CONTRAST,
        "cut off by the picture's edge": facts.inside < CUT_SHARE,
    }
    return tuple(reason for reason, true in found.items() if true)
