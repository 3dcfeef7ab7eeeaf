"""As much of a Kubernetes node as it takes to run rendered pods for real, in namespaces that end with this process.

Each pod gets a root of its own that is read-only and holds what its image would (libraries, the program) and its volumes at
their mount paths; its command, arguments and environment are the rendered ones and nothing else. All pods share one network,
in which the names of the rendered Services lead to them. Unlike on a node, every pod runs as the one user that the namespace
knows, and servers of others are this machine's instead of their images'.
"""

import ctypes
import fcntl
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
CLONE_NEWNS = 0x20000
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
USER = 10001
# What makes the namespaces: no rights on the machine are needed, and every process in them ends with the first.
UNSHARE = [
    "unshare", "--user", f"--map-user={USER}", f"--map-group={USER}", "--keep-caps", "--mount", "--net", "--pid",
    "--fork", "--kill-child", "--mount-proc", "--",
]


def mount(source, target, kind=None, flags=0, options=None):
    encode = lambda text: None if text is None else str(text).encode()
    if LIBC.mount(encode(source), encode(target), encode(kind), flags, encode(options)) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def bind(source, target, read_only):
    """Makes a file or folder appear at another place."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        pathlib.Path(target).touch()
    mount(source, target, flags=MS_BIND | MS_REC)
    if read_only:
        mount(None, target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | locked_flags(target))


def locked_flags(path):
    """Flags of a mount that this namespace may not take away."""
    flags = os.statvfs(path).f_flag
    return sum(ms for st, ms in ((os.ST_NODEV, MS_NODEV), (os.ST_NOEXEC, 8), (os.ST_NOATIME, 1024), (os.ST_RELATIME, 1 << 21)) if flags & st)


def network_up():
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))


class Pod:
    """A running pod of one container."""

    def __init__(self, name, spec, process, log, address):
        self.name, self.spec, self.process, self.log, self.address, self.status = name, spec, process, log, address, None

    def ended(self):
        """The exit code, once it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.process, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds):
        """The exit code; an error after so long."""
        return until(seconds, f"{self.name} to end", lambda: None if self.ended() is None else (self.status,), self)[0]

    def terminate(self):
        """Ends it as a kubelet does; the exit code within the rendered grace period."""
        os.kill(self.process, signal.SIGTERM)
        return self.wait(self.spec.get("terminationGracePeriodSeconds", 30))

    def probe(self, which):
        """Status and body of the rendered probe's request."""
        container = self.spec["containers"][0]
        wanted = container[which]["httpGet"]
        port = wanted["port"]
        if isinstance(port, str):
            port = next(p["containerPort"] for p in container["ports"] if p["name"] == port)
        url = f"{wanted.get('scheme', 'HTTP').lower()}://{self.address}:{port}{wanted['path']}"
        return get(url, container[which].get("timeoutSeconds", 1))

    def until_ready(self):
        """Waits as long as the rendered startup probe would, then for readiness."""
        container = self.spec["containers"][0]
        start = container.get("startupProbe", {})
        patience = start.get("periodSeconds", 10) * start.get("failureThreshold", 6)
        for which in ("startupProbe", "readinessProbe"):
            until(patience, f"the {which} of {self.name}", lambda: self.probe(which)[0] == 200 or None, self)

    def tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


