"""Drills on a running release: `rolling` restarts every service under load, `restore` goes back to an older database.

    cargo dev drill rolling
    cargo dev drill restore

Each prints what it does and ends with 0, or says what was lost. Needs no cluster: see node.py for what stands for one.
"""

import collections
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

import node
from release import BINARIES, NATS_PASSWORDS, Release

EDGE = ("127.0.0.100", 443)
STARTED = time.monotonic()


def say(text):
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


class Balancer:
    """The load balancer in front of the gateways: gives new connections to the ready ones in turn, and leaves old ones alone."""

    def __init__(self, addresses):
        self.addresses, self.turn = list(addresses), 0
        listener = socket.create_server(EDGE, backlog=256)
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            near, _ = listener.accept()
            self.turn += 1
            far = socket.create_connection((self.addresses[self.turn % len(self.addresses)], 8443))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=node.pump, args=(source, sink), daemon=True).start()


class Connection(http.client.HTTPSConnection):
    """Goes to the edge, whose certificate is for localhost."""

    def connect(self):
        self.sock = self._context.wrap_socket(socket.create_connection(EDGE, 20), server_hostname="localhost")


class Client:
    """One person with one kept connection."""

    def __init__(self, context, token=None):
        self.context, self.token, self.connection, self.repeated = context, token, None, 0

    def request(self, method, path, body=None):
        """(status, answer). A kept connection that the server closed before it answered is replaced once, as any client does."""
        headers = {"content-type": "application/json"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        for attempt in (1, 2):
            fresh = self.connection is None
            self.connection = self.connection or Connection("localhost", context=self.context, timeout=20)
            try:
                self.connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = self.connection.getresponse()
                text = answer.read()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self.connection = None
                if fresh or attempt == 2:
                    raise
                self.repeated += 1
                continue
            if answer.will_close:
                self.connection = None
            return answer.status, json.loads(text or b"null")

    def call(self, method, path, body=None):
        status, answer = self.request(method, path, body)
        if not 200 <= status < 300:
            raise SystemExit(f"{method} {path}: {status} {answer}")
        return answer


class Listener(threading.Thread):
    """A person's stream that resumes where it was; counts each message it is told of."""

    def __init__(self, context, token, cursor=None):
        super().__init__(daemon=True)
        self.context, self.token, self.cursor = context, token, cursor
        self.seen, self.kinds, self.opened, self.refused, self.done = collections.Counter(), collections.Counter(), 0, [], False

    def run(self):
        while not self.done:
            try:
                self.listen()
            except (OSError, http.client.HTTPException):
                pass
            # `retry:` of the streams is 1 s; a little less makes the drill shorter.
            time.sleep(0.2)

    def listen(self):
        headers = {"authorization": f"Bearer {self.token}", **({"last-event-id": self.cursor} if self.cursor else {})}
        connection = Connection("localhost", context=self.context, timeout=40)
        connection.request("GET", "/events", headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            self.refused.append((answer.status, answer.read()))
            return
        self.opened += 1
        kind = None
        for line in answer:
            text = line.decode().rstrip("\n")
            if text.startswith("event:"):
                kind = text[6:].strip()
            elif text.startswith("id:"):
                self.cursor = text[3:].strip()
            elif text.startswith("data:") and kind:
                self.kinds[kind] += 1
                if kind == "message.created":
                    self.seen[json.loads(text[5:])["message"]["id"]] += 1


def team(context, size):
    """People of a new workspace and a chat of all of them: (clients, chat id)."""
    body = lambda name, invitation: {
        "fullname": name, "email": f"{name}@drill.example", "password": "correct horse battery", "workspace": "Drill", "invitation": invitation,
    }
    first = Client(context)
    owner = first.call("POST", "/api/signup", body("p0", None))
    first.token = owner["access_token"]
    invitation = first.call("POST", "/api/workspace/invitations", {"max_uses": size})["token"]
    people, ids = [first], []
    for number in range(1, size):
        person = Client(context)
        tokens = person.call("POST", "/api/signup", body(f"p{number}", invitation))
        person.token = tokens["access_token"]
        ids.append(tokens["user"]["id"])
        people.append(person)
    kind = {"kind": "single"} if size == 2 else {"kind": "group", "name": "drill"}
    chat = first.call("POST", "/api/chat", {**kind, "member_ids": ids})
    return people, chat["id"]


def trust(release):
    return ssl.create_default_context(cadata=release.secrets["fechatter-tls"]["ca.crt"])


class Load:
    """Sends, reads and searches until told to stop; keeps every acknowledged message and every failure."""

    def __init__(self, people, chat):
        self.people, self.chat, self.stop, self.searching = people, chat, threading.Event(), True
        self.sent, self.failed, self.requests, self.lock = [], [], 0, threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(n,), daemon=True) for n in range(len(people))]
        for thread in self.threads:
            thread.start()

    def run(self, number):
        person, count = self.people[number], 0
        while not self.stop.is_set():
            count += 1
            send = {"content": f"drill {number} {count}", "idempotency_key": f"{number}-{count}"}
            requests = [("POST", f"/api/chat/{self.chat}/messages", send), ("GET", f"/api/chat/{self.chat}/messages?limit=5", None)]
            if self.searching:
                requests.append(("GET", "/api/search/messages?q=drill&limit=1", None))
            for method, path, body in requests:
                try:
                    status, answer = person.request(method, path, body)
                except (OSError, http.client.HTTPException) as error:
                    status, answer = 0, repr(error)
                with self.lock:
                    self.requests += 1
                    if not 200 <= status < 300:
                        self.failed.append((round(time.monotonic() - STARTED, 1), method, status, answer))
                    elif method == "POST":
                        self.sent.append(answer["id"])
            self.stop.wait(0.1)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)


