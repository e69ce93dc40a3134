"""The attacked jobs: the function behind each command, on tiny data, and the result it must leave."""

import hashlib
import json
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch._dynamo  # the first optimiser imports it: once here rather than in every trial
import torch.distributed.nn.functional  # noqa: F401
from tests.photos.conftest import DIM, RADIUS, face, photo
from tests.tiny import tiny_model, write_people
from tests.training.rank_jobs import config as backbone_config, images

from spherecf.common import rowstore
from spherecf.common.version import environment
from spherecf.data import IdentityFolder, PairList, training_views
from spherecf.embeddings import Embeddings
from spherecf.evaluation import PairOptions, evaluate_pairs
from spherecf.extract import embed
from spherecf.gallery import Gallery, gallery as gallery_module, index
from spherecf.models import ConfidenceModel
from spherecf.photos import (
    FaceAssessor,
    assess_files,
    copy_photos,
    enrol_folders,
    find_photos,
    people_of,
    ranked_faces,
    write_csv,
    write_list,
)
from spherecf.report import write_report
from spherecf.training import (
    ConfidenceConfig,
    Ranks,
    build_cache,
    checkpoint,
    join_ranks,
    train_backbone,
    train_confidence,
)
from spherecf.training.confidence import new_head

Facts = dict[str, Any]
CARELESS = "careless"
Acknowledge = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        run: works in a folder and reports completed steps to the function given; continues if run again.
        result: the result of a finished run, without times.
        start: prepares the folder.
        surviving: lists the acknowledged texts whose effect can be seen in a folder through the public API;
            None if only the whole result can be checked.
        ranks: number of processes that share the work.
        weight: number of trials relative to other jobs; below 1 for slow jobs.
    """

    run: Callable[[Path, Acknowledge], None]
    result: Callable[[Path], Facts]
    start: Callable[[Path], None] = lambda folder: None
    surviving: Callable[[Path], set[str]] | None = None
    ranks: int = 1
    weight: float = 1.0


def small_batches() -> None:
    """Commit every batch, index even small galleries, and do not wait a minute for a killed rank's files."""
    rowstore._COMMIT_BYTES, gallery_module._BATCH, index._TAIL, checkpoint._MAX_WAIT = 0, 8, 16, 5.0


def prepare_forks() -> None:
    """Read the state of the checkout once, and run no thread that a fork would lack."""
    environment()
    cv2.setNumThreads(1)


@dataclass
class World:
    """The inputs, created once; jobs only read them."""

    folder: Path
    model: ConfidenceModel = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = tiny_model(self.folder)
        write_people(self.folder, people=4, pictures=4)
        for number in range(6):
            person = self.folder / "photos" / f"person {number}"
            person.mkdir(parents=True)
            for shot in range(2):
                (person / f"{shot}.jpg").write_text(str(10 * number + shot))

    @property
    def source(self) -> IdentityFolder:
        return IdentityFolder(self.folder / "people")


class SeededAssessor(FaceAssessor):
    """Assessor without a network: each photo is a text file with a number, the seed of its face direction."""

    def __init__(self, model: ConfidenceModel) -> None:
        self.model, self.which, self.max_pixels, self.detector = model, "main", 10**6, None

    def stream(self, photos: Any, **_: Any) -> Iterator[Any]:
        for name, path in photos:
            seed = int(path.read_text())
            yield photo(name, face(np.random.default_rng(seed).standard_normal(DIM), 100.0 + seed))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def on_ranks(size: int, work: Callable[[Ranks], None]) -> None:
    """Run the work on ranks that are forks of this process."""
    if size == 1:
        work(Ranks())
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in variables.items()}
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            try:
                with join_ranks("cpu") as ranks:
                    work(ranks)
            except BaseException as error:  # while the exception is held, as in `run_command`
                os._exit(code_of(error))
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RanksFailed(codes)


class RanksFailed(Exception):
    """Exit codes of the ranks."""


REFUSED, INTERRUPTED, BROKEN = 3, 130, 99


def code_of(error: BaseException) -> int:
    """Exit code of a trial: SphereCF's own error, an interruption, failed ranks, or anything else."""
    from spherecf.errors import SpherecfError

    if isinstance(error, RanksFailed):
        (codes,) = error.args
        return max((code for code in codes if code > 0), default=-min(codes))
    if isinstance(error, SpherecfError):
        os.write(2, f"refused: {error}\n".encode())
        return REFUSED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    os.write(2, "".join(traceback.format_exception(error)).encode())
    return BROKEN


