"""A gallery of templates: enrol, identify and remove people."""

import json
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import Calibration
from spherecf.common.sealing import current_key, reject_plain
from spherecf.embeddings import Embeddings
from spherecf.errors import FileFormatError, InputError
from spherecf.gallery.identification import Candidate, Identification, decide, limits_for, matches
from spherecf.gallery.index import Index
from spherecf.gallery.milvus import Server, is_server
from spherecf.gallery.review import review
from spherecf.gallery.rows import (
    Enrolled,
    Header,
    Images,
    Template,
    check_images,
    check_probe,
    checked_identity,
    no_images,
    pooled_template,
)
from spherecf.gallery.sealed import open_store
from spherecf.gallery.search import Finder
from spherecf.gallery.store import Store
from spherecf.scoring import mean_by, natural_parameter

_MIN_CANDIDATES = 16  # minimum number of candidates that a decision considers
_REVIEW_FPIR = 0.01  # for the warnings at enrolment: the default of `Gallery.identify`
_BATCH = 10_000  # people per write of `Gallery.enrol_many`
_RULES = "calibration"  # name of the fact under which the store has the rules
_MIN_KAPPA = 1e-20  # replaces 0, whose logarithm is not finite


class ServerOptions(TypedDict, total=False):
    """Connection options of `Gallery.open` for a server."""

    token: str
    name: str
    timeout: float


