#!/usr/bin/env python3
"""Trains one recipe in one process and by encoder-decoder pairs over gRPC, on the same samples, and compares them.

Ways: `one` (`e2llm train`, all cores), `N:H` (N pairs, each pinned to a core of its own, H local steps per round), `N:H:kill` (the same,
and in every round one pair's decoder is killed with SIGKILL and started again). Prints one JSON line per way: seconds of joint training
from its first step, losses of the steps or rounds by objective, and held-out losses of the bundle.

    tests/bench/pairs.py --binary target/release/e2llm --recipe shared/bundles/recipes/ablation/base.yaml \\
        --input corpus/train.jsonl --held-out corpus/test.jsonl --ways one,2:1,2:10,2:10:kill
"""

import argparse
import json
import pathlib
import random
import shutil
import subprocess
import tempfile
import threading
import time

from fleet import Fleet, environment


def call(binary: str, *words: str) -> list:
    done = subprocess.run([binary, "--quiet", "--json", *words], env=environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def one_process(args: argparse.Namespace, home: pathlib.Path) -> dict:
    call(args.binary, "train", "--recipe", args.recipe, "--input", args.input, "--output", str(home / "run"), "--save-every", "1000")
    shutil.copytree(home / "run" / "bundle", home / "bundle")
    steps = [json.loads(line) for line in open(home / "run" / "curve.jsonl")]
    steps = [step for step in steps if step["event"] == "step"]
    return {
        "seconds": round(steps[-1]["seconds"], 1),
        "targets": sum(step["targets"] for step in steps),
        "positions": sum(step["positions"] for step in steps),
        "losses": [{name: round(loss["loss"], 3) for name, loss in step["losses"].items()} for step in steps],
    }


def kill_in_every_round(fleet: Fleet, server: str, binary: str, ended: threading.Event, kills: list) -> None:
    """Kills a decoder some time into each round of joint training."""
    rng, seen = random.Random(1), 0
    while not ended.wait(0.5):
        status = call(binary, "--server", server, "jobs", "show", "pairs")[0]
        committed = status["train"]["rounds_committed"]
        if committed > seen and status["state"] == "running" and committed < status["train"]["rounds"] - 1:
            seen = committed
            if ended.wait(rng.uniform(2, 10)):
                return
            fleet.kill_and_restart("decoder", rng.randrange(2))
            kills.append(committed)


def pairs(args: argparse.Namespace, home: pathlib.Path, count: int, local_steps: int, kill: bool) -> dict:
    fleet = Fleet(args.binary, home, count, pinned=True)
    server, ended, kills = fleet.url("coordinator"), threading.Event(), []
    try:
        call(args.binary, "--server", server, "jobs", "submit", "train", "--recipe", args.recipe, "--input", args.input,
             "--pairs", str(count), "--local-steps", str(local_steps), "--job", "pairs")
        if kill:
            threading.Thread(target=kill_in_every_round, args=(fleet, server, args.binary, ended, kills), daemon=True).start()
        started = None
        while True:
            status = call(args.binary, "--server", server, "jobs", "show", "pairs")[0]
            if started is None and (status["train"]["rounds_committed"] or "pretrain" not in open(args.recipe).read()):
                started = time.monotonic()
            if status["state"] in ("succeeded", "cancelled"):
                break
            time.sleep(0.5)
        seconds = time.monotonic() - started
        ended.set()
        shares = call(args.binary, "--server", server, "jobs", "result", "pairs")
        call(args.binary, "--server", server, "jobs", "bundle", "pairs", "--output", str(home / "bundle"))
    finally:
        fleet.stop()
    losses = {}
    for share in shares:
        for name, loss in share["losses"].items():
            losses.setdefault(share["id"].split("/")[0], {}).setdefault(name, []).append((loss["loss"], loss["targets"]))
    mean = lambda pairs: round(sum(l * n for l, n in pairs) / sum(n for _, n in pairs), 3)
    return {
        "seconds": round(seconds, 1), "state": status["state"], "retries": status["retries"], "kills": len(kills),
        "targets": status["train"]["targets"], "positions": status["train"]["positions"],
        "member_seconds": round(sum(share["seconds"] for share in shares), 1),
        "losses": [{name: mean(values) for name, values in losses[key].items()} for key in sorted(losses) if losses[key]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--input", required=True, help='JSON Lines of {"id","text"}')
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--passages", default="16")
    parser.add_argument("--ways", default="one,2:1,2:10")
    parser.add_argument("--directory", default=None, help="where stores are made")
    args = parser.parse_args()
    for way in args.ways.split(","):
        with tempfile.TemporaryDirectory(dir=args.directory) as home:
            home = pathlib.Path(home)
            numbers = way.split(":")
            if way == "one":
                row = one_process(args, home)
            else:
                row = pairs(args, home, int(numbers[0]), int(numbers[1]), numbers[-1] == "kill")
            measured = call(args.binary, "--bundle", str(home / "bundle"), "train", "evaluate", "--input", args.held_out,
                            "--passages", args.passages, "--seed", "1")[0]
            keys = ("right", "wrong", "none", "gap", "gap_error")
            held_out = {key: round(measured[key], 3) for key in keys}
            print(json.dumps({"way": way, **row, "held_out": held_out}), flush=True)


if __name__ == "__main__":
    main()
