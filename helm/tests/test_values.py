"""What values are accepted, and what is said about the others."""

import json
import re
import unittest

import helm_python
import yaml

import renew
from chart import CHART, EXAMPLES, at, files, loaded, merge, objects

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
    ("source ranges that nothing heeds", at("gateway.service", {"type": "NodePort", "loadBalancerSourceRanges": ["10.0.0.0/8"]}), "only a LoadBalancer heeds it"),
    ("a budget that leaves no replica", at("notify.podDisruptionBudget.maxUnavailable", 2), "notify.podDisruptionBudget.maxUnavailable: 2 of 2 replicas would leave none; set at most 1"),
    ("streams to scale by, and no autoscaler", at("notify.autoscaling.streamsPerPod", 100), "notify.autoscaling.streamsPerPod: it would not be used"),
    ("issuers that differ", at("chat.settings.auth.issuer", "ours"), "indexer.settings.auth.issuer: \"fechatter\" would refuse the tokens that chat signs"),
    ("heartbeats the wrong way round", at("notify.settings.stream.heartbeat_min_seconds", 26), "notify.settings.stream.heartbeat_max_seconds: 25 is below heartbeat_min_seconds 26"),
    ("batches the wrong way round", at("indexer.settings.batch.backlog_max_events", 9), "indexer.settings.batch.backlog_max_events: 9 is below max_events 10"),
    ("host names without the public one", at("gateway.settings.hosts", ["other.example.org", "*.chat.example.org"]), "add chat.example.org"),
    ("host names and no public one", merge(at("gateway.publicHost", ""), at("gateway.settings.hosts", ["chat.example.org"])), "gateway.publicHost: set it to one of gateway.settings.hosts"),
    ("a password for a collector that is not", at("telemetry.existingSecret", "x"), "telemetry.existingSecret: it would not be used"),
    ("a label of the chart's own", at("commonLabels", {"app.kubernetes.io/name": "x"}), "commonLabels: app.kubernetes.io/name is the chart's own"),
    ("a pod's label of the chart's own", at("chat.pod.labels", {"app.kubernetes.io/component": "x"}), "chat.pod.labels: app.kubernetes.io/component is the chart's own"),
    ("a name that Services cannot have", at("fullnameOverride", "my.app"), "does not match pattern"),
    ("a label that is none", at("commonLabels", {"team": "two words"}), "does not match pattern"),
    ("a network that is none", at("gateway.settings.trusted_proxies", ["10.0.0.0"]), "does not match pattern"),
    ("a selector with an unknown key", at("networkPolicy.metricsFrom", [{"podSelector": {"matchLabel": {}}}]), "additional properties 'matchLabel' not allowed"),
    ("a variable in an attribute", at("telemetry.resourceAttributes", {"a": "$(NATS_PASSWORD)"}), "does not match pattern"),
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


MISSING = object()


def leaves(schema, path=""):
    """Dotted paths of all values."""
    for key, value in schema.get("properties", {}).items():
        where = f"{path}.{key}" if path else key
        if "properties" in value:
            yield from leaves(value, where)
        else:
            yield where


def value_at(values, path):
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            return MISSING
        values = values[key]
    return values


def pointer(path):
    """A dotted path as the engine writes it."""
    return "/" + path.replace(".", "/") if path else ""


