"""Trains and measures a list of recipes, one after another, and prints what came out as a Markdown table.

    cargo build --release
    python tests/quality/ablation.py --e2llm target/release/e2llm --input corpus/train.jsonl --held-out corpus/test.jsonl \
        --runs runs shared/bundles/recipes/ablation/*.yaml

Every recipe has a directory under --runs. What is finished is skipped, what was interrupted goes on where it stood, so the same
command may be repeated; with --table nothing is run and what there is so far is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# One core per worker: products that try to share cores wait for each other.
THREADS = {"RAYON_NUM_THREADS": "1", "CANDLE_NUM_THREADS": "1"}
COLUMNS = ["right", "wrong", "none", "gap", "±", "continue gap", "±", "soft/64", "positions", "positions/s", "minutes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--e2llm", default="e2llm", help="the binary")
    parser.add_argument("--input", action="append", type=Path, default=[], help="JSONL to train on; may be repeated")
    parser.add_argument("--held-out", type=Path, help="JSONL to measure on")
    parser.add_argument("--runs", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--passages", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print")
    parser.add_argument("recipes", nargs="+", type=Path)
    arguments = parser.parse_args()
    if not arguments.table and not (arguments.input and arguments.held_out):
        parser.error("give --input and --held-out, or --table")
    if not arguments.table:
        for recipe in arguments.recipes:
            carry_out(recipe, arguments)
    print(table(arguments.recipes, arguments.runs))


def carry_out(recipe: Path, arguments) -> None:
    run = arguments.runs / recipe.stem
    result = run / f"evaluation-{arguments.seed}-{arguments.passages}.json"
    if result.exists():
        return
    run.mkdir(parents=True, exist_ok=True)
    inputs = [part for path in arguments.input for part in ("--input", str(path))]
    started = time.monotonic()
    call(arguments.e2llm, ["train", "--recipe", str(recipe), *inputs, "--output", str(run), "--save-every", "20"])
    print(f"{recipe.stem}: trained in {time.monotonic() - started:.0f} s", file=sys.stderr)
    measured = call(
        arguments.e2llm,
        ["--json", "train", "evaluate", "--recipe", str(recipe), "--output", str(run), "--trained-only",
         "--input", str(arguments.held_out), "--passages", str(arguments.passages), "--seed", str(arguments.seed)],
    )
    partial = result.with_suffix(".partial")
    partial.write_text(measured)
    partial.rename(result)


def call(e2llm: str, arguments: list[str]) -> str:
    """Standard output; what went wrong is on standard error already."""
    done = subprocess.run([e2llm, *arguments], env=os.environ | THREADS, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{e2llm} {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout


def table(recipes: list[Path], runs: Path) -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for recipe in recipes:
        lines += [row(recipe, result) for result in sorted((runs / recipe.stem).glob("evaluation-*.json"))[:1]]
    return "\n".join(lines)


def row(recipe: Path, result: Path) -> str:
    own = json.loads(result.read_text())
    following = own["continuation"]
    positions, seconds = training(result.parent / "curve.jsonl")
    cells = [
        *(f"{own[key]:.3f}" for key in ("right", "wrong", "none")),
        f"**{own['gap']:.3f}**",
        f"{own['gap_error']:.3f}",
        f"{following['gap']:.3f}",
        f"{following['gap_error']:.3f}",
        soft_tokens(recipe),
        f"{positions:,}",
        f"{positions / max(seconds, 1e-9):.0f}",
        f"{seconds / 60:.1f}",
    ]
    return f"| {recipe.stem} | " + " | ".join(cells) + " |"


def training(curve: Path) -> tuple[int, float]:
    """Decoder positions and seconds of the steps, a step that was done twice counted as it was done last."""
    steps = {}
    for line in curve.read_text().splitlines():
        news = json.loads(line)
        if news["event"] == "step":
            steps[news["samples"]] = (news["positions"], news["seconds"])
    return sum(positions for positions, _ in steps.values()), max(seconds for _, seconds in steps.values())


def soft_tokens(recipe: Path) -> str:
    """Soft tokens of a chunk of 64 word pieces, read off the recipe's text: YAML needs no package here."""
    text = "\n".join(line.split("#")[0] for line in recipe.read_text().splitlines())
    if "one_vector" in text:
        return "1"
    if "queries:" in text:
        return text.split("queries:")[1].split(",")[0].split("}")[0].strip()
    ratios = [line.split(":")[1] for line in text.splitlines() if line.strip().startswith("ratio:")]
    return str(-(-64 // int(ratios[-1])))


if __name__ == "__main__":
    main()
