"""The 50-digit truth for the von Mises-Fisher functions: plain series in mpmath, no expansion shared with the
library.

I_nu(x) is summed from its power series (DLMF 10.25.2; all terms positive) up to x = 20000, and from Hankel's
asymptotic series (DLMF 10.40.1, which is then good to far more than 50 digits) beyond, with as many guard
digits as its alternating terms lose. `python tests/reference/vmf_mpmath.py --write` makes the committed
table; it takes ten seconds.
"""

import argparse
import json
from pathlib import Path

import mpmath as mp
import numpy as np

TABLE = Path(__file__).with_name("vmf_table.json")
DIMS = (2, 3, 8, 64, 128, 256, 512, 1024, 4096, 8192)
_NOMINAL = (
    0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 14, 20, 30, 50,
    70, 100, 150, 200, 300, 500, 700, 1e3, 1500, 2e3, 3e3, 5e3, 7e3, 1e4, 2e4, 5e4, 1e5, 3e5, 1e6, 1e7, 1e8,
)  # fmt: skip
KAPPAS = tuple(float(np.float32(kappa)) for kappa in _NOMINAL)  # exact in both precisions
_DIGITS = 50


def log_scaled_bessel(order, x, switch=20000):
    """log(exp(-x) I_order(x)) for x > 0, to about `_DIGITS` digits; `switch` is where the method changes."""
    if x <= switch:
        with mp.workdps(_DIGITS + 20):
            term = total = mp.mpf(1)
            quarter, k = mp.mpf(x) ** 2 / 4, 0
            while term > total * mp.mpf(10) ** -(_DIGITS + 15):
                k += 1
                term *= quarter / (k * (k + order))
                total += term
            return mp.log(total) + order * mp.log(mp.mpf(x) / 2) - mp.loggamma(order + 1) - x
    lost = (
        int(float(order) ** 2 / x) + 20
    )  # the largest term is below exp(order^2 / 2x), and so is the cancellation
    with mp.workdps(_DIGITS + lost):
        term = total = mp.mpf(1)
        k, square = 0, 4 * order**2
        while abs(term) > mp.mpf(10) ** -(_DIGITS + lost):
            k += 1
            term *= -(square - (2 * k - 1) ** 2) / (8 * k * mp.mpf(x))
            total += term
            if k > 2 * x:
                raise ArithmeticError("the asymptotic series does not reach this precision")
        return mp.log(total) - mp.log(2 * mp.pi * x) / 2


def truth(dim, kappa):
    """log C_d, c = log C_d + kappa, A_d, 1 - A_d and A_d' at one point, as mpmath numbers."""
    order = mp.mpf(dim) / 2 - 1
    with mp.workdps(_DIGITS + 20):
        at_zero = mp.loggamma(order + 1) - (order + 1) * mp.log(mp.pi) - mp.log(2)
        if kappa == 0:
            return {
                "log_c": at_zero,
                "c": at_zero,
                "mean": mp.mpf(0),
                "complement": mp.mpf(1),
                "slope": 1 / mp.mpf(dim),
            }
        kappa = mp.mpf(kappa)
        here, above = log_scaled_bessel(order, kappa), log_scaled_bessel(order + 1, kappa)
        c = order * mp.log(kappa) - (order + 1) * mp.log(2 * mp.pi) - here
        mean = mp.exp(above - here)
        return {
            "log_c": c - kappa,
            "c": c,
            "mean": mean,
            "complement": 1 - mean,
            "slope": 1 - mean**2 - (dim - 1) / kappa * mean,
        }


def table():
    """The committed table: {dim: [{kappa, log_c, ...: decimal strings}]}."""
    return json.loads(TABLE.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"make {TABLE.name} anew")
    if not parser.parse_args().write:
        parser.error("nothing to do: pass --write")
    rows = {
        str(dim): [
            {"kappa": kappa} | {name: mp.nstr(value, 30) for name, value in truth(dim, kappa).items()}
            for kappa in KAPPAS
        ]
        for dim in DIMS
    }
    TABLE.write_text(json.dumps(rows, indent=0) + "\n")


if __name__ == "__main__":
    main()
