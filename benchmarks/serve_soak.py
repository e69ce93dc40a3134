"""Half an hour of load: memory, handles and threads of the service over time, latency, lost responses.

    python benchmarks/serve_soak.py [--minutes 30] [--clients 16] [--plot soak.png]

Starts a service with a gallery (one process, with limits too high to matter). Each client sends one request
after the other, in random order: all endpoints, photos with one face, with two and with none, damaged photos,
a template that grows by tickets, people enrolled and removed. A response is lost if it does not arrive, has
an unexpected status, or does not contain the expected text. --plot needs matplotlib.
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
    """State of the service process at one point in time."""

    minutes: float
    megabytes: float
    handles: int
    threads: int


def sample(pid: int, start: float) -> Sample:
    """Read the state of the process from /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes, threads = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("VmRSS", "Threads"))
    handles = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Sample((time.perf_counter() - start) / 60, kilobytes / 1e3, handles, threads)


class Clients:
    """Clients, their response times and their lost requests."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.answers: list[tuple[float, float]] = []  # (time of arrival, seconds since the request)
        self.lost: list[str] = []
        people = orl_faces()
        self.photo = photo_bytes(None)
        self.more = [people.read(row) for row in (1, 2)]
        pair = np.hstack([people.image(0), people.image(13)])
        self.two = cv2.imencode(".png", pair[..., ::-1])[1].tobytes()

    async def request(self, method: str, path: str, expected: str = "", **fields: bytes | str) -> Any:
        """Send a request and record it as answered or lost; returns None if it is lost."""
        headers, body = form(**fields) if fields else ({}, b"")
        start = time.perf_counter()
        try:
            response = await self.client.request(method, f"/api/{path}", content=body, headers=headers)
        except httpx.TransportError as error:
            return self.lost.append(f"{path}: {error!r}")
        if response.status_code != 200 or expected not in response.text:
            return self.lost.append(f"{path}: {response.status_code} {response.text[:200]}")
        self.answers.append((time.perf_counter(), time.perf_counter() - start))
        return response.json()

    async def run(self, number: int, end: float) -> None:
        """Requests of one client until the end."""
        rng = random.Random(number)
        actions = self.quality, self.quality, self.bad, self.compare, self.template, self.person
        while time.perf_counter() < end:
            await rng.choice(actions)(number)

    async def quality(self, number: int) -> None:
        """Photos with one face and with two."""
        await self.request("POST", "quality", '"kappa"', photo=self.photo)
        await self.request("POST", "quality", '"box"', photo=self.two)

    async def bad(self, number: int) -> None:
        """A truncated photo and one that is no image; then the endpoints without a photo."""
        await self.request("POST", "quality", '"truncated"', photo=self.photo[:5000])
        await self.request("POST", "quality", '"not_an_image"', photo=b"nothing")
        for path in ("health", "info", "gallery", "gallery/identities", "openapi.json"):
            await self.request("GET", path, "{")

    async def compare(self, number: int) -> None:
        """Two photos of one person."""
        await self.request("POST", "compare", '"decision"', left=self.photo, right=self.more[0])

    async def template(self, number: int) -> None:
        """A template of one photo, and the same template again by its ticket."""
        template = await self.request("POST", "template", '"ticket"', photos=self.photo, tickets="true")
        if template is not None:
            ticket = template["photos"][0]["ticket"].encode()
            await self.request("POST", "template", '"grown"', photos=ticket)

    async def person(self, number: int) -> None:
        """Enrol, identify and remove a person."""
        name = f"client {number}"
        fields = {"identity": name, "consent": "true"}
        await self.request("POST", "gallery/identities", name, photos=self.photo, **fields)
        await self.request("POST", "gallery/identify", '"answer"', photo=self.more[1])
        await self.request("DELETE", f"gallery/identities/{name}", '"removed"')


async def soak(address: str, pid: int, minutes: float, clients: int) -> tuple[Clients, list[Sample]]:
    """Run the clients for the given time; print a row each tenth of it."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(
        base_url=address, headers=headers, timeout=120.0, trust_env=False, limits=limits
    ) as client:
        all_clients, start, samples = Clients(client), time.perf_counter(), []
        end, tenth = start + 60 * minutes, 1
        tasks = [asyncio.create_task(all_clients.run(number, end)) for number in range(clients)]
        print("| minute | answers | lost | p50 ms | p99 ms | MB | handles | threads |\n" + "|---" * 8 + "|")
        while not all(task.done() for task in tasks):
            await asyncio.sleep(min(5.0, minutes))
            samples.append(sample(pid, start))
            if samples[-1].minutes >= tenth * minutes / 10:
                print_row(all_clients, samples, start + 60 * minutes * (tenth - 1) / 10)
                tenth += 1
        await asyncio.gather(*tasks)
        return all_clients, samples


def print_row(clients: Clients, samples: list[Sample], since: float) -> None:
    """Print the responses since a point in time, and the last sample."""
    seconds = [elapsed for arrival, elapsed in clients.answers if arrival >= since]
    p50, p99 = 1e3 * np.percentile(seconds or [0.0], [50, 99])
    minutes, megabytes, handles, threads = samples[-1]
    row = f"| {minutes:.1f} | {len(seconds)} | {len(clients.lost)} | {p50:.0f} | {p99:.0f} "
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
    arrival, elapsed = np.array(clients.answers).T
    begin = arrival[-1] - 60 * minutes[-1]
    minute = ((arrival - begin) / 60).astype(int)
    tails = [np.percentile(elapsed[minute == number], 99) for number in np.unique(minute)]
    axes[3].plot(np.unique(minute), tails)
    axes[3].set(ylabel="p99 (s)", xlabel="minutes", ylim=(0, 1.2 * max(tails)))
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run the soak test and print the table."""
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
    seconds = [elapsed for _, elapsed in clients.answers]
    p50, p99 = np.percentile(seconds, [50, 99])
    first, last = samples[len(samples) // 10], samples[-1]
    print(f"\n{len(seconds)} answers to {options.clients} clients in {last.minutes:.1f} minutes, ", end="")
    print(f"{len(clients.lost)} lost; p50 {p50:.2f} s, p99 {p99:.2f} s, longest {max(seconds):.2f} s")
    for name, before, after in zip(Sample._fields[1:], first[1:], last[1:]):
        peak = max(getattr(state, name) for state in samples)
        print(f"{name}: {before:.0f} after a tenth of the time, {after:.0f} at the end, peak {peak:.0f}")
    print(*clients.lost[:20], sep="\n")
    if options.plot:
        plot(samples, clients, options.plot)


if __name__ == "__main__":
    main()
