// Small helpers around the document. Text from the cluster only ever becomes text, never markup.

export const $ = (id) => document.getElementById(id);

/** An element with a class and content, which is text or other elements. */
export function element(tag, className = "", ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content.map((part) => (part instanceof Node ? part : String(part))));
  return made;
}

export function button(text, onclick, className = "small") {
  const made = element("button", className, text);
  Object.assign(made, { type: "button", onclick });
  return made;
}

/** A row of a table; `names` are shown before the cells where a table becomes a list. */
export function cells(row, names, values) {
  values.forEach((value, index) => {
    const cell = row.cells[index] ?? row.insertCell();
    cell.dataset.name = names[index].trim();
    if (value instanceof Node) {
      if (!cell.firstChild?.isEqualNode(value)) cell.replaceChildren(value);
    } else {
      // Numbers are aligned, and what has not changed is not touched, so that a selection stays.
      cell.className = typeof value === "object" ? "number" : "";
      const text = String(value?.number ?? value);
      if (cell.textContent !== text) cell.textContent = text;
    }
  });
}

export const number = (text) => ({ number: text });

/** The headings of a table. */
export const headings = (table) => [...table.tHead.rows[0].cells].map((cell) => cell.textContent);

const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export function count(value) {
  if (value === undefined || Number.isNaN(value)) return "–";
  if (value > 0 && value < 10 && !Number.isInteger(value)) return value.toFixed(1);
  return value < 100_000 ? Math.round(value).toLocaleString("en") : COMPACT.format(value);
}

export function bytes(value) {
  if (value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function duration(seconds) {
  if (!(seconds >= 0)) return "–";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

export const clock = (time = new Date()) => time.toLocaleTimeString("en-GB");
