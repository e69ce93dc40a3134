"""Pictures for reports, as the recogniser saw them."""

from collections.abc import Callable

from spherecf.data import ImageSource, View, encode_image


def pictures(source: ImageSource, view: View) -> Callable[[str], bytes]:
    """From a key to the encoded image in this view."""
    index = {key: row for row, key in enumerate(source.keys)}

    def picture(key: str) -> bytes:
        return encode_image(view(source.image(index[key]), key).image)

    return picture
