// Waiting on events, always with a deadline that fails the test and says what was waited for.

"use strict";

const PATIENCE = 10_000;

function deadline(promise, milliseconds, what) {
  let timer;
  const expired = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${milliseconds} ms for ${what}`)), milliseconds);
  });
  return Promise.race([promise, expired]).finally(() => clearTimeout(timer));
}

/** The arguments of the next `event` of an emitter of any of the client versions. */
function next(emitter, event, patience = PATIENCE) {
  let listener;
  const arrived = new Promise((resolve) => {
    listener = (...args) => resolve(args);
    emitter.on(event, listener);
  });
  return deadline(arrived, patience, `event "${event}"`).finally(() => emitter.off(event, listener));
}

/** Collects the first argument of `event` until `count` have come. */
function collect(emitter, event, count, patience = PATIENCE) {
  const seen = [];
  let listener;
  const complete = new Promise((resolve) => {
    listener = (value) => {
      seen.push(value);
      if (seen.length === count) resolve(seen);
    };
    emitter.on(event, listener);
  });
  return deadline(complete, patience, `${count} times "${event}"`)
    .catch((error) => {
      throw new Error(`${error.message}, ${seen.length} came`);
    })
    .finally(() => emitter.off(event, listener));
}

/** Emits with ack; resolves to the first argument of the answer. */
async function ask(socket, event, ...args) {
  return (await askAll(socket, event, ...args))[0];
}

/** Emits with ack; resolves to all arguments of the answer. */
function askAll(socket, event, ...args) {
  const answer = new Promise((resolve) => socket.emit(event, ...args, (...values) => resolve(values)));
  return deadline(answer, PATIENCE, `the ack of "${event}"`);
}

/** Asks again and again until the answer is true (or anything else that counts as yes), and returns it. */
async function until(what, check, patience = PATIENCE) {
  const end = Date.now() + patience;
  for (;;) {
    const answer = await check();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`waited ${patience} ms for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

module.exports = { deadline, next, collect, ask, askAll, until };
