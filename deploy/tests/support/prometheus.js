// The HTTP API of a real Prometheus, and the names of metrics in expressions and expositions.

"use strict";

class Prometheus {
  constructor(url) {
    this.url = url;
  }

  /** The samples of an instant query, as [labels, number]. */
  async query(expression) {
    const data = await this.#get(`query?query=${encodeURIComponent(expression)}`);
    return data.result.map(({ metric, value }) => [metric, Number(value[1])]);
  }

  /** The one number that a query has, or undefined. */
  async number(expression) {
    const [sample] = await this.query(expression);
    return sample?.[1];
  }

  /** All rules, each with its health. */
  async rules() {
    return (await this.#get("rules")).groups.flatMap((group) => group.rules);
  }

  async #get(path) {
    const response = await fetch(`${this.url}/api/v1/${path}`, { signal: AbortSignal.timeout(10_000) });
    const body = await response.json();
    if (body.status !== "success") throw new Error(`${path}: ${body.error}`);
    return body.data;
  }
}

const NAME = /\b(?:roomcast[_:]|haproxy_|process_)[a-z0-9_:]+|\bup\b/g;

/** The metrics that an expression reads: of histograms the name without the ending of its series. */
function metricsOf(expression) {
  const bare = expression.replace(/"[^"]*"/g, '""').replace(/\b(?:by|on) *\([^)]*\)/g, "");
  return [...new Set(bare.match(NAME) ?? [])].map((name) => name.replace(/_(bucket|sum|count)$/, ""));
}

/** The metrics that an exposition or a table in Markdown names. */
function exposed(text) {
  return [...text.matchAll(/^# TYPE (\S+)/gm)].map(([, name]) => name);
}

function tabled(markdown) {
  return [...markdown.matchAll(/^\| `((?:roomcast|process)_[a-z0-9_]+)` \|/gm)].map(([, name]) => name);
}

module.exports = { Prometheus, metricsOf, exposed, tabled };
