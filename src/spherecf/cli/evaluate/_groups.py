"""The option --groups of several protocols."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from spherecf.embeddings import Embeddings

GroupsOption = Annotated[
    str,
    typer.Option(
        help="CSV `image,group`, `subject,group` or `template,group`, or extras:NAME: rates by group."
    ),
]
EXTRAS = "extras:"


def open_groups(given: str, embeddings: "Embeddings") -> tuple[dict[str, str], str]:
    """(name to group, what the names are of) from a file, or from a column of the embeddings."""
    from spherecf.data import read_groups
    from spherecf.evaluation import extra_groups

    if given.startswith(EXTRAS):
        return extra_groups(embeddings, given.removeprefix(EXTRAS)), "image"
    found = read_groups(Path(given))
    return found.groups, found.of
