// The totals, the table of nodes, the plots, and the table of troubles.

import { parts } from "./cluster.js";
import { $, bytes, cells, clock, count, duration, element, headings, number } from "./elements.js";

const TOTALS = [
  ["connections", "connections", count], ["sockets", "sockets", count], ["rooms", "rooms on nodes", count],
  ["in", "events in / s", count], ["out", "events out / s", count],
];

const PLOTS = [
  ["Connections", count, { connections: "in" }, ["open"]],
  ["Events per second", count, { in: "in", out: "out" }, ["in", "out"]],
  ["Bytes per second", bytes, { bytesIn: "in", bytesOut: "out" }, ["in", "out"]],
  ["Connections per second", count, { opened: "in", closed: "out" }, ["opened", "closed"]],
  ["Rooms", count, { rooms: "in" }, ["on nodes"]],
  ["CPU", (value) => (value === undefined ? "–" : `${Math.round(value * 100)} %`), { cpu: "in" }, ["used"]],
];

/** What is shown as trouble: a part of the status, and words before its label. */
const TROUBLES = [
  ["limits", "Limit reached: "], ["http_refused", "HTTP refused: "], ["connect_refused", "Connect refused: "],
  ["handler_errors", "Handler failed: "], ["hooks", "Hook failed: "], ["hook_disconnects_lost", "Disconnects of hook lost: "],
  ["hook_disconnects_unstored", "Disconnects not kept in Redis: "],
];
const TROUBLE_FIGURES = [
  ["gaps", "Gap: messages of other nodes may be missing"], ["panics", "Handler panicked"],
  ["hook_store_failures", "Keeping disconnects in Redis failed"], ["reconnects", "Connection to Redis lost"], ["volatile_dropped", "Volatile packets dropped"],
];

export function showNodes(cluster, here) {
  const rows = cluster.all();
  $("totals").replaceChildren(
    tile(rows.filter((node) => !cluster.isSilent(node)).length, "nodes"),
    ...TOTALS.map(([key, text, format]) => tile(format(cluster.total(key)), text)),
  );
  const table = $("nodes");
  table.classList.add("cards");
  const names = headings(table);
  keyed(table.tBodies[0], rows, ({ name }) => name, (row, node) => {
    const { status, last } = node;
    row.classList.toggle("silent", cluster.isSilent(node));
    cells(row, names, [
      node.name === here ? `${node.name} (this)` : node.name, health(cluster, node), version(status), status.dialect ?? "–",
      number(count(last.connections)), number(count(last.sockets)), number(count(last.rooms)),
      number(count(last.in)), number(count(last.out)),
      number(last.cpu === undefined ? "–" : `${Math.round(last.cpu * 100)} %`), number(bytes(status.figures.memory)),
      number(duration(status.figures.started && status.time / 1000 - status.figures.started)),
    ]);
  });
  showNote(cluster, rows);
  showChoice(rows);
}

function tile(value, text) {
  return element("li", "", element("b", "", value), element("span", "", text));
}

function health(cluster, node) {
  let [state, text] = ["ready", "ready"];
  if (cluster.isSilent(node)) [state, text] = ["bad", `silent for ${duration((Date.now() - node.at) / 1000)}`];
  else if (node.status.obstacle) [state, text] = ["wait", node.status.obstacle];
  const made = element("span", "health", text);
  made.dataset.state = state;
  return made;
}

function version(status) {
  return status.revision === "unknown" ? status.version : `${status.version} (${status.revision.slice(0, 8)})`;
}

function showNote(cluster, rows) {
  const notes = [];
  const foreign = Math.max(0, ...rows.map(({ status }) => parts(status, "cluster").foreign ?? 0));
  if (foreign) notes.push(`${foreign} Node.js ${foreign === 1 ? "server is" : "servers are"} part of the cluster.`);
  if (rows.some(({ status }) => status.figures.disagreeing)) {
    notes.push("There are nodes with another dialect or parser, with which no message is exchanged.");
  }
  const versions = new Set(rows.map(({ status }) => version(status)));
  if (versions.size > 1) notes.push("The nodes have different versions.");
  const others = cluster.withoutStatus();
  if (others.length) {
    notes.push(`No status from ${others.join(", ")}, because they have just started, have just ended without a goodbye, are of an older version, or share no namespace with this node.`);
  }
  const text = notes.join(" ");
  if ($("nodes-note").textContent !== text) $("nodes-note").textContent = text;
}

