"""The asyncio Python client over each way to connect."""

import asyncio

import socketio

PATIENCE = 10


def run(server_url, transports, scenario, clients=1, **options):
    """Runs `scenario` with connected clients, within a deadline, and disconnects them."""

    async def whole():
        opened = [socketio.AsyncClient(reconnection=False) for _ in range(clients)]
        try:
            for client in opened:
                await client.connect(
                    server_url, transports=transports, wait_timeout=PATIENCE, **options
                )
            await scenario(*opened)
        finally:
            for client in opened:
                await client.disconnect()

    asyncio.run(asyncio.wait_for(whole(), 30))


def inbox(client, event, namespace="/"):
    arrived = asyncio.Queue()

    async def take(*args):
        await arrived.put(list(args))

    client.on(event, take, namespace=namespace)
    return arrived


def test_events_acks_and_binary(server_url, transports):
    async def scenario(client):
        echoed = inbox(client, "echo")
        values = [1, "ü", {"list": [None, b"\x00\x01"]}, b""]
        await client.emit("echo", tuple(values))
        assert await echoed.get() == values
        assert list(await client.call("echo-ack", tuple(values), timeout=PATIENCE)) == values

    run(server_url, transports, scenario)


def test_many_acks_under_way_at_once(server_url, transports):
    async def scenario(client):
        calls = [client.call("echo-ack", n, timeout=PATIENCE) for n in range(100)]
        assert await asyncio.gather(*calls) == list(range(100))

    run(server_url, transports, scenario)


def test_the_server_asks_and_gets_the_answer(server_url, transports):
    async def scenario(client):
        async def answer(n):
            return "yes", n

        client.on("question", answer)
        answered = inbox(client, "answered")
        await client.emit("ask-me")
        assert await answered.get() == ["yes", 1]

    run(server_url, transports, scenario)


def test_a_large_burst_arrives_in_order(server_url, transports):
    async def scenario(client):
        numbers = inbox(client, "number")
        assert await client.call("many", 1000, timeout=PATIENCE) == 1000
        assert [await numbers.get() for _ in range(1000)] == [[n] for n in range(1000)]

    run(server_url, transports, scenario)


def test_rooms_reach_other_clients(server_url, transports):
    async def scenario(ada, bob, cid):
        news = [inbox(client, "news") for client in (ada, bob, cid)]
        room = f"async {'+'.join(transports)}"
        for client in (ada, bob):
            await client.call("join", room, timeout=PATIENCE)
        target = {"from": "io", "to": [room], "event": "news", "args": [1]}
        await cid.call("broadcast", target, timeout=PATIENCE)
        assert await news[0].get() == [1]
        assert await news[1].get() == [1]
        everybody = {"from": "io", "event": "news", "args": ["fence"]}
        await cid.call("broadcast", everybody, timeout=PATIENCE)
        assert await news[2].get() == ["fence"]

    run(server_url, transports, scenario, clients=3)


def test_a_waiting_handler_holds_up_nobody(server_url, transports):
    async def scenario(client, other):
        key = f"async {'+'.join(transports)}"
        slow = asyncio.ensure_future(client.call("slow", key, timeout=PATIENCE))
        assert await client.call("echo-ack", "meanwhile", timeout=PATIENCE) == "meanwhile"
        assert not slow.done()
        assert await other.call("release", key, timeout=PATIENCE) is True
        assert await slow == key

    run(server_url, transports, scenario, clients=2)


def test_traffic_during_the_upgrade(server_url):
    async def scenario(client):
        noted = inbox(client, "noted")
        for n in range(400):
            await client.emit("note", n)
        assert [await noted.get() for _ in range(400)] == [[n] for n in range(400)]
        assert client.transport() == "websocket"

    run(server_url, ["polling", "websocket"], scenario)
