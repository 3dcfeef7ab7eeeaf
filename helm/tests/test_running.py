"""The real binaries, started from what the chart renders: commands, variables, mounted files, a read-only root, probes, shutdown."""

import copy
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import unittest

import helm_python

import node
from chart import CHART, EXAMPLES, SERVICES, merge, objects, pods
from release import BINARIES, BINARY, PASSWORDS, Release, made_secrets

PREFIX = {name: f"FECHATTER_{name.upper()}__" for name in SERVICES}
# Their least value is that of another setting, which is too low as well then.
DEPENDENT = {("stream", "heartbeat_max_seconds"), ("batch", "backlog_max_events")}

# Settings that are not among the chart's `settings`: those it makes from other values, ...
MADE = {
    "listen", "admin_listen", "drain_seconds", "drain_delay_ms", "log.format", "log.filter",
    "nats.url", "nats.user", "nats.password", "nats.stream_replicas", "database.url", "auth.jwks_url",
    "redirect_listen", "public_port", "tls.certificate", "tls.key", "upstreams.chat", "upstreams.notify", "upstreams.indexer",
    "drain.delay_ms", "drain.timeout_ms", "drain.stream_spread_ms",
    "auth.keys_dir", "engine.kind", "engine.path", "engine.meili_url", "engine.meili_key",
}
# ... and those that need a file or a socket which it does not mount.
UNMOUNTED = {"tls.additional", "tls.client_ca", "tls.client_routes", "acme_challenges", "upgrade_socket"}

# Nobody wants to wait for load balancers here.
QUICK = {
    "probe": {"enabled": True, "existingSecret": "fechatter-probe", "intervalSeconds": 5},
    "gateway": {"drain": {"delaySeconds": 1, "timeoutSeconds": 5, "streamSpreadSeconds": 1}},
    **{name: {"drainDelaySeconds": 2, "drainSeconds": 2} for name in ("chat", "notify", "indexer")},
}


def bundled(folder):
    """The release of a trial, all of it."""
    release = Release(folder, QUICK)
    release.start_servers()
    release.migrate()
    converse(release)


def external(folder):
    """A release whose PostgreSQL and NATS are elsewhere, behind TLS of an authority of the operator's own."""
    values = {
        "database": {"existingSecret": "fechatter-urls", "bundled": {"enabled": False}},
        "nats": {"url": "tls://localhost:4222", "bundled": {"enabled": False}},
        "certificateAuthorities": {"existingSecret": "fechatter-authorities"},
    }
    release = Release(folder, merge(QUICK, values))
    roles = {"owner": "fechatter_owner", **{name: f"fechatter_{name}_login" for name in SERVICES}}
    url = lambda name: f"postgres://{roles[name]}:{PASSWORDS[f'{name}-password']}@localhost:5432/fechatter?sslmode=verify-full"
    release.secrets["fechatter-urls"] = {f"{name}-url": url(name) for name in roles}
    release.secrets["fechatter-authorities"] = {"ca.crt": release.secrets["fechatter-tls"]["ca.crt"]}
    release.encrypt_servers()
    release.start_servers()
    release.migrate()
    public = copy.deepcopy(release.specs["migrations"])
    container = public["containers"][0]
    container["env"] = [variable for variable in container["env"] if variable["name"] != "PGSSLROOTCERT"]
    stranger = release.node.run("stranger", public, {"/usr/local/bin/migrations": BINARIES / "migrations"})
    assert stranger.wait(40) != 0 and "UnknownIssuer" in stranger.tail(), stranger.tail()
    converse(release)