/** The nodes that can be plotted. */
function showChoice(rows) {
  const names = rows.map(({ name }) => name);
  const options = [...$("plotted").options].slice(1);
  for (const option of options) if (!names.includes(option.value)) option.remove();
  for (const name of names) {
    if (!options.some(({ value }) => value === name)) $("plotted").append(new Option(name, name));
  }
}

export function showPlots(cluster) {
  const name = $("plotted").value;
  const span = cluster.span();
  PLOTS.forEach(([title, format, lines, words], index) => {
    const figure = $("plots").children[index] ?? $("plots").appendChild(newPlot(title));
    const series = Object.entries(lines).map(([key, kind]) => [kind, cluster.series(key, span, name)]);
    const values = series.flatMap(([, points]) => points.map(([, value]) => value ?? 0));
    const most = Math.max(...values);
    const now = series.map(([, points]) => points.at(-1)[1]);
    const texts = words.map((word, line) => `${format(now[line])} ${word}`);
    const [caption, svg, scale] = figure.children;
    caption.replaceChildren(element("strong", "", title), ...texts.map((text, line) => element("span", line ? "out" : "in", text)));
    svg.setAttribute("aria-label", `${title}: now ${texts.join(", ")}; at most ${format(most)}`);
    svg.replaceChildren(...series.map(([kind, points]) => path(kind, points, most)));
    scale.replaceChildren(element("span", "", `${duration(span / 1000)} ago`), element("span", "", `at most ${format(most)}`), element("span", "", "now"));
  });
}

const SVG = "http://www.w3.org/2000/svg";

function newPlot() {
  const svg = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ viewBox: "0 0 300 100", preserveAspectRatio: "none", role: "img" })) {
    svg.setAttribute(name, value);
  }
  return element("figure", "", element("figcaption"), svg, element("div", "scale"));
}

/** A line with holes where nothing is known. */
function path(kind, points, most) {
  const line = document.createElementNS(SVG, "path");
  let isDown = false;
  const steps = points.map(([x, value]) => {
    if (value === undefined) {
      isDown = false;
      return "";
    }
    const step = `${isDown ? "L" : "M"}${(x * 300).toFixed(1)} ${(96 - (most ? value / most : 0) * 90).toFixed(1)}`;
    isDown = true;
    return step;
  });
  line.setAttribute("d", steps.join(""));
  line.setAttribute("class", kind);
  return line;
}

const lastChanges = new Map();

export function showTroubles(cluster) {
  const rows = [];
  for (const { name, status, first } of cluster.all()) {
    for (const [part, words] of TROUBLES) {
      for (const [label, value] of Object.entries(parts(status, part))) {
        if (part === "hooks" && label.endsWith(" ok")) continue;
        rows.push([`${words}${label}`, name, value, value - (parts(first, part)[label] ?? 0)]);
      }
    }
    for (const [figure, words] of TROUBLE_FIGURES) {
      const value = status.figures[figure];
      if (value) rows.push([words, name, value, value - (first.figures[figure] ?? 0)]);
    }
    for (const hook of Object.keys(parts(status, "hook_circuits"))) rows.push([`Circuit open: ${hook}`, name, 1, 0]);
  }
  const table = $("troubles");
  table.classList.add("cards");
  const names = headings(table);
  keyed(table.tBodies[0], rows, ([what, node]) => `${what}\n${node}`, (row, [what, node, value, more]) => {
    const known = lastChanges.get(row.dataset.key);
    if (known?.value !== value) lastChanges.set(row.dataset.key, { value, at: known || more > 0 ? clock() : "before" });
    cells(row, names, [what, node, number(count(value)), number(more ? `+${count(more)}` : "0"), lastChanges.get(row.dataset.key).at]);
  });
  $("troubles").hidden = !rows.length;
  $("troubles-none").hidden = rows.length > 0;
}

/** Rows are kept by their key, so that focus and selections stay. */
function keyed(body, items, keyOf, fill) {
  const rows = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  items.forEach((item, index) => {
    const key = keyOf(item);
    const row = rows.get(key) ?? element("tr");
    row.dataset.key = key;
    rows.delete(key);
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
    fill(row, item);
  });
  for (const row of rows.values()) row.remove();
}

