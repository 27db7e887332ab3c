"""Print the coefficients that minivit/ops/erf.py states, with the error of each fit (needs mpmath; half a minute).

The Remez exchange on a grid: solve for the rational P/Q whose weighted relative error is +e, -e, +e, ... at the
reference points, move those points to the extrema of the error, and repeat until they stay.
"""

from collections.abc import Callable

import mpmath as mp

Function = Callable[[mp.mpf], mp.mpf]


def minimax(f: Function, grid: list[mp.mpf], p: int, q: int, weight: Function) -> tuple[list[mp.mpf], list[mp.mpf]]:
    """Fit f by P/Q of degrees p and q, Q monic; print the greatest weighted relative error."""
    values = [f(z) for z in grid]
    weights = [weight(z) for z in grid]
    count = p + q + 2
    points = [i * (len(grid) - 1) // (count - 1) for i in range(count)]
    numerator, denominator, level = [mp.mpf(0)], [mp.mpf(1)], mp.mpf(0)
    for _ in range(100):
        rows, right = [], []
        for sign, i in enumerate(points):
            # P - f (1 + s e / w) Q = 0, made linear in the change of e about the last Q and e.
            z, slope = grid[i], (-1) ** sign * values[i] / weights[i]
            target = values[i] + slope * level
            powers = [z**k for k in range(max(p, q), -1, -1)]
            change = -slope * mp.polyval(denominator, z)
            rows.append([*powers[-p - 1 :], *(-target * power for power in powers[len(powers) - q :]), change])
            right.append(target * z**q)
        solution = list(mp.lu_solve(mp.matrix(rows), mp.matrix(right)))
        numerator, denominator, level = solution[: p + 1], [mp.mpf(1), *solution[p + 1 : -1]], level + solution[-1]
        error = [
            (mp.polyval(numerator, z) / mp.polyval(denominator, z) / value - 1) * w
            for z, value, w in zip(grid, values, weights, strict=True)
        ]
        starts = [0, *(i for i in range(1, len(grid)) if error[i] * error[i - 1] < 0), len(grid)]
        runs = [range(a, b) for a, b in zip(starts, starts[1:], strict=False)]
        extrema = [max(run, key=lambda i: abs(error[i])) for run in runs]
        while len(extrema) > count:
            extrema.pop(0 if abs(error[extrema[0]]) < abs(error[extrema[-1]]) else -1)
        if extrema == points and abs(solution[-1]) < 1e-6 * abs(level):
            break
        points = extrema if len(extrema) == count else points
    print(f"  greatest weighted error {mp.nstr(max(map(abs, error)), 3)}")
    return numerator, denominator


def main() -> None:
    """Fit both functions in both precisions."""
    mp.mp.dps = 60
    unit = [(1 - mp.cos(mp.pi * i / 800)) / 2 for i in range(801)]
    for name, digits, end, degree, terms in (("float32", 9, 14, 4, 6), ("float64", 17, 39, 10, 12)):
        tail = [2 * t / (1 - t) for t in (u * mp.mpf(end) / (end + 2) for u in unit)]
        print(name, "erfcx(z / sqrt(2)) / 2, numerator and denominator")
        fits = minimax(lambda z: mp.exp(z * z / 2) * mp.erfc(z / mp.sqrt(2)) / 2, tail, degree - 1, degree, lambda z: 1 / (1 + z * z / 4))
        for coefficients in fits:
            print("   ", ", ".join(mp.nstr(c, digits) for c in coefficients))
        print(name, "erf(sqrt(u)) / sqrt(u)")
        fits = minimax(lambda u: mp.erf(mp.sqrt(u)) / mp.sqrt(u) if u else 2 / mp.sqrt(mp.pi), unit, terms - 1, 0, lambda u: mp.mpf(1))
        print("   ", ", ".join(mp.nstr(c, digits) for c in fits[0]))


if __name__ == "__main__":
    main()
