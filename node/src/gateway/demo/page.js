// The page of the demo, for the official client or the minimal one of client.js. It uses the events of client rooms, and
// those that begin with "demo:" for names, typing, history and nodes.

"use strict";

const COLOURS = 8;
const HISTORY = 500;
/** How often a typing notice is sent, and how long one is shown, in milliseconds. */
const TYPING_SENT = 1500;
const TYPING_SHOWN = 4000;

const $ = (id) => document.getElementById(id);
const pick = (list) => list[Math.floor(Math.random() * list.length)];

// Of this tab alone, so that two tabs are two people.
const stored = JSON.parse(sessionStorage.getItem("demo") ?? "{}");
const me = {
  name: stored.name ?? `${pick(["Quiet", "Swift", "Amber", "Brave", "Merry", "Clever"])} ${pick(["Otter", "Wren", "Fox", "Heron", "Lynx", "Hare"])}`,
  colour: stored.colour ?? Math.floor(Math.random() * COLOURS),
};
/** Name of a room → what is known of it. */
const rooms = new Map();
/** Id of a socket → its name and colour. */
const profiles = new Map();
let current = stored.current ?? null;
for (const name of stored.rooms ?? ["lobby"]) addRoom(name);
if (!rooms.has(current)) current = rooms.keys().next().value ?? null;

function addRoom(name) {
  const room = rooms.get(name) ?? { name, members: new Set(), log: [], unread: 0, typing: new Map() };
  rooms.set(name, room);
  return room;
}

function store() {
  sessionStorage.setItem("demo", JSON.stringify({ ...me, current, rooms: [...rooms.keys()] }));
}

// --- Connection -------------------------------------------------------------------------------------

const socket = window.io();
$("client").textContent = window.io.isBuiltIn ? "minimal, part of this page" : "official";

socket.on("connect", async () => {
  show("connected", "Connected");
  showTransport();
  socket.io.engine.on("upgrade", showTransport);
  const hello = await request("demo:hello", me);
  if (!hello) return;
  showNode(hello.node);
  showNodes(hello.nodes);
  // A new connection is in no room: those from before are entered again.
  for (const name of [...rooms.keys()]) await join(name);
});

socket.on("disconnect", () => {
  show(socket.active ? "connecting" : "disconnected", socket.active ? "Connection lost, trying again…" : "Disconnected");
  for (const room of rooms.values()) {
    room.members.clear();
    room.typing.clear();
  }
  showTransport();
  render();
});

socket.on("connect_error", (error) => {
  show(socket.active ? "connecting" : "disconnected", socket.active ? "No server, trying again…" : `Refused: ${error.message}`);
});

/** The acknowledgement, or nothing after a failure, which is shown. */
async function request(event, ...args) {
  let error;
  try {
    const answer = (await socket.emitWithAck(event, ...args)) ?? {};
    if (!answer.error) return answer;
    error = answer.error;
  } catch (lost) {
    error = lost.message;
  }
  write(rooms.get(current), { kind: "bad", text: `${event}: ${error}` });
  return undefined;
}

function show(state, text) {
  $("status").dataset.state = state;
  $("status").textContent = text;
  $("status").title = socket.id ?? "";
  $("connect").textContent = socket.active ? "Disconnect" : "Connect";
  render();
}

function showTransport() {
  $("transport").textContent = socket.connected ? socket.io.engine.transport.name : "none";
}

function showNode({ name, address }) {
  $("node").textContent = address ?? name;
  $("node").title = name;
}

/** Links to the nodes that can be reached from here: a loopback address is one of this machine. */
function showNodes(nodes) {
  const isLocal = (host) => /^(localhost|127\.|\[::1\])/.test(host);
  const near = nodes.filter(({ address }) => address && (!isLocal(address) || isLocal(location.host)));
  $("nodes").replaceChildren(...near.map(({ name, address }) => {
    const link = element("a", "", address);
    Object.assign(link, { href: `${location.protocol}//${address}/`, target: "_blank", rel: "noopener", title: name });
    return link;
  }));
  $("others").hidden = near.length === 0;
}

// --- What others do -----------------------------------------------------------------------------------

socket.on("demo:nodes", showNodes);

socket.on("demo:profile", ({ id, ...profile }) => {
  const before = nameOf(id);
  profiles.set(id, profile);
  if (before === profile.name) return render();
  for (const room of rooms.values()) {
    if (room.members.has(id)) write(room, { kind: "note", text: `${before} is now ${profile.name}` });
  }
});

socket.on("joined", async ({ room: name, id }) => {
  const room = rooms.get(name);
  if (!room || id === socket.id || room.members.has(id)) return;
  room.members.add(id);
  await learn(room);
  write(room, { kind: "note", text: `${nameOf(id)} joined` });
});

socket.on("left", ({ room: name, id }) => {
  const room = rooms.get(name);
  if (!room?.members.delete(id)) return;
  room.typing.delete(id);
  write(room, { kind: "note", text: `${nameOf(id)} left` });
});

