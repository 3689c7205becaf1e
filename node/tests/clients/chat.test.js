// A chat page that was written for Socket.IO in Node.js, byte for byte the same against the Node.js server that it was
// written for, and against the program with tokens, hooks, and an application in Python. Both must behave alike in a
// real browser. ROOMCAST is the program, TEST_CHROMIUM the browser's.

"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const { createInterface } = require("node:readline");
const { after, afterEach, before, describe, test } = require("node:test");

const { startBrowser, PATIENCE } = require("./support/browser");
const { startFront } = require("./support/front");
const { startGateway } = require("./support/gateway");
const { sparePort } = require("./support/ports");
const { hostileArguments, post } = require("./support/signatures");
const { deadline, until } = require("./support/wait");

const CHAT = join(__dirname, "../../../deploy/examples/chat");
const PAGE = readFileSync(join(CHAT, "index.html"), "utf8");
const BUNDLES = join(require.resolve("socket.io-client"), "../../../dist");
const SECRETS = { JWT_SECRET: "a secret of the tokens 0123456789", ROOMCAST_SECRET: "a secret of the hooks 0123456789" };

/** The server in Node.js serves everything. */
class NodeServer {
  async start() {
    await this.restart();
    this.front = await startFront(this.ports);
  }

  async restart() {
    this.child = program(process.execPath, [join(CHAT, "server.js"), "0"], ["ignore", "pipe", "inherit"]);
    const printed = new Promise((resolve) => {
      createInterface({ input: this.child.stdout }).on("line", (line) => resolve(Number(/:(\d+)$/.exec(line)[1])));
    });
    const port = await deadline(Promise.race([printed, this.child.failed]), PATIENCE, "the server in Node.js");
    this.ports = Object.assign(this.ports ?? {}, { sockets: port, site: port });
  }

  async kill() {
    await this.child.end();
  }

  async stop() {
    await this.front?.stop();
    await this.child?.end();
  }
}

/** A node of Roomcast serves the sockets, and the application in Python the page, the login and the hooks. */
class Gateway {
  async start() {
    const site = await sparePort();
    this.application = program("python3", [join(CHAT, "app.py"), String(site)], "ignore");
    const isUp = () => fetch(`http://127.0.0.1:${site}/`).then(() => true, () => false);
    await Promise.race([until("the application", isUp, PATIENCE), this.application.failed]);
    this.ports = { site };
    await this.restart();
    this.front = await startFront(this.ports);
  }

  async restart() {
    const settings = readFileSync(join(CHAT, "roomcast.toml"), "utf8").replace("127.0.0.1:8000", `127.0.0.1:${this.ports.site}`);
    // Beside busy neighbours, five seconds may not be enough for Python.
    const text = `client_files = "${BUNDLES}"\n${settings}timeout = "20s"\n`;
    this.node = await startGateway(text, { environment: SECRETS });
    this.ports.sockets = Number(new URL(this.node.url).port);
  }

  async kill() {
    await this.node.kill();
  }

  async stop() {
    await this.front?.stop();
    await this.node?.kill();
    await this.application?.end();
  }
}

let browser;
before(async () => (browser = await startBrowser()));
after(() => browser?.stop());

