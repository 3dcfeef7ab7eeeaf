"""The chart as the tests see it: rendered by the real Helm engine, as objects."""

import copy
import functools
import pathlib

import helm_python
import yaml

CHART = pathlib.Path(__file__).resolve().parent.parent / "fechatter"
EXAMPLES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CHART / "examples").glob("*.yaml"))}
# Whose API schemas the objects are validated against.
KUBERNETES = ("1.27", "1.30", "1.34", "1.37")
SERVICES = ("gateway", "chat", "notify", "indexer")


class Strict(yaml.CSafeLoader):
    """Reads YAML, but no mapping with a key twice, of which one would be lost."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def merge(base, patch):
    """`patch` over `base`, as Helm merges values files."""
    merged = copy.deepcopy(base)
    for key, value in patch.items():
        merged[key] = merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
    return merged


def at(path, value):
    """The values that set one dotted path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@functools.cache
def loaded():
    """The chart, read once."""
    return helm_python.Chart.load(CHART)


def files(values, name="fechatter", namespace="chat"):
    """The text of each rendered template."""
    return loaded().render(values=values, name=name, namespace=namespace, revision=1)


def objects(values, **release):
    """The rendered objects, hooks and tests included."""
    found = []
    for path, text in files(values, **release).items():
        if not path.endswith("NOTES.txt"):
            found += [document for document in yaml.load_all(text, Strict) if document]
    return found


def pod_of(item):
    """(labels, pod spec) of an object that makes pods, else None."""
    if item["kind"] == "Pod":
        return item["metadata"]["labels"], item["spec"]
    template = item.get("spec", {}).get("template")
    return (template["metadata"]["labels"], template["spec"]) if template else None


def pods(items):
    """Component to (labels, pod spec)."""
    found = {}
    for item in items:
        pod = pod_of(item)
        if pod:
            found[pod[0]["app.kubernetes.io/component"]] = pod
    return found