def converse(release):
    """Starts the services, runs the chart's `helm test`, and ends them; raises AssertionError with what went wrong."""
    release.start_services()
    for name in SERVICES:
        assert release.pods[name].probe("livenessProbe") == (200, "ok\n"), name
    release.node.publish("fechatter-gateway")
    test = release.node.run("test", release.specs["test"], {}, whole_system=True)
    assert test.wait(120) == 0, test.tail() + "\n" + "\n".join(release.pods[name].tail() for name in SERVICES)
    print(test.log.read_text(), end="")
    probe = release.start("probe")
    probe.until_ready()
    passed = 'probe_rounds_total{outcome="passed"'
    node.until(60, "a round of the probe to pass", lambda: has_risen(probe, passed), probe)
    print("the probe's round passed")
    os.kill(probe.process, signal.SIGTERM)
    assert probe.wait(probe.spec["terminationGracePeriodSeconds"]) == 0, probe.tail()
    for name in ("gateway", "notify", "indexer", "chat"):
        pod = release.pods[name]
        os.kill(pod.process, signal.SIGTERM)
        node.until(5, f"{name} to say that it ends", lambda: pod.probe("readinessProbe")[0] == 503 or None)
        if name != "gateway":
            # The gateway is told, too, and whoever asks nevertheless is served.
            port = next(p["containerPort"] for p in pod.spec["containers"][0]["ports"] if p["name"] == "http")
            assert node.get(f"http://127.0.0.1:{port}/health/simple")[0] == 503, name
            assert node.get(f"http://127.0.0.1:{port}/no/such/path")[0] == 404, name
        code = pod.wait(pod.spec["terminationGracePeriodSeconds"])
        assert code == 0, f"{name} ended with {code}\n{pod.tail()}"
        text = release.pods[name].log.read_text()
        assert all(json.loads(line) for line in text.splitlines()), "a line that is no JSON"
        assert "Read-only file system" not in text, f"{name} writes on its root"
    assert not release.has_leaked(), "a secret is in a log"


def has_risen(pod, series):
    """True once a counter on a pod's page is above zero, else None."""
    port = next(p["containerPort"] for p in pod.spec["containers"][0]["ports"] if p["name"] == "admin")
    lines = node.get(f"http://127.0.0.1:{port}/metrics")[1].splitlines()
    return any(line.startswith(series) and not line.endswith(" 0") for line in lines) or None


def bounds(schema, path=()):
    """(path, least, most) of every number among settings."""
    for key, value in schema["properties"].items():
        if "properties" in value:
            yield from bounds(value, (*path, key))
        elif "minimum" in value:
            yield (*path, key), value["minimum"], value["maximum"]


def known_settings(name, path=()):
    """Dotted paths of everything the process can be told, which it lists when it is told something that is none of it."""
    variable = "__".join((*path, "no_such_setting")).upper()
    done = subprocess.run([BINARIES / BINARY[name]], env={f"{PREFIX[name]}{variable}": "1"}, capture_output=True, text=True)
    unknown = re.search(r"unknown field: found `no_such_setting`, expected (.*)", done.stderr + done.stdout)
    if not unknown:
        return {".".join(path)}
    return set().union(*(known_settings(name, (*path, key)) for key in re.findall(r"`+([a-z][a-z0-9_]*)`", unknown[1])))


def chart_settings(schema, path=""):
    """Dotted paths of the settings that the schema has."""
    for key, value in schema["properties"].items():
        where = f"{path}.{key}" if path else key
        if "properties" in value:
            yield from chart_settings(value, where)
        else:
            yield where


def with_settings(name, chosen):
    """The pod of a service with these settings; those that the schema refuses as the template would write them."""
    settings = {}
    for path, value in chosen.items():
        inner = settings
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    try:
        return pods(objects(merge(EXAMPLES["small"], {name: {"settings": settings}})))[name][1]
    except helm_python.HelmError:
        spec = pods(objects(EXAMPLES["small"]))[name][1]
    def add(path, value):
        inner = ", ".join(f"{of} = {number}" for of, number in value.items()) if isinstance(value, dict) else ""
        text = "{" + inner + "}" if isinstance(value, dict) else str(value)
        spec["containers"][0]["env"].append({"name": f"{PREFIX[name]}{path}".upper(), "value": text})

    for section, keys in settings.items():
        if isinstance(keys, dict):
            for key, value in keys.items():
                add(f"{section}__{key}", value)
        else:
            add(section, keys)
    return spec


