"""Writes the chart's README: its values, from values.schema.json (what they mean) and values.yaml (their defaults)."""

import json

import yaml

from chart import CHART

HEAD = """# The Fechatter chart

The platform on Kubernetes 1.27 or newer. How to install, upgrade, scale and restore: `docs/operations.md`. Values to begin with:
`examples/`. Wrong, contradictory or missing values are refused with a sentence that says what to set.

Secrets are never values: each is a Secret that exists, made by you or by your secrets operator, and nothing here makes or changes one.

Everything below is generated from `values.schema.json` and `values.yaml` by `helm/tests/values_readme.py`.

| value | default | accepted | what it is |
|---|---|---|---|
"""


def accepted(schema):
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kinds = schema.get("type", "")
    kinds = kinds if isinstance(kinds, list) else [kinds]
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


def render():
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    return HEAD + "\n".join(rows(schema, defaults)) + "\n"


if __name__ == "__main__":
    (CHART / "README.md").write_text(render())
