#!/usr/bin/env python3
"""Runs one corpus through `encode` and `summarize` in several ways of running e2llm, and compares them.

Ways: `embedded` (one process), `four` (index, coordinator, encoder, decoder), `six` (two workers of each kind: a store has one
index), `killed` (as `four`, and every --kill-every seconds one process of each kind is
killed with SIGKILL and started again). Each way gets a store of its own in a temporary directory, on local disk. Prints
one JSON line per way and work: seconds from the command's start to its end, documents per second, workers' seconds by
stage, attempts that were lost, kills that hit while the job was running, and a digest over the sorted results.

    tests/bench/fleet.py --binary target/release/e2llm --corpus corpus/train.jsonl --encode 1000 --summarize 100

Texts: the shortest documents of at least --shortest bytes in the corpus, so that many fit into an hour. A model reads
them with real weights; nothing is made up.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HOST = "127.0.0.1"
PORTS = {"index": 7801, "coordinator": 7802, "encoder": 7810, "decoder": 7820}


def environment() -> dict:
    return {key: value for key, value in os.environ.items() if key not in ("E2LLM_SERVER", "E2LLM_STORE")}


class Fleet:
    """Server processes that keep their addresses over restarts."""

    def __init__(self, binary: str, home: pathlib.Path, workers: int, pinned: bool = False):
        self.binary, self.home, self.processes, self.pinned = binary, home, {}, pinned
        for role, count in (("index", 1), ("coordinator", 1), ("encoder", workers), ("decoder", workers)):
            for number in range(count):
                self.start(role, number)

    def url(self, role: str, number: int = 0) -> str:
        return f"http://{HOST}:{PORTS[role] + number}"

    def start(self, role: str, number: int) -> None:
        flags = ["--store", str(self.home / "store"), "serve", role, "--listen", self.url(role, number)[7:]]
        if role == "index":
            flags += ["--index-dir", str(self.home / "view")]
        if role in ("encoder", "decoder"):
            flags += ["--index-url", self.url("index"), "--coordinator-url", self.url("coordinator")]
        if role == "decoder":
            flags += ["--encoder-url", self.url("encoder", number)]
        log = open(self.home / f"{role}-{number}.log", "ab")
        # A pair has a core of its own.
        core = ["taskset", "-c", str(number)] if self.pinned and role in ("encoder", "decoder") else []
        process = subprocess.Popen([*core, self.binary, *flags], stdout=log, stderr=log, env=environment())
        self.processes[role, number] = process
        deadline = time.monotonic() + 120
        while b"serving address=" not in (self.home / f"{role}-{number}.log").read_bytes().rsplit(b"\0", 1)[-1]:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the {role} does not serve; see {self.home}/{role}-{number}.log")
            time.sleep(0.05)

    def kill_and_restart(self, role: str, number: int) -> None:
        process = self.processes[role, number]
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open(self.home / f"{role}-{number}.log", "ab") as log:
            log.write(b"\0")
        self.start(role, number)

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def killer(fleet: Fleet, every: float, done: threading.Event, kills: list, seed: int) -> None:
    """One process of each kind, one after the other in seeded order, every so many seconds."""
    order = random.Random(seed)
    while not done.wait(every):
        roles = ["index", "coordinator", "encoder", "decoder"]
        order.shuffle(roles)
        for role in roles:
            if done.is_set():
                return
            fleet.kill_and_restart(role, 0)
            # A kill that came after the end of the job does not count.
            if not done.is_set():
                kills.append(role)


def digest(lines: list) -> str:
    """Of what must be the same whichever way it was made: ids, texts, sizes; no times."""
    rows = []
    for line in lines:
        row = json.loads(line)
        for key in ("usage", "encoded_unix_ms", "version", "unchanged"):
            row.pop(key, None)
        rows.append(json.dumps(row, sort_keys=True))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def run_job(binary: str, home: pathlib.Path, server: str | None, words: list, job: str) -> tuple:
    where = ["--server", server] if server else ["--store", str(home / "store")]
    output = home / f"{job}.jsonl"
    command = [binary, *where, "--quiet", *words, "--job", job, "--output", str(output)]
    started = time.monotonic()
    code = subprocess.run(command, env=environment(), stderr=sys.stderr).returncode
    seconds = time.monotonic() - started
    lines = output.read_text().splitlines() if output.exists() else []
    shown = subprocess.run([binary, *where, "--json", "jobs", "show", job], env=environment(), capture_output=True, text=True)
    return code, seconds, lines, json.loads(shown.stdout)


def run_way(way: str, args: argparse.Namespace, corpora: dict) -> list:
    home = pathlib.Path(tempfile.mkdtemp(prefix=f"e2llm-{way}-", dir=args.directory))
    fleet = None if way == "embedded" else Fleet(args.binary, home, 2 if way == "six" else 1)
    rows = []
    try:
        for work in ("encode", "summarize"):
            if not corpora[work][1]:
                continue
            done, kills = threading.Event(), []
            if way == "killed":
                threading.Thread(target=killer, args=(fleet, args.kill_every, done, kills, args.seed), daemon=True).start()
            words = [work, str(corpora[work][0])] + (["--max-tokens", str(args.max_tokens)] if work == "summarize" else [])
            server = fleet.url("coordinator") if fleet else None
            code, seconds, lines, status = run_job(args.binary, home, server, words, work)
            done.set()
            count = corpora[work][1]
            rows.append({
                "way": way, "work": work, "documents": count, "lines": len(lines), "exit": code,
                "seconds": round(seconds, 1), "documents_per_s": round(count / seconds, 3),
                "encode_busy_s": round(status["encode_busy_s"], 1), "decode_busy_s": round(status["decode_busy_s"], 1),
                "retries": status["retries"], "failed": status["rows_failed"], "kills": len(kills),
                "digest": digest(lines),
            })
            print(json.dumps(rows[-1]), flush=True)
            if way == "killed":
                time.sleep(2)
    finally:
        if fleet:
            fleet.stop()
        if not args.keep:
            shutil.rmtree(home, ignore_errors=True)
    return rows


def shortest(corpus: str, at_least: int, count: int, path: pathlib.Path) -> tuple:
    with open(corpus) as lines:
        documents = [json.loads(line) for line in lines]
    documents = [document for document in documents if len(document["text"].encode()) >= at_least]
    documents.sort(key=lambda document: (len(document["text"]), document["id"]))
    with open(path, "w") as out:
        for document in documents[:count]:
            out.write(json.dumps({"id": document["id"], "text": document["text"]}) + "\n")
    return path, min(count, len(documents))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--corpus", required=True, help='JSON Lines of {"id","text"}')
    parser.add_argument("--ways", default="embedded,four,six,killed")
    parser.add_argument("--encode", type=int, default=1000, help="documents to encode")
    parser.add_argument("--summarize", type=int, default=100, help="of these, documents to summarise")
    parser.add_argument("--shortest", type=int, default=1000, help="least bytes of a document")
    parser.add_argument("--max-tokens", type=int, default=64, help="of a summary")
    parser.add_argument("--kill-every", type=float, default=30.0, help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", default=None, help="where stores are made")
    parser.add_argument("--keep", action="store_true", help="keep stores and logs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as home:
        corpora = {
            work: shortest(args.corpus, args.shortest, getattr(args, work), pathlib.Path(home) / f"{work}.jsonl")
            for work in ("encode", "summarize")
        }
        rows = [row for way in args.ways.split(",") for row in run_way(way, args, corpora)]
    for work in ("encode", "summarize"):
        digests = {row["digest"] for row in rows if row["work"] == work}
        if len(digests) > 1:
            raise SystemExit(f"the ways disagree on the results of {work}: {sorted(digests)}")


if __name__ == "__main__":
    main()
