"""Our services as a contestant (PEERS.md): index, coordinator, encoder and decoder as processes of their own, on local disk.

Questions go through `e2llm ask` with its defaults, raw text behind the soft tokens included, unless a work's name says otherwise; their
time is the decoder's own, from the request's arrival to the first token. Summaries are a job of `e2llm summarize`, from the command's
start to its end: texts uploaded, encoded, stored, committed, and summarised window by window.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent / "peers"))

import peer
from fleet import Fleet, environment

# Of the text that warms a decoder that was started anew.
WARMING = 2_000


class Services:
    def __init__(self, options):
        self.binary, self.home = options.binary, pathlib.Path(options.cache)
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        self.fleet, self.stored = Fleet(self.binary, self.home, 1), set()

    def run(self, role, *words):
        command = [self.binary, "--server", self.fleet.url(role), "--json", "--quiet", *words]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip() or f"{words[0]} failed")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def store(self, doc_id, text):
        if doc_id not in self.stored:
            self.run("coordinator", "encode", str(self.lines("store.jsonl", {doc_id: text})))
            self.stored.add(doc_id)

    def lines(self, name, documents):
        path = self.home / name
        path.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in documents.items()))
        return path

    def ask(self, doc_id, question, *words):
        return self.run("decoder", "ask", "--id", doc_id, question, "--max-tokens", "1", *words)[-1]["usage"]

    def context(self, request):
        """Flags of a work beyond the defaults."""
        budget = [] if request["budget"] is None else ["--max-positions", str(request["budget"])]
        return budget if not request["work"].endswith("-soft") else [*budget, "--expand", "0"]

    def prepare(self, request):
        """Stores the document, and has a decoder that has read nothing of it: started anew, and warmed with another one."""
        given = peer.inputs(request)
        doc_id = pathlib.Path(request["inputs"]).stem
        self.store(doc_id, given["document"])
        self.store("warming", given["document"][:WARMING])
        self.fleet.kill_and_restart("decoder", 0)
        self.ask("warming", "What is it?")
        return doc_id, [question["text"] for question in given["questions"]]

    def first_question(self, request):
        doc_id, questions = self.prepare(request)
        if request["cold"]:
            evict(self.home)
        return measured(self.ask(doc_id, questions[0], *self.context(request)))

    def second_question(self, request):
        doc_id, questions = self.prepare(request)
        self.ask(doc_id, questions[0], *self.context(request))
        return measured(self.ask(doc_id, questions[1], *self.context(request)))

    def summarize(self, request):
        given = peer.inputs(request)
        texts = {f"{request['round']}-{number}": document["text"] for number, document in enumerate(given["documents"])}
        words = [str(self.lines("summarize.jsonl", texts)), "--instruction", given["request"], "--max-tokens", str(given["tokens"])]
        begun = time.perf_counter()
        rows = self.run("coordinator", "summarize", *words)
        seconds = time.perf_counter() - begun
        usages = [row["usage"] for row in rows if "usage" in row]
        if len(usages) != len(texts):
            raise ValueError(f"{len(usages)} of {len(texts)} documents were summarised")
        total = lambda field: sum(usage[field] for usage in usages)
        note = {"windows": total("windows"), "written": total("generated_tokens")}
        return seconds, len(texts), {**note, "positions": total("soft_positions") + total("text_positions")}


def measured(usage):
    note = {"positions": usage["soft_positions"] + usage["text_positions"], "soft": usage["soft_positions"]}
    note |= {"reused": usage["reused_positions"], "chunks_left_out": usage["chunks_left_out"], "chunks": usage["chunks_total"]}
    return usage["first_token_ms"] / 1e3, 1, note


def evict(directory):
    script = pathlib.Path(__file__).parent / "peers" / "evict.py"
    subprocess.run([sys.executable, str(script), str(directory / "store" / "blobs")], check=True)
    subprocess.run([sys.executable, str(script), str(directory / "store" / "texts")], check=True)


def options():
    parser = peer.parser()
    parser.add_argument("--binary", required=True, help="e2llm")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = options()
    services = Services(chosen)
    works = {"first-question-": services.first_question, "second-question": services.second_question}
    works |= {"summarize-": services.summarize}
    version = subprocess.run([chosen.binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    try:
        peer.serve("e2llm", version, works)
    finally:
        services.fleet.stop()