socket.on("message", ({ room: name, from, data }) => {
  const room = rooms.get(name);
  if (!room) return;
  room.typing.delete(from);
  const isMine = from === socket.id;
  write(room, { kind: isMine ? "said mine" : "said", from, ...profileOf(from), text: textOf(data), at: new Date() });
  if (!isMine && (room.name !== current || document.hidden)) {
    room.unread++;
    render();
  }
});

socket.on("demo:typing", ({ room: name, id }) => {
  const room = rooms.get(name);
  if (!room?.members.has(id)) return;
  room.typing.set(id, Date.now() + TYPING_SHOWN);
  renderTyping();
  setTimeout(renderTyping, TYPING_SHOWN + 50);
});

const textOf = (data) => (typeof data === "string" ? data : JSON.stringify(data));
const profileOf = (id) => (id === socket.id ? me : profiles.get(id)) ?? { name: id };
const nameOf = (id) => profileOf(id).name;

// --- Rooms ------------------------------------------------------------------------------------------

async function join(name) {
  const answer = await request("join", name);
  if (!answer) return false;
  const room = addRoom(name);
  room.members = new Set(answer.members);
  if (current === null) current = name;
  await learn(room, true);
  render();
  return true;
}

/** Asks who is in a room, and what was said before. */
async function learn(room, withHistory = false) {
  const answer = await request("demo:room", room.name, withHistory);
  if (!answer) return;
  for (const { id, name, colour } of answer.people) if (name) profiles.set(id, { name, colour });
  if (withHistory) {
    const known = new Set(room.log.map(({ from, text }) => `${from} ${text}`));
    const said = answer.history.map(({ from, name = from, colour, data, at }) => {
      return { kind: "said", from, name, colour, text: textOf(data), at: new Date(at * 1000) };
    });
    const missed = said.filter(({ from, text }) => !known.has(`${from} ${text}`));
    // Messages that arrived since the join are in the log already, and are newer.
    room.log = [...room.log, ...missed].sort((one, other) => (one.at ?? 0) - (other.at ?? 0)).slice(-HISTORY);
  }
  render(withHistory);
}

async function leave(name) {
  if (socket.connected && !await request("leave", name)) return;
  rooms.delete(name);
  if (current === name) current = rooms.keys().next().value ?? null;
  render(true);
}

function select(name) {
  current = name;
  rooms.get(name).unread = 0;
  render(true);
}

function selectNext(step) {
  const names = [...rooms.keys()];
  if (names.length === 0) return;
  select(names[(names.indexOf(current) + step + names.length) % names.length]);
}

// --- Rendering --------------------------------------------------------------------------------------

function write(room, line) {
  if (!room) return;
  room.log.push({ at: new Date(), ...line });
  if (room.log.length > HISTORY) room.log.shift();
  if (room.name === current) appendLine(room.log.at(-1), room.log.at(-2));
  render();
}

function render(isOtherLog = false) {
  const room = rooms.get(current);
  $("join").disabled = !socket.connected;
  $("leave").disabled = !room;
  $("text").disabled = !room;
  $("text").placeholder = room ? `Write to ${current}` : "Join a room to write";
  $("send").disabled = !(room && socket.connected);
  $("room-title").textContent = room ? current : "No room yet";
  renderMe();
  renderRooms();
  renderPeople(room);
  renderTyping();
  if (isOtherLog) renderLog(room);
  const unread = [...rooms.values()].reduce((sum, each) => sum + each.unread, 0);
  document.title = unread ? `(${unread}) Roomcast demo` : "Roomcast demo";
  store();
}

function renderMe() {
  $("me").replaceChildren(face(me), element("span", "name", me.name));
}

function renderRooms() {
  const held = $("rooms").contains(document.activeElement) ? document.activeElement.name : null;
  $("rooms").replaceChildren(...[...rooms.values()].map(({ name, unread }) => {
    const button = element("button");
    Object.assign(button, { type: "button", name, onclick: () => open(name) });
    button.setAttribute("aria-pressed", name === current);
    button.append(element("span", "name", name));
    if (unread) {
      const badge = element("span", "unread", unread);
      badge.setAttribute("aria-label", `${unread} unread`);
      button.append(badge);
    }
    const item = element("li");
    item.append(button);
    return item;
  }));
  if (held !== null) [...$("rooms").querySelectorAll("button")].find(({ name }) => name === held)?.focus();
}

function renderPeople(room) {
  const members = [...room?.members ?? []].sort((one, other) => nameOf(one).localeCompare(nameOf(other)));
  const people = members.map((id) => {
    const item = element("li");
    item.title = id;
    item.append(face(profileOf(id)), element("span", "", id === socket.id ? `${nameOf(id)} (you)` : nameOf(id)));
    return item;
  });
  $("who").replaceChildren(...people.length ? people : [element("li", "hint", "Nobody")]);
  $("who-title").textContent = `Who is here: ${people.length}`;
  $("show-people").textContent = `People: ${people.length}`;
}

