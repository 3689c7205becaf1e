// Values on a line of JSON: binary is {"$bin": base64}.

"use strict";

function encode(value) {
  if (value instanceof ArrayBuffer) return encode(Buffer.from(value));
  if (ArrayBuffer.isView(value)) return { $bin: Buffer.from(value).toString("base64") };
  return walk(value, encode);
}

function decode(value) {
  if (typeof value?.$bin === "string") return Buffer.from(value.$bin, "base64");
  return walk(value, decode);
}

function walk(value, step) {
  if (Array.isArray(value)) return value.map(step);
  if (typeof value !== "object" || value === null) return value;
  if (typeof value.toJSON === "function") return value.toJSON();
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, step(item)]));
}

module.exports = { encode, decode };
