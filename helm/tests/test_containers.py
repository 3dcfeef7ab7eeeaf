"""What is built into containers and composed of them; no container engine takes part, so nothing here proves that an image builds."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import yaml

from chart import CHART
from release import BINARIES, BINARY, made_secrets

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.7"
PROFILES = {"setup", "meilisearch", "observability"}


def composition(variables):
    """The composition as Docker Compose loads it, with every profile; an AssertionError with its words when it does not."""
    done = go_run(".", ROOT / "docker-compose.yml", folder=pathlib.Path(__file__).resolve().parent / "composition", variables=variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def go_run(program, *arguments, folder, variables):
    """Runs a program of Go, with what tells Go where modules are and nothing else of our environment."""
    of_go = re.compile(r"HOME|PATH|GO(PROXY|(NO)?SUMDB|PATH|MODCACHE|CACHE)|SSL_CERT_FILE|\w+_proxy", re.I)
    environment = {name: value for name, value in os.environ.items() if of_go.fullmatch(name)}
    command = [os.environ["FECHATTER_GO"], "run", program, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env={**environment, **variables}, capture_output=True, text=True)


def recipe():
    """Variables that docs/operations.md puts into .env."""
    text = (ROOT / "docs/operations.md").read_text()
    return {name: "0" * 48 for name in re.search(r"for name in ([A-Z_ \\\n]+);", text)[1].replace("\\", "").split()}


class Containers(unittest.TestCase):
    def test_the_dockerfile(self):
        hadolint = next(pathlib.Path(path) / "bin/hadolint" for path in sys.path if (pathlib.Path(path) / "bin/hadolint").is_file())
        done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, ""))
        text = (ROOT / "Dockerfile").read_text()
        for folder in crates():
            self.assertIn(f"!{folder}\n", (ROOT / ".dockerignore").read_text())
        for program in ("migrations", *BINARY.values()):
            self.assertIn(f"--package {program}", text)
        self.assertIn("USER 10001:10001", text)
        version = re.search(r'channel = "([\d.]+)"', (ROOT / "rust-toolchain.toml").read_text())[1]
        self.assertIn(f"FROM rust:{version}-", text)
        stages = re.findall(r"^FROM (\S+)", text, re.M)
        for stage in stages:
            self.assertRegex(stage, r":[\w.-]+@sha256:[0-9a-f]{64}$", "a base is pinned by its digest")
        self.assertIn(f'image.base.digest="{stages[-1].split("@")[1]}"', text)

    def test_what_the_build_reads_is_in_its_context(self):
        lines = (ROOT / ".dockerignore").read_text().splitlines()
        self.assertIn("*", lines)
        allowed = [ROOT / line[1:] for line in lines if line.startswith("!")]
        self.assertEqual([str(path) for path in allowed if not path.exists()], [])
        read = {ROOT / name for name in ("Cargo.lock", "rust-toolchain.toml", ".sqlx", ".cargo/config.toml")}
        for folder in crates():
            read.add(ROOT / folder / "Cargo.toml")
            for source in (ROOT / folder).rglob("*.rs"):
                for found in re.findall(r'include_(?:str|bytes)!\("([^"]+)"', source.read_text()):
                    read.add((source.parent / found).resolve())
        self.assertGreater(len(read), 10)
        missing = [str(path) for path in read if not any(path == top or top in path.parents for top in allowed)]
        self.assertEqual(missing, [])

    def test_the_composition(self):
        services = composition(recipe())["services"]
        self.assertEqual({profile for service in services.values() for profile in service.get("profiles", [])}, PROFILES)
        for name, service in services.items():
            with self.subTest(name):
                self.assertNotIn("privileged", service)
                self.assertRegex(service["image"], r":v?\d+\.\d+", "a version is pinned")
                self.assertNotIn("latest", service["image"])
                if service["image"].startswith("fechatter:"):
                    self.assertEqual((service["read_only"], service["cap_drop"], service["user"]), (True, ["ALL"], "10001:10001"))
                for volume in service.get("volumes", []):
                    if volume["type"] == "bind":
                        self.assertTrue(pathlib.Path(volume["source"]).exists(), f"{volume['source']} is missing")
                        self.assertTrue(volume.get("read_only"), f"{volume['source']} could be written")
                for port in service.get("ports", []):
                    self.assertEqual(port["host_ip"], "127.0.0.1")

    def test_the_workflow(self):
        (workflow,) = (ROOT / ".github/workflows").glob("*.yaml")
        with tempfile.TemporaryDirectory() as folder:
            done = go_run(ACTIONLINT, workflow, folder=folder, variables={})
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
        steps = [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]
        self.assertTrue(any(step.get("run") == ".ci/run" for step in steps))

    def test_servers_are_those_of_the_chart(self):
        services = composition(recipe())["services"]
        values = yaml.safe_load((CHART / "values.yaml").read_text())
        for name, of in (("postgres", "database"), ("nats", "nats"), ("meilisearch", "meilisearch")):
            self.assertEqual(services[name]["image"], values[of]["bundled"]["image"])
        # The event bus is of the minor version that all tests run with.
        tested = re.search(r'NATS_VERSION: &str = "(\d+\.\d+)\.', (ROOT / "dev/src/tools.rs").read_text())[1]
        self.assertIn(f":{tested}.", services["nats"]["image"])

    def test_observability_is_provisioned(self):
        """Prometheus reads our rules and scrapes all of ours, Grafana our dashboards from data sources that are there, and every
        server that a configuration names is a service of the same network."""
        services = composition(recipe())["services"]
        mounts = {name: {v["target"]: pathlib.Path(v["source"]) for v in service.get("volumes", []) if v["type"] == "bind"} for name, service in services.items()}
        prometheus = yaml.safe_load(mounts["prometheus"]["/etc/prometheus/prometheus.yaml"].read_text())
        for rule in prometheus["rule_files"]:
            self.assertTrue((mounts["prometheus"]["/etc/prometheus/rules"] / pathlib.Path(rule).name).is_file(), rule)
        targets = dict(target.split(":") for job in prometheus["scrape_configs"] for static in job["static_configs"] for target in static["targets"])
        for name in BINARY:
            admin = services[name]["environment"][f"FECHATTER_{name.upper()}__ADMIN_LISTEN"]
            self.assertEqual(targets.pop(name), admin.split(":")[1])
        self.assertEqual(targets, {"collector": services["collector"]["environment"]["METRICS_LISTEN"].split(":")[1]})
        grafana = mounts["grafana"]
        sources = yaml.safe_load(grafana["/etc/grafana/provisioning/datasources/fechatter.yaml"].read_text())["datasources"]
        self.assertEqual({source["type"] for source in sources}, {"prometheus", "tempo", "loki"})
        for source in sources:
            self.assertIn(source["url"].split("/")[2].split(":")[0], services)
        provider = yaml.safe_load(grafana["/etc/grafana/provisioning/dashboards/fechatter.yaml"].read_text())["providers"][0]
        shown = next(source for target, source in grafana.items() if provider["options"]["path"].startswith(target))
        self.assertGreaterEqual(len(list(shown.glob("*.json"))), 6)
        for url in (services["collector"]["environment"][name] for name in ("TRACES_ENDPOINT", "LOGS_ENDPOINT")):
            self.assertIn(url.split("/")[2].split(":")[0], services)
        for name in ("collector", "prometheus", "tempo", "loki", "grafana"):
            self.assertEqual((services[name]["profiles"], "inside" in services[name]["networks"]), (["observability"], True))

    def test_what_must_be_set_is_in_the_recipe(self):
        self.assertTrue(composition(recipe()))
        for name in sorted(set(recipe()) - {"MEILI_KEY", "GRAFANA_PASSWORD", "PROBE_PASSWORD"}):
            with self.subTest(name), self.assertRaisesRegex(AssertionError, f"{name}.*make .env first"):
                composition({other: value for other, value in recipe().items() if other != name})

    def test_the_processes_accept_their_variables(self):
        services = composition(recipe())["services"]
        for name, binary in BINARY.items():
            with self.subTest(name), tempfile.TemporaryDirectory(prefix="fechatter-") as folder:
                folder = pathlib.Path(folder)
                made_secrets(folder)
                environment = {
                    key: re.sub("^/(tls|keys)", f"{folder}/\\1", str(value or "")) for key, value in services[name]["environment"].items()
                }
                process = subprocess.Popen([BINARIES / binary], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                first = process.stdout.readline()
                process.kill()
                process.wait()
                process.stdout.close()
                self.assertIn('"starting"', first)


def crates():
    """Folders of the workspace's crates."""
    text = (ROOT / "Cargo.toml").read_text()
    return re.findall(r'"([\w/]+)"', re.search(r"members = \[(.*?)\]", text, re.S)[1])


if __name__ == "__main__":
    unittest.main()
