// Searching for sockets, rooms and users, and what can be done with what was found.

import { $, button, cells, count, element, headings, number } from "./elements.js";

const LIMIT = 200;

/** Rows that are shown at once. A button shows the others. */
const ROWS = 20;

/** The words for what an operation acts on, by the field of the call. */
const WHOM = { sockets: "the socket", rooms: "everybody in the room", users: "the user" };

/** `call` sends a request of the API, and `follow` follows a room, a user or a socket live. */
export function prepareSearch(call, follow) {
  let verbs = [];
  // What the dialogs act on.
  let chosen = null;

  $("search").onsubmit = (event) => {
    event.preventDefault();
    search();
  };

  async function search() {
    const [kind, name, namespace] = ["kind", "name", "namespace"].map((id) => $(id).value);
    const isPrefix = kind === "rooms" || kind === "users";
    if (!isPrefix && !name) return show("Enter a name or an id.");
    const query = new URLSearchParams({ namespace, limit: LIMIT, [isPrefix ? "prefix" : kind]: name });
    try {
      const found = await call(`${isPrefix ? kind : "sockets"}?${query}`);
      const silent = found.silent_nodes.length ? ` No response from ${found.silent_nodes.join(", ")}.` : "";
      const what = isPrefix ? kind : "sockets";
      const list = found[what];
      const more = list.length < found.total ? `, the first ${list.length} of them` : "";
      const text = `${count(found.total)} ${found.total === 1 ? what.slice(0, -1) : what}${more}.${silent}`;
      show(text, actionsFor(kind, name, namespace, found.total), list.length ? TABLES[what](list, namespace) : null);
    } catch (error) {
      show(error.message);
    }
  }

  function show(text, ...rest) {
    $("found").replaceChildren(element("p", "", text), ...rest.filter(Boolean));
  }

  /** Actions on all that was found, where it is a room or a user. */
  function actionsFor(kind, name, namespace, total) {
    const field = { room: "rooms", user: "users" }[kind];
    if (!field || !total) return null;
    return element("p", "row", element("span", "hint", "All of them:"), ...actions(field, name, namespace));
  }

  function actions(field, name, namespace) {
    const made = [];
    const followed = { rooms: "room", users: "user", sockets: "socket" }[field];
    made.push(button("Follow", () => follow({ namespace, [followed]: name })));
    if (verbs.includes("emit")) made.push(button("Emit…", () => ask("emit", field, name, namespace)));
    if (verbs.includes("disconnect")) made.push(button("Disconnect…", () => ask("disconnect", field, name, namespace)));
    return made;
  }

  const TABLES = {
    sockets: (list, namespace) =>
      table(["Socket", "User", "Rooms", "Data", ""], list, ({ id, user, rooms, data }) => [
        element("span", "id", id),
        user === null ? "–" : link(user, "user", user, namespace),
        element("span", "names", ...rooms.map((room) => link(room, "room", room, namespace))),
        element("span", "id", JSON.stringify(data ?? {}).slice(0, 200)),
        actions("sockets", id, namespace),
      ]),
    rooms: (list, namespace) =>
      table(["Room", "Sockets", "Users", ""], list, ({ room, sockets, users }) => [
        link(room, "room", room, namespace), number(count(sockets)), number(count(users)), actions("rooms", room, namespace),
      ]),
    users: (list, namespace) =>
      table(["User", "Sockets", ""], list, ({ user, sockets }) => [
        link(user, "user", user, namespace), number(count(sockets)), actions("users", user, namespace),
      ]),
  };

  function table(names, list, row) {
    const made = element("table", "cards");
    const head = made.createTHead().insertRow();
    for (const name of names) {
      const cell = element("th", "", name);
      cell.scope = "col";
      head.append(cell);
    }
    const body = made.createTBody();
    const add = (entries) => {
      for (const entry of entries) {
        const values = row(entry);
        const acts = values.pop();
        const line = body.insertRow();
        cells(line, headings(made), values);
        for (const cell of line.cells) cell.classList.toggle("none", ["–", "{}", ""].includes(cell.textContent));
        const last = line.insertCell();
        last.className = "actions";
        last.append(element("div", "", ...acts));
      }
    };
    add(list.slice(0, ROWS));
    const scroll = element("div", "scroll", made);
    scroll.tabIndex = 0;
    if (list.length <= ROWS) return scroll;
    const more = button(`Show ${list.length - ROWS} more`, () => {
      add(list.slice(ROWS));
      more.remove();
      body.rows[ROWS].querySelector("button").focus();
    });
    return element("div", "", scroll, more);
  }

  /** A name that can be searched for. */
  function link(text, kind, name, namespace) {
    return button(text, () => {
      Object.assign($("kind"), { value: kind });
      Object.assign($("name"), { value: name });
      Object.assign($("namespace"), { value: namespace });
      search();
    }, "small");
  }

  function ask(dialog, field, name, namespace) {
    chosen = { namespace, [field]: [name] };
    const text = `${WHOM[field]} ${name} in ${namespace}`;
    if (dialog === "emit") $("emit-to").textContent = `To ${text}`;
    else $("disconnect-whom").textContent = `Disconnect ${text}?`;
    $(`${dialog}-result`).textContent = "";
    $(dialog).showModal();
  }

  $("emit-form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      const args = JSON.parse($("emit-args").value || "[]");
      const flags = { confirmed: true };
      const { sockets, nodes, silent_nodes: silent } = await call("emit", { ...chosen, event: $("emit-event").value, args, flags });
      const missing = silent.length ? `, no response from ${silent.join(", ")}` : "";
      $("emit-result").textContent = `Reached ${sockets} ${sockets === 1 ? "socket" : "sockets"} on ${nodes} ${nodes === 1 ? "node" : "nodes"}${missing}.`;
    } catch (error) {
      $("emit-result").textContent = error.message;
    }
  };

  $("disconnect-form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      await call("disconnect", { ...chosen, close: $("disconnect-close").checked });
      $("disconnect").close();
      await search();
      $("name").focus();
    } catch (error) {
      $("disconnect-result").textContent = error.message;
    }
  };

  return {
    /** What the key may do, and where. */
    allow(allowed, namespaces) {
      verbs = allowed;
      const before = $("namespace").value;
      $("namespace").replaceChildren(...namespaces.map((name) => new Option(name, name)));
      if (namespaces.includes(before)) $("namespace").value = before;
    },
  };
}
