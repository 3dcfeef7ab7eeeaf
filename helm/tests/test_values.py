"""What values are accepted, and what is said about the others."""

import json
import re
import unittest

import helm_python
import yaml

import values_readme
from chart import CHART, EXAMPLES, at, files, merge, objects

SMALL = EXAMPLES["small"]

# Values over examples/small.yaml, and what the refusal says to do.
REFUSED = [
    ("a certificate without a source", at("gateway.tls.existingSecret", ""), "gateway.tls.existingSecret: set it to a Secret with tls.crt"),
    ("two sources of the certificate", at("gateway.tls.certManager", {"enabled": True, "issuerName": "x"}), "gateway.tls: two sources"),
    ("cert-manager without an issuer", at("gateway.tls", {"existingSecret": "", "certManager": {"enabled": True}}), "gateway.tls.certManager.issuerName: set it"),
    ("cert-manager without a name", merge(at("gateway.publicHost", ""), at("gateway.tls", {"existingSecret": "", "certManager": {"enabled": True, "issuerName": "x"}})), "gateway.publicHost: set it to the name"),
    ("no signing keys", at("chat.signingKeys.existingSecret", ""), "chat.signingKeys.existingSecret: set it to a Secret of signing keys"),
    ("no database", at("database.existingSecret", ""), "database.existingSecret: set it to a Secret with owner-url"),
    ("two databases", at("database.bundled", {"enabled": True, "existingSecret": "x"}), "database: two sources"),
    ("a bundled database without passwords", at("database", {"existingSecret": "", "bundled": {"enabled": True}}), "database.bundled.existingSecret: set it"),
    ("no NATS", at("nats.url", ""), "nats.url: set it to the NATS servers"),
    ("two NATS", at("nats.bundled.enabled", True), "nats: two sources"),
    ("NATS without passwords", at("nats.existingSecret", ""), "nats.existingSecret: set it"),
    ("three replicas on one NATS", at("nats", {"url": "", "bundled": {"enabled": True}, "streamReplicas": 3}), "nats.streamReplicas: the bundled NATS is one server"),
    ("Meilisearch without a server", at("indexer.engine", "meilisearch"), "meilisearch.url: set it"),
    ("two Meilisearch", merge(at("indexer.engine", "meilisearch"), at("meilisearch", {"url": "http://m:7700", "existingSecret": "m", "bundled": {"enabled": True}})), "meilisearch: two sources"),
    ("Meilisearch without a key", merge(at("indexer.engine", "meilisearch"), at("meilisearch.url", "http://m:7700")), "meilisearch.existingSecret: set it"),
    ("a Meilisearch that nobody uses", at("meilisearch.url", "http://m:7700"), "meilisearch: it would not be used"),
    ("two embedded indexes", at("indexer.replicas", 2), "indexer.replicas: the embedded engine is one process"),
    ("an autoscaler of an embedded index", at("indexer.autoscaling.enabled", True), "indexer.replicas: the embedded engine is one process"),
    ("an autoscaler and fixed replicas", merge(at("chat.replicas", 3), at("chat.autoscaling.enabled", True)), "chat.replicas: an autoscaler sets the number"),
    ("an autoscaler that cannot grow", at("notify.autoscaling", {"enabled": True, "minReplicas": 5, "maxReplicas": 4}), "notify.autoscaling.maxReplicas: 4 is below minReplicas 5"),
    ("source ranges that nothing heeds", at("gateway.service", {"type": "ClusterIP", "loadBalancerSourceRanges": ["10.0.0.0/8"]}), "only a LoadBalancer heeds it"),
    ("one port for two protocols", at("gateway.service.httpPort", 443), "gateway.service.httpPort: must differ"),
    ("a probe without an account", at("probe.enabled", True), "probe.existingSecret: set it to a Secret with email and password"),
    ("a probe of no name", merge(at("gateway.publicHost", ""), at("probe", {"enabled": True, "existingSecret": "x"})), "gateway.publicHost: set it to the name in the certificate"),
    ("rounds that are too rare for the alert", at("probe.intervalSeconds", 600), "maximum"),
    ("runbooks at no address", at("monitoring.runbooksUrl", "wiki/runbooks"), "does not match pattern"),
    ("an unknown key", at("gatway", {}), "additional properties 'gatway' not allowed"),
    ("an unknown key within a service", at("chat.replica", 3), "additional properties 'replica' not allowed"),
    ("an unknown setting", at("notify.settings.stream.queue_byte", 4096), "additional properties 'queue_byte' not allowed"),
    ("a setting out of range", at("gateway.settings.limits.uri_bytes", 1), "minimum"),
    ("a text for a number", at("chat.replicas", "three"), "got string, want null or integer"),
    ("no replicas", at("chat.replicas", 0), "minimum"),
    ("an engine that does not exist", at("indexer.engine", "elasticsearch"), "value must be one of 'embedded', 'meilisearch'"),
    ("a digest that is none", at("image.digest", "latest"), "does not match pattern"),
    ("a password in the NATS URL", at("nats.url", "nats://user:secret@nats:4222"), "does not match pattern"),
    ("a quantity that is none", at("chat.resources.limits.memory", "a lot"), "does not match pattern"),
]


