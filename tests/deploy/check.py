#!/usr/bin/env python3
"""Checks the Kubernetes deployment without a cluster: chart, Kustomize base, alerts and dashboard.

    pip install -r tests/deploy/requirements.txt
    python tests/deploy/check.py [--require-promtool] [--binary target/release/e2llm]

Prints one line per breach and exits with 1 if there is any. Not checked, for want of their schemas offline, are objects of
custom kinds; they are named in the end. promtool comes with Prometheus (Debian: prometheus), kubectl is optional too.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import helm_python
import kubernetes_validate
import yaml
from kubernetes_validate import utils

import schema
import security
import wiring
from render import CHART, HERE, KUSTOMIZE, OBSERVABILITY, ROOT, ToolFailed
from render import as_key, containers, lint, merge, merged, name_of, read, run, template, workloads

sys.path.insert(0, str(KUSTOMIZE))
import generate  # noqa: E402

VERSIONS = 3
METRIC = re.compile(r"\be2llm_[a-z0-9_]+")
SUFFIXES = ("_bucket", "_sum", "_count")


class Report:
    """What was checked, what was not, and what is wrong."""

    def __init__(self):
        self.checks, self.breaches, self.custom, self.skipped = 0, [], set(), []

    def add(self, what, breaches):
        """Notes one check's breaches."""
        self.checks += 1
        self.breaches += [f"{what}: {breach}" for breach in breaches]

    def guard(self, what, check, *arguments):
        """Runs a check that yields breaches, or raises where it cannot go on."""
        try:
            self.add(what, list(check(*arguments) or []))
        except AssertionError as error:
            self.add(what, [f"{str(error) or 'broken'}: {traceback.extract_tb(error.__traceback__)[-1].line}"])
        except (ToolFailed, KeyError, IndexError, TypeError, yaml.YAMLError, OSError) as error:
            self.add(what, [f"{type(error).__name__}: {error}"])

    def finish(self):
        """Prints the outcome; whether all is well."""
        for line in self.breaches:
            print(f"FAIL {line}")
        if self.custom:
            print(f"not validated, custom kinds: {', '.join(sorted(self.custom))}")
        for line in self.skipped:
            print(f"skipped: {line}")
        print(f"{self.checks} checks, {len(self.breaches)} failures")
        return not self.breaches


def newest_versions():
    """The newest minor versions of Kubernetes whose schemas are installed."""
    versions = {utils.major_minor(version) for version in utils.all_versions()}
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])[-VERSIONS:]


