"""A served half hour: memory, handles and threads of the service over time, latency, lost answers.

    python benchmarks/serve_soak.py [--minutes 30] [--clients 16] [--plot soak.png]

Starts a service with a gallery (one process, its limits out of the way). Each client asks one thing after the
other, in random order: all addresses, photos with one face, with two, with none, damaged ones, a template
that grows by tickets, people enrolled and removed. An answer is lost if it does not come, has another status
than it should have, or does not hold what it should. --plot needs matplotlib.
"""

import argparse
import asyncio
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import httpx
import numpy as np
from serve_load import TOKEN, form, photo_bytes, service

from spherecf.data import orl_faces


class Sample(NamedTuple):
    """The service at one time."""

    minutes: float
    megabytes: float
    handles: int
    threads: int


def sample(pid: int, start: float) -> Sample:
    """What the system says of the process."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes, threads = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("VmRSS", "Threads"))
    handles = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Sample((time.perf_counter() - start) / 60, kilobytes / 1e3, handles, threads)


class Clients:
    """Clients that ask, and what became of their questions."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.answers: list[tuple[float, float]] = []  # (when it came, seconds that it took)
        self.lost: list[str] = []
        people = orl_faces()
        self.photo = photo_bytes(None)
        self.more = [people.read(row) for row in (1, 2)]
        pair = np.hstack([people.image(0), people.image(13)])
        self.two = cv2.imencode(".png", pair[..., ::-1])[1].tobytes()

    async def ask(self, method: str, path: str, holds: str = "", **fields: bytes | str) -> Any:
        """The answer, noted as come or lost; None if lost."""
        headers, body = form(**fields) if fields else ({}, b"")
        start = time.perf_counter()
        try:
            answer = await self.client.request(method, f"/api/{path}", content=body, headers=headers)
        except httpx.TransportError as error:
            return self.lost.append(f"{path}: {error!r}")
        if answer.status_code != 200 or holds not in answer.text:
            return self.lost.append(f"{path}: {answer.status_code} {answer.text[:200]}")
        self.answers.append((time.perf_counter(), time.perf_counter() - start))
        return answer.json()

    async def run(self, who: int, end: float) -> None:
        """One client."""
        choice = random.Random(who)
        while time.perf_counter() < end:
            await choice.choice((self.look, self.look, self.bad, self.compare, self.template, self.person))(
                who
            )

    async def look(self, who: int) -> None:
        """Photos of one face and of two."""
        await self.ask("POST", "quality", '"kappa"', photo=self.photo)
        await self.ask("POST", "quality", '"box"', photo=self.two)

    async def bad(self, who: int) -> None:
        """Photos without end, and no photo; the small addresses."""
        await self.ask("POST", "quality", '"truncated"', photo=self.photo[:5000])
        await self.ask("POST", "quality", '"not_an_image"', photo=b"nothing")
        for path in ("health", "info", "gallery", "gallery/identities", "openapi.json"):
            await self.ask("GET", path, "{")

    async def compare(self, who: int) -> None:
        """Two photos of one person."""
        await self.ask("POST", "compare", '"decision"', left=self.photo, right=self.more[0])

    async def template(self, who: int) -> None:
        """A template of two photos, the first of them by its ticket."""
        found = await self.ask("POST", "template", '"ticket"', photos=self.photo, tickets="true")
        if found is not None:
            ticket = found["photos"][0]["ticket"].encode()
            await self.ask("POST", "template", '"grown"', photos=ticket)

    async def person(self, who: int) -> None:
        """Somebody is enrolled, looked for, and removed."""
        name = f"client {who}"
        fields = {"identity": name, "consent": "true"}
        await self.ask("POST", "gallery/identities", name, photos=self.photo, **fields)
        await self.ask("POST", "gallery/identify", '"answer"', photo=self.more[1])
        await self.ask("DELETE", f"gallery/identities/{name}", '"removed"')


async def soak(address: str, pid: int, minutes: float, clients: int) -> tuple[Clients, list[Sample]]:
    """Ask for so long; print a row each tenth of the time."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(
        base_url=address, headers=headers, timeout=120.0, trust_env=False, limits=limits
    ) as client:
        all_of_them, start, samples = Clients(client), time.perf_counter(), []
        end, told = start + 60 * minutes, 1
        tasks = [asyncio.create_task(all_of_them.run(who, end)) for who in range(clients)]
        print("| minute | answers | lost | p50 ms | p99 ms | MB | handles | threads |\n" + "|---" * 8 + "|")
        while not all(task.done() for task in tasks):
            await asyncio.sleep(min(5.0, minutes))
            samples.append(sample(pid, start))
            if samples[-1].minutes >= told * minutes / 10:
                tell(all_of_them, samples, start + 60 * minutes * (told - 1) / 10)
                told += 1
        await asyncio.gather(*tasks)
        return all_of_them, samples


def tell(clients: Clients, samples: list[Sample], since: float) -> None:
    """Print the answers since then, and the last sample."""
    seconds = [took for came, took in clients.answers if came >= since]
    p50, p99 = 1e3 * np.percentile(seconds or [0.0], [50, 99])
    at, megabytes, handles, threads = samples[-1]
    row = f"| {at:.1f} | {len(seconds)} | {len(clients.lost)} | {p50:.0f} | {p99:.0f} "
    print(row + f"| {megabytes:.0f} | {handles} | {threads} |", flush=True)


def plot(samples: list[Sample], clients: Clients, path: Path) -> None:
    """Memory, handles, threads and p99 over the minutes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots(4, sharex=True)
    minutes, *rest = zip(*samples)
    for axis, values, name in zip(axes, rest, ("memory (MB)", "open handles", "threads")):
        axis.plot(minutes, values)
        axis.set(ylabel=name, ylim=(0, 1.2 * max(values)))
    came, took = np.array(clients.answers).T
    begin = came[-1] - 60 * minutes[-1]
    minute = ((came - begin) / 60).astype(int)
    tails = [np.percentile(took[minute == one], 99) for one in np.unique(minute)]
    axes[3].plot(np.unique(minute), tails)
    axes[3].set(ylabel="p99 (s)", xlabel="minutes", ylim=(0, 1.2 * max(tails)))
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        service(options.clients, str(Path(folder) / "people")) as (address, pid),
    ):
        clients, samples = asyncio.run(soak(address, pid, options.minutes, options.clients))
    took = [seconds for _, seconds in clients.answers]
    p50, p99 = np.percentile(took, [50, 99])
    first, last = samples[len(samples) // 10], samples[-1]
    print(f"\n{len(took)} answers to {options.clients} clients in {last.minutes:.1f} minutes, ", end="")
    print(f"{len(clients.lost)} lost; p50 {p50:.2f} s, p99 {p99:.2f} s, longest {max(took):.2f} s")
    for name, before, after in zip(Sample._fields[1:], first[1:], last[1:]):
        most = max(getattr(one, name) for one in samples)
        print(f"{name}: {before:.0f} after a tenth of the time, {after:.0f} at the end, at most {most:.0f}")
    print(*clients.lost[:20], sep="\n")
    if options.plot:
        plot(samples, clients, options.plot)


if __name__ == "__main__":
    main()
