// What is known of the nodes: their last statuses, and samples of the last ten minutes.

/** A node that has been silent for longer than this, in milliseconds, is shown as such. */
export const SILENT = 10_000;

/** How long samples are kept. */
export const SPAN = 600_000;

/** The step of a plot. */
const STEP = 2000;

/** The figures of a sample. Counters become rates. */
const GAUGES = { connections: ["connections"], sockets: ["sockets"], rooms: ["rooms"], memory: ["memory"] };
const RATES = {
  in: ["received"], out: ["sent", "deliveries"], bytesIn: ["bytes_received"], bytesOut: ["bytes_sent"],
  opened: ["opened"], closed: ["closed"], cpu: ["cpu"],
};

export class Cluster {
  nodes = new Map(); // name → { name, status, at, samples, rates, first }
  known = [];

  /** The nodes that the bus knows, which need not publish a status. */
  list(names) {
    this.known = names;
    const limit = Date.now() - SPAN;
    for (const [name, { at }] of this.nodes) {
      if (at < limit) this.nodes.delete(name);
    }
  }

  add(name, age, status) {
    const node = this.nodes.get(name) ?? { name, samples: [], first: status };
    const at = Date.now() - age;
    const sample = { at };
    for (const [key, figures] of Object.entries(GAUGES)) sample[key] = sum(figures.map((figure) => gauge(status, figure)));
    const seconds = node.status ? (status.time - node.status.time) / 1000 : 0;
    for (const [key, figures] of Object.entries(RATES)) {
      const more = sum(figures.map((figure) => (status.figures[figure] ?? 0) - (node.status?.figures[figure] ?? 0)));
      // Without an earlier status, or if the node has counted from zero again, there is no rate.
      sample[key] = seconds > 0.2 && more >= 0 ? more / seconds : undefined;
    }
    if (seconds > 0.2 || !node.status) {
      Object.assign(node, { status, at, last: sample });
      node.samples.push(sample);
      while (node.samples[0].at < Date.now() - SPAN) node.samples.shift();
    }
    this.nodes.set(name, node);
  }

  /** The nodes that have published a status, by name. */
  all() {
    return [...this.nodes.values()].sort((one, other) => (one.name < other.name ? -1 : 1));
  }

  /** The names of those that have not. */
  withoutStatus() {
    return this.known.filter((name) => !this.nodes.has(name));
  }

  isSilent = ({ at }) => Date.now() - at > SILENT;

  /** A figure now, of all nodes that are heard of. */
  total(key) {
    const heard = [...this.nodes.values()].filter((node) => !this.isSilent(node));
    return sum(heard.map(({ last }) => last[key] ?? 0));
  }

  /** The time that plots show, in milliseconds: all there is, from one minute to ten. */
  span() {
    const first = Math.min(Date.now(), ...[...this.nodes.values()].map(({ samples }) => samples[0]?.at ?? Infinity));
    return Math.min(SPAN, Math.max(60_000, Date.now() - first));
  }

  /** Points `[0 … 1, value]` of a figure within a span, of one node or of all. */
  series(key, span, name = "") {
    const nodes = name ? [this.nodes.get(name)].filter(Boolean) : [...this.nodes.values()];
    const end = Date.now();
    const points = [];
    const next = nodes.map(() => 0);
    for (let time = end - span; time <= end; time += STEP) {
      let value;
      nodes.forEach(({ samples }, index) => {
        while (next[index] < samples.length && samples[next[index]].at <= time) next[index]++;
        const sample = samples[next[index] - 1];
        if (sample && time - sample.at < SILENT && sample[key] !== undefined) value = (value ?? 0) + sample[key];
      });
      points.push([1 - (end - time) / span, value]);
    }
    return points;
  }
}

export const sum = (values) => values.reduce((total, value) => total + value, 0);

export const parts = (status, name) => status?.parts?.[name] ?? {};

const gauge = (status, name) => status.figures[name] ?? sum(Object.values(parts(status, name)));
