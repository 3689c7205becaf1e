// Shows the events of the followed room, user or socket, line by line.

import { $, clock, element } from "./elements.js";

const MAX_LINES = 500;

/** `reopen` opens the stream again, with the query of what is followed now. */
export function prepareFollow(reopen) {
  let followed = null;

  function start(what) {
    followed = what;
    $("live").replaceChildren();
    $("live").hidden = false;
    const kind = ["room", "user", "socket"].find((name) => name in what);
    $("live-note").textContent = `Following the ${kind} ${what[kind]} in ${what.namespace}.`;
    for (const id of ["live-clear", "live-stop"]) $(id).disabled = false;
    $("live-title").focus();
    reopen();
  }

  function stop() {
    if (!followed) return;
    $("live-note").textContent = $("live-note").textContent.replace("Following", "No longer following");
    followed = null;
    $("live-stop").disabled = true;
    reopen();
  }

  function append(...content) {
    const log = $("live");
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
    log.append(element("li", "", ...content));
    if (log.children.length > MAX_LINES) log.firstChild.remove();
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  $("live-stop").onclick = stop;
  $("live-clear").onclick = () => $("live").replaceChildren();

  return {
    start,
    stop,
    isActive: () => followed !== null,
    query: () => (followed ? `?${new URLSearchParams(followed)}` : ""),
    add(line) {
      const text = element("span", "text", element("span", "what", words(line)));
      if (line.event !== undefined) text.append(" ", element("span", "id", line.event));
      append(element("time", "", clock(new Date(line.time))), element("span", "node", line.node), text,
        ...(line.args === undefined ? [] : [element("span", "args id", line.args)]));
    },
    note: (text) => append(element("time", "", clock()), element("span", "node"), element("span", "text", text)),
  };
}

function words({ what, socket, user, rooms = [], except = [], sockets, reason }) {
  const who = user === undefined ? socket : `${socket} (${user})`;
  switch (what) {
    case "connected": return `${who} connected`;
    case "disconnected": return `${who} disconnected: ${reason}`;
    case "joined": return `${who} joined ${rooms.join(", ")}`;
    case "left": return `${who} left ${rooms.join(", ")}`;
    case "received": return `${who} sent`;
    case "acknowledged": return `the server acknowledged to ${who}`;
    case "emitted": return `the server sent to ${who}`;
    default: {
      const whom = rooms.length ? rooms.join(", ") : "everybody";
      const without = except.length ? ` except ${except.join(", ")}` : "";
      return `to ${whom}${without}, ${sockets} ${sockets === 1 ? "socket" : "sockets"} of the node:`;
    }
  }
}