def objects_of(schema, path=""):
    """(dotted path, schema) of every table with named keys, those in lists included."""
    if "properties" in schema:
        yield path, schema
    for key, value in schema.get("properties", {}).items():
        yield from objects_of(value, f"{path}.{key}" if path else key)
    if "items" in schema:
        yield from objects_of(schema["items"], f"{path}[]")


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

    def test_an_unknown_key_is_refused_at_every_level(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        tables = list(objects_of(schema))
        for path, inner in tables:
            self.assertIs(inner.get("additionalProperties"), False, path)
        named = [path for path, _ in tables if "[]" not in path]
        self.assertGreater(len(named), 90)
        patch = {"noSuchKey": 1}
        for path in filter(None, named):
            patch = merge(patch, at(path, {"noSuchKey": 1}))
        said = self.refusal(patch)
        for path in named:
            self.assertIn(f"at '{pointer(path)}': additional properties 'noSuchKey' not allowed", said)

    def test_a_wrong_type_is_refused_everywhere(self):
        """Each value once with a value of a type that it is not; those of one depth at once, as none is within another."""
        schema = json.loads((CHART / "values.schema.json").read_text())

        def typed(inner, path=()):
            for key, value in inner.get("properties", {}).items():
                yield (*path, key), value
                yield from typed(value, (*path, key))

        depths = {}
        for path, value in typed(schema):
            kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
            wrong = "text" if not {"string", "object"} & set(kinds) else ["a list"]
            depths.setdefault(len(path), []).append((".".join(path), wrong))
        self.assertGreater(sum(len(found) for found in depths.values()), 350)
        for found in depths.values():
            patch = {}
            for path, wrong in found:
                patch = merge(patch, at(path, wrong))
            said = self.refusal(patch)
            for path, _ in found:
                self.assertRegex(said, f"at '{pointer(path)}': got (string|array), want")

    def refusal(self, values):
        """What the engine says about values that the schema refuses."""
        with self.assertRaises(helm_python.HelmError) as refused:
            loaded().validate_schema(values)
        return str(refused.exception)

    def test_a_release_whose_services_would_begin_with_a_digit(self):
        with self.assertRaisesRegex(helm_python.HelmError, "fullnameOverride: names of Services begin with a letter, 2nd-fechatter does not; set it"):
            objects(SMALL, name="2nd")
        self.assertTrue(objects(merge(SMALL, at("fullnameOverride", "second")), name="2nd"))

    def test_values_as_set_makes_them(self):
        """`--set` makes whole numbers of digits and texts of fractions; both spellings of a value render the same."""
        self.assertEqual(objects(merge(SMALL, at("telemetry", {"otlpEndpoint": "http://c:4318", "traceRatio": "0.25"}))), objects(merge(SMALL, at("telemetry", {"otlpEndpoint": "http://c:4318", "traceRatio": 0.25}))))
        self.assertTrue(objects(merge(SMALL, at("chat.resources.requests.cpu", 2))))
        large = objects(merge(SMALL, at("chat.settings.outbox.stream_max_bytes", 1099511627776)))
        env = next(i for i in large if i["kind"] == "Deployment" and i["metadata"]["name"] == "fechatter-chat")["spec"]["template"]["spec"]["containers"][0]["env"]
        self.assertIn({"name": "FECHATTER_CHAT__OUTBOX__STREAM_MAX_BYTES", "value": "1099511627776"}, env)

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

    def test_the_notes_say_what_comes_next(self):
        notes = lambda values, **release: next(text for path, text in files(values, **release).items() if path.endswith("NOTES.txt"))
        for name, values in EXAMPLES.items():
            with self.subTest(name):
                text = notes(values, name="acme", namespace="talk")
                self.assertIn("helm -n talk test acme --logs", text)
                self.assertIn("kubectl -n talk rollout status deployment -l app.kubernetes.io/instance=acme", text)
                address = "https://chat.example.org" if "publicHost" in values["gateway"] else "get service acme-fechatter-gateway"
                self.assertIn(address, text)
                self.assertEqual("are for trials" in text, name == "trial")
                self.assertEqual("notify_streams" in text, name == "production")
                self.assertNotIn("metricsFrom is empty", text)
        self.assertIn("metricsFrom is empty", notes(merge(SMALL, at("monitoring.podMonitor.enabled", True))))
        self.assertIn("any pod of the cluster reaches", notes(merge(SMALL, at("networkPolicy.enabled", False))))

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
        # `pod` and the like say what may be in them, and are empty by default.
        optional = re.compile(r"([.]pod|[.]settings|^global)([.]|$)|[.]ephemeral-storage$|[.]limits[.]cpu$|[.]replicas$")
        described, defaults = set(leaves(schema)), yaml.safe_load((CHART / "values.yaml").read_text())
        unset = {path for path in described if value_at(defaults, path) is MISSING}
        self.assertEqual({path for path in unset if not optional.search(path)}, set())

    def test_what_is_generated_is_current(self):
        for path, text in renew.renewed().items():
            with self.subTest(path.name):
                self.assertTrue(path.is_file() and path.read_text() == text, f"{path} is not what the chart makes: run `cargo dev chart`")
        self.assertEqual({path.stem for path in renew.GOLDEN.glob("*.yaml")}, set(EXAMPLES))


if __name__ == "__main__":
    unittest.main()
