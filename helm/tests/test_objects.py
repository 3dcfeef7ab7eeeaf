"""What is rendered: valid for Kubernetes, restricted, and with no other flow than the drawn ones."""

import copy
import json
import os
import pathlib
import re
import tarfile
import tempfile
import unittest

import helm_python
import jsonschema
import kubernetes_validate
import yaml

from chart import CHART, EXAMPLES, KUBERNETES, SERVICES, at, merge, objects, pod_of, pods

OBSERVABILITY = CHART.parents[1] / "observability"


def schema_of(structural):
    """A custom resource's schema, closed as the API server is with strict validation: what it does not name is a fault."""
    if isinstance(structural, list):
        return [schema_of(item) for item in structural]
    if not isinstance(structural, dict):
        return structural
    schema = {key: schema_of(value) for key, value in structural.items() if not key.startswith("x-kubernetes")}
    if isinstance(schema.get("pattern"), str) and "(?i)" in schema["pattern"]:
        # Go takes flags anywhere, Python at the beginning.
        schema["pattern"] = "(?i)" + schema["pattern"].replace("(?i)", "")
    if structural.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    if isinstance(schema.get("properties"), dict) and not structural.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


def custom_resources():
    """(apiVersion, kind) to the schema in the operator's own definition."""
    found = {}
    for path in pathlib.Path(os.environ["FECHATTER_CUSTOM_RESOURCES"]).glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())["spec"]
        for version in definition["versions"]:
            if version["served"]:
                schema = schema_of(version["schema"]["openAPIV3Schema"])
                # Of every object alike, and in no definition.
                schema["properties"]["metadata"] = {"type": "object"}
                found[f"{definition['group']}/{version['name']}", definition["names"]["kind"]] = schema
    return found


CUSTOM = custom_resources()


def unrestricted(labels, spec):
    """What the restricted Pod Security Standard forbids in a pod, and what we do besides."""
    pod = spec.get("securityContext", {})
    if pod.get("sysctls") or pod.get("seLinuxOptions") or pod.get("windowsOptions"):
        yield "has options of the node"
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the host's namespaces"
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for volume in spec.get("volumes", []):
        if not set(volume) - {"name"} <= allowed:
            yield f"volume {volume}"
    for container in spec["containers"] + spec.get("initContainers", []) + spec.get("ephemeralContainers", []):
        own = container.get("securityContext", {})
        # What a container says goes over what its pod says.
        security = {**pod, **own}
        if security.get("runAsUser") == 0 or security.get("runAsNonRoot") is not True:
            yield "may run as root"
        if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield "no seccomp profile"
        if security.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
            yield "no AppArmor profile"
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield "may become more"
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
            yield "keeps capabilities"
        if own.get("procMount", "Default") != "Default" or own.get("seLinuxOptions") or own.get("windowsOptions"):
            yield "has options of the node"
        if own.get("readOnlyRootFilesystem") is not True:
            yield "writes on its root"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield "host port"
        for handler in (container.get("lifecycle", {}) | {key: value for key, value in container.items() if key.endswith("Probe")}).values():
            if any("host" in handler.get(kind, {}) for kind in ("httpGet", "tcpSocket")):
                yield "asks another host"
    if spec.get("automountServiceAccountToken") is not False:
        yield "gets a token of the cluster"


def matches(selector, labels):
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def peers_of(rule, direction, components):
    """Components and outside places a rule allows; `*` is anywhere."""
    if direction not in rule:
        return {"*"}
    found = set()
    for peer in rule[direction]:
        if set(peer) == {"podSelector"}:
            found |= {name for name, (labels, _) in components.items() if matches(peer["podSelector"], labels)}
        else:
            found.add("outside")
    return found


