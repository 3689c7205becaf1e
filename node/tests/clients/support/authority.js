// Certificates for tests, made by openssl.

"use strict";

const { execFileSync } = require("node:child_process");
const { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } = require("node:fs");
const { tmpdir } = require("node:os");
const { join } = require("node:path");

const KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/** An authority with a folder for what it signs. */
class Authority {
  folder = mkdtempSync(join(tmpdir(), "roomcast-authority-"));

  constructor() {
    this.openssl("req", "-x509", ...KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority");
  }

  /** Signs a certificate for names such as `DNS:localhost`: NAME.pem and NAME.key. */
  sign(name, names) {
    this.openssl("req", ...KEY, "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${name}`);
    writeFileSync(this.path(`${name}.txt`), `subjectAltName=${names}`);
    this.openssl(
      ..."x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 60".split(" "),
      ...["-in", `${name}.csr`, "-out", `${name}.pem`, "-extfile", `${name}.txt`],
    );
  }

  copy(from, to) {
    for (const extension of ["pem", "key"]) copyFileSync(this.path(`${from}.${extension}`), this.path(`${to}.${extension}`));
  }

  path(name) {
    return join(this.folder, name);
  }

  read(name) {
    return readFileSync(this.path(name));
  }

  remove() {
    rmSync(this.folder, { recursive: true, force: true });
  }

  openssl(...args) {
    execFileSync("openssl", args, { cwd: this.folder, stdio: ["ignore", "ignore", "pipe"] });
  }
}

module.exports = { Authority };
