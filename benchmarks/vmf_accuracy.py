"""Claim: log C_d, A_d, A_d' and the inverse of A_d are accurate to rounding for every dim and kappa.

Prints the tables of docs/numerics.md: the largest error of each function against the committed 50-digit table
(tests/reference/vmf_table.json: ten dims, kappa 0 and 1e-6 to 1e8), by dim and by regime, and the errors of
the usual ways to compute log C_512 on the same table.

    python benchmarks/vmf_accuracy.py
"""

import json
from collections.abc import Callable
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spherecf import vmf

TABLE = Path(__file__).resolve().parents[1] / "tests" / "reference" / "vmf_table.json"
TYPES = {"float32": torch.float32, "float64": torch.float64}
Row = dict[str, str | float]


class Claim(NamedTuple):
    """A function, its column in the table, its limits, and the scale by which errors are divided."""

    function: Callable[[Tensor, int], Tensor]
    truth: str
    limits: dict[str, float]
    scale: Callable[[Row, Row], float]  # from a row and the row at kappa = 0


def value_scale(column: str) -> Callable[[Row, Row], float]:
    return lambda row, zero: max(1, float(row["kappa"]), abs(float(row[column])), abs(float(zero[column])))


def relative(column: str) -> Callable[[Row, Row], float]:
    return lambda row, zero: float(row[column]) or 1.0


CLAIMS = {
    "log C_d": Claim(vmf.log_normalizer, "log_c", {"float32": 1e-6, "float64": 1e-14}, value_scale("log_c")),
    "A_d": Claim(vmf.mean_resultant_length, "mean", {"float32": 5e-7, "float64": 1e-14}, relative("mean")),
    "1 - A_d": Claim(
        vmf.mean_resultant_complement,
        "complement",
        {"float32": 1e-5, "float64": 1e-12},
        relative("complement"),
    ),
    "A_d'": Claim(
        vmf.mean_resultant_length_derivative, "slope", {"float32": 1e-5, "float64": 1e-12}, relative("slope")
    ),
}
INVERSE_LIMITS = {"float32": 5e-7, "float64": 1e-14}


class Error(NamedTuple):
    """Error of one function at one point."""

    function: str
    type: str
    dim: int
    kappa: float
    size: float  # divided by its scale
    limit: float


def errors(device: str = "cpu") -> list[Error]:
    """Errors of every function at every point of the table, in both types, computed on a device."""
    results = []
    for dim, rows in ((int(key), value) for key, value in json.loads(TABLE.read_text()).items()):
        for name, dtype in TYPES.items():
            kappa = torch.tensor([row["kappa"] for row in rows], dtype=dtype, device=device)
            for label, claim in CLAIMS.items():
                for row, value in zip(rows, claim.function(kappa, dim).tolist()):
                    size = _distance(value, row[claim.truth]) / claim.scale(row, rows[0])
                    results.append(Error(label, name, dim, row["kappa"], size, claim.limits[name]))
            results += _inverse_errors(rows, dim, name, device)
    return results


def _inverse_errors(rows: list[Row], dim: int, name: str, device: str) -> list[Error]:
    """Errors of kappa, divided by the effect of rounding rho: max(1, condition number) times kappa."""
    rho = torch.tensor([float(row["mean"]) for row in rows], dtype=TYPES[name], device=device)
    results = []
    values = vmf.inverse_mean_resultant_length(rho, dim).tolist()
    for row, rounded_rho, value in zip(rows, rho.tolist(), values):
        kappa = float(row["kappa"])
        if rounded_rho < 1:  # skip rho that was rounded to 1, where kappa is infinite
            condition = rounded_rho / (kappa * float(row["slope"])) if kappa else 1
            size = _distance(value, kappa) / (max(1, condition) * kappa or 1)
            results.append(Error("inverse of A_d", name, dim, kappa, size, INVERSE_LIMITS[name]))
    return results


def _distance(value: float, truth: str | float) -> float:
    """Absolute difference, computed exactly with fractions."""
    return float(abs(Fraction(value) - Fraction(truth))) if isfinite(value) else float("inf")


def regime(error: Error) -> str:
    ratio = error.kappa / error.dim
    return "kappa < d / 10" if ratio < 0.1 else "d / 10 to 10 d" if ratio <= 10 else "kappa > 10 d"


def table(results: list[Error], group: Callable[[Error], str]) -> list[str]:
    """Markdown table of the largest errors: one row per function and type, one column per group."""
    groups = list(dict.fromkeys(group(e) for e in results))
    largest: dict[tuple[str, str, str], float] = {}
    for e in results:
        key = (e.function, e.type, group(e))
        largest[key] = max(largest.get(key, 0), e.size)
    heads = dict.fromkeys((e.function, e.type, e.limit) for e in sorted(results, key=lambda e: e.type))
    lines = [f"| function | type | limit | {' | '.join(groups)} |", "|---" * (3 + len(groups)) + "|"]
    for function, type_, limit in heads:
        cells = " | ".join(f"{largest[function, type_, g]:.1e}" for g in groups)
        lines.append(f"| {function} | {type_} | {limit:.0e} | {cells} |")
    return lines


def rivals(dim: int = 512) -> list[str]:
    """Markdown table of the usual ways to compute log C_d: where they are not finite, and their errors."""
    rows = json.loads(TABLE.read_text())[str(dim)]
    shown = (100.0, 1000.0, 10000.0)
    heads = ["method", "type", "not finite", "largest error", *(f"error at kappa {k:,.0f}" for k in shown)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, method in _rival_methods(dim).items():
        for type_ in TYPES:
            kappa = np.array([row["kappa"] for row in rows], dtype=type_)
            with np.errstate(all="ignore"):
                sizes = [_distance(v, row["log_c"]) for v, row in zip(method(kappa).tolist(), rows)]
            not_finite = [row["kappa"] for row, size in zip(rows, sizes) if not isfinite(size)]
            where = f"kappa <= {max(not_finite):g}" if not_finite else "nowhere"
            scale = value_scale("log_c")
            largest = max(size / scale(row, rows[0]) for row, size in zip(rows, sizes) if isfinite(size))
            cells = " | ".join(f"{size:.1e}" for row, size in zip(rows, sizes) if row["kappa"] in shown)
            lines.append(f"| {name} | {type_} | {where} | {largest:.1e} | {cells} |")
    return lines


def _rival_methods(dim: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    import scipy.special  # imported here because the GPU machine may lack scipy and needs only `errors`

    order = dim / 2 - 1

    def scipy_ive(k: np.ndarray) -> np.ndarray:
        values = order * np.log(k) - np.log(scipy.special.ive(order, k)) - k
        return values - k.dtype.type(dim / 2 * np.log(2 * np.pi))

    def released(k: np.ndarray) -> np.ndarray:
        values = order * np.log(1e-6 + k) - np.log(1e-6 + scipy.special.ive(order, k)) - k
        return values - k.dtype.type(dim / 2 * np.log(2 * np.pi))

    def ours(k: np.ndarray) -> np.ndarray:
        return vmf.log_normalizer(torch.from_numpy(k), dim).numpy()

    return {"log of scipy's ive": scipy_ive, "released formula": released, "spherecf": ours}


def main() -> None:
    results = errors()
    blocks = (table(results, lambda e: f"d = {e.dim}"), table(results, regime), rivals())
    print("\n\n".join("\n".join(block) for block in blocks))


if __name__ == "__main__":
    main()
