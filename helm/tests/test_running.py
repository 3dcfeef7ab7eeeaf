"""The real binaries, started from what the chart renders: commands, variables, mounted files, a read-only root, probes, shutdown."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import node
from chart import CHART, EXAMPLES, SERVICES, merge, objects, pods

BINARIES = pathlib.Path(os.environ["FECHATTER_BINARIES"])
# Their least value is that of another setting, which is too low as well then.
DEPENDENT = {("stream", "heartbeat_max_seconds"), ("batch", "backlog_max_events")}
BINARY = {"gateway": "gateway", "chat": "chat_service", "notify": "notify_service", "indexer": "indexer"}
PREFIX = {name: f"FECHATTER_{name.upper()}__" for name in SERVICES}
# Digits and quotes-to-be: what a careless chart breaks on.
PASSWORDS = {f"{name}-password": f"0{number}12345678901234567890" for number, name in enumerate((*SERVICES, "owner", "postgres"))}

# Over examples/trial.yaml: its certificate names localhost, and nobody wants to wait for load balancers here.
TRIAL = merge(EXAMPLES["trial"], {"gateway": {"publicHost": "localhost", "drain": {"delaySeconds": 1, "timeoutSeconds": 5, "streamSpreadSeconds": 1}}})

# What the image of PostgreSQL does at its first start.
POSTGRES = """
set -eu
PATH="$POSTGRES_BIN:$PATH"
printf %s "$POSTGRES_PASSWORD" > /tmp/password
initdb -D "$PGDATA" -U postgres --auth-local=trust --auth-host=scram-sha-256 --pwfile=/tmp/password > /tmp/initdb.log
pg_ctl -D "$PGDATA" -w -o "-k /var/run/postgresql -c listen_addresses=''" start > /tmp/first.log
export PGUSER=postgres PGHOST=/var/run/postgresql
for script in /docker-entrypoint-initdb.d/*; do sh "$script"; done
pg_ctl -D "$PGDATA" -w stop
exec postgres -D "$PGDATA" -k /var/run/postgresql -c "listen_addresses=*" -c fsync=off
"""


def made_secrets(folder):
    """The Secrets that docs/operations.md has an operator make, made the same way."""
    run = lambda *argv: subprocess.run(argv, check=True, capture_output=True)
    run(BINARIES / "chat_service", "keys", "new", "--dir", folder / "keys")
    run(BINARIES / "gateway", "dev-certificate", "--dir", folder / "tls")
    read = lambda path: (folder / path).read_text()
    return {
        "fechatter-signing-keys": {path.name: path.read_text() for path in (folder / "keys").glob("*.pem")},
        "fechatter-tls": {"tls.crt": read("tls/cert.pem"), "tls.key": read("tls/key.pem"), "ca.crt": read("tls/ca.pem")},
        "fechatter-database": PASSWORDS,
        "fechatter-nats": PASSWORDS,
    }


def conversation(folder):
    """Starts a whole release, runs its `helm test`, and ends it; raises AssertionError with what went wrong."""
    items = objects(TRIAL)
    specs = {name: spec for name, (_, spec) in pods(items).items()}
    here = node.Node(folder, items, made_secrets(folder))
    our = lambda name: {f"/usr/local/bin/{name}": BINARIES / name}

    postgres = specs["postgres"]
    postgres["containers"][0]["env"].append({"name": "POSTGRES_BIN", "value": os.environ["FECHATTER_POSTGRES_BIN"]})
    here.run("postgres", postgres, {}, whole_system=True, command=["sh", "-c", POSTGRES])
    nats = os.environ["FECHATTER_NATS_SERVER"]
    server = here.run("nats", specs["nats"], {"/nats-server": nats}, command=["/nats-server", *specs["nats"]["containers"][0]["args"]])
    for which in ("startupProbe", "readinessProbe", "livenessProbe"):
        node.until(30, f"the {which} of nats", lambda: server.probe(which)[0] == 200 or None, server)

    attempts = range(specs_of_job(items)["backoffLimit"])
    codes = []
    for attempt in attempts:
        # A Job starts it again until the database is there.
        codes.append(here.run("migrations" if not attempt else f"migrations-{attempt}", specs["migrations"], our("migrations")).wait(40))
        if codes[-1] == 0:
            break
    assert codes[-1] == 0, f"migrations ended with {codes}\n{here.pods['migrations'].tail()}\n{here.pods['postgres'].tail()}"

    for name in ("chat", "notify", "indexer", "gateway"):
        here.run(name, specs[name], our(BINARY[name]))
    for name in SERVICES:
        here.pods[name].until_ready()
        assert here.pods[name].probe("livenessProbe") == (200, "ok\n"), name
    here.publish("fechatter-gateway")
    test = here.run("test", specs["test"], {}, whole_system=True)
    assert test.wait(120) == 0, test.tail() + "\n" + "\n".join(here.pods[name].tail() for name in SERVICES)
    print(test.log.read_text(), end="")

    os.kill(here.pods["chat"].process, 0)
    for name in ("gateway", "notify", "indexer", "chat"):
        code = here.pods[name].terminate()
        assert code == 0, f"{name} ended with {code}\n{here.pods[name].tail()}"
        text = here.pods[name].log.read_text()
        assert all(json.loads(line) for line in text.splitlines()), "a line that is no JSON"
        leaked = [secret for secret in PASSWORDS.values() if secret in text]
        assert not leaked, f"{name} logs a password"
    assert "Read-only file system" not in "".join(pod.log.read_text() for pod in here.pods.values())


def specs_of_job(items):
    return next(item["spec"] for item in items if item["kind"] == "Job")


def bounds(schema, path=()):
    """(path, least, most) of every number among settings."""
    for key, value in schema["properties"].items():
        if "properties" in value:
            yield from bounds(value, (*path, key))
        elif "minimum" in value:
            yield (*path, key), value["minimum"], value["maximum"]


class Running(unittest.TestCase):
    def test_a_release_starts_serves_and_ends(self):
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
                [*node.UNSHARE, sys.executable, __file__, "conversation", folder], capture_output=True, text=True, timeout=300
            )
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        for step in ("signed up two people", "sent a message", "received it by SSE", "found it by search"):
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

    def complaints(self, name, chosen):
        """What a process says about settings as the chart renders them."""
        settings = {}
        for path, value in chosen.items():
            inner = settings
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            inner[path[-1]] = value
        # Past the schema, which is what is checked: the template alone.
        import helm_python

        with helm_python.Chart.load(CHART) as chart:
            values = merge(EXAMPLES["small"], {name: {"settings": settings}})
            try:
                chart.validate_schema(chart.merge_values(values))
                rendered = pods(objects(values))[name][1]
            except helm_python.HelmError:
                rendered = pods(objects(EXAMPLES["small"]))[name][1]
                rendered["containers"][0]["env"] += [
                    {"name": PREFIX[name] + "__".join(path).upper(), "value": str(value)}
                    for path, value in chosen.items()
                    if len(path) < 3
                ]
                tables = {path[:-1] for path in chosen if len(path) == 3}
                for table in tables:
                    inner = ", ".join(f"{path[-1]} = {value}" for path, value in chosen.items() if path[:-1] == table)
                    rendered["containers"][0]["env"].append({"name": PREFIX[name] + "__".join(table).upper(), "value": "{" + inner + "}"})
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
    if sys.argv[1:2] == ["conversation"]:
        conversation(pathlib.Path(sys.argv[2]))
    else:
        unittest.main()
