// The admin page: signs in, reads the stream of this node, and shows what it brings.

import { Cluster } from "./cluster.js";
import { $ } from "./elements.js";
import { prepareFollow } from "./follow.js";
import { showNodes, showPlots, showTroubles } from "./nodes.js";
import { prepareSearch } from "./search.js";

/** The node sends at least every five seconds, so a longer silence is its end. */
const SILENCE = 15_000;

/** A hidden page closes its stream after this time, and later while it follows something. */
const HIDDEN = 60_000;
const HIDDEN_FOLLOWING = 600_000;

const cluster = new Cluster();
// In memory only: a key in storage or a cookie would outlive the tab.
let key = null;
let here = "";
let stream = null;
let failures = 0;
let retry;
let hiding;
let isPaused = false;

/** Sends a request with the key. Resolves with JSON, or fails with the server's words. */
async function call(path, body) {
  const response = await fetch(`api/${path}`, {
    method: body ? "POST" : "GET",
    headers: { authorization: `Bearer ${key}`, ...(body && { "content-type": "application/json" }) },
    body: body && JSON.stringify(body),
  });
  const result = await response.json();
  if (!response.ok) throw new Error([result.field, result.detail].filter(Boolean).join(": "));
  return result;
}

async function open() {
  clearTimeout(retry);
  isPaused = false;
  stream?.abort();
  const own = (stream = new AbortController());
  let watch;
  const expect = () => {
    clearTimeout(watch);
    watch = setTimeout(() => own.abort(), SILENCE);
  };
  try {
    expect();
    const response = await fetch(`stream${follow.query()}`, { headers: { authorization: `Bearer ${key}` }, signal: own.signal });
    if (!response.ok) {
      const { status, detail } = await response.json();
      if ([401, 403, 429].includes(status)) return signIn(detail);
      throw new Error(detail);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      expect();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      lines.forEach((line) => receive(JSON.parse(line)));
      show();
    }
  } catch (error) {
    if (own !== stream) return;
    console.info(error.message);
  } finally {
    clearTimeout(watch);
  }
  if (own !== stream) return;
  // A node ends each stream after ten minutes, so the first attempt is made at once.
  const delay = failures++ ? Math.min(500 * 2 ** failures, 10_000) : 100;
  setStatus("connecting", failures > 1 ? `No connection, next try in ${Math.ceil(delay / 1000)} s` : "Connecting…");
  retry = setTimeout(open, delay);
}

function receive(line) {
  switch (line.type) {
    case "hello":
      failures = 0;
      here = line.node;
      setStatus("connected", `Node ${line.node}, key ${line.key}`);
      search.allow(line.verbs, line.namespaces);
      $("sign-in").hidden = true;
      for (const id of ["content", "nav", "sign-out"]) $(id).hidden = false;
      break;
    case "nodes":
      cluster.list(line.nodes);
      break;
    case "status":
      cluster.add(line.node, line.age_ms, line.status);
      break;
    case "line":
      follow.add(line.line);
      break;
    case "dropped":
      follow.note(`${line.lines} more were left out, because there were too many.`);
      break;
  }
}

function show() {
  showNodes(cluster, here);
  showPlots(cluster);
  showTroubles(cluster);
}

function setStatus(state, text) {
  $("status").dataset.state = state;
  if ($("status").textContent !== text) $("status").textContent = text;
}

/** Ends the stream, so that the nodes need not publish for a page that nobody sees. */
function pause() {
  if (!key) return;
  clearTimeout(retry);
  stream?.abort();
  stream = null;
  isPaused = true;
  setStatus("connecting", "Paused, because the page is hidden");
}

function heedVisibility() {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(pause, follow.isActive() ? HIDDEN_FOLLOWING : HIDDEN);
  else if (isPaused) open();
}

/** Asks for a key. */
function signIn(reason = "") {
  stream?.abort();
  stream = key = null;
  isPaused = false;
  follow.stop();
  clearTimeout(retry);
  for (const id of ["content", "nav", "sign-out"]) $(id).hidden = true;
  $("sign-in").hidden = false;
  $("sign-in-error").textContent = reason;
  setStatus("disconnected", "Not signed in");
  $("key").focus();
}

$("sign-in-form").onsubmit = (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  $("sign-in-error").textContent = "";
  open();
};
$("sign-out").onclick = () => signIn();
$("plotted").onchange = () => showPlots(cluster);
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector("[data-close]").onclick = () => dialog.close();
}
document.onkeydown = (event) => {
  const isTyping = event.target.matches("input, textarea, select");
  if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || $("content").hidden) return;
  event.preventDefault();
  $("name").focus();
};

// One stream brings everything, because browsers open few connections to a host.
const follow = prepareFollow(() => key && open());
const search = prepareSearch(call, follow.start);
document.onvisibilitychange = heedVisibility;

const config = await (await fetch("config")).json();
if (config.key) {
  key = config.key;
  open();
} else {
  signIn();
}
heedVisibility();
// Silent nodes and plots go on while nothing arrives.
setInterval(() => $("content").hidden || show(), 2000);
