"""The calls of Syncano's SDK for Python against the door: run by syncano.test.js with a Python up to
3.7, because the SDK does not import on later ones. Prints `all done`."""

import os
import threading

import syncano
from syncano.models import Channel, Message, Object

HEARD = threading.Event()
MESSAGES = []

# People have a password, for which the SDK gets their key.
account = syncano.connect(email="anna@example.org", password=os.environ["PASSWORD"])
assert account.connection().authenticate() == os.environ["ACCOUNT_KEY"]
user = syncano.connect(username="anna", password=os.environ["PASSWORD"], api_key=os.environ["API_KEY"], instance_name="my-instance")
assert user.connection().authenticate() == os.environ["ANNA_KEY"]

connection = syncano.connect(api_key=os.environ["ACCOUNT_KEY"], instance_name="my-instance")

made = Channel.please.create(name="python-made", type="separate_rooms", custom_publish=True)
assert made.name == "python-made", made.name
names = [channel.name for channel in Channel.please.list()]
assert "python-made" in names and "default" in names, names

channel = Channel.please.get(name="python-made")


def callback(message):
    MESSAGES.append(message)
    if len(MESSAGES) == 3:
        HEARD.set()
        return False
    return True


def on_error(error):
    raise AssertionError(error)


first = channel.publish({"n": 0}, room="python")
thread = channel.poll(room="python", last_id=first.id - 1, callback=callback, error=on_error, timeout=30)
for n in (1, 2):
    channel.publish({"n": n}, room="python")
assert HEARD.wait(30), MESSAGES
heard = [message.payload["n"] for message in MESSAGES]
assert heard == [0, 1, 2], heard

history = [message.payload["n"] for message in Message.please.all(channel_name="python-made")]
assert history == [2, 1, 0], history
assert Message.please.get(channel_name="python-made", pk=first.id).payload["n"] == 0

book = Object.please.create(class_name="book", title="Emma", channel="python-made", channel_room="python")
assert book.id, book
book.title = "Persuasion"
book.save()
book.delete()
actions = [message.action for message in Message.please.all(channel_name="python-made")]
assert actions[:3] == ["delete", "update", "create"], actions

channel.delete()
try:
    Channel.please.get(name="python-made")
except Channel.DoesNotExist:
    pass
else:
    raise AssertionError("the channel is still there")
print("all done")
