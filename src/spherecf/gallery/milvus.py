"""Galleries on a Milvus server or cluster, and migration of Milvus Lite folders.

A direction is stored as the base64 of its float32 bytes. This is exact, and ten times faster through Milvus'
Python client than a list of numbers. It is stored in a JSON field because the client checks every character
of a text field.
"""

import base64
import hashlib
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.common.sealing import current_key
from spherecf.errors import FileFormatError, InputError, MissingDependencyError, StorageError
from spherecf.gallery.rows import Images, Template
from spherecf.gallery.sealed import open_store
from spherecf.gallery.store import Store

Row = dict[str, Any]

_TEMPLATE, _IMAGE, _HEADER, _WRITER = "template", "image", "header", "writer"
_FIELDS = ["id", "kind", "owner", "identity", "direction", "kappa", "images", "media", "facts"]
_PAGE = 8_000  # rows per read; a server allows at most 16384
_LITE_PAGE = 10_000
_WRITE = 2_000  # rows per write
_LOGGERS = ("pymilvus", "milvus_lite", "grpc")


class Server(Store):
    """A gallery on a server. All templates are also kept in memory.

    The row of a template has the number of its images, and the keys of the image rows contain the first
    characters of the template's id, so images are valid only once the row of their template is written. Each
    writer counts its changes in a separate row, which tells other clients when to read the gallery again.

    Args:
        uri: http://, https://, tcp:// or unix: of the server.
        dim: of the directions.
        token: access token, "user:password" or an API key.
        name: of the collection.
        timeout: seconds to wait for a response.

    Raises:
        StorageError: the server does not respond.
        MissingDependencyError: the extra ``milvus`` is not installed.
    """

    embedded, encrypted_with = False, None

    def __init__(self, uri: str, dim: int, *, token: str, name: str, timeout: float) -> None:
        try:
            from pymilvus import MilvusClient
        except ImportError as error:
            install = 'pip install "spherecf[milvus]"'
            raise MissingDependencyError(
                f"Milvus' client is not installed; install it with {install}"
            ) from error
        super().__init__(":memory:", dim)
        super().create({})
        self.uri, self._name, self._timeout = uri, name, timeout
        self._writer, self._salt = f"writer-{secrets.token_hex(8)}", ""
        self._seen: dict[str, int] | None = None
        self._client: Any = None
        try:
            self._client = self._call(MilvusClient, uri, token=token)
            self._collection, self._facts = _newest(
                name, self._call(self._client.list_collections), self._header
            )
        except BaseException:
            self.close()
            raise

    def header(self) -> dict[str, Any] | None:
        """Facts about the gallery; None if it does not exist yet."""
        if self._facts is not None:
            self._salt = str(self._facts.get("salt"))
        return self._facts

    def create(self, facts: dict[str, Any]) -> None:
        """Create the gallery."""
        self._collection = f"{self._name}_0"
        if self._call(self._client.has_collection, self._collection):
            if self._call(self._client.get_collection_stats, self._collection)["row_count"]:
                raise self.damaged("it has no header")
            self._call(self._client.drop_collection, self._collection)  # left over from a crash
        self._make(self._collection)
        self._upsert([_row(_HEADER, _HEADER, _HEADER, facts)])
        self._facts, self._salt = facts, str(facts["salt"])

    def refresh(self) -> bool:
        """Read all templates again if another client has changed the gallery; returns whether it has."""
        pages = self._rows(f'kind == "{_WRITER}"', ["id", "facts"])
        changes = {row["id"]: int(row["facts"]["changes"]) for page in pages for row in page}
        if changes == self._seen:
            return False
        self._ask("DELETE FROM templates")
        for page in self._rows(f'kind == "{_TEMPLATE}"'):
            super().insert([_read(row) for row in page])
        self._seen = changes
        return True

    def images(self, template: Template) -> Images:
        """The images of a template, read by their keys because a query would scan every row."""
        if template.images == 1:
            return template.only
        rows: list[Row] = []
        for start in range(0, template.images, _WRITE):
            positions = range(start, min(start + _WRITE, template.images))
            keys = [self._image_key(template, position) for position in positions]
            rows += self._call(self._client.get, self._collection, ids=keys, output_fields=_FIELDS)
        return _read_images(template, rows, self)

    def put(self, template: Template, images: Images) -> int:
        """Store a template and its images, replacing those of the same person; returns the row."""
        key, mark = self._key(template.identity), _mark(template)
        rows = [_template_row(key, template)]
        if len(images) > 1:
            rows += [
                _row(
                    self._image_key(template, place), _IMAGE, key,
                    {"generation": mark, "place": place, "medium": medium, "source": source},
                    mu, kappa=kappa, images=1, media=1,
                )
                for place, (mu, kappa, medium, source) in enumerate(
                    zip(images.mu, images.kappa.tolist(), images.media, images.sources)
                )
            ]  # fmt: skip
        self._upsert(rows)
        row = super().put(template, images.select([0]))
        self._changed()
        rule = f'owner == "{key}" and kind == "{_IMAGE}" and not (id like "{key}-{mark}-%")'
        self._call(self._client.delete, self._collection, filter=rule)
        return row

    def insert(self, templates: Sequence[Template]) -> list[int]:
        """Store templates of one image each, of new people; returns their rows."""
        for start in range(0, len(templates), _WRITE):
            part = templates[start : start + _WRITE]
            self._upsert([_template_row(self._key(one.identity), one) for one in part])
        rows = super().insert(templates)
        self._changed()
        return rows

    def remove(self, identity: str) -> None:
        """Remove a person's template and images."""
        self._call(self._client.delete, self._collection, filter=f'owner == "{self._key(identity)}"')
        super().remove(identity)
        self._changed()

    def erase(self) -> None:
        """Ask the server to erase removed rows; the server chooses when."""
        self._call(self._client.compact, self._collection)

    compact = erase

    def near(self, mu: Sequence[float], top: int, effort: int) -> list[int]:
        """Rows of templates with high cosines, from the server's index."""
        (hits,) = self._call(
            self._client.search, self._collection, data=[mu], limit=top, filter=f'kind == "{_TEMPLATE}"',
            search_params={"metric_type": "IP", "params": {"ef": effort}}, output_fields=["identity"],
        )  # fmt: skip
        templates = [self.find(hit["entity"]["identity"]) for hit in hits]
        return [template.row for template in templates if template is not None]

    def close(self) -> None:
        """Close the connection; may be called twice."""
        with _silence_logs():
            client, self._client = self._client, None
            if client is not None:
                client.close()
        super().close()

    def _key(self, identity: str) -> str:
        """Primary key of a person's template; the same name has different keys in different galleries."""
        return hashlib.blake2b(identity.encode(), key=bytes.fromhex(self._salt), digest_size=16).hexdigest()

    def _image_key(self, template: Template, place: int) -> str:
        return f"{self._key(template.identity)}-{_mark(template)}-{place}"

    def _changed(self) -> None:
        """Record that this writer changed the gallery."""
        seen = self._seen = self._seen or {}
        count = seen[self._writer] = seen.get(self._writer, 0) + 1
        self._upsert([_row(self._writer, _WRITER, _WRITER, {"changes": count})])

    def _upsert(self, rows: Sequence[Row]) -> None:
        """Insert or replace rows by key, with the vector for the server's index."""
        nothing = [0.0] * self._dim
        sent = [row | {"mu": _direction(row) if row["direction"]["f4"] else nothing} for row in rows]
        self._call(self._client.upsert, self._collection, sent)

    def _header(self, collection: str) -> Row | None:
        self._call(self._client.load_collection, collection)
        found = self._call(self._client.get, collection, ids=[_HEADER], output_fields=["facts"])
        return dict(found[0]["facts"]) if found else None

    def _make(self, name: str) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=128)
        for field, length in (("kind", 16), ("owner", 64), ("identity", 2048)):
            schema.add_field(field, DataType.VARCHAR, max_length=length)
        schema.add_field("direction", DataType.JSON)
        schema.add_field("kappa", DataType.FLOAT)
        schema.add_field("images", DataType.INT32)
        schema.add_field("media", DataType.INT32)
        schema.add_field("facts", DataType.JSON)
        schema.add_field("mu", DataType.FLOAT_VECTOR, dim=self._dim)
        index = self._client.prepare_index_params()
        index.add_index("mu", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 200})
        self._call(
            self._client.create_collection, name, schema=schema, index_params=index,
            consistency_level="Strong",
        )  # fmt: skip

    def _rows(self, rule: str, fields: Sequence[str] = _FIELDS) -> Iterator[list[Row]]:
        """Pages of rows."""
        pages = self._call(
            self._client.query_iterator, self._collection, batch_size=_PAGE, filter=rule,
            output_fields=list(fields),
        )  # fmt: skip
        while page := self._call(pages.next, timed=False):
            yield page
        pages.close()

    def _call(self, call: Callable[..., Any], *arguments: Any, timed: bool = True, **options: Any) -> Any:
        from pymilvus.exceptions import MilvusException

        if timed:
            options["timeout"] = self._timeout
        try:
            with _silence_logs():
                return call(*arguments, **options)
        except (MilvusException, ValueError) as error:
            self._seen = None  # the write may have happened: read everything at the next refresh
            message = f"{self.uri}: the Milvus server failed or did not respond: {_short(error)}"
            raise StorageError(message) from error


