"""Makes the slow reference implementations and the conformance classes importable by name."""

import sys
from pathlib import Path

for folder in ("reference", "conformance"):
    path = str(Path(__file__).resolve().parents[1] / folder)
    if path not in sys.path:
        sys.path.append(path)