for (const [name, Server] of [["a server in Node.js", NodeServer], ["Roomcast and an application in Python", Gateway]]) {
  describe(`the chat page with ${name}`, { timeout: 300_000 }, () => {
    const server = new Server();
    const tabs = [];

    before(() => server.start());
    afterEach(async () => {
      for (const tab of tabs.splice(0)) await tab.page.close();
    });
    after(() => server.stop());

    async function open(token) {
      const page = await browser.context.newPage();
      const tab = new Tab(page);
      tabs.push(tab);
      if (token !== undefined) await page.addInitScript((text) => sessionStorage.setItem("token", text), token);
      await page.goto(server.front.url);
      return tab;
    }

    async function loggedIn(user, password) {
      const tab = await open();
      await tab.logIn(user, password);
      await tab.isOnline();
      return tab;
    }

    test("is the same file", async () => {
      assert.equal(await (await fetch(server.front.url)).text(), PAGE);
    });

    test("lets in with the right password and a valid token only", async () => {
      const tab = await open();
      await tab.logIn("ada", "baker");
      await tab.shows("#notice", "Wrong name or password");
      // An unknown name has no password, which is not the password `null`.
      const body = JSON.stringify({ name: "eve", password: null });
      assert.equal((await fetch(`${server.front.url}/login`, { method: "POST", body })).status, 401);
      const encoded = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
      const forged = `${encoded({ alg: "HS256" })}.${encoded({ sub: "ada", exp: 9_999_999_999 })}.${"A".repeat(43)}`;
      for (const token of [forged, "no token"]) {
        const refused = await open(token);
        await refused.shows("#notice", "Please log in again");
        assert.equal(await refused.page.isVisible("#chat"), false);
      }
      await tab.logIn("ada", "lovelace");
      await tab.isOnline();
      // The page's own token is still good when it is loaded again.
      await tab.page.reload();
      await tab.isOnline();
    });

    test("brings messages to a room, with acknowledgements and typing, and to one user", async () => {
      const ada = await loggedIn("ada", "lovelace");
      const bob = await loggedIn("bob", "baker");
      const elsewhere = await loggedIn("bob", "baker");
      await ada.enter("tea");
      await ada.shows("#log", "In tea: ada");
      await bob.enter("tea");
      await bob.shows("#log", "In tea: ada, bob");
      await ada.shows("#log", "bob joined");

      await bob.page.fill("#text", "hello, Ada");
      await ada.shows("#typing", "bob is typing");
      await bob.page.click("#send");
      await ada.shows("#log", "bob: hello, Ada");
      await ada.misses("#typing", "is typing");
      await bob.shows("#log .delivered", "you: hello, Ada");
      await bob.say(" ");
      await bob.shows("#log .refused", "(say something)");

      await ada.say("psst <b>", "bob");
      await ada.shows("#log .delivered", "you to bob: psst <b>");
      for (const tab of [bob, elsewhere]) await tab.shows("#log", "ada to you: psst <b>");
      await ada.say("anybody?", "eve");
      await ada.shows("#log .refused", "(no such user)");
      await ada.page.fill("#to", "");

      await bob.page.click("#leave");
      await ada.shows("#log", "bob left");
      await ada.say("only for me");
      await ada.shows("#log .delivered", "only for me");
      await bob.say("into the room");
      await bob.shows("#log .refused", "(join the room first)");
      await ada.say("after it", "bob");
      for (const tab of [bob, elsewhere]) {
        await tab.shows("#log", "ada to you: after it");
        await tab.misses("#log", "only for me");
      }
      await elsewhere.misses("#log", "hello, Ada");
    });

    // Node.js's own server has no hooks.
    if (Server !== NodeServer) {
      test("does not fail at the arguments of hostile clients", async () => {
        const socket = { id: "s", user: "ada", rooms: ["room:text"], data: {} };
        for (const event of ["join", "leave", "message", "private message", "typing", "no such event"]) {
          for (const args of hostileArguments()) {
            const url = `http://127.0.0.1:${server.ports.site}/hook`;
            const response = await post(url, SECRETS.ROOMCAST_SECRET, { type: "event", event, args, socket });
            assert.equal(response.status, 200, `${event} ${JSON.stringify(args)}`);
            assert.ok(Array.isArray(await response.json()));
          }
        }
      });
    }

    test("goes on in its room when the server has gone away and come back", async () => {
      const ada = await loggedIn("ada", "lovelace");
      const bob = await loggedIn("bob", "baker");
      for (const tab of [ada, bob]) await tab.enter("tea");
      await ada.shows("#log", "bob joined");
      await server.kill();
      for (const tab of [ada, bob]) await tab.page.waitForSelector("#status[data-state=offline]");
      await server.restart();
      for (const tab of [ada, bob]) await tab.isOnline("in tea");
      await bob.say("still here");
      await bob.shows("#log .delivered", "you: still here");
      await ada.shows("#log", "bob: still here");
      assert.equal(await ada.count("still here"), 1);

      await bob.page.close();
      await ada.shows("#log", "bob left");
    });
  });
}

/** A page of the chat. */
class Tab {
  constructor(page) {
    this.page = page;
  }

  async logIn(name, password) {
    await this.page.fill("#name", name);
    await this.page.fill("#password", password);
    await this.page.click("#login button");
  }

  isOnline(where = "Online") {
    return this.page.locator("#status[data-state=online]", { hasText: where }).waitFor();
  }

  async enter(room) {
    await this.page.fill("#room", room);
    await this.page.click("#join");
    await this.isOnline(`in ${room}`);
  }

  async say(text, to = "") {
    await this.page.fill("#to", to);
    await this.page.fill("#text", text);
    await this.page.click("#send");
  }

  shows(selector, text) {
    return this.page.locator(selector).filter({ hasText: text }).first().waitFor();
  }

  misses(selector, text) {
    return this.page.locator(selector).filter({ hasNotText: text }).first().waitFor({ state: "attached" });
  }

  count(text) {
    return this.page.locator("#log li", { hasText: text }).count();
  }
}

/** A program that `end` kills. `failed` rejects if it ends before. */
function program(command, args, stdio) {
  const child = spawn(command, args, { env: { ...process.env, ...SECRETS }, stdio });
  const orphanGuard = () => child.kill("SIGKILL");
  process.on("exit", orphanGuard);
  let isWanted = true;
  const exited = new Promise((resolve) => child.once("exit", resolve));
  child.failed = new Promise((_, reject) => {
    child.once("error", reject);
    exited.then((code) => isWanted && reject(new Error(`${command} ended with ${code}`)));
  });
  child.failed.catch(() => {});
  child.end = async () => {
    isWanted = false;
    child.kill("SIGKILL");
    await deadline(exited, PATIENCE, `${command} to end`);
    process.removeListener("exit", orphanGuard);
  };
  return child;
}
