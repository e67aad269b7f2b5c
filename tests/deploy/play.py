#!/usr/bin/env python3
"""Runs what the chart renders, from the real image, with podman and an S3 server: two pods of each worker role.

    tests/deploy/play.py --binary target/release/e2llm --image localhost/e2llm:0.1.0 --python target/test-python/bin/python

Podman has no StatefulSets, Services, probes without a shell in the image, or replicas; what is changed for that is printed, each difference
once. Then it waits for the probes, summarises a corpus and asks about it through the pods, restarts every pod in turn while a job runs, and
compares that job's results with an undisturbed run. With --partitions, each pod being a host with a network of its own, every arrow between
services is cut for a while during a job, too. Prints one JSON line per step; the exit code is 1 when one fails.
"""

import argparse
import copy
import ipaddress
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import yaml
from render import template

NETWORK = "e2llm-play"
GRPC, ADMIN = 7700, 7780
BUCKET = "bucket"
STORE = f"s3://{BUCKET}/store"
ROLES = ("encoder", "index", "decoder", "coordinator")
# Who dials whom.
ARROWS = [
    ("encoder", "index"), ("encoder", "coordinator"), ("encoder", "store"), ("decoder", "index"), ("decoder", "encoder"),
    ("decoder", "coordinator"), ("decoder", "store"), ("index", "store"), ("coordinator", "store"),
]
# Of each worker role.
WORKERS = 2
CPUS = "1"


def run(*command, env=None, check=True):
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(map(str, command[:4]))} … failed: {done.stderr.strip()[-400:]} {done.stdout.strip()[-400:]}")
    return done


def told(step, **fields):
    print(json.dumps({"step": step, **fields}), flush=True)


class Differences:
    """What is not as rendered, each once."""

    def __init__(self):
        self.seen = {}

    def note(self, what, why):
        self.seen.setdefault(what, why)


def pods(rendered, differences):
    """Pods, ConfigMaps and Secrets that podman can run, from rendered objects."""
    kept = []
    for manifest in rendered:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind == "ConfigMap":
            kept.append(manifest)
        elif kind in ("Deployment", "StatefulSet"):
            worker = name.endswith(("-encoder", "-decoder"))
            for number in range(WORKERS if worker else 1):
                kept.append(pod(manifest, f"{name}-{number}" if worker else name, number, differences))
            differences.note(f"{kind} → Pod", "podman plays one replica; two workers are two pods")
        else:
            differences.note(f"{kind} left out", "nothing in podman stands for it")
    return kept


