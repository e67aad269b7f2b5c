#!/usr/bin/env python3
"""What ten times the training would give, by a power law through the losses of fresh samples.

    tests/quality/extrapolate.py shared/bundles/minilm-smollm2/curve.jsonl

For each stage and objective: loss = floor + scale · (target tokens of the whole run so far)^−exponent, least squares weighted
by target tokens, the exponent from a grid, and floor ≥ 0. Samples are hardly drawn twice, so that a step's loss before its update is
nearly a held-out one. Intervals are 95 %, by bootstrap over steps: they do not know whether a power law is right, nor that
the rate falls within a stage. Needs Python 3.10 and nothing else.
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path

EXPONENTS = [step / 50 for step in range(1, 51)]
RESAMPLES = 200
FEWEST_STEPS = 60

Point = tuple[float, float, float]
Law = tuple[float, float, float]


def points(curve: Path) -> dict[tuple[int, str], list[Point]]:
    """(tokens so far, loss, weight) of every step, a step that was done twice counted as it was done last."""
    steps = {}
    for line in curve.read_text().splitlines():
        news = json.loads(line)
        if news["event"] == "step":
            steps[news["samples"]] = news
    found, tokens = defaultdict(list), 0
    for _, step in sorted(steps.items()):
        tokens += step["targets"]
        for objective, own in step["losses"].items():
            found[step["stage"], objective].append((tokens, own["loss"], own["tokens"]))
    return found


def fit(data: list[Point]) -> Law:
    """Floor, scale and exponent of least squared error."""
    return min((line(data, exponent) for exponent in EXPONENTS), key=lambda found: found[0])[1]


def line(data: list[Point], exponent: float) -> tuple[float, Law]:
    rows = [(tokens**-exponent, loss, weight) for tokens, loss, weight in data]
    total = sum(weight for _, _, weight in rows)
    x_mean = sum(x * weight for x, _, weight in rows) / total
    y_mean = sum(y * weight for _, y, weight in rows) / total
    spread = sum(weight * (x - x_mean) ** 2 for x, _, weight in rows)
    scale = sum(weight * (x - x_mean) * (y - y_mean) for x, y, weight in rows) / spread if spread else 0.0
    floor = y_mean - scale * x_mean
    if floor < 0:
        floor = 0.0
        scale = sum(w * x * y for x, y, w in rows) / sum(w * x * x for x, _, w in rows)
    error = sum(weight * (y - floor - scale * x) ** 2 for x, y, weight in rows)
    return error, (floor, scale, exponent)


def at(law: Law, tokens: float) -> float:
    floor, scale, exponent = law
    return floor + scale * tokens**-exponent


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print("| run | stage | objective | steps | tokens | first fifth | last fifth | fit at the end | at 10× | 95 % |\n" + "|---" * 10 + "|")
    for path in map(Path, sys.argv[1:]):
        for (stage, objective), data in sorted(points(path).items()):
            if len(data) < FEWEST_STEPS:
                continue
            end, rng = data[-1][0], random.Random(stage)
            law = fit(data)
            later = sorted(at(fit(rng.choices(data, k=len(data))), 10 * end) for _ in range(RESAMPLES))
            low, high = later[int(0.025 * RESAMPLES)], later[int(0.975 * RESAMPLES) - 1]
            fifth = len(data) // 5
            ends = [sum(loss * w for _, loss, w in part) / sum(w for _, _, w in part) for part in (data[:fifth], data[-fifth:])]
            print(f"| {path.stem} | {stage + 1} | {objective} | {len(data)} | {end:,} | {ends[0]:.2f} | {ends[1]:.2f} | "
                  f"{at(law, end):.2f} | {at(law, 10 * end):.2f} | {low:.2f} to {high:.2f} |")


if __name__ == "__main__":
    main()
