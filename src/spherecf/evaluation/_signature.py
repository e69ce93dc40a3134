"""One line that names everything a number depends on, so that two people can compare theirs."""

from spherecf._version import __version__


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