class Running(unittest.TestCase):
    def test_a_release_starts_serves_and_ends(self):
        self.run_release("bundled")

    def test_external_servers_behind_tls_are_reached(self):
        self.run_release("external")

    def run_release(self, which):
        if os.environ.get("FECHATTER_WITHOUT_NAMESPACES"):
            self.skipTest("FECHATTER_WITHOUT_NAMESPACES is set")
        able = subprocess.run([*node.UNSHARE, "true"], capture_output=True, text=True)
        self.assertEqual(
            able.returncode,
            0,
            f"this user may not make namespaces, in which the release would run: {able.stderr.strip()}\n"
            "Allow it (as root: sysctl kernel.unprivileged_userns_clone=1), or leave this test out with FECHATTER_WITHOUT_NAMESPACES=1.",
        )
        with tempfile.TemporaryDirectory(prefix="fechatter-") as folder:
            result = subprocess.run(
                [*node.UNSHARE, sys.executable, __file__, which, folder], capture_output=True, text=True, timeout=300
            )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        for step in ("signed up two people", "sent a message", "received it by SSE", "found it by search", "the probe's round passed"):
            self.assertIn(step, result.stdout)

    def test_settings_and_their_ranges_are_those_of_the_processes(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        for name in SERVICES:
            found = list(bounds(schema["properties"][name]["properties"]["settings"]))
            self.assertGreater(len(found), 10)
            for edge in ("least", "most"):
                with self.subTest(f"{name}: {edge} accepted"):
                    said = self.complaints(name, {path: (low if edge == "least" else high) for path, low, high in found})
                    self.assertEqual(said, [])
            for edge in ("below", "above"):
                with self.subTest(f"{name}: {edge} refused"):
                    wrong = {path: (low - 1 if edge == "below" else high + 1) for path, low, high in found}
                    wrong = {path: value for path, value in wrong.items() if value >= 0}
                    if edge == "below":
                        wrong = {path: value for path, value in wrong.items() if path not in DEPENDENT}
                    said = self.complaints(name, wrong)
                    for path in wrong:
                        self.assertTrue(any(f"{'.'.join(path)}: " in line for line in said), f"{path} was not refused: {said}")

    def test_every_setting_of_the_processes_can_be_set(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        made = set()
        for name in SERVICES:
            with self.subTest(name):
                known = known_settings(name)
                settings = set(chart_settings(schema["properties"][name]["properties"]["settings"]))
                self.assertEqual(settings - known, set(), "no such setting")
                self.assertEqual(known - settings - MADE - UNMOUNTED, set(), "not in values.schema.json")
                self.assertEqual(settings & MADE, set(), "set twice")
                made |= known & (MADE | UNMOUNTED)
        self.assertEqual(made, MADE | UNMOUNTED)

    def complaints(self, name, chosen):
        """What a process says about settings, given by their paths, as the chart renders them."""
        rendered = with_settings(name, chosen)
        with tempfile.TemporaryDirectory(prefix="fechatter-") as folder:
            folder = pathlib.Path(folder)
            secrets = made_secrets(folder)
            secrets["fechatter-database"] = {f"{name}-url": "postgres://nobody:x@127.0.0.1:9/none"}
            environment = {}
            for variable in rendered["containers"][0]["env"]:
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                value = secrets[reference["name"]][reference["key"]] if reference else variable.get("value", "x")
                value = value.replace("/etc/fechatter/tls/tls.crt", f"{folder}/tls/cert.pem").replace("/etc/fechatter/tls/tls.key", f"{folder}/tls/key.pem")
                environment[variable["name"]] = value
            process = subprocess.Popen([BINARIES / BINARY[name]], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            said = []
            for line in process.stdout:
                # The first line of the log: the configuration was accepted.
                if '"starting"' in line:
                    process.kill()
                    break
                said.append(line.strip())
            process.wait()
            process.stdout.close()
        return [line for line in said if line.startswith("configuration:")] or [line for line in said if line]


if __name__ == "__main__":
    if sys.argv[1:2] in (["bundled"], ["external"]):
        globals()[sys.argv[1]](pathlib.Path(sys.argv[2]))
    else:
        unittest.main()
