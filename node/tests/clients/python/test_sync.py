"""The synchronous Python client over each way to connect."""

import queue
import threading
import traceback

import pytest
import socketio

PATIENCE = 10


class Inbox:
    """Events of one name, in the order of arrival."""

    def __init__(self, client, event, namespace="/"):
        self.queue = queue.Queue()
        client.on(event, self._take, namespace=namespace)

    def _take(self, *args):
        self.queue.put(list(args))

    def get(self):
        return self.queue.get(timeout=PATIENCE)


def handle_in_order(client):
    """Has one thread handle the messages of a client.

    The client starts a thread for each message, and on a busy machine one of them may overtake another.
    """
    start, messages = client.eio.start_background_task, queue.Queue()

    def handle_all():
        while True:
            target, args = messages.get()
            try:
                target(*args)
            except Exception:
                traceback.print_exc()

    def start_or_queue(target, *args, **options):
        if target is client.eio.handlers.get("message"):
            return messages.put((target, args))
        return start(target, *args, **options)

    client.eio.start_background_task = start_or_queue
    threading.Thread(target=handle_all, daemon=True).start()


@pytest.fixture
def connect(server_url, transports):
    opened = []

    def open_client(namespaces=("/",), **options):
        client = socketio.Client(reconnection=False)
        handle_in_order(client)
        opened.append(client)
        client.connect(
            server_url,
            transports=transports,
            namespaces=list(namespaces),
            wait_timeout=PATIENCE,
            **options,
        )
        return client

    yield open_client
    for client in opened:
        client.disconnect()


def test_arguments_come_back_unchanged(connect):
    client = connect()
    values = [None, True, 1, -1.5, "ünïcödé 😀", [], {"a": [1, {"b": None}]}]
    echoed = Inbox(client, "echo")
    client.emit("echo", tuple(values))
    assert echoed.get() == values
    assert list(client.call("echo-ack", tuple(values), timeout=PATIENCE)) == values


def test_binary_comes_back_at_any_depth(connect):
    client = connect()
    value = {"one": b"\x00\xff", "deep": [{"two": b"2" * 50_000}], "text": "between"}
    assert client.call("echo-ack", value, timeout=PATIENCE) == value
    echoed = Inbox(client, "echo")
    client.emit("echo", (b"1", b"", b"3"))
    assert echoed.get() == [b"1", b"", b"3"]


def test_the_server_asks_and_gets_the_answer(connect):
    client = connect()
    client.on("question", lambda n: ("yes", n))
    answered = Inbox(client, "answered")
    client.emit("ask-me")
    assert answered.get() == ["yes", 1]


def test_many_events_arrive_in_order(connect):
    client = connect()
    numbers = Inbox(client, "number")
    assert client.call("many", 500, timeout=PATIENCE) == 500
    assert [numbers.get() for _ in range(500)] == [[n] for n in range(500)]


def test_events_of_the_client_are_handled_in_order(connect):
    client = connect()
    noted = Inbox(client, "noted")
    for n in range(300):
        client.emit("note", n)
    assert [noted.get() for _ in range(300)] == [[n] for n in range(300)]
    assert client.call("notes", timeout=PATIENCE) == list(range(300))


def test_rooms_and_broadcasts(connect):
    ada, bob = connect(), connect()
    news = {"ada": Inbox(ada, "news"), "bob": Inbox(bob, "news")}
    assert ada.call("join", "py", timeout=PATIENCE) == ["py"]
    assert bob.call("join", "py", timeout=PATIENCE) == ["py"]
    target = {"from": "socket", "to": ["py"], "event": "news", "args": ["others", b"\x01"]}
    assert ada.call("broadcast", target, timeout=PATIENCE) is True
    assert news["bob"].get() == ["others", b"\x01"]
    target = {"from": "io", "to": ["py"], "event": "news", "args": ["all"]}
    assert ada.call("broadcast", target, timeout=PATIENCE) is True
    assert news["ada"].get() == ["all"]
    assert news["bob"].get() == ["all"]
    assert bob.call("leave", "py", timeout=PATIENCE) == []


def test_a_broadcast_with_ack_gathers_the_answers(connect):
    ada, bob = connect(), connect()
    # A polling client may forget to say that it goes (with the official server, too), and then stays
    # in its room until the next ping.
    room = f"voters of {ada.get_sid()}"
    for client, name in ((ada, "ada"), (bob, "bob")):
        client.on("vote", lambda question, name=name: f"{name}: {question}")
        client.call("join", room, timeout=PATIENCE)
    target = {"from": "io", "to": [room], "event": "vote", "args": ["tea?"], "timeout": 5000}
    votes = ada.call("broadcast-ack", target, timeout=PATIENCE)
    assert sorted(votes["answers"]) == ["ada: tea?", "bob: tea?"]
    assert votes["missing"] == 0


def test_namespaces_share_one_connection(connect):
    client = connect(["/", "/chat", "/org-7"])
    for namespace in ("/", "/chat", "/org-7"):
        seen = client.call("whoami", [], namespace=namespace, timeout=PATIENCE)
        assert seen["nsp"] == namespace
        assert seen["id"] == client.get_sid(namespace)


def test_authorization(connect):
    client = connect(["/admin"], auth={"token": "secret"})
    seen = client.call("whoami", [], namespace="/admin", timeout=PATIENCE)
    assert seen["auth"] == {"token": "secret"}
    with pytest.raises(socketio.exceptions.ConnectionError):
        connect(["/admin"], auth={"token": "wrong"})
    with pytest.raises(socketio.exceptions.ConnectionError):
        connect(["/unknown"])


def test_a_refusal_has_message_and_data(server_url, transports):
    client = socketio.Client(reconnection=False)
    refused = Inbox(client, "connect_error", namespace="/denied")
    client.connect(server_url, transports=transports, namespaces=["/denied"], wait=False)
    assert refused.get() == [{"message": "not authorized", "data": {"code": 401}}]
    client.disconnect()


def test_a_server_disconnect_is_told(connect):
    client, witness = connect(), connect()
    gone = Inbox(client, "disconnect")
    sid = client.get_sid()
    client.emit("disconnect-me-close")
    assert gone.get() == [client.reason.SERVER_DISCONNECT]
    reason = witness.call("disconnect-reason", sid, timeout=PATIENCE)
    assert reason == "server namespace disconnect"


def test_a_client_disconnect_is_told(connect):
    client, witness = connect(), connect()
    sid = client.get_sid()
    client.disconnect()
    reason = witness.call("disconnect-reason", sid, timeout=PATIENCE)
    assert reason in ("client namespace disconnect", "transport close")
