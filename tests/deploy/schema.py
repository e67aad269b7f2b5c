"""The schema of the values: closed, and every value stands in values.yaml with its default."""

import json

from render import CHART, read

# Maps whose keys are the user's, or that are for parent charts.
OPEN = {"global"}
# Keys that exist for some entries only.
OPTIONAL = {"tls.secrets", "serviceAccount.annotations", "encoder.affinity", "decoder.affinity", "index.affinity", "coordinator.affinity"}


def load():
    return json.loads((CHART / "values.schema.json").read_text())


def is_closed():
    """Every object with named properties refuses others."""
    yield from open_objects(load(), "values")


def open_objects(node, where):
    if isinstance(node, list):
        for position, item in enumerate(node):
            yield from open_objects(item, f"{where}[{position}]")
    if not isinstance(node, dict):
        return
    if node.get("type") == "object" and "properties" in node and node.get("additionalProperties") is not False:
        yield f"{where} takes any other key"
    for key, below in node.items():
        yield from open_objects(below, f"{where}.{key}")


def values_are_written_down():
    """Every key of the schema is in values.yaml."""
    schema = load()
    yield from missing(schema, schema, read(CHART / "values.yaml"), "")


def missing(schema, node, values, where):
    node = schema["definitions"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
    if "properties" not in node or not isinstance(values, dict) or where in OPTIONAL:
        return
    for key, below in node["properties"].items():
        path = f"{where}.{key}" if where else key
        if key in values:
            yield from missing(schema, below, values[key], path)
        elif path not in OPEN:
            yield f"{path} is not there"
