"""Names of people as they are stored: one spelling per name, nothing that a terminal would obey."""

import hashlib
import unicodedata

from spherecf.common.names import composed
from spherecf.errors import InputError

LONGEST = 256  # characters


def checked_identity(identity: str) -> str:
    """The name in its composed Unicode form (NFC), without blanks around it.

    Raises:
        InputError: empty, longer than 256 characters, or with control characters.

    Example:
        >>> checked_identity(" Zoe\u0308 ")
        'Zoë'
    """
    name = composed(identity).strip()
    if not name:
        raise InputError("identity: expected a name, got an empty one")
    if len(name) > LONGEST:
        raise InputError(f"identity: expected at most {LONGEST} characters, got {len(name)}: {name[:40]}...")
    strange = [sign for sign in name if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")]
    if strange:
        raise InputError(f"identity: control character {strange[0]!r} in {name!r}; expected a plain name")
    return name


def template_key(identity: str, salt: str) -> str:
    """Primary key of somebody's template: the same name gives the same key in one gallery, not in another."""
    return hashlib.blake2b(identity.encode(), key=bytes.fromhex(salt), digest_size=16).hexdigest()
