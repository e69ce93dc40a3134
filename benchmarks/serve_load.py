"""Cost of the service per photo: latency, requests per second, memory, and the same work without a service.

    python benchmarks/serve_load.py [--clients 1 8] [--requests 400] [--turns 20] [--photo FILE]
    python benchmarks/serve_load.py --address http://127.0.0.1:8080 --token TOKEN

The first form starts a service (one process, with limits too high to matter). N clients in this process each
wait for a response before they send the next request; every response must contain a face. Then this process
calls `FaceAssessor` itself on the same photo, one by one and as a stream. Finally, one client and plain
Python take turns, ten photos each, and the client's throughput is printed as a share of plain Python's, so
that other work on the machine affects both alike. The default photo is an ORL face, enlarged four times, as
JPEG. Both sides use OMP_NUM_THREADS threads. On a busy machine compare CPU times.
"""

import argparse
import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np

from spherecf.data import orl_faces
from spherecf.photos import FaceAssessor

TOKEN = "only-for-this-load-test"


def photo_bytes(path: Path | None) -> bytes:
    """The photo that all clients send."""
    if path is not None:
        return path.read_bytes()
    larger = cv2.resize(orl_faces().image(0)[..., ::-1], None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", larger)[1].tobytes()


def form(**fields: bytes | str) -> tuple[dict[str, str], bytes]:
    """(headers, body) of a multipart form: values of type bytes are photos, strings are text fields."""
    parts = []
    for name, value in fields.items():
        file = f'; filename="{name}.jpg"' if isinstance(value, bytes) else ""
        head = f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts += [head.encode(), value if isinstance(value, bytes) else value.encode(), b"\r\n"]
    return {"Content-Type": "multipart/form-data; boundary=b"}, b"".join(parts) + b"--b--\r\n"


@contextmanager
def service(pending: int, gallery: str = "") -> Iterator[tuple[str, int]]:
    """Start a service in a separate process; yields (address, process id)."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = (
        "from spherecf.cli.options import open_gallery; from spherecf.photos import FaceAssessor;"
        "from spherecf.serve import Limits, create_app, run;"
        f"limits = Limits(requests_per_minute=1e9, burst=10**9, max_pending={pending});"
        f"assess, at = FaceAssessor(), {gallery!r};"
        "people = open_gallery(at, assess.model, '') if at else None;"
        f"run(create_app(assess, people, token={TOKEN!r}, limits=limits), '127.0.0.1', {port})"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{address}/api/health", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait()


async def load(
    address: str, token: str, photo: bytes, clients: int, requests: int
) -> tuple[list[float], int, float]:
    """(seconds of each successful request, number of errors, total seconds)."""
    seconds: list[float] = []
    errors = 0
    headers, body = form(photo=photo)
    remaining = iter(range(requests))  # shared by all clients

    async def one_client(client: httpx.AsyncClient) -> None:
        nonlocal errors
        for _ in remaining:
            start = time.perf_counter()
            try:
                response = await client.post("/api/quality", content=body, headers=headers)
                succeeded = response.status_code == 200 and bool(response.json()["faces"])
            except httpx.TransportError:
                succeeded = False
            if succeeded:
                seconds.append(time.perf_counter() - start)
            errors += not succeeded

    options = {"base_url": address, "headers": {"Authorization": f"Bearer {token}"}, "timeout": 120.0}
    async with httpx.AsyncClient(trust_env=False, **options) as client:
        await client.post("/api/quality", content=body, headers=headers)
        start = time.perf_counter()
        await asyncio.gather(*(one_client(client) for _ in range(clients)))
        return seconds, errors, time.perf_counter() - start


def memory(pid: int, field: str) -> float:
    """Memory of a process in MB: VmRSS (current) or VmHWM (peak); 0 if the system does not provide it."""
    status = Path(f"/proc/{pid}/status")
    match = re.search(rf"{field}:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(match[1]) / 1e3 if match else 0.0


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, summed over threads; 0 if the system does not provide it."""
    stat = Path(f"/proc/{pid}/stat")
    if not pid or not stat.exists():
        return 0.0
    ticks = stat.read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def direct(assess: FaceAssessor, photo: bytes, count: int) -> None:
    """Print the throughput of this process without a service: one call after the other, and as a stream."""
    list(assess.stream([("", photo)] * 4))
    ways = {
        "one by one": lambda: [assess(photo) for _ in range(count)],
        "as a stream": lambda: list(assess.stream(("", photo) for _ in range(count))),
    }
    for way, work in ways.items():
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        done = sum(bool(photo.faces) for photo in work())
        wall, cpu = time.perf_counter() - wall_start, time.process_time() - cpu_start
        print(f"| no service, {way} | {done / wall:.1f} | | | | {1e3 * cpu / done:.0f} | {count - done} |")


def in_turn(assess: FaceAssessor, address: str, token: str, photo: bytes, turns: int) -> None:
    """Print the throughput of one client as a share of plain Python's, median over the turns."""
    shares = []
    for _ in range(turns):
        _, errors, served = asyncio.run(load(address, token, photo, 1, 10))
        start = time.perf_counter()
        for _ in range(10):
            assess(photo)
        shares.append((10 - errors) / 10 * (time.perf_counter() - start) / served)
    low, middle, high = np.percentile(shares, [25, 50, 75])
    print(
        f"\none client gets {middle:.2f} of plain Python ({low:.2f} to {high:.2f} in half of {turns} turns)"
    )


def row(clients: int, seconds: list[float], errors: int, wall: float, cpu: float) -> str:
    """One line of the table."""
    p50, p95, p99 = 1e3 * np.percentile(seconds, [50, 95, 99]) if seconds else (0, 0, 0)
    speed, cost = len(seconds) / wall, 1e3 * cpu / max(len(seconds), 1)
    return f"| {clients} clients | {speed:.1f} | {p50:.0f} | {p95:.0f} | {p99:.0f} | {cost:.0f} | {errors} |"


def main() -> None:
    """Run the load test and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--address", default="")
    parser.add_argument("--token", default=TOKEN)
    options = parser.parse_args()
    photo = photo_bytes(options.photo)
    print(f"{options.requests} requests of a photo of {len(photo) / 1e3:.0f} kB; {os.cpu_count()} cores\n")
    print(
        "| | photos/s | p50 ms | p95 ms | p99 ms | CPU ms a photo | errors |\n|---|---|---|---|---|---|---|"
    )

    def measure(address: str, pid: int = 0) -> None:
        for clients in options.clients:
            cpu_start = cpu_seconds(pid)
            requests = load(address, options.token, photo, clients, options.requests)
            seconds, errors, wall = asyncio.run(requests)
            print(row(clients, seconds, errors, wall, cpu_seconds(pid) - cpu_start), flush=True)

    assess = FaceAssessor()
    if options.address:
        measure(options.address)
        direct(assess, photo, options.requests)
    else:
        with service(max(options.clients)) as (address, pid):
            before = memory(pid, "VmRSS")
            measure(address, pid)
            direct(assess, photo, options.requests)
            in_turn(assess, address, options.token, photo, options.turns)
            print(f"\nmemory of the service: {before:.0f} MB at first, peak {memory(pid, 'VmHWM'):.0f} MB")


if __name__ == "__main__":
    main()
