"""`helm test`: signs up, sends, receives by SSE and searches through the gateway; ends with 0 when all of it works."""

import http.client
import json
import os
import socket
import ssl
import time
import uuid

HOST, PORT = os.environ["FECHATTER_ADDRESS"].rsplit(":", 1)
NAME = os.environ.get("FECHATTER_HOST") or HOST
CA = os.environ.get("FECHATTER_CA", "")
PATIENCE = 30  # seconds


class Connection(http.client.HTTPSConnection):
    """Goes to the gateway's address and checks the certificate against its public name."""

    def connect(self):
        plain = socket.create_connection((HOST, int(PORT)), PATIENCE)
        self.sock = self._context.wrap_socket(plain, server_hostname=NAME)


def context():
    trusted = ssl.create_default_context(cafile=CA if CA and os.path.exists(CA) else None)
    trusted.minimum_version = ssl.TLSVersion.TLSv1_2
    return trusted


def request(method, path, token=None, body=None):
    """Sends a request; anything but success ends the test."""
    connection = Connection(NAME, context=context(), timeout=PATIENCE)
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    if not 200 <= answer.status < 300:
        raise SystemExit(f"{method} {path}: {answer.status} {text.decode(errors='replace')}")
    return json.loads(text or b"null")


def sign_up(name, workspace, invitation=None):
    body = {
        "fullname": name,
        "email": f"{name.lower()}-{uuid.uuid4().hex}@test.example",
        "password": uuid.uuid4().hex,
        "workspace": workspace,
        "invitation": invitation,
    }
    return request("POST", "/api/signup", body=body)


def events(token):
    """Pairs of kind and data from the live stream."""
    connection = Connection(NAME, context=context(), timeout=PATIENCE)
    connection.request("GET", "/events", headers={"authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"GET /events: {answer.status}")
    kind = None
    for line in answer:
        text = line.decode().rstrip("\n")
        if text.startswith("event:"):
            kind = text[6:].strip()
        elif text.startswith("data:") and kind:
            yield kind, json.loads(text[5:])


def until(stream, wanted):
    deadline = time.monotonic() + PATIENCE
    for kind, data in stream:
        if kind == wanted:
            return data
        if time.monotonic() > deadline:
            break
    raise SystemExit(f"GET /events: no {wanted} within {PATIENCE} s")


def main():
    mark = uuid.uuid4().hex
    workspace = f"helm test {mark}"
    ada = sign_up("Ada", workspace)
    invitation = request("POST", "/api/workspace/invitations", ada["access_token"], {"max_uses": 1})
    bob = sign_up("Bob", workspace, invitation["token"])
    print("signed up two people")
    chat = request(
        "POST", "/api/chat", ada["access_token"], {"kind": "single", "member_ids": [bob["user"]["id"]]}
    )
    stream = events(bob["access_token"])
    until(stream, "ready")
    sent = request(
        "POST", f"/api/chat/{chat['id']}/messages", ada["access_token"], {"content": f"helm test {mark}"}
    )
    print("sent a message")
    if until(stream, "message.created")["message"]["id"] != sent["id"]:
        raise SystemExit("GET /events: another message than the one that was sent")
    print("received it by SSE")
    deadline = time.monotonic() + PATIENCE
    while True:
        hits = request("GET", f"/api/search/messages?q={mark}", bob["access_token"])["hits"]
        if hits:
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"search: not found within {PATIENCE} s")
        time.sleep(0.2)
    print("found it by search")


main()