def _embed(world: World) -> Job:
    def run(folder: Path, acknowledge: Acknowledge) -> None:
        embed(world.model, world.source, folder / "out.safetensors", batch_size=2, flip=True)
        acknowledge("written")

    def result(folder: Path) -> Facts:
        embeddings = Embeddings.load(folder / "out.safetensors")
        facts = {name: value for name, value in embeddings.provenance.items() if name != "seconds"}
        return {"print": embeddings.fingerprint(), "extras": sorted(embeddings.extras), "facts": facts}

    return Job(run, result)


def _cache(world: World, ranks: int) -> Job:
    views, head = training_views(1), new_head(world.model.backbone, ConfidenceConfig())

    def run(folder: Path, acknowledge: Acknowledge) -> None:
        def fill(ranks: Ranks) -> None:
            build_cache(
                world.model.backbone, head, world.source, views, folder / "cache", batch_size=4, ranks=ranks
            )

        on_ranks(ranks, fill)
        acknowledge("filled")

    def result(folder: Path) -> Facts:
        state = json.loads((folder / "cache" / "state.json").read_bytes())
        return {path.name: sha(path) for path in folder.glob("cache/*.bin")} | {"done": state["done"]}

    return Job(run, result, ranks=ranks, weight=1 / ranks)


def _backbone(ranks: int) -> Job:
    settings = backbone_config(
        engine={"save_minutes": 1e-9}, network={"options": {"size": 32, "width": 0.125}}
    )

    def run(folder: Path, acknowledge: Acknowledge) -> None:
        on_ranks(
            ranks, lambda ranks: train_backbone(images(), folder / "run", settings, ranks=ranks) and None
        )
        acknowledge("trained")

    return Job(run, _files("run"), ranks=ranks, weight=1 / ranks)


def _confidence(world: World, ranks: int) -> Job:
    fit = {"epochs": 2, "batch_size": 8, "held_out": 0.3}
    settings = ConfidenceConfig.from_dict(
        {"views": {"degraded": 1}, "fit": fit, "engine": {"save_minutes": 1e-9}}
    )

    def run(folder: Path, acknowledge: Acknowledge) -> None:
        on_ranks(
            ranks,
            lambda ranks: (
                train_confidence(
                    world.model.backbone, world.source, folder / "run", settings, batch_size=4, ranks=ranks
                )
                and None
            ),
        )
        acknowledge("trained")

    return Job(run, _files("run"), ranks=ranks, weight=1 / ranks)


def _files(name: str) -> Callable[[Path], Facts]:
    """Hashes of the models and the history of a training."""

    def result(folder: Path) -> Facts:
        return {path.name: sha(path) for path in (folder / name).glob("*") if path.is_file()}

    return result


@contextmanager
def opened(folder: Path, create: bool = True) -> Iterator[Gallery]:
    """The gallery of a trial."""
    with Gallery.open(folder / "g", model="m" * 64, dim=DIM, radius=RADIUS, create=create) as gallery:
        yield gallery


def _listed(folder: Path, removed: range = range(0)) -> Facts:
    """The gallery without times, and the numbers of removed people whose direction a file still contains."""
    with opened(folder, create=False) as gallery:
        people = [entry.to_dict() for entry in gallery.list()]
        for person in people:
            del person["enrolled"], person["changed"]  # times
        candidate_lists = gallery.search(directions()[:4], np.full(4, 200.0), top=3)
        facts: Facts = {
            "people": people,
            "media": [gallery.sources(person["identity"]) for person in people],
            "found": [[(match.identity, match.score) for match in matches] for matches in candidate_lists],
        }
    files = [path.read_bytes() for path in folder.iterdir() if path.is_file()]
    facts["left"] = [
        number for number in removed if any(directions()[number].tobytes() in data for data in files)
    ]
    return facts


@cache
def directions() -> np.ndarray:
    """(40, DIM) unit directions."""
    mu = np.random.default_rng(3).standard_normal((40, DIM)).astype(np.float32)
    unit: np.ndarray = mu / np.linalg.norm(mu, axis=1, keepdims=True)
    return unit


REMOVED = range(0, 40, 2)  # numbers of the people that a job removes


def _names(folder: Path) -> set[str]:
    if not (folder / "g").exists():
        return set()
    with opened(folder) as gallery:
        return {person.identity for person in gallery.list()}


def _folders(world: World) -> Job:
    assessor = SeededAssessor(world.model)

    def run(folder: Path, acknowledge: Acknowledge) -> None:
        with opened(folder) as gallery:
            for result in enrol_folders(gallery, assessor, people_of(world.folder / "photos")):
                acknowledge(result.identity)

    return Job(run, _listed, surviving=_names)


