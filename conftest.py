"""Every shape and type annotation of the package is checked at run time while tests run."""

from jaxtyping import install_import_hook

install_import_hook("spherecf", "beartype.beartype")
