// Signatures of hooks that no node has written.

"use strict";

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

module.exports = { malformedSignatures };