def _bulk() -> Job:
    def run(folder: Path, acknowledge: Acknowledge) -> None:
        names = [f"person {number}" for number in range(len(directions()))]
        with opened(folder) as gallery:
            gallery.enrol_many(names, directions(), np.full(len(names), 300.0), sources=names)
        acknowledge("person 39")

    return Job(run, _listed, surviving=_names)


def _compact() -> Job:
    def start(folder: Path) -> None:
        _bulk().run(folder, lambda text: None)
        with opened(folder) as gallery:
            for number in REMOVED:
                gallery.remove(f"person {number}", erase=False)

    def run(folder: Path, acknowledge: Acknowledge) -> None:
        with opened(folder) as gallery:
            gallery.compact()
        acknowledge("person 1")

    return Job(run, partial(_listed, removed=REMOVED), start, _names)


def _remove() -> Job:
    def run(folder: Path, acknowledge: Acknowledge) -> None:
        with opened(folder) as gallery:
            for number in REMOVED:
                gallery.remove(f"person {number}")
                acknowledge(f"-person {number}")

    def surviving(folder: Path) -> set[str]:
        return {f"-person {number}" for number in range(40)} - {f"-{name}" for name in _names(folder)}

    bulk = _bulk()
    result = partial(_listed, removed=REMOVED)
    return Job(run, result, lambda folder: bulk.run(folder, lambda text: None), surviving)


def _quality(world: World) -> Job:
    assessor = SeededAssessor(world.model)

    def run(folder: Path, acknowledge: Acknowledge) -> None:
        photos = find_photos([world.folder / "photos"]).photos
        rows = []
        for record in assess_files(photos, assessor, resume=folder / "done.jsonl"):
            rows.append(record)
        for record in rows:
            acknowledge(record["photo"])
        ranked = ranked_faces(rows)
        write_csv(folder / "faces.csv", ranked)
        write_list(folder / "kept.txt", [row["photo"] for row in ranked])
        copy_photos(photos[:4], folder / "kept")
        acknowledge("written")

    def surviving(folder: Path) -> set[str]:
        journal, csv = folder / "done.jsonl", folder / "faces.csv"
        complete_lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
        names = {json.loads(line)["record"]["photo"] for line in complete_lines if b"\0" not in line}
        return names | ({"written"} if csv.exists() else set())

    def result(folder: Path) -> Facts:
        return {str(path.relative_to(folder)): sha(path) for path in folder.rglob("*") if path.is_file()}

    return Job(run, result, surviving=surviving)


def _report() -> Job:
    e = Embeddings(np.eye(8, 9), np.full(8, 5.0), list("abcdefgh"))
    mated, fold = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    pairs = PairList("toy", list("abcd"), list("efgh"), mated, fold)
    report = evaluate_pairs(e, e, pairs, PairOptions(draws=0))

    def run(folder: Path, acknowledge: Acknowledge) -> None:
        write_report(folder / "report", [report], title="Toy")
        acknowledge("written")

    return Job(run, _files("report"), weight=0.25)


def _careless() -> Job:
    """Appends to a file without sync or check for earlier lines; the harness must detect this."""

    def run(folder: Path, acknowledge: Acknowledge) -> None:
        for number in range(4):
            with (folder / "lines").open("a") as stream:
                stream.write(f"{number}\n")
            acknowledge(str(number))

    def surviving(folder: Path) -> set[str]:
        return set((folder / "lines").read_text().split()) if (folder / "lines").exists() else set()

    def result(folder: Path) -> Facts:
        return {"lines": sorted(surviving(folder)), "size": sha(folder / "lines")}

    return Job(run, result, surviving=surviving)


def make_jobs(world: World) -> dict[str, Job]:
    """All jobs by name, including the careless one."""
    return {
        CARELESS: _careless(),
        "embed": _embed(world),
        "cache pass": _cache(world, 1),
        "cache pass, 2 ranks": _cache(world, 2),
        "stage 1": _backbone(1),
        "stage 1, 2 ranks": _backbone(2),
        "stage 2": _confidence(world, 1),
        "stage 2, 2 ranks": _confidence(world, 2),
        "gallery enrol --folders": _folders(world),
        "bulk enrolment": _bulk(),
        "gallery remove": _remove(),
        "gallery compact": _compact(),
        "quality --resume": _quality(world),
        "report": _report(),
    }
