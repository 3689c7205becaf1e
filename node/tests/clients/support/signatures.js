// Requests of hooks that only a hostile client or stranger causes.

"use strict";

const { createHmac } = require("node:crypto");

/** Posts a request of a hook with a valid signature. Returns the response. */
function post(url, secret, request) {
  const body = JSON.stringify({ namespace: "/", ...request });
  const now = Math.floor(Date.now() / 1000);
  const signature = createHmac("sha256", secret).update(`${now}.${body}`).digest("hex");
  const headers = { "Content-Type": "application/json", "Roomcast-Signature": `t=${now},v1=${signature}` };
  return fetch(url, { method: "POST", body, headers });
}

/** Arguments of an event that an application has to expect from clients, and must not fail at. */
function hostileArguments() {
  const values = [null, true, 7, "text", "", [], ["x"], {}, { toString: 1 }];
  return [[], ...values.map((value) => [value]), ...values.map((value) => ["text", value]), ["a", "b", "c", "d"]];
}

/** Values of the header that an application has to refuse, and must not fail at. */
function malformedSignatures() {
  const now = Math.floor(Date.now() / 1000);
  const zeros = "0".repeat(64);
  return [
    "garbage",
    "t",
    "=",
    ",",
    "t=,v1=",
    `t=${now}`,
    `t=now,v1=${zeros}`,
    // A digit for Python's isdigit() that is no number.
    `t=\u00b2,v1=${zeros}`,
    `t=${"9".repeat(5000)},v1=${zeros}`,
    // As many characters as a signature has, and more bytes.
    `t=${now},v1=${"\u00e4".repeat(64)}`,
    // Arrays for PHP.
    `t[]=${now},v1=${zeros}`,
    `t=${now},v1[]=${zeros}`,
  ];
}

module.exports = { hostileArguments, malformedSignatures, post };
