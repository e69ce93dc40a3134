"""Pictures for strips of faces: those of one embeddings file, as the recogniser saw them."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.data import ImageSource
    from spherecf.embeddings import Embeddings


class Faces:
    """Encoded pictures by key, aligned and degraded again as the embeddings were made.

    Args:
        embeddings: say by their provenance how their images were aligned and degraded.
        source: the images.
        keys: those that will be asked for; some may be absent from the source.

    Raises:
        InputError: none of the keys is in the source, or the view cannot be made again.
    """

    def __init__(self, embeddings: "Embeddings", source: "ImageSource", keys: Collection[str]) -> None:
        from spherecf.data import View

        if embeddings.provenance.get("alignment", "as-given") != "as-given":
            from spherecf.faces import AlignedFaces

            source = AlignedFaces(source)
        self.signature = str(embeddings.provenance.get("view", "clean"))
        try:
            self._view = View.from_signature(self.signature)
        except InputError as error:
            raise InputError(f"{error}; leave out --faces") from error
        self._source = source
        self._index = {key: row for row, key in enumerate(source.keys)}
        if not set(keys) & set(self._index):
            raise InputError(
                f"--faces: none of the {len(set(keys))} images to show is in {source.name}, whose keys look "
                f"like {', '.join(source.keys[:2])}; give the source that was embedded"
            )

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __call__(self, key: str) -> bytes:
        """The picture of a key."""
        from spherecf.data import encode_image

        return encode_image(self._view(self._source.image(self._index[key]), key).image)
