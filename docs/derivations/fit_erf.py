"""Print the coefficients that minivit/ops/erf.py and, in minivit/kernels/numpy, gelu.py and block_inference.py state.

Needs mpmath; takes a few seconds.

The Remez exchange on a grid: find the rational P/Q whose weighted relative error is +e, -e, +e, ... at the reference
points, move those points to the extrema of the error, and repeat until they stay.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import mpmath as mp

Function = Callable[[Any], Any]


def minimax(f: Function, grid: list[Any], p: int, q: int, weight: Function) -> tuple[list[Any], list[Any], Any]:
    """Fit f by P/Q of degrees p and q, Q monic; return both, highest power first, and the greatest weighted error."""
    values, weights = [f(z) for z in grid], [weight(z) for z in grid]
    count = p + q + 2
    points = [i * (len(grid) - 1) // (count - 1) for i in range(count)]
    numerator, denominator, level, error = [mp.mpf(0)], [mp.mpf(1)], mp.mpf(0), [mp.mpf(0)]
    for _ in range(100):
        rows, right = [], []
        for order, i in enumerate(points):
            # P = f (1 ± e / w) Q, made linear in P, Q and the change of e; Q beside that change is the last one.
            powers = [grid[i] ** k for k in range(max(p, q), -1, -1)]
            step = (-1) ** order * values[i] / weights[i]
            target = values[i] + step * level
            change = -step * mp.polyval(denominator, grid[i])
            rows.append([*powers[-p - 1 :], *(-target * power for power in powers[len(powers) - q :]), change])
            right.append(target * grid[i] ** q)
        solution = list(mp.lu_solve(mp.matrix(rows), mp.matrix(right)))
        numerator, denominator, level = solution[: p + 1], [mp.mpf(1), *solution[p + 1 : -1]], level + solution[-1]
        fit = [mp.polyval(numerator, z) / mp.polyval(denominator, z) for z in grid]
        error = [(y / value - 1) * w for y, value, w in zip(fit, values, weights, strict=True)]
        starts = [0, *(i for i in range(1, len(grid)) if error[i] * error[i - 1] < 0), len(grid)]
        extrema = [max(range(*run), key=lambda i: abs(error[i])) for run in pairwise(starts)]
        while len(extrema) > count:
            extrema.pop(0 if abs(error[extrema[0]]) < abs(error[extrema[-1]]) else -1)
        if extrema == points and abs(solution[-1]) < 1e-6 * abs(level):
            break
        points = extrema if len(extrema) == count else points
    return numerator, denominator, max(map(abs, error))


def main() -> None:
    """Fit the functions of erf.py in both precisions, and that of gelu.py."""
    mp.mp.dps = 60
    unit = [(1 - mp.cos(mp.pi * i / 800)) / 2 for i in range(801)]
    for name, digits, end, degree, terms in (("float32", 9, 14, 4, 7), ("float64", 17, 39, 10, 12)):
        half_line = [2 * u * end / (end + 2 - u * end) for u in unit]
        p, q, error = minimax(
            lambda z: mp.exp(z * z / 2) * mp.erfc(z / mp.sqrt(2)) / 2, half_line, degree - 1, degree,
            lambda z: 1 / (1 + z * z / 4),
        )  # fmt: skip
        print(f"{name}: erfcx(z / sqrt(2)) / 2 = p(z) / q(z), error {mp.nstr(error, 2)}")
        print("p", *(mp.nstr(c, digits) for c in p), "\nq", *(mp.nstr(c, digits) for c in q))
        ratio, _, error = minimax(lambda u: mp.erf(u**0.5) / u**0.5, unit[1:], terms - 1, 0, lambda _: 1)
        print(f"{name}: erf(x) = x + x s(x²), error {mp.nstr(error, 2)}")
        print("s", *(mp.nstr(c, digits) for c in [*ratio[:-1], ratio[-1] - 1]))
    _gelu(unit)


def _gelu(unit: list[Any]) -> None:
    """Fit g, where Phi(x) = (1 + tanh(x g(x²))) / 2, so that the greatest error of Phi is the least."""

    def g(u: Any) -> Any:
        return mp.atanh(mp.erf(mp.sqrt(u / 2))) / mp.sqrt(u)

    def slope(u: Any) -> Any:  # of Phi in the relative error of g; a floor, since it vanishes at both ends
        return (1 - mp.erf(mp.sqrt(u / 2)) ** 2) * mp.sqrt(u) * g(u) / 2 + mp.mpf(10) ** -9

    grid = [u * mp.mpf("5.5") ** 2 for u in unit[1:]]
    g_fit, _, error = minimax(g, grid, 6, 0, slope)
    print(f"float32: Phi(x) = (1 + tanh(x g(x²))) / 2, error {mp.nstr(error, 2)}")
    print("g", *(mp.nstr(c, 9) for c in g_fit))
    p, q, error = minimax(g, grid, 3, 2, slope)
    b = p[0]
    a0 = p[1] - b * q[1]
    c1 = p[2] - b * q[2] - a0 * q[1]
    a2 = (p[3] - a0 * q[2]) / c1
    a1 = q[1] - a2
    c2 = q[2] - a1 * a2
    print(f"the same with g(u) = b u + a0 + c1 / (u + a1 + c2 / (u + a2)), error {mp.nstr(error, 2)}")
    print("b a0 c1 a1 c2 a2", *(mp.nstr(c, 9) for c in (b, a0, c1, a1, c2, a2)))


if __name__ == "__main__":
    main()
