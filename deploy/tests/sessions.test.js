// The applications of docs/src/sessions.md: the login to a site holds for its clients.

"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const { mkdtempSync, readFileSync, rmSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");
const { after, before, describe, test } = require("node:test");
const { io } = require("socket.io-client");

const { startGateway } = require("../../node/tests/clients/support/gateway");
const { malformedSignatures } = require("../../node/tests/clients/support/signatures");
const { ask, next } = require("../../node/tests/clients/support/wait");
const { freePorts, isFree, until } = require("./support/cluster");

const EXAMPLES = join(__dirname, "../examples/sessions");
const PAGE = readFileSync(join(__dirname, "../../docs/src/sessions.md"), "utf8");
const SECRET = "a secret of the tests 0123456789";

for (const { name, language, command, file, cookie, shown = cookie } of [
  { name: "Express and Passport", language: "js", command: process.execPath, file: "express.js", cookie: "connect.sid" },
  { name: "Django", language: "python", command: "python3", file: "django_app.py", cookie: "sessionid" },
  { name: "Laravel", language: "php", command: "php", file: "laravel_app.php", cookie: "laravel_session" },
  { name: "Rails", language: "ruby", command: "ruby", file: "rails_app.rb", cookie: "_chat_session", shown: "_APP_session" },
]) {
  describe(`sessions of ${name}`, { timeout: 120_000 }, () => {
    const folder = mkdtempSync(join(tmpdir(), "roomcast-sessions-"));
    let site;
    let application;
    let gateway;
    let log = "";

    before(async () => {
      const port = await freePorts();
      site = `http://127.0.0.1:${port}`;
      const places = { DATABASE: join(folder, "app.sqlite3"), SESSIONS: folder };
      const secrets = { ROOMCAST_SECRET: SECRET, SESSION_SECRET: "another secret of the tests 0123456789" };
      const source = join(EXAMPLES, file);
      const args = language === "php" ? ["-S", `127.0.0.1:${port}`, source] : [source, String(port)];
      application = spawn(command, args, { env: { ...process.env, ...secrets, ...places } });
      for (const stream of [application.stdout, application.stderr]) stream.on("data", (data) => (log += data));
      const ended = new Promise((resolve) => application.once("exit", resolve));
      await until("the application to listen", async () => !(await isFree(port)), { ended }).catch((error) => {
        throw new Error(`${error.message}; it printed:\n${log}`);
      });
      const toml = /```toml\n(.*?)```/s.exec(PAGE)[1];
      const settings = toml.replace("http://127.0.0.1:8000", site).replace('"sessionid"', `"${cookie}"`);
      gateway = await startGateway(settings, { environment: { ROOMCAST_SECRET: SECRET } });
    });

    after(async () => {
      await gateway?.stop();
      application?.kill("SIGKILL");
      rmSync(folder, { recursive: true, force: true });
    });

    const open = (header) => {
      return io(gateway.url, { forceNew: true, reconnection: false, extraHeaders: header && { cookie: header } });
    };

    async function login(password) {
      const body = new URLSearchParams({ username: "ada", password });
      return fetch(`${site}/login`, { method: "POST", body });
    }

    test("a client without a session, or with a forged one, is refused", async () => {
      for (const header of [undefined, `${cookie}=forged`]) {
        const [error] = await next(open(header), "connect_error");
        assert.equal(error.message, "log in first", log);
      }
      assert.ok(!(await login("wrong")).ok);
    });

    test("a client of a user who has logged in connects as this user", async () => {
      const response = await login("lovelace");
      assert.deepEqual(await response.json(), { user: "ada" }, log);
      const [session] = response.headers.getSetCookie().find((each) => each.startsWith(`${cookie}=`)).split(";");
      const client = open(`theme=dark; ${session}`);
      await next(client, "connect");
      assert.equal(await ask(client, "whoami"), "ada");
      client.close();
    });

    test("a request without a signature, or with a malformed one, is refused", async () => {
      for (const signature of [undefined, ...malformedSignatures()]) {
        const headers = { "content-type": "application/json", ...(signature && { "roomcast-signature": signature }) };
        const { status } = await fetch(`${site}/roomcast`, { method: "POST", headers, body: '{"type": "connect"}' });
        assert.equal(status, 403, signature);
      }
    });

    test("the book shows the application as it is, and names its cookie", () => {
      const source = readFileSync(join(EXAMPLES, file), "utf8");
      const blocks = [...PAGE.matchAll(new RegExp(`\`\`\`${language}\n(.*?)\`\`\``, "gs"))].map(([, code]) => code);
      assert.equal(blocks.length, 1);
      assert.ok(source.includes(blocks[0]));
      assert.match(PAGE, new RegExp(`\\| \`${shown.replace(".", "\\.")}\`[ ,]`));
    });
  });
}