def validate(objects, custom):
    """Breaches of Kubernetes' schemas, in each of the newest versions."""
    for version in newest_versions():
        for item in objects:
            try:
                kubernetes_validate.validate(item, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError:
                custom.add(f"{item['apiVersion']} {item['kind']}")
            except kubernetes_validate.ValidationError as error:
                yield f"{name_of(item)} in {version}: {'.'.join(map(str, error.path))}: {error.message}"


def base_is_current():
    """The committed Kustomize base is what the chart renders now."""
    base, wanted = KUSTOMIZE / "base", generate.files()
    found = {path.name: path.read_text() for path in base.iterdir()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            yield f"{name} differs from the chart: run deploy/kustomize/generate.py"


def base_equals_chart():
    """What kubectl makes of the base are the chart's objects."""
    wanted = {name_of(item): as_key(item) for item in template(KUSTOMIZE / "values.yaml")}
    found = {name_of(item): as_key(item) for item in kustomize(KUSTOMIZE / "base")}
    yield from (f"{name} differs" for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name))


def example():
    """The overlay changes what it says it changes, and what it makes is valid."""
    objects = kustomize(KUSTOMIZE / "overlays/example")
    yield from validate(objects, set())
    yield from (f"{name_of(item)} is in no namespace" for item in objects if item["kind"] != "Namespace" and "namespace" not in item["metadata"])
    images = {container["image"] for _, pod in workloads(objects) for container in containers(pod)}
    if len(images) != 1 or not next(iter(images)).startswith("registry.example.com/e2llm:"):
        yield f"images are {sorted(images)}"


def kustomize(directory):
    return [item for item in yaml.safe_load_all(run("kubectl", "kustomize", directory)) if item]


def refused(case):
    """The chart must refuse these values, with the words of the reason."""
    try:
        template(merge(read(HERE / "values/minimal.yaml"), case["values"]))
    except ToolFailed as error:
        if case["because"] not in str(error):
            yield f"refused for another reason than {case['because']}: {error}"
    else:
        yield "accepted"


def package():
    """`helm package` works, and what is in it renders like the chart."""
    links = [path for path in CHART.rglob("*") if path.is_symlink()]
    yield from (f"{path.relative_to(ROOT)} is a link, which a package cannot hold" for path in links)
    values = HERE / "values/keda.yaml"
    with tempfile.TemporaryDirectory() as scratch:
        archive = helm_python.package(CHART, destination=scratch)
        if as_key(template(values, archive)) != as_key(template(values)):
            yield "the package renders other objects"


def metrics():
    """Alerts, dashboard and autoscaling name only metrics of the contract."""
    lines = (HERE / "metrics.txt").read_text().splitlines()
    known = {line.split()[0] for line in lines if line and not line.startswith("#")}
    for path in (CHART / "files/alerts.yaml", CHART / "files/dashboard.json", CHART / "templates/autoscaling.yaml"):
        for name in sorted(set(METRIC.findall(path.read_text()))):
            plain = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
            if not {name, plain} & known:
                yield f"{path.name} names {name}, which tests/deploy/metrics.txt does not"


def dashboard():
    """Panels have queries, ids of their own and places that do not overlap."""
    panels = json.loads((CHART / "files/dashboard.json").read_text())["panels"]
    ids, cells = set(), {}
    for panel in panels:
        if panel["id"] in ids:
            yield f"{panel['title']}: its id {panel['id']} is taken"
        ids.add(panel["id"])
        if panel["type"] != "row" and not all(target["expr"] for target in panel["targets"]):
            yield f"{panel['title']}: a query is empty"
        place = panel["gridPos"]
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            if cell in cells:
                yield f"{panel['title']}: lies over {cells[cell]}"
                break
            cells[cell] = panel["title"]


def promtool(report, required):
    """Prometheus' own check of the alerts, and their tests."""
    if not shutil.which("promtool"):
        if required:
            report.add("promtool", ["is missing: install Prometheus"])
        else:
            report.skipped.append("alerts, for promtool is missing")
        return
    report.guard("alerts", lambda: run("promtool", "check", "rules", OBSERVABILITY / "alerts.yaml") and None)
    report.guard("alerts_test", lambda: run("promtool", "test", "rules", OBSERVABILITY / "alerts_test.yaml") and None)
    rules = [rule["alert"] for group in yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    tests = (OBSERVABILITY / "alerts_test.yaml").read_text()
    report.add("alerts_test", [f"{name} is never tested to fire" for name in rules if tests.count(name) < 2])


def binary_knows(binary, objects):
    """The binary accepts every server's settings, and its help knows the flags and variables of all other commands."""
    helps = {}
    config = next(item["data"] for item in objects if item["kind"] == "ConfigMap")
    for item, pod in workloads(objects):
        for container in containers(pod):
            if container["args"][0] == "serve":
                plain = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
                run(binary, *container["args"], "--print-config", env={"E2LLM_SHARD": "0", **config, **plain})
            words = [word for word in container["args"] if not word.startswith("-")]
            command = tuple(words[:2] if words[0] in ("serve", "models", "jobs") else words[:1])
            if command not in helps:
                helps[command] = run(binary, *command, "--help")
            flags = {word.split("=")[0] for word in container["args"] if word.startswith("--")}
            variables = {variable["name"] for variable in container.get("env", []) if variable["name"].startswith("E2LLM_")}
            for word in sorted(flags | variables):
                if not re.search(rf"{re.escape(word)}\b", helps[command]):
                    yield f"{name_of(item)}: `{binary.name} {' '.join(command)}` does not know {word}"


def check_values(report, values, binary):
    """Everything about one set of values."""
    what = f"values/{values.name}"
    report.guard(f"{what}, lint", lint, values)
    try:
        objects = template(values)
    except ToolFailed as error:
        report.add(what, [str(error)])
        return
    report.guard(f"{what}, schemas", validate, objects, report.custom)
    report.guard(f"{what}, wiring", wiring.objects_fit, objects)
    report.guard(f"{what}, security", security.pods, objects, merged(values))
    report.guard(f"{what}, network", security.network, objects, merged(values))
    purpose = wiring.PURPOSES.get(values.stem)
    if purpose:
        report.guard(f"{what}, purpose", purpose, objects)
    if binary:
        report.guard(f"{what}, binary", binary_knows, binary, objects)


def check_kustomize(report):
    """Everything about the base and its example."""
    report.guard("kustomize base", base_is_current)
    if shutil.which("kubectl"):
        report.guard("kubectl kustomize base", base_equals_chart)
        report.guard("kubectl kustomize example", example)
    else:
        report.skipped.append("kubectl kustomize, for kubectl is missing")


def main():
    """All checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--require-promtool", action="store_true", help="fail where promtool is missing")
    parser.add_argument("--binary", type=Path, help="e2llm, whose help must know every flag and variable")
    arguments = parser.parse_args()
    report = Report()
    sets = sorted((HERE / "values").glob("*.yaml"))
    report.add("values", [f"{name}.yaml is missing" for name in wiring.PURPOSES if name not in {path.stem for path in sets}])
    for values in [*sets, KUSTOMIZE / "values.yaml"]:
        check_values(report, values, arguments.binary)
    check_kustomize(report)
    for case in read(HERE / "refused.yaml"):
        report.guard(f"refused {as_key(case['values'])}", refused, case)
    report.guard("schema", schema.is_closed)
    report.guard("values.yaml", schema.values_are_written_down)
    report.guard("package", package)
    report.guard("metrics", metrics)
    report.guard("dashboard", dashboard)
    promtool(report, arguments.require_promtool)
    return 0 if report.finish() else 1


if __name__ == "__main__":
    sys.exit(main())
