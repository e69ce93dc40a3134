"""The report of `spherecf data check` for people: counts, and the first of each kind."""

from collections.abc import Sequence
from typing import Any

from spherecf.common.progress import console

_LISTED = 10  # of each kind; the JSON lists all


def show_report(report: dict[str, Any]) -> None:
    """Print the report of `spherecf.audit.check` to stderr."""
    for name in ("source", "against"):
        if facts := report[name]:
            _say(f"{facts['name']}: {facts['images']:,} images of {facts['identities']:,} identities")
    _list("corrupt images", [f"{item['key']}: {item['reason']}" for item in report["corrupt"]])
    _list("images of another size", [f"{item['key']}: {item['size']}" for item in report["odd_sizes"]])
    several = [group for group in report["duplicates"] if group["across_identities"]]
    one = [group for group in report["duplicates"] if not group["across_identities"]]
    _list("pictures that stand under several identities", [_group(group) for group in several])
    _list("pictures that stand several times under one identity", [_group(group) for group in one])
    if report["against"]:
        _list("pictures that are in both sets", [_group(group) for group in report["duplicates_against"]])
        if report["shared_names"] is None:
            _say("names shared by both sets: cannot be told, the names of one are numbers")
        else:
            _list("names shared by both sets", report["shared_names"])
    if report["faces"]:
        _show_faces(report["faces"], report["against"] is not None)


def _show_faces(faces: dict[str, Any], against: bool) -> None:
    rule = faces["thresholds"]
    _say(
        f"{faces['backbone']['name']}: a suspect is below {rule['own']:.3f} to its own identity (FMR "
        f"{rule['fmr']:g}, {rule['comparisons']:,} comparisons) and at least {rule['other']:.3f} to another "
        f"one (FPIR {rule['fpir']:g}, {rule['images']:,} images)"
    )
    _list(
        f"suspects among {faces['judged']:,} images whose identity has another image",
        [
            f"{item['key']}: {item['own_cosine']:.3f} to {item['identity']}, {item['other_cosine']:.3f} to "
            f"{item['other']}"
            for item in faces["suspects"]
        ],
    )
    _list("pairs of identities that look like one person", _pairs(faces["same_person"]))
    if against:
        _list("people of the other set who look like one of this set", _pairs(faces["overlap"]))


def _pairs(pairs: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{pair['left']} and {pair['right']}: {pair['cosine']:.3f}" for pair in pairs]


def _group(group: dict[str, Any]) -> str:
    return f"{', '.join([*group['keys'], *group['against']])} (same {group['same']})"


def _list(what: str, lines: Sequence[str]) -> None:
    _say(f"{what}: {len(lines):,}")
    for line in lines[:_LISTED]:
        _say(f"  {line}")
    if len(lines) > _LISTED:
        _say(f"  ... and {len(lines) - _LISTED:,} more (the JSON has all)")


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