function renderTyping() {
  const now = Date.now();
  const typing = [...rooms.get(current)?.typing ?? []].filter(([, until]) => until > now);
  const names = typing.map(([id]) => nameOf(id));
  $("typing").textContent = names.length === 0 ? ""
    : names.length < 3 ? `${names.join(" and ")} ${names.length === 1 ? "is" : "are"} typing…`
    : "Several are typing…";
}

function renderLog(room) {
  $("log").replaceChildren();
  if (!room) $("log").append(element("li", "note", "Join a room on the left."));
  else if (room.log.length === 0) $("log").append(element("li", "note", "Open this page in a second window, and talk."));
  room?.log.forEach((line, index) => appendLine(line, room.log[index - 1], true));
}

function appendLine(line, previous, toEnd = false) {
  const log = $("log");
  const shouldFollow = toEnd || isAtEnd;
  // The invitation goes with the first line.
  if (!previous) log.replaceChildren();
  const item = element("li", line.kind);
  if (line.from === undefined) {
    item.textContent = line.text;
  } else {
    const isSame = previous?.from === line.from && line.at - previous.at < 300_000;
    item.classList.toggle("same", isSame);
    if (line.colour !== undefined) item.dataset.colour = line.colour;
    const by = element("span", "by");
    const time = line.at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    by.append(element("b", "", line.name), ` · ${time}`);
    item.append(by, element("span", "text", line.text));
  }
  log.append(item);
  if (log.children.length > HISTORY) log.firstChild.remove();
  if (shouldFollow) toEndOfLog();
}

/** Whether the latest message is in sight, so that the next one should be, too. */
let isAtEnd = true;

function toEndOfLog() {
  $("log").scrollTop = $("log").scrollHeight;
  isAtEnd = true;
}

$("log").onscroll = ({ target }) => {
  isAtEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 40;
};

// The keyboard of a phone makes the log smaller.
new ResizeObserver(() => isAtEnd && toEndOfLog()).observe($("log"));

function face({ name, colour }) {
  const made = element("span", "face", [...name][0]?.toUpperCase());
  made.ariaHidden = "true";
  if (colour !== undefined) made.dataset.colour = colour;
  return made;
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// --- What the user does -------------------------------------------------------------------------------

/** Selects a room and goes on to writing, except on a phone, where the keyboard would cover the messages. */
function open(name) {
  select(name);
  if (matchMedia("(pointer: fine)").matches) $("text").focus();
}

$("connect").onclick = () => {
  if (socket.active) {
    socket.disconnect();
  } else {
    socket.connect();
    show("connecting", "Connecting…");
  }
};

$("leave").onclick = () => current !== null && leave(current);

$("show-people").onclick = () => {
  const isOpen = $("people").classList.toggle("open");
  $("show-people").setAttribute("aria-expanded", isOpen);
};

$("enter").onsubmit = async (event) => {
  event.preventDefault();
  const name = $("room").value.trim();
  if (!name || !socket.connected) return;
  $("room").value = "";
  if (rooms.has(name) || await join(name)) open(name);
};

$("say").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value;
  if (!text.trim() || !socket.connected || current === null) return;
  $("text").value = "";
  lastTyping = 0;
  request("message", current, text);
};

let lastTyping = 0;
$("text").oninput = () => {
  if (!socket.connected || !$("text").value || Date.now() - lastTyping < TYPING_SENT) return;
  lastTyping = Date.now();
  socket.emit("demo:typing", current);
};

for (let colour = 0; colour < COLOURS; colour++) {
  const choice = element("input");
  Object.assign(choice, { type: "radio", name: "colour", value: colour, ariaLabel: `Colour ${colour + 1}` });
  choice.dataset.colour = colour;
  $("colours").append(choice);
}

$("me").onclick = () => {
  $("name").value = me.name;
  document.querySelector(`#colours [value="${me.colour}"]`).checked = true;
  $("profile").showModal();
  $("name").select();
};

$("cancel").onclick = () => $("profile").close();

$("identity").onsubmit = (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  if (!name) return;
  Object.assign(me, { name, colour: Number(document.querySelector("#colours :checked").value) });
  $("profile").close();
  if (socket.connected) request("demo:hello", me);
  render();
};

document.onkeydown = (event) => {
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.altKey && step) {
    event.preventDefault();
    selectNext(step);
  } else if (event.key === "/" && !["INPUT", "DIALOG"].includes(document.activeElement.tagName) && !$("profile").open) {
    event.preventDefault();
    $("text").focus();
  }
};

document.onvisibilitychange = () => {
  const room = rooms.get(current);
  if (document.hidden || !room) return;
  room.unread = 0;
  render();
};

render(true);
