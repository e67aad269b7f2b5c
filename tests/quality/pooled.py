#!/usr/bin/env python3
"""Mean scores and paired differences of an evaluation's answers, over all lengths and by length.

    e2llm eval ruler … --output answers.jsonl
    tests/quality/pooled.py answers.jsonl [more.jsonl …]

Intervals are 95 %, by bootstrap over tasks: right where each task has a document of its own, as in RULER and abstracts (`e2llm eval`
draws documents). Needs Python 3.10 and nothing else.
"""

import json
import random
import sys
from collections import defaultdict

SYSTEMS = ["soft", "expand", "evidence", "other", "rag", "rag-filled", "opening", "full", "none"]
PAIRS = [("expand", "other"), ("expand", "rag"), ("expand", "rag-filled"), ("expand", "full"), ("evidence", "expand"), ("soft", "none")]
FAMILIES = {"needles": ("niah",), "variables": ("vt",), "words": ("cwe", "fwe"), "questions": ("qa",), "summaries": ("summary",)}
RESAMPLES = 2000


def interval(differences: list[float]) -> str:
    rng = random.Random(len(differences))
    means = sorted(sum(rng.choices(differences, k=len(differences))) / len(differences) for _ in range(RESAMPLES))
    mean = sum(differences) / len(differences)
    return f"{100 * mean:.1f} ({100 * means[int(0.025 * RESAMPLES)]:.1f} to {100 * means[int(0.975 * RESAMPLES) - 1]:.1f})"


def main() -> None:
    tasks = defaultdict(dict)
    for path in sys.argv[1:]:
        with open(path) as lines:
            for answer in map(json.loads, lines):
                tasks[answer["task"], answer.get("length"), answer["id"]][answer["system"]] = answer["score"]
    for family, names in FAMILIES.items():
        own = {key: scores for key, scores in tasks.items() if key[0].startswith(names)}
        lengths = sorted({length for _, length, _ in own if length})
        for length in [None, *lengths]:
            of = [scores for (_, own_length, _), scores in own.items() if length in (None, own_length)]
            used = [system for system in SYSTEMS if of and all(system in scores for scores in of)]
            means = {system: sum(scores[system] for scores in of) / len(of) for system in used}
            if not used:
                continue
            print(f"{family}, {length or 'all'} tokens, n = {len(of)}: " + ", ".join(f"{s} {100 * m:.1f}" for s, m in means.items()))
            for first, second in PAIRS:
                if first in used and second in used:
                    print(f"    {first} − {second}: {interval([scores[first] - scores[second] for scores in of])}")


if __name__ == "__main__":
    main()
