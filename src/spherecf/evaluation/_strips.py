"""Strips of faces: by confidence, and the worst mistakes as pairs."""

from collections.abc import Callable, Sequence

import numpy as np

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation._mistakes import Mistake
from spherecf.evaluation._parts import Strip

_KINDS = {True: "mated pairs with the lowest", False: "non-mated pairs with the highest"}


def strip_by_kappa(
    title: str,
    embeddings: Embeddings,
    picture: Callable[[str], bytes],
    *,
    keys: Sequence[str] | None = None,
    count: int = 14,
) -> Strip:
    """Faces from the least to the most sure, evenly spaced by rank, with kappa under each.

    Args:
        title: of the strip.
        embeddings: gives kappa.
        picture: the encoded PNG or JPEG of a key.
        keys: those to choose from; default: all. Keys without an embedding are passed over.
        count: number of faces.

    Raises:
        InputError: nothing to show, or pictures that are neither PNG nor JPEG.

    Example:
        >>> e = Embeddings(np.eye(3), np.log([30.0, 10.0, 20.0]), ["a", "b", "c"])
        >>> strip_by_kappa("faces", e, lambda key: b"\\xff\\xd8\\xff", count=2).captions
        ['κ 10', 'κ 30']
    """
    known = set(embeddings.keys)
    chosen = embeddings.keys if keys is None else [key for key in dict.fromkeys(keys) if key in known]
    if not chosen or count < 1:
        raise InputError(f"strip {title!r}: nothing to show ({len(chosen)} embedded images, {count} wanted)")
    rows = embeddings.rows(chosen)
    rows = rows[np.argsort(embeddings.log_kappa[rows], kind="stable")]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    captions = [_kappa(kappa) for kappa in embeddings.kappa[rows].tolist()]
    return Strip(title, [picture(embeddings.keys[row]) for row in rows], captions)


def strips_of_mistakes(
    mistakes: Sequence[Mistake],
    picture: Callable[[str], bytes],
    picture_right: Callable[[str], bytes] | None = None,
    *,
    title: str = "",
) -> list[Strip]:
    """The worst mistakes as pairs of faces, one strip per score and kind, with who they are and how sure.

    Args:
        mistakes: from `worst_mistakes`, or ``mistakes`` of a `PairReport`.
        picture: the encoded PNG or JPEG of a left key (of any key without ``picture_right``).
        picture_right: of a right key.
        title: in front of the strips' titles.

    Raises:
        InputError: pictures that are neither PNG nor JPEG.

    Example:
        >>> found = [Mistake("mls", True, -3.2, "a", "b", (50.0, 12.0), ("ann", "ann"))]
        >>> strips = strips_of_mistakes(found, lambda key: b"\\xff\\xd8\\xff")
        >>> strips[0].title, strips[0].captions
        ('mls: the mated pairs with the lowest scores', ['-3.2\\nκ 50 | 12\\nann'])
    """
    groups: dict[tuple[str, bool], list[Mistake]] = {}
    for one in mistakes:
        groups.setdefault((one.score, one.mated), []).append(one)
    return [
        Strip(
            f"{title}{': ' * bool(title)}{score}: the {_KINDS[mated]} scores",
            [picture(one.left) for one in found],
            [_mistake_caption(one) for one in found],
            [(picture_right or picture)(one.right) for one in found],
        )
        for (score, mated), found in groups.items()
    ]


def _mistake_caption(one: Mistake) -> str:
    lines = [f"{one.value:.4g}", " | ".join([_kappa(one.kappa[0]), _kappa(one.kappa[1]).removeprefix("κ ")])]
    return "\n".join([*lines, *filter(None, dict.fromkeys(one.subjects))])


def _kappa(kappa: float) -> str:
    return f"κ {kappa:.3g}" if kappa < 100 else f"κ {kappa:,.0f}"
