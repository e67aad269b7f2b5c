#!/usr/bin/env python3
"""Held-out losses of two runs on the same passages, with the difference's 95 % interval (bootstrap over passages).

    e2llm train evaluate … --passage-losses first.jsonl          # and second.jsonl, with the same --input, --passages and --seed
    tests/quality/paired.py first.jsonl second.jsonl

Nats per target token. *gap* is wrong − right; *first − second* of gap above zero, and of right below zero, says that the
first is read better. Needs Python 3.10 and nothing else.
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path

RESAMPLES = 5000


def read(path: str) -> dict:
    passages = defaultdict(dict)
    for line in Path(path).read_text().splitlines():
        passage = json.loads(line)
        own = passages[passage["objective"]]
        own[passage["document"], len(own)] = passage
    return passages


def gap(passage: dict) -> float:
    return passage["wrong"] - passage["right"]


def right(passage: dict) -> float:
    return passage["right"]


def mean(values: list[tuple[float, float]]) -> float:
    return sum(nats for nats, _ in values) / sum(tokens for _, tokens in values)


def interval(values: list[tuple[float, float]]) -> str:
    rng = random.Random(len(values))
    means = sorted(mean(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return f"{mean(values):+.3f} ({means[int(0.025 * RESAMPLES)]:+.3f} to {means[int(0.975 * RESAMPLES) - 1]:+.3f})"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    first, second = map(read, sys.argv[1:])
    print("| | n | | first | second | first − second |\n|---|---|---|---|---|---|")
    for objective, own in first.items():
        if own.keys() != second[objective].keys() or any(own[key]["tokens"] != second[objective][key]["tokens"] for key in own):
            sys.exit(f"{objective}: the files are not of the same passages; measure both with the same input, number and seed")
        for name, of in (("right", right), ("gap", gap)):
            sides = [[(of(run[key]), run[key]["tokens"]) for key in own] for run in (own, second[objective])]
            differences = [(a - b, tokens) for (a, tokens), (b, _) in zip(*sides)]
            means = " | ".join(f"{mean(side):.3f}" for side in sides)
            print(f"| {objective} | {len(own)} | {name} | {means} | {interval(differences)} |")


if __name__ == "__main__":
    main()