def flows(items):
    """(from, to, port) that the policies allow: between pods both ends must agree."""
    components = pods(items)
    policies = [item for item in items if item["kind"] == "NetworkPolicy"]
    sends, takes = set(), set()
    for name, (labels, _) in components.items():
        for policy in policies:
            if not matches(policy["spec"]["podSelector"], labels):
                continue
            for rule in policy["spec"].get("egress", []):
                for port in rule["ports"]:
                    sends |= {(name, peer, port["port"]) for peer in peers_of(rule, "to", components)}
            for rule in policy["spec"].get("ingress", []):
                for port in rule["ports"]:
                    takes |= {(peer, name, port["port"]) for peer in peers_of(rule, "from", components)}
    within = {
        flow
        for flow in {(a, b, p) for a, peer, p in sends for b in components if peer in (b, "*") and a != b}
        if flow in takes or ("*", flow[1], flow[2]) in takes
    }
    out = {(a, "outside", p) for a, peer, p in sends if peer in ("*", "outside")}
    into = {("outside", b, p) for peer, b, p in takes if peer in ("*", "outside")}
    return within | out | into


# The picture of ARCHITECTURE.md; what every pod may ask of name servers is added by the test.
EDGE = {
    ("outside", "gateway", 8443), ("outside", "gateway", 8080), ("test", "gateway", 8443),
    ("gateway", "chat", 6688), ("gateway", "notify", 6687), ("gateway", "indexer", 6689),
    ("notify", "chat", 6688), ("indexer", "chat", 6688),
}


def drawn(postgres, nats, more=()):
    flows = {(a, postgres, 5432) for a in ("chat", "notify", "indexer", "migrations")}
    flows |= {(a, nats, 4222) for a in SERVICES}
    flows |= {(a, "outside", 53) for a in (*SERVICES, "migrations", "test")}
    return EDGE | flows | set(more)


DRAWN = {
    "small": drawn("outside", "outside"),
    "trial": drawn("postgres", "nats"),
    "production": drawn(
        "outside",
        "outside",
        {("indexer", "outside", 7700)}
        | {(a, "outside", 4318) for a in (*SERVICES, "probe")}
        | {("probe", "gateway", 8443), ("probe", "outside", 53)}
        | {("outside", b, p) for b, p in (("gateway", 9443), ("chat", 9688), ("notify", 9687), ("indexer", 9689), ("probe", 9690))},
    ),
}


