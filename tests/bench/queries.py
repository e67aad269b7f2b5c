#!/usr/bin/env python3
"""What services cost a question: the same questions about one stored document to four processes (index, coordinator, encoder,
decoder) and to all four services in one process, in turns.

    tests/bench/queries.py --binary target/release/e2llm --corpus corpus/test.jsonl

Prints one JSON line: medians with quartiles in ms from the request's arrival to the first token (the decoder's own clock, so the
command line's start does not count), cold for the first question (soft prompt and prompt are read) and warm for the others (both are
kept), and the differences of the medians. Warm questions all differ, and none is answered from what was kept of another.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

from fleet import HOST, Fleet, environment

PORT = 7830


class OneProcess:
    """All four services at one address."""

    def __init__(self, binary: str, home: pathlib.Path):
        log = open(home / "all.log", "wb")
        flags = ["--store", str(home / "store"), "serve", "all", "--listen", f"{HOST}:{PORT}"]
        self.process = subprocess.Popen([binary, *flags], stdout=log, stderr=log, env=environment())
        deadline = time.monotonic() + 120
        while b"serving address=" not in (home / "all.log").read_bytes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the services do not serve; see {home}/all.log")
            time.sleep(0.05)

    def url(self, _role: str) -> str:
        return f"http://{HOST}:{PORT}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


def e2llm(binary: str, server: str, *words: str) -> str:
    command = [binary, "--server", server, "--json", "--quiet", *words]
    return subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True).stdout


def document(corpus: str, size: int) -> dict:
    """The one whose text is nearest to `size` characters."""
    with open(corpus) as lines:
        return min((json.loads(line) for line in lines), key=lambda row: (abs(len(row["text"]) - size), row["id"]))


def ask(binary: str, server: str, doc_id: str, number: int) -> dict:
    question = f"What does the document say about part {number} of it?"
    words = ["ask", "--id", doc_id, question, "--max-tokens", "1", "--expand", "0"]
    return json.loads(e2llm(binary, server, *words).splitlines()[-1])["usage"]


def summary(times: list) -> dict:
    low, median, high = statistics.quantiles(times, n=4)
    return {"median_ms": round(median, 2), "quartiles_ms": [round(low, 2), round(high, 2)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--corpus", required=True, help='JSON Lines of {"id","text"}')
    parser.add_argument("--characters", type=int, default=25_000, help="size of the document")
    parser.add_argument("--questions", type=int, default=60)
    args = parser.parse_args()
    row = document(args.corpus, args.characters)
    with tempfile.TemporaryDirectory() as folder:
        homes = {way: pathlib.Path(folder) / way for way in ("four", "one")}
        for home in homes.values():
            home.mkdir()
        (pathlib.Path(folder) / "one.jsonl").write_text(json.dumps({"id": row["id"], "text": row["text"]}) + "\n")
        fleets = {"four": Fleet(args.binary, homes["four"], 1), "one": OneProcess(args.binary, homes["one"])}
        try:
            for fleet in fleets.values():
                e2llm(args.binary, fleet.url("coordinator"), "encode", str(pathlib.Path(folder) / "one.jsonl"))
            usages = {way: [] for way in fleets}
            for number in range(args.questions + 1):
                for way in fleets if number % 2 else reversed(fleets):
                    usages[way].append(ask(args.binary, fleets[way].url("decoder"), row["id"], number))
        finally:
            for fleet in fleets.values():
                fleet.stop()
    result = {"document": row["id"], "positions": usages["one"][0]["soft_positions"] + usages["one"][0]["text_positions"]}
    for way, all_of in usages.items():
        reused = {usage["reused_positions"] for usage in all_of[1:]}
        result[way] = {"cold_ms": round(all_of[0]["first_token_ms"], 1), "reused_positions": sorted(reused)}
        result[way]["warm"] = summary([usage["first_token_ms"] for usage in all_of[1:]])
    result["overhead_ms"] = round(result["four"]["warm"]["median_ms"] - result["one"]["warm"]["median_ms"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
