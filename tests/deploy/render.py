"""Renders the chart, and reads what comes out."""

import copy
import json
import subprocess
from pathlib import Path

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/e2llm"
KUSTOMIZE = ROOT / "deploy/kustomize"
OBSERVABILITY = ROOT / "deploy/observability"
HERE = ROOT / "tests/deploy"
NAMESPACE = "documents"


class ToolFailed(Exception):
    """What a tool said when it failed, on one line."""


def run(*command, env=None):
    """The standard output of a command, with nothing but `env` in its environment if that is given."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).split())
        raise ToolFailed(f"{Path(str(command[0])).name}: {said}")
    return done.stdout


def read(values):
    """Values as Helm takes them: a file, or what was in one."""
    return values if isinstance(values, dict) else yaml.safe_load(Path(values).read_text())


def template(values, chart=CHART):
    """The objects of the chart with these values."""
    try:
        with helm_python.Chart.load(chart) as loaded:
            loaded.validate_schema(read(values))
            files = loaded.render(read(values), name="e2llm", namespace=NAMESPACE)
    except helm_python.HelmError as error:
        raise ToolFailed(" ".join(str(error).split())) from None
    return [item for path, text in files.items() if path.endswith(".yaml") for item in yaml.safe_load_all(text) if item]


def lint(values):
    """Helm's own findings."""
    report = helm_python.lint(CHART, read(values), strict=True, namespace=NAMESPACE)
    findings = [f"{message['path']}: {message['error']}" for message in report["messages"] if message["severity"] > 1]
    return [" ".join(finding.split()) for finding in findings + report["errors"]]


def merged(values_file):
    """The chart's values with those of a file on top, as Helm merges them."""
    return merge(read(CHART / "values.yaml"), read(values_file))


def merge(under, over):
    """Maps are merged, all else is replaced, and null removes."""
    result = copy.deepcopy(under)
    for key, value in (over or {}).items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def name_of(item):
    """Such as Deployment/e2llm-encoder."""
    return f"{item['kind']}/{item['metadata']['name']}"


def pod_template(item):
    """The pod template of a workload, or None."""
    if item["kind"] in ("Deployment", "StatefulSet", "Job"):
        return item["spec"]["template"]
    if item["kind"] == "CronJob":
        return item["spec"]["jobTemplate"]["spec"]["template"]
    return None


def workloads(objects):
    """Pairs of workload and pod template."""
    return [(item, pod_template(item)) for item in objects if pod_template(item)]


def containers(template_of_pod):
    """All containers of a pod template, init containers first."""
    spec = template_of_pod["spec"]
    return spec.get("initContainers", []) + spec["containers"]


def find(objects, name):
    """The object of a name such as Deployment/e2llm-encoder."""
    matching = [item for item in objects if name_of(item) == name]
    if len(matching) != 1:
        raise AssertionError(f"{len(matching)} objects are called {name}")
    return matching[0]


def matches(selector, labels):
    """Whether a map of labels selects these."""
    return all(labels.get(key) == value for key, value in selector.items())


def as_key(value):
    """Something comparable for any YAML value."""
    return json.dumps(value, sort_keys=True)
