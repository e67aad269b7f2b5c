"""The protocol of a contestant, as ../PEERS.md describes it: one request per line in, one answer per line out."""

import argparse
import json
import os
import sys
import time
import traceback


def parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--encoder", required=True, help="directory of safetensors, configuration and tokenizer")
    parser.add_argument("--decoder", required=True, help="the decoder's GGUF")
    parser.add_argument("--cache", required=True, help="for what is made once")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def options():
    chosen = parser().parse_args()
    os.makedirs(chosen.cache, exist_ok=True)
    return chosen


class Unsupported(Exception):
    """The peer has no such work; says why."""


def serve(name, version, works):
    """`works` maps the beginning of a work's name to a function of the request that gives seconds, units and a note."""
    # Libraries print to standard output what does not belong there.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps({"ready": True, "name": name, "version": version}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), works)), file=answers)


def answer(request, works):
    work = request["work"]
    run = next((run for prefix, run in works.items() if work.startswith(prefix)), None)
    if run is None:
        return {"unsupported": f"{work} is nothing that this peer does"}
    try:
        seconds, units, note = run(request)
        return {"seconds": seconds, "units": units, "note": note}
    except Unsupported as reason:
        return {"unsupported": str(reason)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def inputs(request):
    with open(request["inputs"]) as file:
        return json.load(file)


def timed(work):
    begun = time.perf_counter()
    done = work()
    return time.perf_counter() - begun, done


class Fastest:
    """The fastest of several settings for a work, tried in its warm-up (round 0) and kept."""

    def __init__(self, candidates, attempts=2):
        self.candidates, self.attempts, self.chosen, self.tried = candidates, attempts, {}, {}

    def run(self, request, work):
        """`work(setting)` gives seconds, units and a note; the setting that was used goes into the note."""
        name = request["work"]
        if request.get("round", 0) == 0 or name not in self.chosen:
            times = {setting: self.attempt(work, setting) for setting in self.candidates}
            self.chosen[name] = min(times, key=times.get)
            self.tried[name] = {label(setting): round(seconds, 4) for setting, seconds in times.items()}
            print(name, self.tried[name], file=sys.stderr)
        setting = self.chosen[name]
        seconds, units, note = work(setting)
        note = {**note, "setting": label(setting)}
        if request.get("round", 0) == 0:
            note["tried"] = self.tried[name]
        return seconds, units, note

    def attempt(self, work, setting):
        """The best of some: the first call of a setting loads what it needs."""
        return min(work(setting)[0] for _ in range(self.attempts))


def label(setting):
    return " ".join(str(part) for part in setting) if isinstance(setting, tuple) else str(setting)
