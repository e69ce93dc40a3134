"""benchmarks/gpu.py: every section runs on the CPU with toy sizes, and its helpers work as documented."""

import json
import math
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import gpu
from typer.testing import CliRunner

from spherecf.training import join_ranks

ROOT = Path(__file__).parents[1]
# For each section, a measurement that it must report: part of its name, and the unit.
MEASURED = {
    "correct": ("stage 2, streamed: first loss", ""),
    "ceilings": ("copy within the device", "GB/s"),
    "loader": ("2 processes", "images/s"),
    "stage1": ("r18, batch 8, synthetic", "images/s"),
    "records": ("after the last step, with a checkpoint", "s"),
    "stage2": ("streamed, linear head", "images/s"),
    "classifier": ("1,000 identities", "ms"),
    "scores": ("mutual likelihood matrix", "ms"),
    "normaliser": ("log C_512, value and gradient", "ns"),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpu.Bench]:
    with join_ranks("cpu") as ranks:
        yield gpu.Bench(ranks, gpu.SMALL, tmp_path_factory.mktemp("gpu"), False, False)


@pytest.mark.slow
@pytest.mark.parametrize("section", gpu.SECTIONS)
def test_section_reports_finite_measurements(section: str, bench: gpu.Bench) -> None:
    rows = list(gpu.run_section(section, bench))
    assert [row.note for row in rows if row.failed] == []
    assert rows[-1].work == "time of this section" and rows[-1].value > 0
    work, unit = MEASURED[section]
    matches = [row for row in rows if work in row.work]
    assert matches and all(
        row.unit == unit and (0 < row.value < math.inf or section == "correct")
        for row in matches
        if ":" not in row.work
    )


def test_a_failed_section_reports_its_error(bench: gpu.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: gpu.Bench) -> Iterator[gpu.Row]:
        yield gpu.Row("broken", "first", 1.0)
        raise ValueError("no such card")

    monkeypatch.setitem(gpu.SECTIONS, "broken", broken)
    first, failed, duration = gpu.run_section("broken", bench)
    assert first.value == 1 and duration.unit == "s"
    assert failed.failed and failed.note == "ValueError: no such card"


def test_a_section_ends_with_its_share_of_the_time(bench: gpu.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(bench: gpu.Bench) -> Iterator[gpu.Row]:
        yield gpu.Row("slow", "first", 1.0)
        while True:
            time.sleep(0.01)

    monkeypatch.setitem(gpu.SECTIONS, "slow", slow)
    before = signal.getsignal(signal.SIGALRM)
    first, failed, duration = gpu.run_section("slow", bench, 0.5)
    assert first.value == 1 and failed.failed and duration.value >= 0.5
    assert failed.note == "OutOfTime: stopped after 0 s, its share of --minutes"
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_shares_of_the_time_add_up_to_it() -> None:
    assert gpu.ends(["stage1"], 2) == [120]
    every = gpu.ends(list(gpu.SECTIONS), 5.5)
    assert every == sorted(every) and every[0] == 45 and every[-1] == pytest.approx(330)


def test_after_a_lost_device_the_other_sections_run_in_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    app, commands = typer.Typer(), []
    app.command()(gpu.main)

    plain_run = subprocess.run  # also asks git for the commit

    def run(command: list[str], **options: Any) -> Any:
        if "--only" not in command:
            return plain_run(command, **options)
        commands.append(command)
        row = gpu.plain_numbers(gpu.Row("scores", "product", 3.0, "ms"))
        Path(command[command.index("--json") + 1]).write_text(json.dumps({"rows": [row]}))
        return SimpleNamespace(returncode=0)

    def broken(bench: gpu.Bench) -> Iterator[gpu.Row]:
        yield gpu.Row("ceilings", "first", 1.0)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(gpu.SECTIONS, "ceilings", broken)
    monkeypatch.setattr(gpu, "is_lost", lambda bench: True)
    monkeypatch.setattr(subprocess, "run", run)
    options = ["--device", "cpu", "--small", "--json", str(tmp_path / "rows.json")]
    result = CliRunner().invoke(app, [*options, "--only", "ceilings,scores,normaliser", "--minutes", "3"])
    assert result.exit_code == 1
    (command,) = commands
    assert command[command.index("--only") + 1] == "scores,normaliser" and "--small" in command
    assert 2 < float(command[command.index("--minutes") + 1]) <= 3
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["section"] for row in rows] == ["ceilings"] * 3 + ["scores"]
    assert rows[-1]["value"] == 3 and rows[-1]["share"] is None


def test_busy_time_counts_overlapping_kernels_once() -> None:
    kind = torch.autograd.DeviceType

    def event(start: int, length: int, name: str = "kernel", device: object = kind.CUDA) -> object:
        return SimpleNamespace(
            start_ns=lambda: start, duration_ns=lambda: length, name=lambda: name, device_type=lambda: device
        )

    def profiler(*events: object) -> object:
        results = SimpleNamespace(events=lambda: events)
        return SimpleNamespace(profiler=SimpleNamespace(kineto_results=results))

    overlapping = event(0, 10), event(5, 10), event(7, 1), event(30, 10)  # 15 and 10 of 40
    elsewhere = event(15, 10, device=kind.CPU), event(0, 40, "Optimizer.step#SGD.step")
    assert gpu.busy(profiler(*overlapping, *elsewhere), cuda=True) == 25 / 40
    assert math.isnan(gpu.busy(profiler(*elsewhere), cuda=True))


def test_steps_are_observed_through_optimizer_hooks(
    bench: gpu.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: waits are torch's synchronisation warnings, counted only while this debug mode is on."""
    modes = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(bench, "cuda", True)
    first, second = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0) for _ in range(2))
    n_steps = 0
    with gpu.Steps(bench, gpu.SMALL.first, finish=False) as steps:
        while True:
            if modes[-1:] == ["warn"]:
                warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
                warnings.warn("something else", stacklevel=1)
            first.step()
            second.step()
            n_steps += 1
    assert n_steps == gpu.SMALL.first.steps - 1  # the last step ended the training
    assert steps.waits.total() == gpu.SMALL.first.traced and next(iter(steps.waits)).startswith(
        Path(__file__).name
    )
    assert modes == ["warn", "default"] and steps.peak == 7
    assert steps.trouble  # without a GPU there is no profile
    assert all(seconds >= 0 for seconds in steps.seconds)


def test_too_few_steps_are_an_error(bench: gpu.Bench) -> None:
    refused = pytest.raises(
        RuntimeError, match=f"the training took 0 steps, expected {gpu.SMALL.first.steps}"
    )
    with refused, gpu.Steps(bench, gpu.SMALL.first, finish=True):
        pass


@pytest.mark.slow
def test_command_runs_from_another_folder(tmp_path: Path) -> None:
    """In its own process and from another folder, as a user with a GPU would run it."""
    options = ["--device", "cpu", "--small", "--only", "ceilings", "--json", str(tmp_path / "rows.json")]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *options]
    completed = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert completed.returncode == 0, completed.stderr
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["card"] == "cpu" and content["environment"]["torch"] == torch.__version__
    assert {row["section"] for row in content["rows"]} == {"ceilings"}
    assert all(isinstance(row["value"], float) for row in content["rows"])
    assert "copy within the device" in completed.stdout


def test_unknown_sections_are_refused() -> None:
    import typer

    app = typer.Typer()
    app.command()(gpu.main)
    result = CliRunner().invoke(app, ["--only", "ceilings,everything"])
    assert result.exit_code == 2 and "everything: the sections are correct, ceilings" in result.output
