"""The collector's configuration, as far as it can be judged without a collector: whole, buildable, and where others look for it.

`cargo dev collector` has a real one judge it and sends telemetry through it.
"""

import copy
import pathlib
import re
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "observability/collector/otelcol.yaml").read_text()
CONFIGURATION = yaml.safe_load(TEXT)
WITHOUT_STORES = yaml.safe_load((ROOT / "observability/collector/without_stores.yaml").read_text())
MANIFEST = yaml.safe_load((ROOT / "observability/collector/builder.yaml").read_text())
COMPOSITION = yaml.safe_load(re.sub(r"\$\{\w+(?::[-?]([^}]*))?\}", "x", (ROOT / "docker-compose.yml").read_text()))
# `${env:NAME:-default}`
VARIABLE = re.compile(r"\$\{env:(\w+)(?::-([^}]*))?\}")
KINDS = {"receivers": "receiver", "processors": "processor", "exporters": "exporter", "connectors": "connector", "extensions": "extension"}


def merged(below, above):
    """As the collector merges its files: maps by their keys, all else is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {key: merged(below[key], above[key]) if key in below and key in above else above.get(key, below.get(key)) for key in {**below, **above}}


def module(kind, name):
    """Last part of the path of a component's Go module: `otlp_http/traces` is made by `otlphttpexporter`."""
    return name.split("/")[0].replace("_", "") + KINDS[kind]


def built(manifest):
    """Last parts of the paths of all components that are built in, with their versions."""
    found = {}
    for kind in KINDS:
        for entry in manifest.get(kind, []):
            path, version = entry["gomod"].split(" ")
            found[path.rsplit("/", 1)[-1]] = version
    return found


def faults(configuration, manifest):
    """What is wrong with a configuration, in words."""
    found = []
    pipelines = configuration["service"]["pipelines"]
    connectors = set(configuration.get("connectors", {}))
    used = {kind: set() for kind in KINDS}
    used["extensions"] = set(configuration["service"].get("extensions", []))
    ends = {"receivers": set(), "exporters": set()}
    for pipeline, parts in pipelines.items():
        for kind in ("receivers", "processors", "exporters"):
            for name in parts.get(kind, []):
                if name in connectors and kind in ends:
                    ends[kind].add(name)
                    used["connectors"].add(name)
                    continue
                used[kind].add(name)
                if name not in configuration.get(kind, {}):
                    found.append(f"{pipeline} names {name}, which is not among {kind}")
        outside = [name for name in parts["receivers"] if name not in connectors]
        if outside and parts.get("processors", [])[:1] != ["memory_limiter"]:
            found.append(f"{pipeline} receives from outside and does not begin with memory_limiter")
        if "batch" in [name.split("/")[0] for name in parts.get("processors", [])]:
            found.append(f"{pipeline} batches in a processor; that belongs last, into the exporter's queue")
    for kind in KINDS:
        for name in sorted(set(configuration.get(kind, {})) - used[kind]):
            found.append(f"{name} is among {kind} and nothing uses it")
        for name in configuration.get(kind, {}):
            if module(kind, name) not in built(manifest):
                found.append(f"{name} is not in the builder's manifest ({module(kind, name)})")
    for name in sorted(connectors & (ends["receivers"] ^ ends["exporters"])):
        found.append(f"connector {name} has one end only")
    for name in used["extensions"] - set(configuration.get("extensions", {})):
        found.append(f"extension {name} is not defined")
    for name, exporter in configuration["exporters"].items():
        if name.startswith("otlp") and "batch" not in ((exporter or {}).get("sending_queue") or {}):
            found.append(f"{name} does not batch")
    return found