def get(url, timeout=2):
    """Status and body; 0 when there is no answer."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()
    except OSError as error:
        return 0, str(error)


def until(seconds, what, ready, pod=None):
    deadline = time.monotonic() + seconds
    while True:
        value = ready()
        if value is not None:
            return value
        over = time.monotonic() > deadline
        if over or (pod and not what.endswith("to end") and pod.ended() is not None):
            end = f" (it ended with {pod.status})" if pod and pod.status is not None else ""
            raise AssertionError(f"waited in vain for {what}{end}\n{pod.tail() if pod else ''}")
        time.sleep(0.02)


class Node:
    """Runs the pods of rendered objects. `secrets` are name to key to text."""

    def __init__(self, folder, objects, secrets):
        self.folder, self.secrets = pathlib.Path(folder), secrets
        self.configs = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
        self.services = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Service"}
        self.pods = {}
        # What cluster DNS says: each Service's pods. Written again when they change, read by every pod.
        self.hosts = self.folder / "hosts"
        self.resolve({})
        network_up()

    def resolve(self, addresses):
        """Has the names of Services lead to other addresses than 127.0.0.1."""
        lines = ["127.0.0.1 localhost"]
        for service in self.services:
            lines += [f"{address} {service}" for address in addresses.get(service, ["127.0.0.1"])]
        self.hosts.write_text("\n".join(lines) + "\n")

    def run(self, component, spec, programs, whole_system=False, command=None, address="127.0.0.1"):
        """Starts a pod. `programs` are paths in the pod to files of this machine; `whole_system` gives it /usr as well.

        `address` stands for the pod's own: with another than 127.0.0.1 it listens there instead of everywhere, as replicas
        share one network here.
        """
        container = spec["containers"][0]
        log = self.folder / f"{component}.log"
        argv = command or [*container["command"], *container.get("args", [])]
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", **self.environment(spec, component)}
        if address != "127.0.0.1":
            environment = {key: value.replace("0.0.0.0:", f"{address}:") for key, value in environment.items()}
        volumes = {v["name"]: self.volume(component, v) for v in spec.get("volumes", [])}
        for mounted in container.get("volumeMounts", []):
            # A claim of a StatefulSet.
            if mounted["name"] not in volumes:
                volumes[mounted["name"]] = self.writable(component, mounted["name"])
        process = os.fork()
        if process == 0:
            try:
                self.enter(component, container, volumes, programs, whole_system, log)
                os.execvpe(argv[0], argv, environment)
            except BaseException as error:  # noqa: BLE001: the child must not go on as the test
                print(f"cannot start {argv}: {error}", file=sys.stderr, flush=True)
            os._exit(70)
        self.pods[component] = Pod(component, spec, process, log, address)
        return self.pods[component]

    def enter(self, component, container, volumes, programs, whole_system, log):
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        if LIBC.unshare(CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        root = str(self.folder / f"{component}.root")
        os.makedirs(root, exist_ok=True)
        mount("tmpfs", root, "tmpfs", 0, "mode=755")
        for path in ("/usr",) if whole_system else ("/usr/lib", "/usr/lib64"):
            if os.path.isdir(path):
                bind(path, root + path, True)
        for path in ("bin", "lib", "lib64"):
            if os.path.islink(f"/{path}"):
                os.symlink(f"usr/{path}", f"{root}/{path}")
            elif os.path.isdir(f"/{path}") and (path != "bin" or whole_system):
                bind(f"/{path}", f"{root}/{path}", True)
        for path in ("/dev/null", "/dev/urandom", "/dev/random"):
            bind(path, root + path, False)
        os.makedirs(f"{root}/proc")
        mount("proc", f"{root}/proc", "proc")
        bind("/etc/ssl/certs", f"{root}/etc/ssl/certs", True)
        bind(str(self.hosts), f"{root}/etc/hosts", True)
        pathlib.Path(f"{root}/etc/host.conf").write_text("multi on\n")
        pathlib.Path(f"{root}/etc/nsswitch.conf").write_text("hosts: files\n")
        pathlib.Path(f"{root}/etc/passwd").write_text(f"app:x:{USER}:{USER}::/:/bin/sh\n")
        for path, source in programs.items():
            bind(str(source), root + path, True)
        for mounted in container.get("volumeMounts", []):
            source, read_only = volumes[mounted["name"]]
            bind(str(source), root + mounted["mountPath"], read_only or mounted.get("readOnly", False))
        if container["securityContext"]["readOnlyRootFilesystem"]:
            mount(None, root, flags=MS_REMOUNT | MS_RDONLY)
        os.chroot(root)
        os.chdir(container.get("workingDir", "/"))
        LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        os.setsid()

    def writable(self, component, name):
        path = self.folder / f"{component}.{name}"
        path.mkdir(exist_ok=True)
        return path, False

    def volume(self, component, volume):
        if "emptyDir" in volume or "persistentVolumeClaim" in volume:
            return self.writable(component, volume["name"])
        path = self.folder / f"{component}.{volume['name']}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        source = volume.get("secret") or volume["configMap"]
        name = source.get("secretName") or source["name"]
        data = self.secrets.get(name) if "secret" in volume else self.configs.get(name)
        if data is None and not source.get("optional"):
            raise AssertionError(f"{component}: there is no {name}")
        items = source.get("items") or [{"key": key, "path": key} for key in data or {}]
        for item in items:
            if item["key"] in (data or {}):
                (path / item["path"]).write_text(data[item["key"]])
                (path / item["path"]).chmod(source.get("defaultMode", 0o644))
            elif not source.get("optional"):
                raise AssertionError(f"{component}: {name} has no {item['key']}")
        return path, True

    def environment(self, spec, component):
        """The rendered variables, with `$(NAME)` of earlier ones put in."""
        uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, component))
        fields = {"metadata.name": f"{component}-0", "metadata.uid": uid, "spec.nodeName": "this-machine"}
        found = {}
        for variable in spec["containers"][0].get("env", []):
            value = variable.get("value", "")
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                reference = source["secretKeyRef"]
                value = self.secrets[reference["name"]][reference["key"]]
            elif "fieldRef" in source:
                value = fields[source["fieldRef"]["fieldPath"]]
            else:
                value = re.sub(r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), value)
            found[variable["name"]] = value
        return found

    def publish(self, service):
        """Takes connections to a Service's own ports and passes them on to its pod's, where the numbers differ."""
        component = self.services[service]["selector"]["app.kubernetes.io/component"]
        ports = {p["name"]: p["containerPort"] for p in self.pods[component].spec["containers"][0]["ports"]}
        for port in self.services[service]["ports"]:
            target = ports[port["targetPort"]]
            if target != port["port"]:
                listener = socket.create_server(("127.0.0.1", port["port"]))
                threading.Thread(target=forward, args=(listener, target), daemon=True).start()


def forward(listener, port):
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", port))
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=pump, args=(source, sink), daemon=True).start()


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
