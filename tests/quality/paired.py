#!/usr/bin/env python3
"""Losses of two runs on the same passages, with the difference's 95 % interval (bootstrap over passages or steps).

    e2llm train evaluate … --passage-losses first.jsonl          # and second.jsonl, with the same --input, --passages and --seed
    tests/quality/paired.py first.jsonl second.jsonl
    tests/quality/paired.py first/curve.jsonl second/curve.jsonl # two recipes with the same seed, data and steps

Nats per target token. *gap* is wrong − right; *first − second* of gap above zero, and of right below zero, says that the
first is read better. Of curves, the second half of each stage's steps: losses of new samples before the step that learns from
them, the same in both runs. Needs Python 3.10 and nothing else.
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path

RESAMPLES = 5000


def read(path: str) -> dict:
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return of_steps(lines) if "event" in lines[0] else of_passages(lines)


def of_passages(lines: list[dict]) -> dict:
    passages = defaultdict(dict)
    for passage in lines:
        own = passages[passage["objective"]]
        own[passage["document"], len(own)] = passage
    return passages


def of_steps(lines: list[dict]) -> dict:
    """A step that was done twice, because a run was killed, counts as it was done last."""
    steps = {news["samples"]: news for news in lines if news["event"] == "step"}
    passages = defaultdict(dict)
    for samples, step in sorted(steps.items()):
        if 2 * step["step"] > step["of"]:
            for objective, own in step["losses"].items():
                passages[f"stage {step['stage'] + 1}, {objective}"][samples] = {"tokens": own["tokens"], "right": own["loss"] * own["tokens"]}
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
    for objective, own in sorted(first.items()):
        other = second[objective]
        if own.keys() != other.keys() or any(own[key]["tokens"] != other[key]["tokens"] for key in own):
            sys.exit(f"{objective}: the files are not of the same samples; give both runs the same input, number and seed")
        has_wrong = all("wrong" in passage for passage in own.values())
        for name, of in (("right", right), ("gap", gap))[: 1 + has_wrong]:
            sides = [[(of(run[key]), run[key]["tokens"]) for key in own] for run in (own, other)]
            differences = [(a - b, tokens) for (a, tokens), (b, _) in zip(*sides)]
            means = " | ".join(f"{mean(side):.3f}" for side in sides)
            print(f"| {objective} | {len(own)} | {name} | {means} | {interval(differences)} |")


if __name__ == "__main__":
    main()