def is_server(uri: str) -> bool:
    """Whether it names a server, not a file."""
    return re.match(r"(https?|tcp)://|unix:", uri) is not None


def migrate(old: Path, new: Path) -> int:
    """Copy a Milvus Lite gallery, a folder, to a new file; returns the number of people.

    Ids, times and images are kept. The copy is written to ``new`` with the suffix "-part"; a call continues
    an interrupted one.

    Raises:
        InputError: the folder does not exist, or ``new`` exists.
        FileFormatError: the folder is damaged or is not a gallery.
        StorageError: another process is using the folder, or ``new`` cannot be written.
        MissingDependencyError: the package ``milvus-lite`` is not installed.

    Example:
        >>> from pathlib import Path
        >>> migrate(Path("people"), Path("people.gallery"))
        Traceback (most recent call last):
            ...
        spherecf.errors.InputError: people: expected a gallery, a folder of Milvus Lite
    """
    if not (old / "collections").is_dir():
        raise InputError(f"{old}: expected a gallery, a folder of Milvus Lite")
    try:
        from milvus_lite import MilvusLite
    except ImportError as error:
        raise MissingDependencyError('copying needs pip install "milvus-lite>=3.2,<4"') from error
    if new.exists():
        raise InputError(f"{new}: exists already; give a new name")
    part = new.with_name(f"{new.name}-part")
    with _silence_logs() as messages:
        try:
            lite = MilvusLite(str(old))
        except Exception as error:
            raise StorageError(f"{old}: the gallery cannot be opened ({_short(error)})") from error
        try:
            count = _copy(lite, old, part, messages)
        finally:
            lite.close()
    try:
        part.replace(new)
    except OSError as error:
        raise StorageError(
            f"{new}: the complete copy, {part}, could not be renamed ({error.strerror}); run the same "
            "command again"
        ) from error
    return count