def pod(manifest, name, number, differences):
    template = copy.deepcopy(manifest["spec"]["template"])
    spec = template["spec"]
    for field in ("topologySpreadConstraints", "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks"):
        if spec.pop(field, None) is not None:
            differences.note(f"{field} left out", "there is no scheduler and no API server")
    for container in spec.get("initContainers", []) + spec["containers"]:
        for field in ("startupProbe", "livenessProbe", "readinessProbe"):
            if container.pop(field, None):
                differences.note(f"{field} asked from outside", "podman runs probes with curl inside the container, and the image has none")
        if container.pop("lifecycle", None):
            differences.note("preStop sleep left out", "podman has no sleep hook")
        if container.pop("ports", None):
            differences.note("ports left out", "podman publishes them on the host, where they collide; pods reach each other without")
        container.pop("resources", None)
        differences.note("resources left out", "two workers of each kind share the two cores of this machine")
        for variable in container.get("env", []):
            source = variable.pop("valueFrom", None)
            if source and "resourceFieldRef" in source:
                variable["value"] = CPUS
                differences.note("threads are a number", "podman has no resourceFieldRef")
            elif source:
                variable["value"] = str(number)
                differences.note("the pod's index is a number", "podman has no StatefulSet that labels pods")
        container["imagePullPolicy"] = "Never"
    for volume in spec.get("volumes", []):
        if "emptyDir" in volume:
            volume["emptyDir"] = {}
            differences.note("size limits of emptyDir left out", "podman knows none")
    metadata = {"name": name, "labels": template["metadata"]["labels"]}
    # Podman removes init containers after their first run otherwise, and a restarted pod has none.
    metadata["annotations"] = {"io.podman.annotations.init.container.type": "always"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def name_services(manifests, addresses, differences):
    """Has every pod find the others under the names of the headless Services."""
    aliases = [
        {"ip": address, "hostnames": [f"e2llm-{role}-headless", f"e2llm-{role}-0.e2llm-{role}-headless"]} for name, address in addresses.items() for role in ROLES if role in name
    ]
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            manifest["spec"]["hostAliases"] = aliases
    differences.note("hostAliases and fixed addresses", "they stand for the headless Services")


class Play:
    def __init__(self, args, home):
        self.args, self.home, self.addresses = args, home, {}

    def cli(self, *words, server=True):
        command = [self.args.binary, "--json", "--quiet"]
        command += ["--server", self.server()] if server else ["--store", STORE]
        return run(*command, *words, env=self.environment("127.0.0.1"))

    def server(self):
        url = lambda role: f"{role}=http://{self.addresses['e2llm-' + role + ('-0' if role in ('encoder', 'decoder') else '')]}:{GRPC}"
        return ",".join(url(role) for role in ("encoder", "index", "decoder", "coordinator"))

    def environment(self, host):
        return {**os.environ, **self.storage(host)}

    def storage(self, host):
        return {
            "AWS_ENDPOINT": f"http://{host}:{self.args.s3_port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        }

    def start_storage(self):
        command = [self.args.python, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(self.args.s3_port)]
        log = open(self.home / "moto.log", "wb")
        self.storage_server = subprocess.Popen(command, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{self.args.s3_port}/{BUCKET}"
        wait("storage", lambda: urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).status == 200)
        told("storage", url=url)

    def render(self, gateway):
        values = {
            "image": {"repository": self.args.image.rsplit(":", 1)[0], "tag": self.args.image.rsplit(":", 1)[1]},
            "store": {"url": STORE}, "extraEnv": [{"name": name, "value": value} for name, value in self.storage(gateway).items()],
            "auth": {"allowUnauthenticated": True}, "weights": {"source": "store"}, "networkPolicy": {"enabled": False},
        }
        return template(values)

    def start(self):
        run("podman", "network", "create", NETWORK, check=False)
        network = json.loads(run("podman", "network", "inspect", NETWORK).stdout)[0]
        gateway = network["subnets"][0]["gateway"]
        differences = Differences()
        manifests = pods(self.render(gateway), differences)
        self.names = [m["metadata"]["name"] for m in manifests if m["kind"] == "Pod"]
        self.addresses = {name: str(ipaddress.ip_address(gateway) + 10 + number) for number, name in enumerate(self.names)}
        name_services(manifests, self.addresses, differences)
        (self.home / "pods.yaml").write_text(yaml.safe_dump_all(manifests))
        told("differences", **differences.seen)
        begun = time.monotonic()
        self.gateway = gateway
        addresses = [part for name in self.names for part in ("--ip", self.addresses[name])]
        run("podman", "kube", "play", "--network", NETWORK, *addresses, str(self.home / "pods.yaml"))
        wait("all pods to be ready", lambda: all(self.probe(name, "readyz") for name in self.names), 300)
        told("ready", pods=len(self.names), seconds=round(time.monotonic() - begun, 1))

    def probe(self, name, path):
        try:
            return urllib.request.urlopen(f"http://{self.addresses[name]}:{ADMIN}/{path}", timeout=3).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def restart_each(self, job, expected):
        """Every pod in turn, as a rolling update does: stopped with its grace period, started, and ready before the next; job follows job
        meanwhile. Gives back the jobs whose results differ."""
        done, wrong, jobs = threading.Event(), [], []

        def work():
            while not done.is_set():
                jobs.append(f"restart-{len(jobs)}")
                if job(jobs[-1]) != expected:
                    wrong.append(jobs[-1])

        working = threading.Thread(target=work)
        working.start()
        for name in self.names:
            begun = time.monotonic()
            run("podman", "pod", "stop", "--time", "120", name)
            stopped, gone = time.monotonic() - begun, not self.probe(name, "livez")
            run("podman", "pod", "start", name)
            wait(f"{name} to be ready again", lambda: self.probe(name, "readyz"), 300)
            told("restarted", pod=name, gone=gone, seconds_to_stop=round(stopped, 1), seconds=round(time.monotonic() - begun, 1))
            if not gone:
                wrong.append(name)
        done.set()
        working.join()
        told("rolling restart", jobs=len(jobs), wrong=wrong)
        return wrong

    def cut(self, source, target):
        """Drops what `source` sends to `target`, in the network namespace of its pod; gives back how to mend it, and how many packets fell."""
        rule = ["OUTPUT", "-d", target, "-j", "DROP"]
        inside = ["nsenter", "-t", str(self.process(source)), "-n", "iptables"]
        run(*inside, "-I", *rule)

        def mend():
            rules = [line.split() for line in run(*inside, "-nvxL", "OUTPUT").stdout.splitlines()]
            run(*inside, "-D", *rule)
            return next(int(words[0]) for words in rules if target in words)

        return mend

    def process(self, name):
        infra = json.loads(run("podman", "pod", "inspect", name).stdout)
        infra = (infra[0] if isinstance(infra, list) else infra)["InfraContainerID"]
        return json.loads(run("podman", "inspect", infra).stdout)[0]["State"]["Pid"]

    def partition_each(self, gateway, seconds, job, expected, ask, answers):
        """Every arrow in turn is cut before a job, and mended while it runs; the job's results must be those of an undisturbed one. Only
        questions need an encoder's vectors."""
        workers = {role: [name for name in self.names if role in name] for role in ROLES}
        wrong = []
        for source, target in (arrow for arrow in ARROWS if not self.args.arrow or "-".join(arrow) in self.args.arrow):
            outcome = {}
            name = f"cut-{source}-{target}"
            work, right = (ask, answers) if (source, target) == ("decoder", "encoder") else (job, expected)
            running = threading.Thread(target=lambda: outcome.update(rows=work(name)))
            to = [gateway] if target == "store" else [self.addresses[pod] for pod in workers[target]]
            mends = [self.cut(pod, address) for pod in workers[source] for address in to]
            running.start()
            time.sleep(seconds)
            dropped, begun = sum(mend() for mend in mends), time.monotonic()
            running.join()
            same = outcome.get("rows") == right
            told("partition", arrow=f"{source} → {target}", seconds=seconds, packets_dropped=dropped, same_results=same,
                 seconds_to_end_after=round(time.monotonic() - begun, 1))
            if not same or not dropped:
                wrong.append(name)
        return wrong

    def stop(self):
        run("podman", "kube", "down", str(self.home / "pods.yaml"), check=False)
        run("podman", "network", "rm", "-f", NETWORK, check=False)
        self.storage_server.terminate()


def wait(what, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {seconds} s for {what}")
        time.sleep(0.5)


def results(done):
    """Of a job: what must be the same however often pods were restarted."""
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    keep = lambda row: (row["id"], row.get("summary") or row.get("answer"), (row.get("error") or {}).get("code"))
    return sorted(map(keep, rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="e2llm on this machine, for the command line")
    parser.add_argument("--image", required=True)
    parser.add_argument("--python", default=sys.executable, help="with moto[server]")
    parser.add_argument("--corpus", default="sample:essays")
    parser.add_argument("--s3-port", type=int, default=5501)
    parser.add_argument("--max-tokens", default="16")
    parser.add_argument("--partitions", type=float, default=0, metavar="SECONDS", help="also cut every arrow for so long, each during a job")
    parser.add_argument("--arrow", action="append", metavar="SOURCE-TARGET", help="cut this arrow alone, and restart nothing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        play = Play(args, pathlib.Path(home))
        play.start_storage()
        play.cli("models", "push", server=False)
        try:
            play.start()
            told("probes", **{name: {path: play.probe(name, path) for path in ("livez", "readyz", "forwardz")} for name in play.names})
            summarize = ["summarize", args.corpus, "--max-tokens", args.max_tokens]
            begun = time.monotonic()
            quiet = results(play.cli(*summarize, "--job", "quiet"))
            told("summarised", documents=len(quiet), failed=sum(code is not None for *_, code in quiet), seconds=round(time.monotonic() - begun, 1))
            first = quiet[0][0]
            answer = json.loads(play.cli("ask", "--id", first, "What is it about?", "--max-tokens", "12").stdout.splitlines()[-1])
            told("asked", id=first, answer=answer["answer"])
            # A collection of its own, so that everything is encoded anew.
            job = lambda name: results(play.cli("--collection", name, *summarize, "--job", name))
            wrong = [] if args.arrow else play.restart_each(job, quiet)
            if args.partitions:
                question = ["ask", "What is it about?", "--each", args.corpus, "--max-tokens", args.max_tokens]
                # Documents that are encoded already: a job's questions begin at once.
                ask = lambda name: results(play.cli("--collection", "questions", *question, "--job", name))
                wrong += play.partition_each(play.gateway, args.partitions, job, quiet, ask, ask("quiet-questions"))
            if wrong:
                raise SystemExit(f"results differ, or nothing was struck: {', '.join(wrong)}")
        finally:
            play.stop()


if __name__ == "__main__":
    main()
