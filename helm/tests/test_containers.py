"""What is built into containers and composed of them; no container engine takes part, so nothing here proves that an image builds."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import compose_spec
import yaml

from release import BINARIES, BINARY, made_secrets

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
COMPOSE = (ROOT / "docker-compose.yml").read_text()
# `${NAME:?message}` and `${NAME:-default}`, as the Compose Specification has them.
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
PROFILES = ("setup", "meilisearch", "observability")


def interpolated(values):
    """The composition with variables put in; those that must be set and are not end it."""

    def put(match):
        name, kind, text = match.groups()
        if name in values:
            return values[name]
        if kind == "-":
            return text
        raise KeyError(f"{name}: {text}")

    return yaml.safe_load(VARIABLE.sub(put, COMPOSE))


def recipe():
    """Variables that docs/operations.md puts into .env."""
    text = (ROOT / "docs/operations.md").read_text()
    return {name: "0" * 48 for name in re.search(r"for name in ([A-Z_ ]+);", text)[1].split()}


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
        composition = interpolated(recipe())
        # Merge keys are YAML's, not the specification's.
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(composition)).validate()
        for name, service in composition["services"].items():
            with self.subTest(name):
                self.assertTrue(set(service.get("profiles", [])) <= set(PROFILES))
                self.assertNotIn("privileged", service)
                self.assertRegex(service["image"], r":v?\d+\.\d+", "a version is pinned")
                if service["image"].startswith("fechatter:"):
                    self.assertEqual((service["read_only"], service["cap_drop"], service["user"]), (True, ["ALL"], "10001:10001"))
                for volume in service.get("volumes", []):
                    source = volume.split(":")[0]
                    # The folders of observability come with it, one by one.
                    if source.startswith("./observability/") and not (ROOT / "/".join(source.split("/")[:3])).is_dir():
                        continue
                    if source.startswith("./"):
                        self.assertTrue((ROOT / source).exists(), f"{source} is missing")
                for port in service.get("ports", []):
                    self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_what_must_be_set_is_in_the_recipe(self):
        must = {name for name, kind, _ in VARIABLE.findall(COMPOSE) if kind != "-"}
        self.assertEqual(must - set(recipe()), set())
        with self.assertRaisesRegex(KeyError, "make .env first"):
            interpolated({})

    def test_the_processes_accept_their_variables(self):
        services = interpolated(recipe())["services"]
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