class Objects(unittest.TestCase):
    def each(self):
        for name, values in EXAMPLES.items():
            for item in objects(values):
                with self.subTest(f"{name} {item['kind']} {item['metadata']['name']}"):
                    yield item

    def test_valid_for_kubernetes(self):
        for item in self.each():
            custom = CUSTOM.get((item["apiVersion"], item["kind"]))
            if custom:
                jsonschema.validate(item, custom)
                continue
            for version in KUBERNETES:
                kubernetes_validate.validate(item, version, strict=True)

    def test_wrong_custom_resources_would_be_found(self):
        items = objects(EXAMPLES["production"])
        seen = {(item["apiVersion"], item["kind"]) for item in items} & set(CUSTOM)
        self.assertEqual(seen, set(CUSTOM), "all three kinds are rendered")
        of = lambda kind: copy.deepcopy(next(item for item in items if item["kind"] == kind))
        broken = []
        for kind, spoil in (
            ("Certificate", lambda spec: spec["issuerRef"].update(kynd="Issuer")),
            ("Certificate", lambda spec: spec["privateKey"].update(algorithm="ecdsa")),
            ("PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(interval="often")),
            ("PrometheusRule", lambda spec: spec["groups"][0]["rules"][0].update(**{"for": 5})),
        ):
            item = of(kind)
            spoil(item["spec"])
            broken.append(item)
        for item in broken:
            with self.assertRaises(jsonschema.ValidationError):
                jsonschema.validate(item, CUSTOM[item["apiVersion"], item["kind"]])

    def test_every_pod_is_restricted(self):
        seen = 0
        for item in self.each():
            pod = pod_of(item)
            if pod:
                seen += 1
                self.assertEqual(list(unrestricted(*pod)), [])
        self.assertGreaterEqual(seen, 18)

    def test_an_unrestricted_pod_would_be_found(self):
        labels, good = pods(objects(EXAMPLES["small"]))["chat"]
        self.assertEqual(list(unrestricted(labels, good)), [])
        container = lambda spec: spec["containers"][0]
        for spoil, says in (
            (lambda spec: spec.update(hostNetwork=True), "shares the host's namespaces"),
            (lambda spec: spec.update(automountServiceAccountToken=True), "gets a token of the cluster"),
            (lambda spec: spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}}), "volume"),
            (lambda spec: spec["securityContext"].update(runAsUser=0), "may run as root"),
            (lambda spec: spec["securityContext"].update(sysctls=[{"name": "a", "value": "b"}]), "has options of the node"),
            (lambda spec: container(spec)["securityContext"].update(runAsNonRoot=False), "may run as root"),
            (lambda spec: container(spec)["securityContext"].update(seccompProfile={"type": "Unconfined"}), "no seccomp profile"),
            (lambda spec: container(spec)["securityContext"].update(allowPrivilegeEscalation=True), "may become more"),
            (lambda spec: container(spec)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]), "keeps capabilities"),
            (lambda spec: container(spec)["securityContext"].update(readOnlyRootFilesystem=False), "writes on its root"),
            (lambda spec: container(spec)["ports"][0].update(hostPort=80), "host port"),
            (lambda spec: container(spec)["livenessProbe"]["httpGet"].update(host="169.254.169.254"), "asks another host"),
            (lambda spec: spec.update(initContainers=[{"name": "bare"}]), "may become more"),
        ):
            with self.subTest(says):
                spec = copy.deepcopy(good)
                spoil(spec)
                self.assertTrue(any(found.startswith(says) for found in unrestricted(labels, spec)))

    def test_the_flows_are_the_drawn_ones(self):
        for name, values in EXAMPLES.items():
            with self.subTest(name):
                allowed, wanted = flows(objects(values)), DRAWN[name]
                self.assertEqual((allowed - wanted, wanted - allowed), (set(), set()))

    def test_an_undrawn_flow_would_be_found(self):
        items = objects(EXAMPLES["trial"])
        policy = next(i for i in items if i["kind"] == "NetworkPolicy" and i["metadata"]["name"].endswith("-postgres"))
        del policy["spec"]["ingress"][0]["from"]
        gateway = next(i for i in items if i["kind"] == "NetworkPolicy" and i["metadata"]["name"].endswith("-gateway"))
        gateway["spec"]["egress"].append({"ports": [{"port": 5432}]})
        self.assertIn(("gateway", "postgres", 5432), flows(items))

    def test_names_meet(self):
        """Services select pods and name ports that exist; so do probes, mounts and accounts."""
        for name, values in EXAMPLES.items():
            items = objects(values)
            components = pods(items)
            accounts = {i["metadata"]["name"] for i in items if i["kind"] == "ServiceAccount"}
            for item in items:
                with self.subTest(f"{name} {item['kind']} {item['metadata']['name']}"):
                    if item["kind"] in ("Service", "PodDisruptionBudget"):
                        selector = item["spec"]["selector"]
                        selector = selector.get("matchLabels", selector)
                        chosen = [spec for labels, spec in components.values() if selector.items() <= labels.items()]
                        self.assertEqual(len(chosen), 1)
                        ports = {port["name"] for port in chosen[0]["containers"][0]["ports"]}
                        self.assertLessEqual({port["targetPort"] for port in item["spec"].get("ports", [])}, ports)
                    pod = pod_of(item)
                    if not pod:
                        continue
                    spec = pod[1]
                    self.assertIn(spec["serviceAccountName"], accounts)
                    volumes = {volume["name"] for volume in spec.get("volumes", [])}
                    volumes |= {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
                    mounts = {mount["name"] for mount in spec["containers"][0].get("volumeMounts", [])}
                    self.assertEqual(volumes, mounts)

    def test_names_that_look_like_something_else(self):
        """Releases, namespaces and Secrets may be called 123, on or true, which YAML reads as numbers and booleans."""
        odd = {
            "gateway": {"tls": {"existingSecret": "123"}},
            "chat": {"signingKeys": {"existingSecret": "1e3"}, "pod": {"priorityClassName": "0x1f", "labels": {"canary": "on"}}},
            "database": {"existingSecret": "0o17"},
            "nats": {"existingSecret": "true"},
            "certificateAuthorities": {"existingSecret": "null"},
            "indexer": {"storage": {"storageClass": "1.5"}},
            "probe": {"enabled": True, "existingSecret": "0b1"},
            "image": {"pullSecrets": ["007"], "tag": "1.10"},
            "commonLabels": {"team": "12"},
            "telemetry": {"otlpEndpoint": "http://c:4318", "existingSecret": "42", "resourceAttributes": {"a": "1:20"}},
        }
        bundled = {"database": {"bundled": {"existingSecret": "0777", "storage": {"storageClass": "123"}}}, "nats": {"existingSecret": "1e9"}}
        releases = [("on", "007"), ("true", "on"), ("null", "1e3"), ("my.app", "0x1f"), ("a" * 53, "n" * 63), ("a.b-c", "y")]
        for name, namespace in releases:
            for values in (merge(EXAMPLES["small"], odd), merge(EXAMPLES["trial"], bundled), EXAMPLES["production"]):
                for item in objects(values, name=name, namespace=namespace):
                    with self.subTest(f"{name} in {namespace}: {item['kind']} {item['metadata']['name']}"):
                        self.assertEqual(item["metadata"]["namespace"], namespace)
                        self.assertRegex(item["metadata"]["name"], r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
                        for key, value in item["metadata"]["labels"].items():
                            self.assertRegex(key, r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
                            self.assertRegex(value, r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
                        custom = CUSTOM.get((item["apiVersion"], item["kind"]))
                        if custom:
                            jsonschema.validate(item, custom)
                        else:
                            kubernetes_validate.validate(item, KUBERNETES[-1], strict=True)

    def test_what_the_api_server_refuses_although_its_schema_does_not(self):
        dns = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
        unique = lambda values: self.assertEqual(len(values), len(set(values)), values)
        for name, values in EXAMPLES.items():
            items = objects(values)
            unique([(item["kind"], item["metadata"]["name"]) for item in items])
            there = {(item["kind"], item["metadata"]["name"]) for item in items}
            for item in items:
                with self.subTest(f"{name} {item['kind']} {item['metadata']['name']}"):
                    for value in item["metadata"].get("annotations", {}).values():
                        self.assertIsInstance(value, str)
                    if item["kind"] == "ConfigMap":
                        self.assertLess(sum(len(text.encode()) for text in item["data"].values()), 1 << 20)
                    if item["kind"] in ("Deployment", "StatefulSet"):
                        self.assertTrue(matches(item["spec"]["selector"], item["spec"]["template"]["metadata"]["labels"]))
                    if item["kind"] == "HorizontalPodAutoscaler":
                        target = item["spec"]["scaleTargetRef"]
                        self.assertIn((target["kind"], target["name"]), there)
                        self.assertLessEqual(item["spec"]["minReplicas"], item["spec"]["maxReplicas"])
                    pod = pod_of(item)
                    if not pod:
                        continue
                    (container,) = pod[1]["containers"]
                    volumes = [volume["name"] for volume in pod[1].get("volumes", [])]
                    unique(volumes)
                    for named in (container["name"], *volumes):
                        self.assertRegex(named, dns)
                    unique([mount["mountPath"] for mount in container.get("volumeMounts", [])])
                    ports = container.get("ports", [])
                    unique([port["name"] for port in ports])
                    unique([port["containerPort"] for port in ports])
                    for port in ports:
                        self.assertRegex(port["name"], r"^[a-z0-9-]{1,15}$")
                    known = set()
                    for variable in container.get("env", []):
                        self.assertRegex(variable["name"], r"^[A-Z][A-Z0-9_]*$")
                        self.assertNotIn(variable["name"], known, "set twice")
                        # Kubernetes leaves `$(NAME)` of a later variable as it stands.
                        self.assertLessEqual(set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))), known)
                        known.add(variable["name"])

    def test_two_releases_in_one_namespace(self):
        """They have no object in common, and neither selects a pod of the other or lets it in."""
        names = ("chat", "chat-next")
        one, other = (objects(EXAMPLES["trial"], name=name) for name in names)
        of = lambda items: {(item["kind"], item["metadata"]["name"]) for item in items}
        self.assertEqual(of(one) & of(other), set())
        labels = [labels for labels, _ in pods(other).values()]
        selectors = 0
        for item in one:
            stack = [item["spec"]] if "spec" in item else []
            while stack:
                found = stack.pop()
                if isinstance(found, dict):
                    for key, value in found.items():
                        if key == "selector" and item["kind"] == "Service":
                            value = {"matchLabels": value}
                        if isinstance(value, dict) and "matchLabels" in value:
                            selectors += 1
                            self.assertFalse([pod for pod in labels if matches(value, pod)], item["metadata"]["name"])
                        stack.append(value)
                elif isinstance(found, list):
                    stack += found
        self.assertGreater(selectors, 40)

    def test_an_upgrade_changes_nothing_that_cannot_be_changed(self):
        """Of the same release: selectors, and what a StatefulSet is made with."""

        def fixed(items):
            found = {}
            for item in items:
                where = item["kind"], item["metadata"]["name"]
                if item["kind"] in ("Deployment", "StatefulSet"):
                    found[where] = {key: item["spec"].get(key) for key in ("selector", "serviceName", "volumeClaimTemplates", "podManagementPolicy")}
                if item["kind"] == "PersistentVolumeClaim":
                    found[where] = {key: value for key, value in item["spec"].items() if key != "resources"}
                if item["kind"] == "Service":
                    found[where] = item["spec"].get("clusterIP")
            return found

        other = {
            "image": {"tag": "9.9.9"},
            "commonLabels": {"team": "a"},
            "log": {"format": "text"},
            "networkPolicy": {"enabled": False},
            "tests": {"enabled": False},
            "telemetry": {"otlpEndpoint": "http://collector:4318"},
            "certificateAuthorities": {"existingSecret": "ours"},
            "indexer": {"storage": {"size": "20Gi"}},
            **{name: {"pod": {"labels": {"canary": "yes"}}} for name in ("gateway", "notify")},
        }
        for name, values in EXAMPLES.items():
            with self.subTest(name):
                before, after = fixed(objects(values)), fixed(objects(merge(values, other)))
                self.assertEqual({key: after.get(key) for key in before}, before)

    def test_hooks_and_objects_share_no_name(self):
        """Helm does not take over an object that a hook of an older release made: one that is a hook must not become none."""
        of = lambda items, hook: {
            (item["kind"], item["metadata"]["name"]) for item in items if ("helm.sh/hook" in item["metadata"].get("annotations", {})) == hook
        }
        every = [objects(values) for values in EXAMPLES.values()]
        hooks = set().union(*(of(items, True) for items in every))
        others = set().union(*(of(items, False) for items in every))
        self.assertEqual(hooks & others, set())

    def test_every_pod_pulls_and_is_placed_alike(self):
        place = {"nodeSelector": {"pool": "chat"}, "tolerations": [{"key": "chat", "operator": "Exists"}], "priorityClassName": "high"}
        where = (*SERVICES, "probe", "migrations", "tests", "database.bundled", "nats.bundled")
        probe = {"probe": {"enabled": True, "existingSecret": "probe"}, "gateway": {"publicHost": "localhost"}}
        values = merge(merge(EXAMPLES["trial"], at("image.pullSecrets", ["mirror"])), probe)
        for path in where:
            values = merge(values, at(f"{path}.pod", place))
        seen = 0
        for component, (_, spec) in pods(objects(values)).items():
            with self.subTest(component):
                seen += 1
                self.assertEqual(spec["imagePullSecrets"], [{"name": "mirror"}])
                self.assertEqual({key: spec[key] for key in place}, place)
        self.assertEqual(seen, len(where))

    def test_policies_follow_the_urls(self):
        values = merge(EXAMPLES["production"], {
            "nats": {"url": "nats://a:4223,tls://b,nats://[fd00::1]:4224"},
            "meilisearch": {"url": "https://search.example.org"},
            "telemetry": {"otlpEndpoint": "https://otlp.example.org/v1"},
            "gateway": {"settings": {"upstreams": {"web": ["pages:8000", "[fd00::1]:8001"]}}},
        })
        allowed = flows(objects(values))
        out = lambda component: {port for a, b, port in allowed if (a, b) == (component, "outside")}
        self.assertEqual(out("indexer"), {53, 5432, 4222, 4223, 4224, 443})
        self.assertEqual(out("gateway"), {53, 4222, 4223, 4224, 443, 8000, 8001})

    def test_no_secret_is_in_a_config_map_or_a_plain_variable(self):
        for item in self.each():
            if item["kind"] == "ConfigMap":
                # References such as $CHAT_PASSWORD and :'chat' are no secrets; a quoted literal would be.
                for text in item["data"].values():
                    self.assertIsNone(re.search(r"(?i)password:?\s*[=:]\s*\"[^\"$]", text))
            self.assertNotEqual(item["kind"], "Secret")
            pod = pod_of(item)
            for container in pod[1]["containers"] if pod else []:
                for variable in container.get("env", []):
                    if re.search("PASSWORD|MASTER_KEY|DATABASE.*URL|MEILI_KEY", variable["name"]):
                        plain = variable.get("value", "$(")
                        self.assertIn("$(", plain, variable["name"])

    def test_rules_and_dashboards_are_those_of_the_repository(self):
        items = objects(EXAMPLES["production"])
        rules = {i["metadata"]["name"].removeprefix("fechatter-").replace("-", "_"): i["spec"] for i in items if i["kind"] == "PrometheusRule"}
        files = {f.stem: yaml.safe_load(f.read_text()) for f in (OBSERVABILITY / "prometheus").glob("*_rules.yaml")}
        self.assertEqual(rules, files)
        shown = {}
        for item in items:
            if item["kind"] == "ConfigMap" and item["metadata"]["labels"].get("grafana_dashboard") == "1":
                shown.update({name: json.loads(text) for name, text in item["data"].items()})
        files = {f.name: json.loads(f.read_text()) for f in (OBSERVABILITY / "grafana/dashboards").glob("*.json")}
        self.assertEqual((shown, len(shown) >= 6), (files, True))

    def test_runbooks_are_where_the_values_say(self):
        values = merge(EXAMPLES["production"], at("monitoring.runbooksUrl", "https://wiki.example.org/runbooks/"))
        items = objects(values)
        urls = [
            rule["annotations"]["runbook_url"]
            for item in items
            if item["kind"] == "PrometheusRule"
            for group in item["spec"]["groups"]
            for rule in group["rules"]
            if "alert" in rule
        ]
        self.assertGreater(len(urls), 10)
        for url in urls:
            self.assertRegex(url, r"^https://wiki\.example\.org/runbooks/Fechatter\w+\.md$")
        shown = [json.loads(text) for item in items if item["kind"] == "ConfigMap" and "grafana_dashboard" in item["metadata"]["labels"] for text in item["data"].values()]
        for dashboard in shown:
            variable = next(v for v in dashboard["templating"]["list"] if v["name"] == "runbooks")
            self.assertEqual(variable["query"], "https://wiki.example.org/runbooks")

    def test_every_process_says_in_telemetry_where_it_runs(self):
        wanted = {"k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid", "k8s.node.name", "k8s.container.name", "k8s.deployment.name"}
        for item in objects(EXAMPLES["production"]):
            if item["kind"] != "Deployment":
                continue
            container = item["spec"]["template"]["spec"]["containers"][0]
            env = container["env"]
            names = [variable["name"] for variable in env]
            said = next(variable["value"] for variable in env if variable["name"] == "OTEL_RESOURCE_ATTRIBUTES")
            attributes = dict(pair.split("=", 1) for pair in said.split(","))
            self.assertEqual(set(attributes) - {"deployment.environment.name"}, wanted)
            self.assertEqual(attributes["k8s.deployment.name"], item["metadata"]["name"])
            self.assertEqual(attributes["k8s.container.name"], container["name"])
            for reference in re.findall(r"\$\((\w+)\)", said):
                # Kubernetes replaces only what stands above.
                self.assertLess(names.index(reference), names.index("OTEL_RESOURCE_ATTRIBUTES"))

    def test_a_packaged_chart_holds_them(self):
        """In the repository they are symbolic links, so that there is one of each; a package must hold what they lead to."""
        with tempfile.TemporaryDirectory() as folder:
            helm_python.package(str(CHART), destination=folder)
            (package,) = pathlib.Path(folder).glob("*.tgz")
            with tarfile.open(package) as archive:
                for path in (*CHART.glob("files/rules/*"), *CHART.glob("files/dashboards/*")):
                    packed = archive.extractfile(f"fechatter/{path.relative_to(CHART)}")
                    self.assertEqual(packed.read(), path.read_bytes())

    def test_scaling_and_shutdown(self):
        for name, values in EXAMPLES.items():
            items = objects(values)
            scaled = {i["spec"]["scaleTargetRef"]["name"] for i in items if i["kind"] == "HorizontalPodAutoscaler"}
            for item in (i for i in items if i["kind"] == "Deployment"):
                with self.subTest(f"{name} {item['metadata']['name']}"):
                    self.assertEqual("replicas" in item["spec"], item["metadata"]["name"] not in scaled)
                    env = {v["name"]: v.get("value") for v in item["spec"]["template"]["spec"]["containers"][0]["env"]}
                    if item["metadata"]["name"].endswith("-probe"):
                        # It serves nobody; what it is in the middle of is cut off.
                        continue
                    drains = sum(int(v) for k, v in env.items() if k.endswith("DRAIN_SECONDS"))
                    drains += sum(int(v) / 1000 for k, v in env.items() if "__DRAIN__" in k or k.endswith("DRAIN_DELAY_MS"))
                    self.assertGreater(drains, 0)
                    self.assertGreaterEqual(item["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], drains + 10)
        # What an adapter serves for the streams is what notify_service says of them.
        metrics = [m for i in objects(EXAMPLES["production"]) if i["kind"] == "HorizontalPodAutoscaler" for m in i["spec"]["metrics"]]
        (streams,) = [m["pods"] for m in metrics if m["type"] == "Pods"]
        self.assertEqual(streams["target"], {"type": "AverageValue", "averageValue": "20000"})
        source = (CHART.parents[1] / "notify_service/src/metrics.rs").read_text()
        self.assertIn(f'i64_up_down_counter("{streams["metric"]["name"].replace("_", ".")}")', source)
        budgets = {i["metadata"]["name"] for i in objects(EXAMPLES["small"]) if i["kind"] == "PodDisruptionBudget"}
        self.assertEqual(budgets, {"fechatter-gateway", "fechatter-chat", "fechatter-notify"})


if __name__ == "__main__":
    unittest.main()
