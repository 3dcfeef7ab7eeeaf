"""A whole release of the chart on a `node.Node`: the bundled servers, the migrations, the four services."""

import os
import pathlib
import re
import shutil
import subprocess

import node
from chart import EXAMPLES, SERVICES, merge, objects, pods

BINARIES = pathlib.Path(os.environ["FECHATTER_BINARIES"])
BINARY = {"gateway": "gateway", "chat": "chat_service", "notify": "notify_service", "indexer": "indexer", "probe": "probe"}
# Digits alone: what a careless chart breaks on.
PASSWORDS = {f"{name}-password": f"0{number}12345678901234567890" for number, name in enumerate((*SERVICES, "owner", "postgres"))}
# What means something to a configuration file, a shell or a URL, but for quotes and backslashes, which the values' description excludes.
NATS_PASSWORDS = {
    "chat-password": PASSWORDS["chat-password"],
    "gateway-password": "$HOME%20@host:4222/?a=b&c",
    "notify-password": "space, semi;colon: #hash",
    "indexer-password": "{brace} [list] it's = 1 $(date)",
}

# What the image of PostgreSQL does: at its first start on an empty disk, and at each.
POSTGRES = """
set -eu
PATH="$POSTGRES_BIN:$PATH"
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    printf %s "$POSTGRES_PASSWORD" > /tmp/password
    initdb -D "$PGDATA" -E UTF8 --locale=C.UTF-8 -U postgres --auth-local=trust --auth-host=scram-sha-256 --pwfile=/tmp/password > /tmp/initdb.log
    pg_ctl -D "$PGDATA" -w -o "-k /var/run/postgresql -c listen_addresses=''" start > /tmp/first.log
    export PGUSER=postgres PGHOST=/var/run/postgresql
    for script in /docker-entrypoint-initdb.d/*; do sh "$script"; done
    pg_ctl -D "$PGDATA" -w stop
    mkdir -p /var/lib/postgresql/data/archive
fi
tls=/var/lib/postgresql/data/tls
if [ -e $tls ]; then set -- -c ssl=on -c ssl_cert_file=$tls/cert.pem -c ssl_key_file=$tls/key.pem; else set --; fi
exec postgres "$@" -D "$PGDATA" -k /var/run/postgresql -c "listen_addresses=*" -c fsync=off -c archive_mode=on \\
    -c "archive_command=cp %p /var/lib/postgresql/data/archive/%f"
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
        "fechatter-nats": NATS_PASSWORDS,
        "fechatter-probe": {"email": "probe@example.org", "password": "901234567890123456789"},
    }


class Release:
    """The objects of `values` over examples/trial.yaml, and their running pods.

    Servers that `values` takes from elsewhere are those of the trial nevertheless, at localhost.
    """

    def __init__(self, folder, values):
        self.folder = pathlib.Path(folder)
        # The certificate of development names localhost.
        self.items = objects(merge(merge(EXAMPLES["trial"], {"gateway": {"publicHost": "localhost"}}), values))
        bundled = objects(EXAMPLES["trial"])
        self.specs = {name: spec for name, (_, spec) in {**pods(bundled), **pods(self.items)}.items()}
        self.secrets = made_secrets(self.folder)
        self.node = node.Node(self.folder, bundled + self.items, self.secrets)
        self.pods = self.node.pods
        postgres = self.specs["postgres"]["containers"][0]
        postgres["env"].append({"name": "POSTGRES_BIN", "value": os.environ["FECHATTER_POSTGRES_BIN"]})

    def deployment(self, component):
        return next(i for i in self.items if i["kind"] == "Deployment" and i["metadata"]["name"] == f"fechatter-{component}")

    def start_servers(self):
        self.start_postgres()
        self.start_nats()

    def encrypt_servers(self):
        """Has PostgreSQL and NATS serve TLS, with the certificate for localhost; before they start."""
        for server in ("postgres", "nats"):
            path, _ = self.node.writable(server, "data")
            shutil.copytree(self.folder / "tls", path / "tls")
        files = 'cert_file: "/data/tls/cert.pem", key_file: "/data/tls/key.pem"'
        self.node.configs["fechatter-nats-config"]["nats.conf"] += f"tls {{ {files} }}\n"

    def start_postgres(self):
        return self.node.run("postgres", self.specs["postgres"], {}, whole_system=True, command=["sh", "-c", POSTGRES])

    def start_nats(self):
        program = {"/nats-server": os.environ["FECHATTER_NATS_SERVER"]}
        spec = self.specs["nats"]
        server = self.node.run("nats", spec, program, command=["/nats-server", *spec["containers"][0]["args"]])
        for which in ("startupProbe", "readinessProbe", "livenessProbe"):
            node.until(30, f"the {which} of nats", lambda: server.probe(which)[0] == 200 or None, server)

    def migrate(self):
        """Runs the Job, which starts its pod again until the database is there."""
        limit = next(item["spec"]["backoffLimit"] for item in self.items if item["kind"] == "Job")
        program = {"/usr/local/bin/migrations": BINARIES / "migrations"}
        codes = []
        while 0 not in codes:
            assert len(codes) <= limit, f"the migrations ended with {codes}\n{pod.tail()}\n{self.pods['postgres'].tail()}"
            pod = self.node.run(f"migrations-{len(codes)}", self.specs["migrations"], program)
            codes.append(pod.wait(40))

    def start(self, component, name=None, address="127.0.0.1"):
        """Starts a replica of a service."""
        program = {f"/usr/local/bin/{BINARY[component]}": BINARIES / BINARY[component]}
        return self.node.run(name or component, self.specs[component], program, address=address)

    def start_services(self):
        order = ("chat", "notify", "indexer", "gateway")
        for component in order:
            self.start(component)
        for component in order:
            self.pods[component].until_ready()

    def sql(self, statement):
        """What the database answers to its superuser."""
        return self.postgres_tool("psql", "-qAt", "-d", "fechatter", "-c", statement).strip()

    def postgres_tool(self, program, *arguments):
        path = pathlib.Path(os.environ["FECHATTER_POSTGRES_BIN"]) / program
        environment = {"PGPASSWORD": PASSWORDS["postgres-password"], "PGHOST": "127.0.0.1", "PGUSER": "postgres", "PATH": os.environ["PATH"]}
        done = subprocess.run([path, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{program}: {done.stderr}"
        return done.stdout

    def has_leaked(self):
        """Secrets that are in a log."""
        text = "".join(path.read_text(errors="replace") for path in self.folder.glob("*.log"))
        secrets = {secret for data in self.secrets.values() for secret in data.values() if "BEGIN CERT" not in secret}
        lines = {line for secret in secrets for line in secret.splitlines() if not re.match("-----", line)}
        return [line for line in lines if line in text]