def _copy(lite: Any, old: Path, part: Path, messages: Sequence[str]) -> int:
    """Copy the templates that are not in ``part`` yet; returns the number of people."""

    def header(name: str) -> Row | None:
        collection = lite.get_collection(name)
        collection.load()
        found = collection.get([_HEADER], output_fields=["facts"])
        return dict(json.loads(found[0]["facts"])) if found else None

    def parsed(rows: Sequence[Row]) -> list[Row]:
        return [row | {name: json.loads(row[name]) for name in ("facts", "direction")} for row in rows]

    name, facts = _newest("spherecf", lite.list_collections(), header)
    if lost := [line for line in messages if "missing" in line]:
        raise FileFormatError(old, f"the gallery is damaged: {lost[0]}.", "Restore it from a backup.")
    if facts is None:
        raise FileFormatError(old, "the folder holds no gallery.")
    collection = lite.get_collection(name)
    store = open_store(str(part), facts["dim"], current_key())
    try:
        if store.header() is None:
            store.create(facts)
        elif store.header() != facts:
            raise InputError(
                f"{part}: the beginning of a copy of another gallery; delete it, or give a new name"
            )
        ends = np.linspace(0, 1 << 16, 2 + int(collection.num_entities) // _LITE_PAGE).astype(int).tolist()
        for low, high in pairwise(
            [f"{end:04x}" for end in ends[:-1]] + ["g"]
        ):  # keys are uniform hexadecimal
            rule = f'kind == "{_TEMPLATE}" and id >= "{low}" and id < "{high}"'
            page = [_read(row) for row in parsed(collection.query(rule, output_fields=_FIELDS))]
            done = store.enrolled([one.identity for one in page])
            fresh = [one for one in page if one.identity not in done]
            store.insert([one for one in fresh if one.images == 1])
            for one in fresh:
                if one.images > 1:
                    keys = [f"{one.id}-{_mark(one)}-{place}" for place in range(one.images)]
                    found = parsed(collection.get(keys, output_fields=_FIELDS))
                    store.put(one, _read_images(one, found, store))
        return store.counts()[0]
    finally:
        store.close()


def _newest(
    name: str, collections: Sequence[str], header: Callable[[str], Row | None]
) -> tuple[str, Row | None]:
    """The newest collection with a header, and its header; other collections are left over from a crash."""
    pattern = re.compile(rf"{re.escape(name)}_(\d+)")
    found = filter(None, map(pattern.fullmatch, collections))
    for one in sorted(found, key=lambda one: -int(one[1])):
        if (facts := header(one[0])) is not None:
            return one[0], facts
    return "", None


def _mark(template: Template) -> str:
    """Mark in the keys of a template's images; images of the person without it are leftovers and ignored."""
    return str(template.facts.get("generation", template.id[:8]))


def _template_row(key: str, template: Template) -> Row:
    facts = template.facts | {"id": template.id}
    return _row(
        key, _TEMPLATE, key, facts, template.mu, identity=template.identity, kappa=template.kappa,
        images=template.images, media=template.media,
    )  # fmt: skip


def _row(
    key: str, kind: str, owner: str, facts: Row, mu: NDArray[np.float32] | None = None, **columns: Any
) -> Row:
    packed = b"" if mu is None else base64.b64encode(mu.astype("<f4").tobytes())
    blank = {"identity": "", "kappa": 0.0, "images": 0, "media": 0}
    direction = {"f4": packed.decode()}
    row = {"id": key, "kind": kind, "owner": owner, "direction": direction, "facts": facts}
    return row | blank | columns


def _direction(row: Row) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(row["direction"]["f4"]), "<f4").astype(np.float32)