def rolling(folder):
    """Replaces every pod as a Deployment does: one more, then one fewer."""
    # Shorter than in production, so that a developer waits minutes and not an hour; the order of events is the same.
    short = {
        "gateway": {"replicas": 2, "drain": {"delaySeconds": 3, "timeoutSeconds": 15, "streamSpreadSeconds": 5}, "settings": {"rate_limits": {name: {"requests": 100000, "window_seconds": 1} for name in ("send", "read", "search")}}},
        "chat": {"replicas": 2, "drainSeconds": 10},
        "notify": {"replicas": 2, "drainSeconds": 10},
    }
    release = Release(folder, short)
    release.start_servers()
    release.migrate()
    where = {"chat": [], "notify": [], "gateway": []}
    number = 10

    def publish():
        release.node.resolve({f"fechatter-{name}": found for name, found in where.items() if found})

    def add(component):
        nonlocal number
        number += 1
        address = f"127.0.0.{number}"
        release.start(component, f"{component}-{number}", address).until_ready()
        where[component].append(address)
        publish()

    say("starting two replicas of each service, and the one indexer of the embedded engine")
    for component in ("chat", "chat", "notify", "notify"):
        add(component)
    release.start("indexer").until_ready()
    for _ in range(2):
        add("gateway")
    balancer = Balancer(where["gateway"])

    context = trust(release)
    people, chat = team(context, 6)
    listeners = [Listener(context, person.token) for person in people]
    for listener in listeners:
        listener.start()
    for listener in listeners:
        node.until(30, "a stream", lambda: listener.kinds["ready"] or None)
    load = Load(people, chat)
    say(f"{len(people)} people send, read and listen; replacing every pod")
    for component in ("chat", "notify", "gateway"):
        for old in list(where[component]):
            add(component)
            if component == "gateway":
                balancer.addresses = list(where["gateway"])
            time.sleep(release.deployment(component)["spec"]["minReadySeconds"])
            where[component].remove(old)
            if component == "gateway":
                balancer.addresses = list(where["gateway"])
            publish()
            pod = next(pod for pod in release.pods.values() if pod.address == old and pod.status is None)
            code = pod.terminate()
            assert code == 0, f"{pod.name} ended with {code}\n{pod.tail()}"
            say(f"replaced a {component}; {load.requests} requests, {len(load.failed)} failed")
    # The embedded engine is one process with one disk: search is away while it restarts, and nothing else is.
    load.searching, before = False, load.requests
    node.until(10, "the searches in flight to end", lambda: load.requests >= before + 4 * len(people) or None)
    code = release.pods["indexer"].terminate()
    assert code == 0, f"the indexer ended with {code}\n{release.pods['indexer'].tail()}"
    away = time.monotonic()
    release.start("indexer", "indexer-again").until_ready()
    person = Client(context, people[0].token)
    node.until(30, "search", lambda: (person.request("GET", "/api/search/messages?q=drill&limit=1")[0] == 200) or None)
    say(f"restarted the indexer; search was back {time.monotonic() - away:.1f} s after its end")
    load.end()

    sent = set(load.sent)
    node.until(60, "every message on every screen", lambda: all(sent <= set(l.seen) for l in listeners) or None) if sent else None
    for listener in listeners:
        listener.done = True
    doubled = sum(1 for listener in listeners for count in listener.seen.values() if count > 1)
    missing = sum(len(sent - set(listener.seen)) for listener in listeners)
    gaps = sum(listener.kinds["gap"] for listener in listeners)
    refused = [refusal for listener in listeners for refusal in listener.refused]
    stored = int(release.sql(f"SELECT count(*) FROM messages WHERE chat_id = {chat}"))
    # Search may be away until the gateway has found the restarted indexer.
    searched = lambda: (people[0].request("GET", "/api/search/messages?q=drill&limit=1")[1] or {}).get("estimated_total", 0)
    node.until(60, "the index to hold every message", lambda: searched() >= len(sent) or None)
    say(
        f"{load.requests} requests, {len(load.failed)} failed; {sum(p.repeated for p in people)} repeated on a fresh connection; "
        f"{len(sent)} messages sent, {stored} stored; streams opened {sum(l.opened for l in listeners)} times, {len(refused)} refused; "
        f"{missing} events lost, {doubled} doubled, {gaps} gaps"
    )
    assert load.failed == [] and refused == [], (load.failed[:5], refused[:5])
    # Answers say in time that their connection closes: nobody has to guess whether a request on a broken one was done.
    assert sum(person.repeated for person in people) == 0
    assert (missing, doubled, gaps) == (0, 0, 0) and stored == len(load.sent) == len(sent)
    assert min(listener.opened for listener in listeners) > 1, "a stream was never resumed"


