"""What Schemathesis cannot know of Fechatter: which ids exist, and that some requests end sessions."""

import json
import os
import urllib.request

import schemathesis

MAIN = "Bearer " + os.environ["MAIN_TOKEN"]
# These end the session they come by, or others of the same user: a second user of no other use signs in for each.
ENDS_SESSIONS = {"log_out", "end_session", "end_other_sessions", "list_sessions"}
# These take a chat away: they get chats of no other use.
ENDS_CHATS = {"delete_chat", "leave_chat"}
# {"chats": […], "doomed_chats": […], "messages": {chat: […]}, "users": […], "doomed_users": […]}
THINGS = json.loads(os.environ["THINGS"])


def sign_in():
    request = urllib.request.Request(
        os.environ["SIGN_IN_URL"],
        data=os.environ["SPARE_CREDENTIALS"].encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def is_id(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53


def known(value, pool):
    """Half of all well-formed ids become one that exists; what is not an id stays what it is."""
    return pool[value // 2 % len(pool)] if is_id(value) and value % 2 == 0 else value


def use_known_ids(operation, path, parameters, body):
    if path.startswith("/api/chat/{id}"):
        pool = THINGS["doomed_chats" if operation in ENDS_CHATS else "chats"]
        parameters["id"] = known(parameters.get("id"), pool)
        if "message_id" in parameters:
            messages = THINGS["messages"].get(str(parameters["id"]), [1])
            parameters["message_id"] = known(parameters["message_id"], messages)
        if "member_id" in parameters:
            parameters["member_id"] = known(parameters["member_id"], THINGS["users"])
    elif path == "/api/users/{id}":
        parameters["id"] = known(parameters.get("id"), THINGS["doomed_users"])
    if isinstance(body, dict) and isinstance(body.get("member_ids"), list):
        ids = body["member_ids"]
        if all(map(is_id, ids)):
            body["member_ids"] = list(dict.fromkeys(known(id, THINGS["users"]) for id in ids))


@schemathesis.hook
def before_call(context, case, kwargs):
    definition = case.operation.definition.raw
    operation = definition.get("operationId")
    if operation == "refresh" and isinstance(case.body, dict) and isinstance(case.body.get("refresh_token"), str):
        case.body["refresh_token"] = sign_in()["refresh_token"]
    if case.headers.get("Authorization") == MAIN:
        if operation in ENDS_SESSIONS:
            case.headers["Authorization"] = "Bearer " + sign_in()["access_token"]
        # Stateful tests take their ids from what they made.
        elif case.meta is None or case.meta.phase.name != "stateful":
            use_known_ids(operation, case.operation.path, case.path_parameters or {}, case.body)
