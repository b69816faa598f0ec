// Elements and texts. Whatever comes from a job becomes a text node here and can become nothing else.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; a child that is no node is text. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "role") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;

/** Text of others: it cannot change the direction of what stands around it, and what cannot be seen is spelt. */
export function foreign(text, props = {}) {
  const unseen = String(text).trim() === "" ? /[^]/g : UNSEEN;
  const spelt = String(text).replace(unseen, (c) => `\u27e8${c.charCodeAt(0).toString(16).padStart(4, "0")}\u27e9`);
  return h("bdi", props, spelt);
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let toSay = null;

/** For people who listen: changes of state only, never the stream itself. */
export function say(text) {
  clearTimeout(toSay);
  toSay = setTimeout(() => setText($("said"), text), 150);
}

export const count = (n) => (n === undefined ? "–" : n.toLocaleString("en").replaceAll(",", "\u202f"));

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return "–";
  if (perSecond === 0) return "0";
  return perSecond < 10 ? perSecond.toFixed(1) : count(Math.round(perSecond));
}

export function span(milliseconds) {
  const s = Math.max(0, Math.floor(milliseconds / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function size(characters) {
  if (characters < 1000) return `${characters} characters`;
  return characters < 1e6 ? `${(characters / 1e3).toFixed(1)} kB` : `${(characters / 1e6).toFixed(1)} MB`;
}

export const clock = (milliseconds) =>
  new Date(milliseconds).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

const WORDS = { running: "Running", complete: "Complete", error: "Error", aborted: "Aborted" };
const REASONS = {
  replaced: "replaced by a newer turn",
  deleted: "deleted",
  owner_lost: "owner lost",
  expired: "expired",
  cancelled: "cancelled",
  shutdown: "shut down",
};

export const statusWord = (status) => WORDS[status] ?? status;

export function badge(status, reason) {
  const known = status in WORDS ? status : "other";
  const more = REASONS[reason];
  return h(
    "span",
    { class: `badge ${known}` },
    h("span", { class: "dot", "aria-hidden": "true" }),
    foreign(statusWord(status)),
    more ? h("span", { class: "reason" }, ` · ${more}`) : null,
  );
}

/** A button that copies a text and says so. */
export function copier(text, label) {
  const button = h("button", { type: "button", class: "copy", "aria-label": `Copy ${label}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      setText(button, "Copied");
      say(`Copied ${label}`);
    } catch {
      setText(button, "Not allowed");
    }
    setTimeout(() => setText(button, "Copy"), 1500);
  });
  return button;
}