def restore(folder):
    """A base backup, archived WAL, a disaster, and the way back to a point in time."""
    release = Release(folder, {"gateway": {"drain": {"delaySeconds": 0, "timeoutSeconds": 5, "streamSpreadSeconds": 0}}, "chat": {"drainDelaySeconds": 0}, "notify": {"drainDelaySeconds": 0, "drainSeconds": 1}, "indexer": {"drainDelaySeconds": 0}})
    release.start_servers()
    release.migrate()
    release.start_services()
    Balancer(["127.0.0.1"])
    context = trust(release)
    (ada, bob), chat = team(context, 2)
    listener = Listener(context, bob.token)
    listener.start()
    node.until(30, "a stream", lambda: listener.kinds["ready"] or None)
    path = f"/api/chat/{chat}/messages"
    kept = [ada.call("POST", path, {"content": f"kept {n}"})["id"] for n in range(20)]

    say("taking a base backup")
    backup = release.folder / "backup"
    release.postgres_tool("pg_basebackup", "-D", str(backup), "-X", "none", "-c", "fast", "--no-sync", "-w")
    kept += [ada.call("POST", path, {"content": f"kept {n}"})["id"] for n in range(20, 40)]
    point = release.sql("SELECT clock_timestamp()")
    lost = [ada.call("POST", path, {"content": f"mistaken {n}"})["id"] for n in range(20)]
    node.until(30, "Bob to hear of all", lambda: set(kept + lost) <= set(listener.seen) or None)
    node.until(30, "search", lambda: ada.call("GET", "/api/search/messages?q=mistaken")["estimated_total"] == 20 or None)
    release.sql("SELECT pg_switch_wal()")
    archive = release.folder / "postgres.data" / "archive"
    node.until(30, "the archive", lambda: release.sql("SELECT last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1) FROM pg_stat_archiver") == "t" or None)
    say(f"40 messages before the point to return to, 20 after it; {len(list(archive.iterdir()))} files of WAL archived")
    # The client goes on from what it knew, as a closed laptop does.
    listener.done = True
    for name in ("notify", "chat", "indexer"):
        code = release.pods[name].terminate()
        assert code == 0, f"{name} ended with {code}"
    listener.join(30)
    cursor, heard = listener.cursor, dict(listener.seen)

    say(f"PostgreSQL goes back to {point}")
    postgres = release.pods["postgres"]
    os.kill(postgres.process, signal.SIGINT)
    postgres.wait(60)
    cluster = release.folder / "postgres.data" / "cluster"
    shutil.rmtree(cluster)
    shutil.move(backup, cluster)
    (cluster / "recovery.signal").touch()
    with open(cluster / "postgresql.auto.conf", "a") as settings:
        settings.write(
            "restore_command = 'cp /var/lib/postgresql/data/archive/%f %p'\n"
            f"recovery_target_time = '{point}'\nrecovery_target_action = 'promote'\n"
        )
    again = release.start_postgres()
    node.until(60, "the recovery", lambda: recovered(release) or None, again)
    release.sql("ALTER SYSTEM RESET recovery_target_time")
    found = int(release.sql("SELECT count(*) FROM messages WHERE content LIKE 'kept %' OR content LIKE 'mistaken %'"))
    assert found == 40, f"{found} messages instead of 40"

    say("deleting the stream, which is ahead of the database now")
    answer = ask_nats("chat", NATS_PASSWORDS["chat-password"], "$JS.API.STREAM.DELETE.FECHATTER_EVENTS")
    assert answer.get("success"), answer
    for name in ("chat", "notify", "indexer"):
        release.start(name)
    for name in ("chat", "notify", "indexer"):
        release.pods[name].until_ready()
    say("rebuilding the index")
    program = {"/usr/local/bin/indexer": BINARIES / "indexer"}
    command = ["/usr/local/bin/indexer", "reindex"]
    code = release.node.run("reindex", release.specs["indexer"], program, command=command).wait(120)
    assert code == 0, release.pods["reindex"].tail()

    ada, bob = Client(context, ada.token), Client(context, bob.token)
    node.until(30, "the edge", lambda: (bob.request("GET", path)[0] == 200) or None)
    returned = Listener(context, bob.token, cursor)
    returned.start()
    node.until(30, "the client to be told gap", lambda: returned.kinds["gap"] or None)
    listed = bob.call("GET", f"{path}?limit=100")["items"]
    texts = {item["content"] for item in listed}
    assert sum(text.startswith("kept ") for text in texts) == 40 and not any(text.startswith("mistaken ") for text in texts), texts
    total = lambda word: ada.call("GET", f"/api/search/messages?q={word}")["estimated_total"]
    node.until(30, "search to forget", lambda: (total("mistaken"), total("kept")) == (0, 40) or None)
    new = ada.call("POST", path, {"content": "after the disaster"})
    node.until(30, "the new message", lambda: returned.seen[new["id"]] or None)
    node.until(30, "the new message in search", lambda: total("disaster") == 1 or None)
    returned.done = True
    program = {"/usr/local/bin/chat_service": BINARIES / "chat_service"}
    compared = release.node.run("reconcile", release.specs["chat"], program, command=["/usr/local/bin/chat_service", "reconcile", "--no-index"])
    assert compared.wait(60) == 0, compared.tail()
    say(f"outbox and stream agree: {compared.tail().splitlines()[-1]}")
    say(f"the client held {len(heard)} messages, was told gap, reloaded 40; search finds 40 and none of the 20; new messages flow")