class Gallery:
    """An open gallery of templates, from `Gallery.open`. Only one thread at a time may use it.

    A gallery is a file, which one process at a time can write and any number can read, or it is on a Milvus
    server.

    Example:
        >>> import tempfile
        >>> rng = np.random.default_rng(0)
        >>> people = rng.standard_normal((2, 64)).astype(np.float32)
        >>> people /= np.linalg.norm(people, axis=1, keepdims=True)
        >>> with Gallery.open(tempfile.mkdtemp() + "/people", model="f" * 64, dim=64, radius=1.0) as gallery:
        ...     _ = gallery.enrol("Ann", people[:1], [500.0], media=["a"], sources=["ann.jpg"])
        ...     _ = gallery.enrol("Bob", people[1:], [400.0], media=["b"], sources=["bob.jpg"])
        ...     result = gallery.identify(people[1], 450.0, threshold=0.0)
        >>> result.answer, result.identity, len(result.candidates)
        ('identified', 'Bob', 2)
    """

    def __init__(self, store: Store, header: Header, calibration: Calibration | None) -> None:
        self._store, self._header, self._calibration = store, header, calibration
        self._interrupted = False
        store.refresh()
        self._index = Index(store, header.dim)
        server_search = store.near if isinstance(store, Server) else None
        self._finder = Finder(self._index, store, header.radius, calibration, server_search)

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
        **server: Unpack[ServerOptions],
    ) -> "Gallery":
        """Open a gallery, or create it. A new gallery is encrypted if a key is set (`SPHERECF_KEY_FILE`).

        Args:
            uri: gallery file, or http(s):// URI of a Milvus server.
            model: fingerprint of the model.
            backbone: SHA-256 of the model's recogniser.
            dim: dimension d of the model's directions.
            radius: radius r of the mutual likelihood score.
            calibration: calibration of the model, for thresholds, likelihood ratios and percentiles. If the
                gallery stores rules (`keep_rules`), these are used instead.
            create: create the gallery if it does not exist.
            **server: options for a server: ``token``, its access token; ``name``, the name of the gallery, if
                the server has several (default: ``"spherecf"``); ``timeout``, seconds to wait for a response
                (default: 10).

        Raises:
            ModelError: the gallery belongs to another model.
            StorageError: the file cannot be read or created, or the server does not respond.
            FileFormatError: the file is damaged, or is not a gallery.
            InputError: the gallery does not exist and ``create`` is false, is encrypted with another key than
                the current one, or is not encrypted although a key is set; or the dimension is below 2, or
                the radius is not positive and finite.
            MissingDependencyError: the gallery is on a server or encrypted, and the extra ``milvus`` or
                ``encryption`` is not installed.
        """
        location, key = str(uri), current_key()
        options: ServerOptions = {"token": "", "name": "spherecf", "timeout": 10.0, **server}
        if unknown := options.keys() - ServerOptions.__annotations__.keys():
            raise TypeError(f"Gallery.open() got an unexpected keyword argument {min(unknown)!r}")
        on_server = is_server(location)
        if not create and not on_server and not Path(location).exists():
            raise InputError(f"{location}: there is no gallery here; enrol a person first")
        if calibration is not None:
            calibration.require(model)
        new = Header.new(model, backbone, dim, radius, secrets.token_hex(16) if on_server else "")
        store: Store
        if on_server:
            reject_plain(location, key)
            store = Server(location, dim, **options)
        else:
            store = open_store(location, dim, key, options["timeout"])
        try:
            facts = store.header()
            if facts is None:
                if not create:
                    raise InputError(f"{location}: there is no gallery here; enrol a person first")
                facts = new.to_dict()
                store.create(facts)
            header = Header.read(facts, location)
            header.check(location, model, backbone, dim, radius)
            return cls(store, header, _stored_rules(store, model) or calibration)
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
        return len(self._index)

    def __contains__(self, identity: str) -> bool:
        return self._store.find(checked_identity(identity)) is not None

    def close(self) -> None:
        """Close the gallery and release its lock. May be called twice."""
        try:
            self._index.close()
        finally:
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
        """Pool images of a person into a template, and store it durably.

        Args:
            identity: name of the person.
            mu: (n, dim) unit directions of the images; n may be 0 with ``add``.
            kappa: (n,) concentrations of the images.
            media: (n,) medium of each image; the frames of a video share a medium. Equal directions in the
                same medium are the same image and count once.
            sources: (n,) origin of each image, e.g. a file name.
            add: add the images to those of an enrolled person. Images that are already enrolled are ignored.
            replace: replace the images of an enrolled person.
            keep: with ``add``, the media of the enrolled images to keep; by default all are kept.

        Raises:
            InputError: the name is already enrolled, and neither ``add`` nor ``replace`` is set; no image
                would be left; or the name or the arrays are not valid. StorageError: the gallery could not be
                written; it is unchanged.
        """
        name = checked_identity(identity)
        self._store.claim()
        self._refresh()
        empty = no_images(self._header.dim)
        no_new_images = add and not len(media) and not len(sources)
        given = empty if no_new_images else check_images(mu, kappa, self._header.dim, media, sources)
        stored = self._store.find(name)
        if stored is not None and not (add or replace):
            raise InputError(f"{name} is already enrolled; use add to add photos, or replace to replace them")
        previous = None if replace else stored
        enrolled = empty if previous is None else self._store.images(previous)
        kept = enrolled.select(
            [i for i, medium in enumerate(enrolled.media) if keep is None or medium in keep]
        )
        added = given.new(kept)
        if previous is not None and not len(added) and len(kept) == len(enrolled):
            return self._enrolled(previous)
        images = kept + added
        if not len(images):
            raise InputError(f"{name}: no image would be left; remove this person instead")
        template = pooled_template(name, images, previous, lambda *pooled: self._review(name, *pooled))
        with self._change():
            row = self._store.put(template, images)
            if stored is not None:
                self._index.drop(np.array([stored.row]))
            self._index.add(np.array([row]), template.mu[None], np.array([template.kappa]))
        return self._enrolled(template)

    def sources(self, identity: str) -> dict[str, str]:
        """Media of the images in a person's template, with the source of the first image of each medium.

        Empty if no person with this name is enrolled.
        """
        self._refresh()
        stored = self._store.find(checked_identity(identity))
        if stored is None:
            return {}
        images, sources = self._store.images(stored), dict[str, str]()
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
        """Enrol many people from one image each, without warnings. People already enrolled are skipped.

        An interrupted call can be repeated to continue.

        Args:
            identities: (n,) distinct names.
            mu: (n, dim) unit directions.
            kappa: (n,) concentrations.
            sources: (n,) origin of each image, e.g. a file name.

        Returns:
            Number of people enrolled by this call.

        Raises:
            InputError: names occur twice, or names or arrays are not valid.
            StorageError: the gallery could not be written.
        """
        names = [checked_identity(identity) for identity in identities]
        images = check_images(mu, kappa, self._header.dim, names, sources)
        if len(set(names)) < len(names):
            raise InputError(f"expected distinct names, but {len(names) - len(set(names))} occur twice")
        self._store.claim()
        self._refresh()
        enrolled = self._store.enrolled(names)
        new = [i for i, name in enumerate(names) if name not in enrolled]
        for start in range(0, len(new), _BATCH):
            templates = [pooled_template(names[i], images.select([i])) for i in new[start : start + _BATCH]]
            with self._change():
                rows = self._store.insert(templates)
                mu = np.stack([template.mu for template in templates])
                self._index.add(np.array(rows), mu, np.array([template.kappa for template in templates]))
        return len(new)

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
        """Identify a probe: the answer is a person in the gallery, unknown or undecided.

        A probe of a person who is not enrolled is compared with N people. By the union bound, a false match
        rate of ``max_fpir / N`` per comparison bounds the false positive identification rate by ``max_fpir``.
        The thresholds are calibrated for that rate, separately for templates of one image and of several.

        Args:
            mu: (dim,) unit direction of the probe.
            kappa: concentration of the probe.
            top: maximum number of candidates to return.
            max_fpir: bound on the fraction of people outside the gallery who are identified as a member.
            threshold: threshold of the mutual likelihood score; overrides the calibrated thresholds.
            exact: search exactly. If false, the index of a server is used, which may miss a person; a file is
                always searched exactly.

        Raises:
            InputError: an array has the wrong shape or NaN, or a value is out of range.
            StorageError: the server does not respond.
        """
        probe, probe_kappa = check_probe(mu, kappa, self._header.dim)
        if not (0 < max_fpir < 1 and top >= 1):
            raise InputError(f"expected 0 < max_fpir < 1 and top >= 1, got {max_fpir} and {top}")
        if threshold is not None and not np.isfinite(threshold):  # with NaN everyone would be unknown
            raise InputError(f"threshold: expected a finite score, got {threshold}")
        self._refresh()
        exact = exact or self._store.embedded
        count = len(self._index)
        fmr = max_fpir / max(count, 1)
        limits = limits_for(self._calibration, fmr, threshold, self._header.radius)
        hits = self._finder.find(probe, probe_kappa, max(top, _MIN_CANDIDATES), exact)
        candidates, hit_limits = self._finder.weighed(hits, limits, probe_kappa)
        answer, identity, reason = decide(candidates, hit_limits, probe_kappa, max_fpir)
        if not exact and answer != "identified":
            reason += " (the search was approximate and may have missed a person)"
        first = None if not hit_limits else hit_limits[0]
        return Identification(
            answer, identity, reason, candidates[:top], max_fpir, count, fmr,
            fmr_used=None if first is None or np.isnan(first.fmr) else first.fmr,
            min_kappa=None if first is None or np.isinf(first.min_kappa) else first.min_kappa,
            exact=exact, scored=hits.scored, tested_on=None if first is None else first.tested_on,
        )  # fmt: skip

    def search(self, mu: ArrayLike, kappa: ArrayLike, *, top: int = 5) -> list[tuple[Candidate, ...]]:
        """Search many probes exactly, faster than one by one.

        Args:
            mu: (n, dim) unit directions of the probes.
            kappa: (n,) concentrations of the probes.
            top: number of candidates per probe.

        Returns:
            The candidates of each probe, highest score first.

        Raises:
            InputError: an array has the wrong shape or NaN, or ``top`` is below 1.
            StorageError: the server does not respond.
        """
        probes = check_images(mu, kappa, self._header.dim)
        if top < 1:
            raise InputError(f"top: expected 1 or more, got {top}")
        self._refresh()
        return [self._finder.candidates(hits) for hits in self._finder.find_all(probes.mu, probes.kappa, top)]

    def remove(self, identity: str, *, erase: bool = True) -> int:
        """Remove a person: template, images and name.

        Args:
            identity: name of the person.
            erase: also erase the data from the write-ahead log. If false, it is erased by the next `compact`,
                or when the gallery is closed.

        Returns:
            Number of templates removed: 0 if no person with this name is enrolled.

        Raises:
            StorageError: the gallery could not be written.
        """
        self._store.claim()
        self._refresh()
        stored = self._store.find(checked_identity(identity))
        if stored is None:
            return 0
        with self._change():
            self._store.remove(stored.identity)
            self._index.drop(np.array([stored.row]))
        if erase:
            self._store.erase()
        return 1

    def compact(self) -> None:
        """Check the gallery file, and rewrite it without removed or replaced data.

        For a gallery on a server, this requests a compaction.

        Raises:
            FileFormatError: the file is damaged.
            StorageError: the gallery could not be written.
        """
        self._store.claim()
        self._refresh()
        self._store.compact()
        self._index.compact()

    def list(self) -> "list[Enrolled]":
        """All enrolled people, sorted by name."""
        self._refresh()
        people = (self._enrolled(template) for page in self._store.templates() for template in page)
        return sorted(people, key=lambda enrolled: enrolled.identity)

    def info(self) -> dict[str, Any]:
        """Facts about the gallery, as a JSON-serialisable dictionary."""
        self._refresh()
        facts = self._header.to_dict()
        facts.pop("salt")
        identities, images = self._store.counts()
        return facts | {
            "uri": self._store.uri,
            "embedded": self._store.embedded,
            "encrypted_with": self._store.encrypted_with,
            "identities": identities,
            "images": images,
            "calibrated": self._calibration is not None,
        }

    def require(self, model: str) -> "Gallery":
        """The gallery itself, if it belongs to this model.

        Raises:
            ModelError: it belongs to another model; the message has both fingerprints.
        """
        self._header.check(self._store.uri, model, "", self._header.dim, self._header.radius)
        return self

    @property
    def calibration(self) -> Calibration | None:
        """The calibration in use: the one stored in the gallery, or that of the model."""
        return self._calibration

    def rates_in_use(self, max_fpir: float = 0.01) -> dict[str, float]:
        """False match rate of the rule that `identify` uses, by score; empty if not calibrated.

        Args:
            max_fpir: as in `identify`.
        """
        fmr = max_fpir / max(len(self._index), 1)
        limits = limits_for(self._calibration, fmr, None, self._header.radius)
        return {limit.score: limit.fmr for limit in limits or ()}

    def claim(self) -> None:
        """Lock the gallery against changes by other processes until it is closed, as every change does.

        Raises:
            StorageError: another process holds the lock, or the folder is not writable.
        """
        self._store.claim()

    def keep_rules(self, calibration: Calibration | None) -> None:
        """Store a calibration in the gallery. All users of the gallery then use it instead of the model's.

        Args:
            calibration: calibration to store; None removes the stored calibration.

        Raises:
            ModelError: the calibration belongs to another model.
            InputError: the gallery is on a server, which cannot store rules.
            StorageError: the gallery could not be written.
        """
        if not self._store.embedded:
            raise InputError(
                f"{self._store.uri}: a gallery on a server cannot store rules; use a model that has them"
            )
        self._store.claim()
        facts = None if calibration is None else calibration.require(self._header.model).to_dict()
        self._store.set_fact(_RULES, "" if facts is None else json.dumps(facts, allow_nan=False))
        self._calibration = calibration
        self._finder = Finder(self._index, self._store, self._header.radius, calibration, None)

    def members(self, limit: int = 1000, *, seed: int = 0) -> Embeddings:
        """Embeddings of the images of randomly chosen members, labelled by name.

        The images of one medium, such as the frames of a video, are averaged into one.

        Args:
            limit: maximum number of members.
            seed: random seed of the choice.

        Raises:
            InputError: the gallery is empty, or ``limit`` is below 1.
            StorageError: the server does not respond.
        """
        self._refresh()
        rows = self._store.rows()
        if not len(rows) or limit < 1:
            raise InputError(
                f"{self._store.uri}: expected members, and limit >= 1: {len(rows)} members, limit {limit}"
            )
        chosen = np.random.default_rng(seed).choice(rows, min(limit, len(rows)), replace=False)
        people = self._store.people(np.sort(chosen))
        parts = [
            (people.mu[i : i + 1], people.kappa[i : i + 1]) if n_images < 2 else self._mean_by_medium(name)
            for i, (name, n_images) in enumerate(zip(people.names, people.images))
        ]
        label = np.repeat(np.arange(len(parts)), [len(kappa) for _, kappa in parts])
        mu, kappa = (np.concatenate(columns) for columns in zip(*parts))
        return Embeddings(
            mu, np.log(np.maximum(kappa, _MIN_KAPPA)), [str(i) for i in range(len(mu))], labels=label,
            identities=people.names, provenance={"model": self._header.model, "radius": self._header.radius},
        )  # fmt: skip

    def _mean_by_medium(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Direction and length of the mean of kappa mu over each medium of a person."""
        template = self._store.find(name)
        images = no_images(self._header.dim) if template is None else self._store.images(template)
        natural = torch.from_numpy(natural_parameter(images.mu, images.kappa))  # (n, dim)
        eta = mean_by(natural, torch.from_numpy(images.medium), len(set(images.media))).double().numpy()
        length = np.linalg.norm(eta, axis=1)
        has_direction = length > 0
        return (eta[has_direction] / length[has_direction, None]).astype(np.float32), length[has_direction]

    def _refresh(self) -> None:
        """Read the changes of other processes."""
        if self._store.refresh() or self._interrupted:
            self._index.follow()
            self._interrupted = False

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Change of store and index. If it is interrupted, the next call synchronises the index."""
        self._interrupted = True
        yield
        self._interrupted = False

    def _review(self, name: str, images: Images, mu: NDArray[np.float32], kappa: float) -> tuple[str, ...]:
        calibration, radius = self._calibration, self._header.radius
        limits = limits_for(calibration, _REVIEW_FPIR / max(len(self._index), 1), None, radius)
        if calibration is None or limits is None:
            return ()
        candidates, hit_limits = self._finder.weighed(
            self._finder.find(mu, kappa, _MIN_CANDIDATES), limits, kappa
        )
        alike = [other for other, _ in matches(candidates, hit_limits or (), kappa) if other.identity != name]
        return review(images, kappa, limits[0].min_kappa, alike, calibration, radius)

    def _enrolled(self, template: Template) -> Enrolled:
        scale = None if self._calibration is None else self._calibration.kappa
        percentile = None if scale is None else float(scale.percentile([template.kappa])[0])
        facts = template.facts
        return Enrolled(
            template.id, template.identity, template.kappa, percentile, template.images, template.media,
            tuple(facts["warnings"]), tuple(facts["sources"]), facts["enrolled"], facts["changed"],
        )  # fmt: skip


def _stored_rules(store: Store, model: str) -> Calibration | None:
    """The calibration that is stored in a gallery."""
    text = store.fact(_RULES) if store.embedded else ""
    if not text:
        return None
    try:
        return Calibration.from_dict(json.loads(text), model=model)
    except InputError as error:  # a newer version may have written them
        raise FileFormatError(store.uri, f"its rules cannot be used: {error}.") from error
    except (ValueError, AttributeError) as error:
        raise store.damaged(f"its rules ({error})") from error
