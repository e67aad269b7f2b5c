#!/usr/bin/env python3
"""Answers of an evaluation in full, drawn by seed: what was asked, what would have been right, what was answered.

    e2llm eval … --output answers.jsonl
    tests/quality/shown.py answers.jsonl [more.jsonl …] --system expand --seed 1 --answers 30 --summaries 10

Answers are drawn from all tasks that ask for a fact, summaries from those that ask for a text. What is printed may hold texts that must
not be passed on. Needs Python 3.10 and nothing else.
"""

import argparse
import json
import random
from pathlib import Path

TEXTS = ("summary", "headline", "synopsis")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--system", default="expand")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--answers", type=int, default=30)
    parser.add_argument("--summaries", type=int, default=10)
    arguments = parser.parse_args()
    outcomes = [json.loads(line) for path in arguments.files for line in path.read_text().splitlines()]
    own = sorted((o for o in outcomes if o["system"] == arguments.system), key=lambda o: (o["suite"], o["id"]))
    texts = [outcome for outcome in own if outcome["task"] in TEXTS]
    facts = [outcome for outcome in own if outcome["task"] not in TEXTS]
    rng = random.Random(arguments.seed)
    for kind, number in ((facts, arguments.answers), (texts, arguments.summaries)):
        for outcome in rng.sample(kind, min(number, len(kind))):
            show(outcome)


def show(outcome: dict) -> None:
    read = outcome.get("evidence_read")
    evidence = "" if read is None else f", {100 * read:.0f} % of the evidence read as text"
    print(f"## {outcome['id']}: {100 * outcome['score']:.0f} %\n")
    print(f"{outcome['positions']} positions, {outcome['soft_positions']} of them soft tokens{evidence}\n")
    for title, text in (("Asked", outcome["instruction"]), ("Right", " | ".join(outcome["references"])), ("Answered", outcome["prediction"])):
        print(f"**{title}:** {text.strip()}\n")


if __name__ == "__main__":
    main()
