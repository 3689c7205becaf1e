// The example applications of deploy/examples/hooks behind the program, with the official client in a real
// browser. ROOMCAST is the program, TEST_CHROMIUM the browser's.

"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const { createHmac } = require("node:crypto");
const { join } = require("node:path");
const { after, afterEach, before, describe, test } = require("node:test");

const { startBrowser } = require("./support/browser");
const { startGateway } = require("./support/gateway");
const { sparePort } = require("./support/ports");
const { hostileArguments, malformedSignatures, post } = require("./support/signatures");
const { until } = require("./support/wait");

const SECRET = "a secret of the tests 0123456789";
const EXAMPLES = join(__dirname, "../../../deploy/examples/hooks");
const BUNDLES = join(require.resolve("socket.io-client"), "../../../dist");

let browser;
before(async () => (browser = await startBrowser()));
after(() => browser?.stop());

for (const [name, command, args] of [
  ["Python", "python3", (port) => [join(EXAMPLES, "app.py"), port]],
  ["JavaScript", process.execPath, (port) => [join(EXAMPLES, "app.js"), port]],
  ["PHP", "php", (port) => ["-S", `127.0.0.1:${port}`, join(EXAMPLES, "app.php")]],
]) {
  describe(`the example in ${name}`, { timeout: 240_000 }, () => {
    let application;
    let url;
    let gateway;
    const tabs = [];

    before(async () => {
      const port = String(await sparePort());
      url = `http://127.0.0.1:${port}/`;
      const environment = { ...process.env, ROOMCAST_SECRET: SECRET, PHP_CLI_SERVER_WORKERS: "8" };
      application = spawn(command, args(port), { env: environment, stdio: "ignore" });
      const failed = new Promise((_, reject) => {
        application.once("error", reject);
        application.once("exit", (code) => reject(new Error(`${command} ended with ${code}`)));
      });
      const isUp = () => fetch(url, { method: "POST" }).then(() => true, () => false);
      await Promise.race([until("the application", isUp, 30_000), failed]);
      const hook = `[hooks.chat]\nurl = "${url}"\nsecret_env = "HOOK_SECRET"\ntimeout = "20s"\nbatch = {}`;
      const settings = `access = "hook"\nclient_files = "${BUNDLES}"\n${hook}`;
      gateway = await startGateway(settings, { environment: { HOOK_SECRET: SECRET } });
    });
    afterEach(async () => {
      for (const tab of tabs.splice(0)) await tab.page.close();
    });
    after(async () => {
      await gateway?.stop();
      application?.removeAllListeners("exit").kill();
    });

    /** A page of the application that connects with this token. */
    async function open(token) {
      const page = await browser.context.newPage();
      const tab = new Tab(page);
      tabs.push(tab);
      await page.route(`${gateway.url}/`, (route) => {
        return route.fulfill({ contentType: "text/html", body: '<script src="/socket.io/socket.io.js"></script>' });
      });
      await page.goto(`${gateway.url}/`);
      await tab.connect(token);
      return tab;
    }

    test("is a chat with logins, messages, whispers and notices in a browser", async () => {
      const nobody = await open("wrong");
      await nobody.receives(["connect_error", "unknown token", { code: 401 }]);
      const ada = await open("token-of-ada");
      await ada.receives(["welcome", "ada"]);
      const bob = await open("token-of-bob");
      await ada.receives(["joined", "bob"]);
      assert.equal(await bob.ask("message", "hello ä"), "delivered");
      for (const tab of [ada, bob]) await tab.receives(["message", "bob", "hello ä"]);
      assert.equal(await bob.ask("whisper", "ada", "psst"), "delivered");
      await ada.receives(["whisper", "bob", "psst"]);
      assert.deepEqual(await bob.ask("message", " "), { error: "say something" });
      assert.deepEqual(await bob.ask("no such event"), { error: "unknown event" });
      // Without acknowledgements, which go in batches.
      await bob.page.evaluate(() => ["one", "two"].forEach((text) => window.socket.emit("message", text)));
      for (const text of ["one", "two"]) await ada.receives(["message", "bob", text]);
      assert.deepEqual((await bob.received()).filter(([event]) => event === "whisper"), []);
      // Without a word from its page, as when somebody closes a tab.
      await bob.page.close();
      await ada.receives(["left", "bob"]);
    });

    test("does not fail at the arguments and the auth of hostile clients", async () => {
      const socket = { id: "s", user: "ada", rooms: ["lobby"], data: { name: "ada" } };
      for (const event of ["message", "whisper", "no such event"]) {
        for (const args of hostileArguments()) {
          const response = await post(url, SECRET, { type: "event", event, args, socket });
          assert.equal(response.status, 200, `${event} ${JSON.stringify(args)}`);
          assert.ok(Array.isArray(await response.json()));
        }
      }
      for (const [token] of hostileArguments()) {
        const response = await post(url, SECRET, { type: "connect", auth: { token }, socket });
        assert.equal(response.status, 200, JSON.stringify(token));
        assert.equal((await response.json())[0].message, "unknown token");
      }
    });

    test("refuses requests without a valid signature", async () => {
      const status = async (headers) => {
        const all = { "content-type": "application/json", ...headers };
        return (await fetch(url, { method: "POST", body: "{}", headers: all })).status;
      };
      const now = Math.floor(Date.now() / 1000);
      assert.equal(await status({}), 403);
      assert.equal(await status({ "roomcast-signature": `t=${now},v1=${"0".repeat(64)}` }), 403);
      const old = createHmac("sha256", SECRET).update(`${now - 900}.{}`).digest("hex");
      assert.equal(await status({ "roomcast-signature": `t=${now - 900},v1=${old}` }), 403);
      for (const malformed of malformedSignatures()) {
        assert.equal(await status({ "roomcast-signature": malformed }), 403, malformed);
      }
    });
  });
}

/** A page with a client, and the events that it has received. */
class Tab {
  constructor(page) {
    this.page = page;
  }

  connect(token) {
    return this.page.evaluate((given) => {
      const socket = window.io({ auth: { token: given } });
      const received = [];
      socket.onAny((...event) => received.push(event));
      socket.on("connect_error", ({ message, data }) => received.push(["connect_error", message, data]));
      Object.assign(window, { socket, received });
    }, token);
  }

  received() {
    return this.page.evaluate(() => window.received);
  }

  receives(event) {
    const wanted = JSON.stringify(event);
    return this.page.waitForFunction((text) => window.received.some((each) => JSON.stringify(each) === text), wanted)
      .catch(async (error) => {
        throw new Error(`${wanted} is not among ${JSON.stringify(await this.received())}: ${error.message}`);
      });
  }

  ask(...event) {
    return this.page.evaluate((args) => window.socket.timeout(30_000).emitWithAck(...args), event);
  }
}