def _read(row: Row) -> Template:
    """The inverse of `_template_row`; in older galleries the key is the id."""
    facts = dict(row["facts"])
    key = facts.pop("id", row["id"])
    numbers = row["kappa"], row["images"], row["media"]
    return Template(key, row["identity"], _direction(row), *numbers, facts)


def _read_images(template: Template, rows: Sequence[Row], store: Store) -> Images:
    """The images of a template, from rows in any order."""
    by_place = {row["facts"]["place"]: row for row in rows}
    ordered = [by_place[place] for place in range(template.images) if place in by_place]
    if len(ordered) < template.images:
        raise store.damaged(f"{len(ordered)} of {template.images} images of {template.identity} are there")
    return Images(
        np.stack([_direction(row) for row in ordered]),
        np.array([row["kappa"] for row in ordered], np.float32),
        tuple(row["facts"]["medium"] for row in ordered),
        tuple(row["facts"]["source"] for row in ordered),
    )


@contextmanager
def _silence_logs() -> Iterator[list[str]]:
    """Keep Milvus' log messages, which contain tracebacks, off the terminal; yields them as a list."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    collector = _Collector()
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [collector], False
    try:
        yield collector.messages
    finally:
        for logger, (handlers, propagate) in zip(loggers, before):
            logger.handlers, logger.propagate = handlers, propagate


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: Any) -> None:
        self.messages.append(record.getMessage())


def _short(error: Exception) -> str:
    text = str(getattr(error, "message", "") or error)
    return text.splitlines()[0][:300] if text else type(error).__name__
