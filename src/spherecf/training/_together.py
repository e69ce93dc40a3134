"""A pass of a backbone over many images, shared by ranks."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from spherecf.common.progress import progress
from spherecf.common.rowstore import RowStore
from spherecf.data import ImageSource, View
from spherecf.extract import Recorder, check_usable, fill_store, open_store, run_backbone
from spherecf.models import FrozenBackbone
from spherecf.training._ranks import Ranks

_CHUNKS = 256  # pieces a rank takes in turn: what one did stays done when another number of ranks goes on


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
    """`spherecf.extract.run_backbone` by several ranks, which write their rows into the same files.

    Resumable like it, also with another number of ranks.

    Raises:
        StorageError: not enough disk space.
        RankError: another rank failed.
        InputError: no images, or none that could be used.
    """
    if ranks.size == 1 and not any(folder.glob("rows-*-*.json")):
        return run_backbone(
            backbone, source, views, recorder, folder, batch_size=batch_size, description=description
        )
    ranks.lead(lambda: open_store(backbone, source, views, recorder, folder), description)
    whole = open_store(backbone, source, views, recorder, folder)
    if not whole.complete:
        fill = partial(_fill, ranks, whole, backbone, source, views, recorder, batch_size, description)
        ranks.together(fill, description)
        parts = [whole.part(start, stop) for start, stop in _pieces(whole.rows, len(views))]
        ranks.lead(lambda: whole.join(parts), description)
        whole = open_store(backbone, source, views, recorder, folder)
    ranks.lead(lambda: check_usable(whole, source), description)
    return whole


def _fill(
    ranks: Ranks,
    whole: RowStore,
    backbone: FrozenBackbone,
    source: ImageSource,
    views: Sequence[View],
    recorder: Recorder,
    batch_size: int,
    description: str,
) -> None:
    mine = _pieces(whole.rows, len(views))[ranks.rank :: ranks.size]
    views_each = len(views)
    parts = [(whole.part(a, b), range(a // views_each, b // views_each)) for a, b in mine]
    done = sum(part.done for part, _ in parts)
    with progress(description, sum(part.rows for part, _ in parts), done) as advance:
        for part, images in parts:
            if not part.complete:
                chunk = source.subset(images)
                fill_store(part, backbone, chunk, views, recorder, batch_size, advance)


def _pieces(rows: int, views: int) -> list[tuple[int, int]]:
    """Ranges of rows of whole images, the same for any number of ranks."""
    images = rows // views
    step = max(1, -(-images // _CHUNKS)) * views
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]
