"""A gallery of templates: enrol, identify, remove."""

import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import Calibration
from spherecf.errors import FileFormatError, InputError
from spherecf.gallery.enrolment import check_images, check_probe, no_images, pooled_template, review
from spherecf.gallery.identification import Candidate, Identification, decide, limits_for, weigh
from spherecf.gallery.mirror import Mirror
from spherecf.gallery.rows import (
    Enrolled,
    Header,
    Images,
    Row,
    Template,
    checked_identity,
    direction,
    image_rows,
    read_images,
    read_template,
    template_key,
    template_row,
    writer_row,
)
from spherecf.gallery.search import Finder
from spherecf.gallery.store import Store

_MIN_CANDIDATES = 16  # considered for a decision
_REVIEW_FMR = 1e-3  # false match rate of the warnings at enrolment
_BATCH = 10_000  # people per write of `Gallery.enrol_many`


class Gallery:
    """An open gallery; created by `Gallery.open`. It may be used by one thread at a time.

    Templates are searched in memory and stored by Milvus.

    Example:
        >>> import tempfile
        >>> rng = np.random.default_rng(0)
        >>> people = rng.standard_normal((2, 64)).astype(np.float32)
        >>> people /= np.linalg.norm(people, axis=1, keepdims=True)
        >>> with Gallery.open(tempfile.mkdtemp(), model="f" * 64, dim=64, radius=1.0) as gallery:
        ...     _ = gallery.enrol("Ann", people[:1], [500.0], media=["a"], sources=["ann.jpg"])
        ...     _ = gallery.enrol("Bob", people[1:], [400.0], media=["b"], sources=["bob.jpg"])
        ...     result = gallery.identify(people[1], 450.0, threshold=0.0)
        >>> result.answer, result.identity, len(result.candidates)
        ('identified', 'Bob', 2)
    """

    def __init__(self, store: Store, header: Header, calibration: Calibration | None) -> None:
        self._store, self._header, self._calibration = store, header, calibration
        self._writer, self._seen = f"writer-{secrets.token_hex(8)}", dict[str, int]()
        self._load()

    @classmethod
    def open(
        cls,
        uri: str | Path,
        *,
        model: str,
        backbone: str = "",
        dim: int,
        radius: float,
        calibration: Calibration | None = None,
        create: bool = True,
        token: str = "",
        name: str = "spherecf",
        timeout: float = 10.0,
    ) -> "Gallery":
        """Open a gallery, or create it.

        Args:
            uri: folder of an embedded gallery, or http(s):// URI of a Milvus server.
            model: fingerprint of the model.
            backbone: sha256 of its recogniser.
            dim: dimension of its directions.
            radius: r of its scores.
            calibration: for thresholds, likelihood ratios and percentiles.
            create: create the gallery if it does not exist.
            token: access token of a server.
            name: of the gallery on a server with several.
            timeout: seconds to wait for a server's answer.

        Raises:
            ModelError: it belongs to another model.
            StorageError: the server does not answer, another process uses the folder, or the disk is full.
            FileFormatError: damaged, or not a gallery.
            InputError: it does not exist, and ``create`` is false.
            MissingDependencyError: the extra ``gallery`` is not installed.
        """
        where = str(uri)
        if not create and "://" not in where and not (Path(where) / "spherecf.lock").exists():
            raise InputError(f"{where}: there is no gallery here; enrol a person first")
        if calibration is not None:
            calibration.require(model)
        store = Store(where, dim, token=token, name=name, timeout=timeout)
        try:
            facts = store.header()
            if facts is None:
                if not create:
                    raise InputError(f"{where}: there is no gallery here; enrol a person first")
                facts = Header.new(model, backbone, dim, radius).to_dict()
                store.create(facts)
            header = Header.read(facts, where)
            header.check(where, model, backbone, dim, radius)
            return cls(store, header, calibration)
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._mirror)

    def __contains__(self, identity: str) -> bool:
        return self._mirror.find(template_key(checked_identity(identity), self._header.salt)) is not None

    def close(self) -> None:
        """Close the gallery, so that others can open it; may be called twice."""
        self._store.close()

    def enrol(
        self,
        identity: str,
        mu: ArrayLike,
        kappa: ArrayLike,
        *,
        media: Sequence[str],
        sources: Sequence[str],
        add: bool = False,
        replace: bool = False,
        keep: Collection[str] | None = None,
    ) -> Enrolled:
        """Store a person's template, pooled from images; on return it is on the disk.

        Args:
            identity: name of the person.
            mu: (n, dim) unit directions of the images; n may be 0 with ``add``.
            kappa: (n,) their concentrations.
            media: (n,) medium of each image; frames of one video share one. Equal directions in one medium
                are the same image and count once.
            sources: (n,) origin of each image, e.g. a file name.
            add: add to the images of an enrolled person; images that are enrolled already are ignored.
            replace: replace the images of an enrolled person.
            keep: with ``add``, the media of enrolled images to keep; by default all.

        Raises:
            InputError: the name is enrolled, and neither ``add`` nor ``replace`` is given; no image would be
                left; or the name or the arrays are not valid.
            StorageError: it could not be written; the gallery is unchanged.
        """
        name = checked_identity(identity)
        self._refresh()
        nothing = no_images(self._header.dim)
        empty = add and not len(media) and not len(sources)
        given = nothing if empty else check_images(mu, kappa, self._header.dim, media, sources)
        key = template_key(name, self._header.salt)
        stored = self._stored(key)
        if stored is not None and not (add or replace):
            raise InputError(f"{name} is already enrolled; use add to add photos, or replace to replace them")
        before = None if stored is None or replace else read_template(stored)
        known = nothing if before is None else self._images(before)
        kept = known.select([i for i, medium in enumerate(known.media) if keep is None or medium in keep])
        fresh, dropped = given.new(kept), len(known) - len(kept)
        if before is not None and not len(fresh) and not dropped:
            return self._enrolled(before)
        images = kept + fresh
        if not len(images):
            raise InputError(f"{name}: no image would be left; remove this person instead")
        template = pooled_template(
            key, name, images, before, lambda *made: self._review(key, *made), renew=dropped > 0
        )
        rows = [template_row(template)]
        if len(images) > 1:
            rows += image_rows(template, images, len(kept) if len(kept) > 1 and not dropped else 0)
        self._store.write(rows)
        self._mirror.put(key, name, template.mu, template.kappa, template.images, template.media)
        self._changed()
        if stored is not None and (replace or dropped):
            self._store.discard(template)
        return self._enrolled(template)

    def sources(self, identity: str) -> dict[str, str]:
        """Media of the images in a person's template, with the source of the first image of each.

        Empty if nobody of this name is enrolled.
        """
        self._refresh()
        key = template_key(checked_identity(identity), self._header.salt)
        stored = self._stored(key)
        if stored is None:
            return {}
        images, sources = self._images(read_template(stored)), dict[str, str]()
        for medium, source in zip(images.media, images.sources):
            sources.setdefault(medium, source)
        return sources

    def enrol_many(
        self,
        identities: Sequence[str],
        mu: ArrayLike,
        kappa: ArrayLike,
        *,
        sources: Sequence[str] | None = None,
    ) -> int:
        """Enrol many people from one image each, without warnings; enrolled people are skipped.

        Args:
            identities: (n,) distinct names.
            mu: (n, dim) unit directions.
            kappa: (n,) concentrations.
            sources: (n,) origin of each image.

        Returns:
            Number of people enrolled. An interrupted call can be repeated to continue.

        Raises:
            InputError, StorageError: as in `enrol`.
        """
        names = [checked_identity(one) for one in identities]
        given = check_images(mu, kappa, self._header.dim, names, sources)
        if len(set(names)) < len(names):
            raise InputError(f"expected distinct names, {len(names) - len(set(names))} occur twice")
        self._refresh()
        keys = [template_key(name, self._header.salt) for name in names]
        fresh = [i for i, key in enumerate(keys) if self._mirror.find(key) is None]
        for start in range(0, len(fresh), _BATCH):
            part = fresh[start : start + _BATCH]
            self._store.insert(
                [template_row(pooled_template(keys[i], names[i], given.select([i]))) for i in part]
            )
            images, ones = given.select(part), np.ones(len(part))
            self._mirror.extend([keys[i] for i in part], images.media, images.mu, images.kappa, ones, ones)
        if fresh:
            self._changed()
        return len(fresh)

    def identify(
        self,
        mu: ArrayLike,
        kappa: float,
        *,
        top: int = 5,
        max_fpir: float = 0.01,
        threshold: float | None = None,
        exact: bool = True,
    ) -> Identification:
        """Identify a probe as a person of the gallery, as unknown, or not at all (undecided).

        A stranger is compared with N people, so by the union bound a false match rate of ``max_fpir / N`` per
        comparison suffices. The thresholds are the calibrated ones for that rate: one for templates of one
        image, another for pooled ones.

        Args:
            mu: (dim,) unit direction of the probe.
            kappa: its concentration.
            top: number of candidates to return.
            max_fpir: bound on the share of strangers that are identified.
            threshold: of the mutual likelihood score, instead of the calibrated ones.
            exact: search exactly; otherwise with an index that may miss a person.

        Raises:
            InputError: shapes, NaN, or values out of range.
            StorageError: the server does not answer.
        """
        probe, probe_kappa = check_probe(mu, kappa, self._header.dim)
        if not (0 < max_fpir < 1 and top >= 1):
            raise InputError(f"expected 0 < max_fpir < 1 and top >= 1, got {max_fpir} and {top}")
        self._refresh()
        count = len(self._mirror)
        fmr = max_fpir / max(count, 1)
        limits = limits_for(self._calibration, fmr, threshold, self._header.radius)
        hits = self._finder.find(probe, probe_kappa, max(top, _MIN_CANDIDATES), exact)
        candidates = self._finder.candidates(hits, limits)
        each = None if limits is None else self._finder.limits_of(hits, limits)
        candidates = weigh(candidates, each or (), self._calibration, probe_kappa) or candidates
        answer, identity, why = decide(candidates, each, probe_kappa, max_fpir)
        if not exact and answer != "identified":
            why += " (the search was approximate and may have missed a person)"
        first = None if not each else each[0]
        return Identification(
            answer, identity, why, candidates[:top], max_fpir, count, fmr,
            fmr_used=None if first is None or np.isnan(first.fmr) else first.fmr,
            least_kappa=None if first is None or np.isinf(first.min_kappa) else first.min_kappa,
            exact=exact, scored=hits.scored,
        )  # fmt: skip

    def search(self, mu: ArrayLike, kappa: ArrayLike, *, top: int = 5) -> list[tuple[Candidate, ...]]:
        """The highest scores of many probes, exactly, faster than one by one.

        Args:
            mu: (n, dim) unit directions.
            kappa: (n,).
            top: candidates for each.

        Raises:
            InputError, StorageError: as in `identify`.
        """
        given = check_images(mu, kappa, self._header.dim)
        if top < 1:
            raise InputError(f"top: expected 1 or more, got {top}")
        self._refresh()
        return [self._finder.candidates(hits) for hits in self._finder.find_all(given.mu, given.kappa, top)]

    def remove(self, identity: str, *, erase: bool = True) -> int:
        """Remove a person: template, images and name.

        Args:
            identity: name of the person.
            erase: erase from the files at once (see `compact`); otherwise at the next `compact`.

        Returns:
            Number of templates removed: 0 if nobody of this name is enrolled.

        Raises:
            StorageError: it could not be written.
        """
        self._refresh()
        key = template_key(checked_identity(identity), self._header.salt)
        if self._mirror.find(key) is None:
            return 0
        self._store.delete(key)
        self._mirror.drop(key)
        self._changed()
        if erase:
            self.compact()
        return 1

    def compact(self) -> None:
        """Erase what was removed or replaced, by rewriting the files without it.

        Takes about as long as enrolling all remaining people. A server is only asked to compact.
        """
        self._store.compact()

    def list(self) -> "list[Enrolled]":
        """All enrolled people, sorted by name."""
        self._refresh()
        rows = (row for page in self._store.templates() for row in page)
        return sorted(
            (self._enrolled(read_template(row)) for row in rows), key=lambda enrolled: enrolled.identity
        )

    def info(self) -> dict[str, Any]:
        """Facts about the gallery, JSON-able."""
        self._refresh()
        facts = self._header.to_dict()
        facts.pop("salt")
        alive = self._mirror.alive
        return facts | {
            "uri": self._store.uri,
            "embedded": self._store.embedded,
            "identities": len(self._mirror),
            "images": int(self._mirror.images[alive].sum()),
            "calibrated": self._calibration is not None,
        }

    def _load(self) -> None:
        """Read all templates into memory."""
        self._mirror = Mirror(self._header.dim)
        server_search = None if self._store.embedded else self._store.search
        self._finder = Finder(self._mirror, self._header.radius, self._calibration, server_search)
        self._seen = {} if self._store.embedded else self._store.changes()
        for page in filter(len, self._store.templates()):
            columns = ([row[name] for row in page] for name in ("id", "identity", "kappa", "images", "media"))
            keys, names, *numbers = columns
            try:
                self._mirror.extend(keys, names, np.stack([direction(row) for row in page]), *numbers)
            except ValueError as error:
                raise FileFormatError(
                    self._store.uri, "the gallery is damaged: directions of several sizes."
                ) from error

    def _refresh(self) -> None:
        """On a server others may have written: reload if so."""
        if not self._store.embedded and self._store.changes() != self._seen:
            self._load()

    def _changed(self) -> None:
        """On a server, record that this writer changed the gallery."""
        if not self._store.embedded:
            self._seen[self._writer] = self._seen.get(self._writer, 0) + 1
            self._store.write([writer_row(self._writer, self._seen[self._writer])])

    def _review(self, key: str, images: Images, mu: NDArray[np.float32], kappa: float) -> tuple[str, ...]:
        limits = limits_for(self._calibration, _REVIEW_FMR, None, self._header.radius, evidence=False)
        alike = self._finder.candidates(self._finder.find(mu, kappa, 2))
        others = [candidate for candidate in alike if candidate.template != key]
        return review(images, kappa, others, limits, self._header.radius)

    def _stored(self, key: str) -> Row | None:
        """Row of an enrolled template; a leftover of a removal is not one."""
        return self._store.template(key) if self._mirror.find(key) is not None else None

    def _images(self, template: Template) -> Images:
        rows = self._store.images(template) if template.images > 1 else []
        try:
            return read_images(template, rows)
        except KeyError as error:
            raise FileFormatError(
                self._store.uri,
                f"the gallery is damaged: image {error} of {template.identity} is missing.",
                "Enrol this person again with replace.",
            ) from error

    def _enrolled(self, template: Template) -> Enrolled:
        scale = None if self._calibration is None else self._calibration.kappa
        percentile = None if scale is None else float(scale.percentile([template.kappa])[0])
        facts = template.facts
        return Enrolled(
            template.key, template.identity, template.kappa, percentile, template.images, template.media,
            tuple(facts["warnings"]), tuple(facts["sources"]), facts["enrolled"], facts["changed"],
        )  # fmt: skip
