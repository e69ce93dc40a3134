"""One line that names everything a number depends on, so that two people can compare theirs."""

from collections.abc import Mapping
from typing import Any

from spherecf.common.version import __version__


def signature(protocol: str, **facts: object) -> str:
    """``protocol|name:value|...|spherecf:version``; facts in the order given, absent ones (None) left out.

    Example:
        >>> signature("cfp-fp/tenfold", pairs="sha256:3f1a", flip="none", score="mls").rsplit("|", 1)[0]
        'cfp-fp/tenfold|pairs:sha256:3f1a|flip:none|score:mls'
    """
    parts = [
        f"{name.replace('_', '-')}:{_plain(value)}" for name, value in facts.items() if value is not None
    ]
    return "|".join([protocol, *parts, f"spherecf:{__version__}"])


def short_hash(digest: str) -> str:
    """The first 12 hex digits of a SHA-256, marked as such."""
    return f"sha256:{digest.removeprefix('sha256:')[:12]}"


def _plain(value: object) -> str:
    return str(value).replace("|", "/").replace("\n", " ")


def input_facts(
    left: Mapping[str, Any], right: Mapping[str, Any], left_hash: str, right_hash: str, pairs_hash: str | None
) -> dict[str, object]:
    """What a result owes to its inputs, from the provenance of the embeddings; equal sides are named once.

    Args:
        left: provenance of the left embeddings: ``data`` (hash), ``view``, ``backbone``, ``model``, and where
            stated ``alignment`` and ``flip``.
        right: of the right ones.
        left_hash: fingerprint of the left embeddings.
        right_hash: of the right ones.
        pairs_hash: of the pair list, if known.

    Example:
        >>> facts = input_facts({"view": "clean"}, {"view": "cross-v1/0"}, "aa", "bb", None)
        >>> facts["view"], facts["embeddings"]
        ('clean+cross-v1/0', 'sha256:aa+sha256:bb')
    """

    def both(name: str, shorten: bool = False) -> str | None:
        stated = [side.get(name) for side in (left, right)]
        if stated == [None, None]:
            return None
        text = [
            "?" if value is None else short_hash(str(value)) if shorten else str(value) for value in stated
        ]
        return text[0] if text[0] == text[1] else "+".join(text)

    hashes = [short_hash(left_hash), short_hash(right_hash)]
    return {
        "pairs": None if pairs_hash is None else short_hash(pairs_hash),
        "data": both("data", shorten=True),
        "view": both("view"),
        "align": both("alignment"),
        "flip": both("flip"),
        "backbone": both("backbone", shorten=True),
        "model": both("model", shorten=True),
        "embeddings": hashes[0] if hashes[0] == hashes[1] else "+".join(hashes),
    }