def ask_nats(user, password, subject):
    """What JetStream answers to one of our users, as `nats --inbox-prefix _INBOX_USER` would ask."""
    inbox = f"_INBOX_{user}.drill"
    with socket.create_connection(("127.0.0.1", 4222), 20) as connection:
        connect = json.dumps({"user": user, "pass": password, "verbose": False, "pedantic": False})
        connection.sendall(f"CONNECT {connect}\r\nSUB {inbox} 1\r\nPUB {subject} {inbox} 0\r\n\r\n".encode())
        connection.settimeout(20)
        lines = connection.makefile("rb")
        for line in lines:
            words = line.decode().split()
            if words[:1] == ["-ERR"]:
                raise AssertionError(f"{subject}: {line.decode()}")
            if words[:1] == ["MSG"]:
                return json.loads(lines.read(int(words[-1])))
    raise AssertionError(f"{subject}: no answer")


def recovered(release):
    try:
        return release.sql("SELECT NOT pg_is_in_recovery()") == "t"
    except AssertionError:
        return False


DRILLS = {"rolling": rolling, "restore": restore}

if __name__ == "__main__":
    drill = sys.argv[1]
    if sys.argv[2:]:
        DRILLS[drill](pathlib.Path(sys.argv[2]))
        say(f"the drill {drill} succeeded")
    else:
        with tempfile.TemporaryDirectory(prefix="fechatter-") as made:
            done = subprocess.run([*node.UNSHARE, sys.executable, "-B", __file__, drill, made])
        sys.exit(done.returncode)
