"""Claim: the demo takes less than three minutes and less than 3 GB on two cores, from start to report.

python benchmarks/demo.py
"""

import os
import resource
import subprocess
import sys
import tempfile
import time


def main() -> None:
    command = [sys.executable, "-c", "from spherecf.cli import main; main()", "demo", "--out"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([*command, folder], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # kilobytes on Linux
    print(f"demo, {os.cpu_count()} cores: {seconds:.0f} s, {peak / 1e9:.2f} GB peak")


if __name__ == "__main__":
    main()