class Collector(unittest.TestCase):
    def test_it_is_whole(self):
        self.assertEqual(faults(CONFIGURATION, MANIFEST), [])
        # With this one on top, the stores of the one below are defined in vain, and nothing else is wrong.
        without = faults(merged(CONFIGURATION, WITHOUT_STORES), MANIFEST)
        self.assertEqual(without, [f"otlp_http/{name} is among exporters and nothing uses it" for name in ("logs", "traces")])

    def test_what_is_wrong_is_noticed(self):
        def broken(change):
            configuration, manifest = copy.deepcopy((CONFIGURATION, MANIFEST))
            change(configuration, manifest)
            return "; ".join(faults(configuration, manifest))

        pipelines = lambda configuration: configuration["service"]["pipelines"]
        for change, said in [
            (lambda c, m: c["exporters"].pop("prometheus"), "metrics names prometheus, which is not among exporters"),
            (lambda c, m: c["processors"].update(filter={}), "filter is among processors and nothing uses it"),
            (lambda c, m: c["service"].update(extensions=[]), "health_check is among extensions and nothing uses it"),
            (lambda c, m: c["service"]["extensions"].append("pprof"), "extension pprof is not defined"),
            (lambda c, m: m["processors"].pop(), "tail_sampling is not in the builder's manifest"),
            (lambda c, m: pipelines(c)["logs"]["processors"].clear(), "logs receives from outside"),
            (lambda c, m: pipelines(c)["metrics"].update(receivers=["otlp"]), "connector span_metrics has one end only"),
            (lambda c, m: pipelines(c)["traces"]["processors"].append("batch"), "traces batches in a processor"),
            (lambda c, m: c["exporters"]["otlp_http/logs"]["sending_queue"].pop("batch"), "otlp_http/logs does not batch"),
        ]:
            with self.subTest(said):
                self.assertIn(said, broken(change))

    def test_what_is_built_is_used_and_of_one_version(self):
        both = merged(CONFIGURATION, WITHOUT_STORES)
        used = {module(kind, name) for kind in KINDS for name in both.get(kind, {})}
        self.assertEqual(set(built(MANIFEST)) - used, set())
        (version,) = set(built(MANIFEST).values())
        # The composition's is the distribution with all components; an older one does not know their names.
        self.assertEqual(COMPOSITION["services"]["collector"]["image"].split(":")[-1], version.removeprefix("v"))
        self.assertTrue(any("envprovider" in entry["gomod"] for entry in MANIFEST["providers"]))

    def test_others_look_for_it_where_it_listens(self):
        defaults = dict(VARIABLE.findall(TEXT))
        self.assertTrue(all(defaults.values()), "each variable has a default")
        port = {name: int(value.rsplit(":", 1)[1]) for name, value in defaults.items() if name.endswith("_LISTEN")}
        self.assertEqual(len(set(port.values())), 3)

        service = COMPOSITION["services"]["collector"]
        self.assertEqual(set(service["environment"]), set(defaults))
        for name, number in port.items():
            self.assertEqual(service["environment"][name], f"0.0.0.0:{number}")
        mounted = dict(volume.split(":")[:2] for volume in service["volumes"])
        self.assertEqual([f"--config={path}" for path in mounted.values()], service["command"])
        scraped = yaml.safe_load((ROOT / "compose/prometheus.yaml").read_text())["scrape_configs"]
        targets = [target for job in scraped for entry in job["static_configs"] for target in entry["targets"]]
        self.assertIn(f"collector:{port['METRICS_LISTEN']}", targets)
        operations = (ROOT / "docs/operations.md").read_text()
        self.assertIn(f"OTLP_ENDPOINT=http://collector:{port['OTLP_LISTEN']}`", operations)

        # The policies follow this URL.
        example = yaml.safe_load((ROOT / "helm/fechatter/examples/production.yaml").read_text())
        self.assertTrue(example["telemetry"]["otlpEndpoint"].endswith(f":{port['OTLP_LISTEN']}"))

    def test_sampling_keeps_what_is_looked_for(self):
        policies = {policy["type"]: policy for policy in CONFIGURATION["processors"]["tail_sampling"]["policies"]}
        self.assertEqual(policies["status_code"]["status_code"]["status_codes"], ["ERROR"])
        self.assertIn("latency", policies)
        pipelines = CONFIGURATION["service"]["pipelines"]
        self.assertIn("span_metrics", pipelines["traces"]["exporters"])
        self.assertNotIn("tail_sampling", pipelines["traces"]["processors"], "span metrics count before sampling")


if __name__ == "__main__":
    unittest.main()
