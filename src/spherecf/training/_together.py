"""A pass of a backbone over many images, shared by ranks."""

from collections.abc import Sequence
from pathlib import Path

from spherecf._rowstore import RowStore
from spherecf.data import ImageSource, View
from spherecf.errors import SpherecfError
from spherecf.extract import Recorder, open_store, run_backbone
from spherecf.models import FrozenBackbone
from spherecf.training._ranks import Ranks

_CHUNK = 4096


def run_together(
    ranks: Ranks,
    backbone: FrozenBackbone,
    source: ImageSource,
    views: Sequence[View],
    recorder: Recorder,
    folder: Path,
    *,
    batch_size: int = 32,
    description: str = "features",
) -> RowStore:
    """`spherecf.extract.run_backbone`, each rank over its part of the images, with the rows of one process.

    Each part is a resumable pass of its own, beside ``folder``; at the end rank 0 puts the parts behind each
    other, which takes their size once more on disk, part by part.

    Raises:
        StorageError: not enough disk space.
        RankError: another rank failed.
    """
    if ranks.size > 1 and not ranks.tell(
        ranks.leads and open_store(backbone, source, views, recorder, folder).complete
    ):
        count = len(source)
        parts = [source.subset(range(count)[ranks.share(count, rank)]) for rank in range(ranks.size)]
        places = [
            folder.with_name(f"{folder.name}.part-{rank}-of-{ranks.size}") for rank in range(ranks.size)
        ]
        error: SpherecfError | None = None
        try:
            run_backbone(
                backbone, parts[ranks.rank], views, recorder, places[ranks.rank],
                batch_size=batch_size, description=description,
            )  # fmt: skip
        except SpherecfError as problem:
            error = problem
        ranks.agree(error, description)
        if ranks.leads:
            whole = open_store(backbone, source, views, recorder, folder)
            for part, place in zip(parts, places):
                _move(open_store(backbone, part, views, recorder, place), whole)
        ranks.barrier()
    return run_backbone(
        backbone, source, views, recorder, folder, batch_size=batch_size, description=description
    )


def _move(part: RowStore, whole: RowStore) -> None:
    for start in range(0, part.rows, _CHUNK):
        whole.append({name: array[start : start + _CHUNK] for name, array in part.arrays.items()})
    whole.notes.setdefault("skipped", {}).update(part.notes.get("skipped", {}))
    whole.commit()
    part.remove()