def switches(values, path=""):
    for key, value in values.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, bool):
            yield where
        elif isinstance(value, dict):
            yield from switches(value, where)


def has_description(schema, path=""):
    for key, value in schema.get("properties", {}).items():
        where = f"{path}.{key}"
        if not value.get("description"):
            yield where
        if "properties" in value and value.get("additionalProperties") is not False:
            yield f"{where} is not strict"
        yield from has_description(value, where)


class Values(unittest.TestCase):
    def test_lint(self):
        for name, values in EXAMPLES.items():
            with self.subTest(name):
                report = helm_python.lint(CHART, values=values, strict=True)
                worse = [m for m in report["messages"] if m["severity"] > 1]
                self.assertEqual((worse, report["errors"]), ([], []))

    def test_wrong_values_are_refused_with_what_to_set(self):
        objects(SMALL)
        for what, patch, says in REFUSED:
            with self.subTest(what):
                with self.assertRaises(helm_python.HelmError) as refusal:
                    objects(merge(SMALL, patch))
                self.assertIn(says, str(refusal.exception))

    def test_all_faults_are_said_at_once(self):
        with self.assertRaises(helm_python.HelmError) as refusal:
            objects({})
        self.assertEqual(str(refusal.exception).count("\n  * "), 5, refusal.exception)

    def test_every_switch_on_and_off(self):
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        found = list(switches(defaults))
        self.assertGreater(len(found), 15)
        for name, values in EXAMPLES.items():
            for switch in found:
                for state in (True, False):
                    with self.subTest(f"{name} {switch}={state}"):
                        try:
                            self.assertTrue(objects(merge(values, at(switch, state))))
                        except helm_python.HelmError as refusal:
                            # Contradictions only, and each says what to set.
                            self.assertRegex(str(refusal), r"\* [\w.]+: ", refusal)

    def test_rendered_twice_it_is_the_same(self):
        for name, values in EXAMPLES.items():
            with self.subTest(name):
                self.assertEqual(files(values), files(values))

    def test_nothing_is_made_up_or_looked_up(self):
        for path in CHART.rglob("templates/**/*"):
            if path.is_file():
                made_up = re.search(r"\b(rand\w+|genCA|genSelfSigned\w*|genSigned\w*|genPrivateKey|lookup|now|uuidv4)\b", path.read_text())
                self.assertIsNone(made_up, f"{path.name}: {made_up}")

    def test_every_value_is_documented(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        self.assertEqual(list(has_description(schema)), [])
        self.assertEqual((CHART / "README.md").read_text(), values_readme.render(), "run: python3 helm/tests/values_readme.py")


if __name__ == "__main__":
    unittest.main()
