"""What is generated from the chart, for `cargo dev chart` to write and for the tests to compare.

The README: its values, from values.schema.json (what they mean) and values.yaml (their defaults). The golden renders: the objects of each
example, so that a change of the chart shows in its review as the change of the objects that it makes.
"""

import json
import pathlib
import re

import yaml

from chart import CHART, EXAMPLES, KUBERNETES, objects

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"

HEAD = """# The Fechatter chart

The platform on Kubernetes 1.27 or newer. How to install, upgrade, scale and restore: `docs/operations.md`. Values to begin with:
`examples/`. Wrong, contradictory or missing values are refused with a sentence that says what to set.

What they make is validated against the API of Kubernetes {kubernetes}, and against the custom resources of {operators}.

Secrets are never values: each is a Secret that exists, made by you or by your secrets operator, and nothing here makes or changes one.

Everything below is generated from `values.schema.json` and `values.yaml` by `cargo dev chart`.

| value | default | accepted | what it is |
|---|---|---|---|
"""


def accepted(schema):
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kinds = schema.get("type", "")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds and "number" in kinds:
        return "number, text"
    if "minimum" in schema and "maximum" in schema:
        return f"{schema['minimum']:,} to {schema['maximum']:,}" + (" or null" if "null" in kinds else "")
    if "minimum" in schema:
        return f"{schema['minimum']:,} or more"
    return {"boolean": "true, false", "string": "text", "array": "list", "object": "table"}.get(kinds[0], kinds[0])


def rows(schema, defaults, path=""):
    for key, value in schema["properties"].items():
        where = f"{path}.{key}" if path else key
        default = defaults.get(key) if isinstance(defaults, dict) else None
        if "properties" in value:
            yield f"| **`{where}`** | | | {value['description']} |"
            yield from rows(value, default or {}, where)
            continue
        shown = "" if default is None else f"`{json.dumps(default)}`"
        yield f"| `{where}` | {shown} | {accepted(value)} | {value['description']} |"


def readme():
    source = (CHART.parents[1] / "dev/src/chart.rs").read_text()
    operators = [f"{name.replace('-', ' ')} {version}" for name, version in re.findall(r'"github.com/[\w-]+/([\w-]+)@v(\d+\.\d+)', source)]
    head = HEAD.format(kubernetes=", ".join(KUBERNETES), operators=" and ".join(operators))
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    return head + "\n".join(rows(schema, defaults)) + "\n"


def golden(values):
    """The objects as YAML, in order; without the text of files, which are in the repository as well."""
    items = objects(values)
    for item in items:
        if item["kind"] == "ConfigMap":
            item["data"] = {name: "the file" for name in item["data"]}
        elif item["kind"] == "PrometheusRule":
            item["spec"] = "the file"
    items.sort(key=lambda item: (item["kind"], item["metadata"]["name"]))
    return yaml.safe_dump_all(items, sort_keys=True, width=160)


def renewed():
    """Path to text of every generated file."""
    return {CHART / "README.md": readme(), **{GOLDEN / f"{name}.yaml": golden(values) for name, values in EXAMPLES.items()}}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for path, text in renewed().items():
        path.write_text(text)
