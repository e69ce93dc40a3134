"""Store the rows of a gallery in Milvus: embedded if given a path, on a server or cluster if given a URI."""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from spherecf.errors import FileFormatError, MissingDependencyError, StorageError
from spherecf.gallery.rows import (
    HEADER,
    IMAGE,
    TEMPLATE,
    WRITER,
    Row,
    Template,
    direction,
    header_row,
    image_key,
)

if os.name == "posix":
    import fcntl


class Lock:
    """A file lock; the file contains the process id, and the system frees the lock when the process ends.

    Args:
        path: the file; created if missing, and not deleted.

    Raises:
        StorageError: another process holds it (its id is named), or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("a+")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            if os.name == "posix":
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise StorageError(
                f"{path.parent}: the gallery is in use by process {holder}; only one process at a time can "
                "open it. Wait for it, or use a Milvus server for several processes"
            ) from error
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Release the lock; may be called twice."""
        self._file.close()


_LOGGERS = ("pymilvus", "milvus_lite", "grpc")


class Embedded:
    """A Milvus Lite server in threads of this process.

    Milvus Lite as such listens at a port of 127.0.0.1 and asks nobody for a password, so that every user of
    the machine could read the gallery while it is open. Here it listens at a Unix socket in a folder of mode
    700, where there are Unix sockets.

    Args:
        path: folder of the gallery; made if missing.

    Raises:
        StorageError: another process has it open, or it cannot be written.
        FileFormatError: ``path`` is a file.
    """

    def __init__(self, path: Path) -> None:
        try:
            from milvus_lite.adapter.grpc.server import start_server_in_thread
        except ImportError as error:
            raise milvus_missing() from error
        if path.exists() and not path.is_dir():
            raise FileFormatError(path, "expected the folder of a gallery, got a file.")
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"{path}: cannot be created ({error.strerror})") from error
        self.path = path
        self._lock = Lock(path / "spherecf.lock")
        self._folder = tempfile.mkdtemp(prefix="spherecf-")
        host = f"unix:{self._folder}/gallery" if os.name == "posix" else "127.0.0.1"
        try:
            self._server, self._db, port = start_server_in_thread(str(path), host, 0)
        except Exception as error:
            self._free()
            raise StorageError(f"{path}: the gallery cannot be opened ({error})") from error
        self.uri = f"{host}:0" if os.name == "posix" else f"http://{host}:{port}"

    def sync(self) -> None:
        """Flush written data to the disk; Milvus Lite leaves that to the operating system."""
        for file in self.path.glob("collections/*/wal/*.arrow"):
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def close(self) -> None:
        """Write everything to its final files and release the lock; may be called twice."""
        try:
            self._server.stop(grace=2).wait()
            self._db.close()
        finally:
            self._free()

    def _free(self) -> None:
        self._lock.release()
        shutil.rmtree(self._folder, ignore_errors=True)


def milvus_missing() -> MissingDependencyError:
    """The error to raise if the packages are not installed."""
    return MissingDependencyError('a gallery needs Milvus; install it with pip install "spherecf[gallery]"')


@contextmanager
def silence_milvus_logs() -> Iterator[list[str]]:
    """Keep the log messages of Milvus, with their tracebacks, off the terminal; yields them as a list.

    If nested, it yields the list of the outer call.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    outer = next((handler for handler in loggers[0].handlers if isinstance(handler, _Collector)), None)
    if outer is not None:
        yield outer.messages
        return
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


_FIELDS = ["id", "kind", "owner", "identity", "direction", "kappa", "images", "media", "facts"]
_PAGE, _SERVER_PAGE = 40_000, 8_000  # rows per read; a server allows at most 16384
_WRITE = 2_000  # rows per write


class Store:
    """Rows of one gallery.

    All rows of an enrolment are written in one request, which is one record in the log of Milvus Lite: all or
    nothing. On a server the images count once the row of their template, which has their number, is written.

    Args:
        uri: folder of an embedded gallery, or http://, https://, tcp://, unix: of a server.
        dim: of the directions.
        token: access token of a server, "user:password" or an API key.
        name: of the collection on a server.
        timeout: seconds to wait for a server's answer.

    Raises:
        StorageError: the server does not answer, another process uses the folder, or it cannot be written.
        FileFormatError: the folder is damaged.
    """

    def __init__(
        self, uri: str, dim: int, *, token: str = "", name: str = "spherecf", timeout: float = 10.0
    ) -> None:
        try:
            from pymilvus import MilvusClient
        except ImportError as error:
            raise milvus_missing() from error
        self.uri, self._dim, self._name = uri, dim, name
        self._embedded = None if is_server(uri) else Embedded(Path(uri))
        self._timeout = None if self._embedded else timeout
        self._broken = ""
        address = self._embedded.uri if self._embedded else uri
        try:
            with silence_milvus_logs() as messages:
                self._client: Any = self._ask(MilvusClient, address, token=token)
                self._collection = self._newest(messages)
        except BaseException:
            self.close()
            raise

    @property
    def embedded(self) -> bool:
        """Whether it is a local folder."""
        return self._embedded is not None

    def header(self) -> dict[str, Any] | None:
        """Facts about the gallery; None if it does not exist yet."""
        return None if self._collection is None else self._header(self._collection)

    def create(self, facts: dict[str, Any]) -> None:
        """Create the gallery."""
        self._collection = f"{self._name}_0"
        if self._ask(self._client.has_collection, self._collection):
            if self._ask(self._client.get_collection_stats, self._collection)["row_count"]:
                raise FileFormatError(
                    self.uri, "the gallery is damaged: it has no header.", "Restore it from a backup."
                )
            self._ask(self._client.drop_collection, self._collection)  # a leftover of a crash
        self._make(self._collection)
        self.write([header_row(facts)])

    def write(self, rows: Sequence[Row]) -> None:
        """Insert or replace rows by key; on return they are on the disk.

        Raises:
            StorageError: they may not be written; an embedded gallery must be reopened before the next write.
        """
        self._change(self._client.upsert, self._collection, [self._sent(row) for row in rows])

    def insert(self, rows: Sequence[Row]) -> None:
        """`write` for many rows with new keys, in batches; each is written completely or not at all."""
        for start in range(0, len(rows), _WRITE):
            part = [self._sent(row) for row in rows[start : start + _WRITE]]
            self._change(self._client.insert, self._collection, part)

    def templates(self) -> Iterator[list[Row]]:
        """Rows of all templates."""
        return self._rows(f'kind == "{TEMPLATE}"')

    def template(self, key: str) -> Row | None:
        """Row of a template, if there is one."""
        found = self._ask(self._client.get, self._collection, ids=[key], output_fields=_FIELDS)
        return next(iter(found), None)

    def images(self, template: Template) -> list[Row]:
        """Rows of the images of a template, by their keys, since a query would scan every row."""
        rows: list[Row] = []
        for start in range(0, template.images, _WRITE):
            keys = [image_key(template, i) for i in range(start, min(start + _WRITE, template.images))]
            rows += self._ask(self._client.get, self._collection, ids=keys, output_fields=_FIELDS)
        return rows

    def changes(self) -> dict[str, int]:
        """Number of changes by each writer, by the writer's key."""
        pages = self._rows(f'kind == "{WRITER}"', ["id", "facts"])
        return {row["id"]: int(row["facts"]["changes"]) for page in pages for row in page}

    def delete(self, key: str) -> None:
        """Delete a template and its images, in one step."""
        self._change(self._client.delete, self._collection, filter=f'owner == "{key}"')

    def discard(self, template: Template) -> None:
        """Delete the leftover images of a template."""
        current = f"{template.key}-{template.generation}-"
        rule = f'owner == "{template.key}" and kind == "{IMAGE}" and not (id like "{current}%")'
        self._change(self._client.delete, self._collection, filter=rule)

    def compact(self) -> None:
        """Erase what was deleted or replaced from the files.

        Milvus Lite has no such command, so the remaining rows are copied to a new collection, which becomes
        valid with its header, written last; then the old one is deleted. A server is asked to compact.
        """
        if self._embedded is None:
            self._ask(self._client.compact, self._collection)
            return
        old, facts = self._collection, self.header()
        new = f"{self._name}_{int(str(old).rsplit('_', 1)[1]) + 1}"
        self._make(new)
        for page in self._rows(f'kind != "{HEADER}"'):
            for start in range(0, len(page), _WRITE):
                part = [self._sent(row) for row in page[start : start + _WRITE]]
                self._change(self._client.insert, new, part)
        self._change(self._client.insert, new, [self._sent(header_row(facts or {}))])
        self._change(self._client.flush, new)
        self._collection = new
        self._ask(self._client.drop_collection, old)

    def search(self, mu: Sequence[float], top: int, effort: int) -> list[str]:
        """Keys of templates with high cosines, from the index of a server."""
        found = self._ask(
            self._client.search, self._collection, data=[mu], limit=top, filter=f'kind == "{TEMPLATE}"',
            search_params={"metric_type": "IP", "params": {"ef": effort}}, output_fields=["id"],
        )  # fmt: skip
        return [hit["id"] for hit in found[0]]

    def close(self) -> None:
        """Close the store; may be called twice."""
        with silence_milvus_logs():
            client, self._client = getattr(self, "_client", None), None
            if client is not None:
                client.close()
            if self._embedded is not None:
                self._embedded.close()

    def _newest(self, messages: Sequence[str]) -> str | None:
        """The newest collection with a header; in a folder others, left by a crash, are deleted."""
        pattern = re.compile(rf"{re.escape(self._name)}_(\d+)")
        found = filter(None, map(pattern.fullmatch, self._ask(self._client.list_collections)))
        names = [one[0] for one in sorted(found, key=lambda one: -int(one[1]))]
        valid = [name for name in names if self._header(name) is not None]
        if lost := [line for line in messages if "missing" in line]:
            raise FileFormatError(
                self.uri, f"the gallery is damaged: {lost[0]}.", "Restore it from a backup."
            )
        if valid and self.embedded:
            for name in names:
                if name != valid[0]:
                    self._ask(self._client.drop_collection, name)
        return valid[0] if valid else None

    def _header(self, collection: str) -> dict[str, Any] | None:
        self._ask(self._client.load_collection, collection)
        found = self._ask(self._client.get, collection, ids=[HEADER], output_fields=["facts"])
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
        schema.add_field("mu", DataType.FLOAT_VECTOR, dim=2 if self.embedded else self._dim)
        index = self._client.prepare_index_params()
        if self.embedded:
            index.add_index("mu", index_type="FLAT", metric_type="IP")
        else:
            index.add_index(
                "mu", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 200}
            )
        self._ask(
            self._client.create_collection, name, schema=schema, index_params=index,
            consistency_level="Strong",
        )  # fmt: skip

    def _sent(self, row: Row) -> Row:
        """With the vector that Milvus requires: the direction for a server's index, a dummy for Lite."""
        if self.embedded:
            return row | {"mu": [0.0, 0.0]}
        mu = direction(row)
        return row | {"mu": mu if mu.size else [0.0] * self._dim}

    def _rows(self, rule: str, fields: Sequence[str] = _FIELDS) -> Iterator[list[Row]]:
        """Pages of rows. Keys are uniform hexadecimal numbers, so a page is a range of keys."""
        if self.embedded:
            held = self._ask(self._client.get_collection_stats, self._collection)["row_count"]
            ends = [f"{end:04x}" for end in np.linspace(0, 1 << 16, 2 + int(held) // _PAGE).astype(int)[:-1]]
            for low, high in pairwise([*ends, "g"]):
                part = f'{rule} and id >= "{low}" and id < "{high}"'
                yield self._ask(self._client.query, self._collection, filter=part, output_fields=list(fields))
            return
        pages = self._ask(
            self._client.query_iterator, self._collection, batch_size=_SERVER_PAGE, filter=rule,
            output_fields=list(fields),
        )  # fmt: skip
        while page := self._ask(pages.next, timed=False):
            yield page
        pages.close()

    def _change(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        if self._broken:
            raise StorageError(f"{self.uri}: an earlier write failed ({self._broken}); reopen the gallery")
        try:
            self._ask(call, *arguments, **options)
            if self._embedded is not None:
                self._embedded.sync()
        except OSError as error:
            self._broken = str(error) if self.embedded else ""
            raise

    def _ask(self, call: Callable[..., Any], *arguments: Any, timed: bool = True, **options: Any) -> Any:
        from pymilvus.exceptions import MilvusException

        if timed and self._timeout is not None:
            options["timeout"] = self._timeout
        try:
            with silence_milvus_logs():
                return call(*arguments, **options)
        except (MilvusException, ValueError) as error:
            store = "the gallery" if self.embedded else "the Milvus server"
            raise StorageError(f"{self.uri}: {store} failed or did not answer: {_short(error)}") from error


def is_server(uri: str) -> bool:
    """Whether it names a server, not a folder."""
    return re.match(r"(https?|tcp)://|unix:", uri) is not None


def _short(error: Exception) -> str:
    text = str(getattr(error, "message", "") or error)
    return text.splitlines()[0][:300] if text else type(error).__name__
