// What of a job is drawn: its content, its last events, its record. Owns the limits that keep the page responsive,
// and says in words what they leave out.

import { copier, count, foreign, h, setText, size } from "./dom.js";
import { partPieces, pieces } from "./text.js";

const DRAWN_TEXT = 60_000; // characters of one block
const DRAWN_BLOCKS = 300;
const DRAWN_EVENTS = 200;
const KEPT_EVENTS = 2000; // while somebody reads among them, so that nothing is pulled away
const PREVIEW = 240;
const KEPT_EVENT = 50_000; // characters of one event that can be unfolded

const TITLES = { reasoning: "Reasoning", tool: "Tool", other: "Other part", error: "Error", final: "Final event" };

class Block {
  constructor(kind) {
    this.kind = kind;
    this.node = document.createTextNode("");
    this.length = 0;
    this.note = h("p", { class: "small", hidden: true });
    const title = TITLES[kind] ? h("h3", {}, TITLES[kind]) : null;
    this.element = h("section", { class: `block ${kind}` }, title, this.note, h("div", { class: "prose", dir: "auto" }, this.node));
  }

  add(text) {
    this.length += text.length;
    this.node.appendData(text);
    if (this.node.length > DRAWN_TEXT * 1.25) {
      this.node.deleteData(0, this.node.length - DRAWN_TEXT);
    }
    if (this.node.length < this.length) {
      this.note.hidden = false;
      setText(this.note, `The first ${size(this.length - this.node.length)} are not drawn.`);
    }
  }
}

export class ContentPanel {
  constructor(element) {
    this.element = element;
    this.empty = h("p", { class: "empty" });
    this.note = h("p", { class: "small", hidden: true });
    this.blocks = h("div", { class: "blocks" });
    element.replaceChildren(this.note, this.blocks, this.empty);
    this.clear();
  }

  clear() {
    this.last = null;
    this.dropped = 0;
    this.pending = [];
    this.behind = 0;
    this.seen = 0;
    this.blocks.replaceChildren();
    this.note.hidden = true;
    this.idle("Nothing has been emitted yet.");
  }

  idle(text) {
    this.empty.hidden = this.blocks.childElementCount > 0;
    setText(this.empty, text);
  }

  /** Content that the server folded from the events before `position`: it replaces what was read out of them here. */
  fold(parts, position) {
    const drawn = parts.flatMap(partPieces);
    if (!drawn.length) return;
    const later = this.pending.filter((one) => one.index >= position);
    this.behind = position;
    this.last = null;
    this.dropped = 0;
    this.blocks.replaceChildren();
    for (const piece of drawn) this.#add(piece, true);
    this.last = null;
    for (const one of later) this.#add(one);
  }

  event(index, value) {
    this.seen = index + 1;
    if (index < this.behind) return;
    for (const piece of pieces(value)) {
      this.pending.push({ index, ...piece });
      if (this.pending.length > 5000) this.pending.shift();
      this.#add(piece);
    }
  }

  end(type, value) {
    this.last = null;
    if (type === "error") this.#add({ kind: "error", text: String(value ?? "") || "(no text)" }, true);
    else if (value !== null && value !== undefined) {
      this.#add({ kind: "final", text: JSON.stringify(value, null, 2).slice(0, KEPT_EVENT) }, true);
    }
    this.idle(this.seen ? "No readable text in these events; see Events." : "It ended without any event.");
  }

  #add(piece, apart = false) {
    if (apart || !this.last || this.last.kind !== piece.kind) {
      this.last = new Block(piece.kind);
      this.blocks.append(this.last.element);
      if (this.blocks.childElementCount > DRAWN_BLOCKS) {
        this.blocks.firstElementChild.remove();
        this.dropped += 1;
        this.note.hidden = false;
        setText(this.note, `The first ${count(this.dropped)} blocks are not drawn.`);
      }
    }
    this.empty.hidden = true;
    this.last.add(piece.text);
  }

  caughtUp() {
    if (this.blocks.childElementCount === 0 && this.seen) this.idle("No readable text in these events; see Events.");
  }
}

/** A copy that does not hold the large text it was cut from. */
const detached = (text) => new TextDecoder().decode(new TextEncoder().encode(text));

export class EventsPanel {
  constructor(element) {
    this.note = h("p", { class: "small" });
    this.rows = h("ol", { class: "events", "aria-label": "Events, oldest first" });
    element.replaceChildren(this.note, this.rows);
    this.clear();
  }

  clear() {
    this.total = 0;
    this.drawn = [];
    this.rows.replaceChildren();
    setText(this.note, "Nothing has been emitted yet.");
  }

  add(records, following) {
    const most = following ? DRAWN_EVENTS : KEPT_EVENTS;
    this.total += records.filter((one) => one.type === "event").length;
    const fresh = records.slice(-DRAWN_EVENTS).map((one) => this.#row(one));
    this.drawn.push(...fresh);
    this.rows.append(...fresh);
    for (const old of this.drawn.splice(0, Math.max(0, this.drawn.length - most))) old.remove();
    const shown = Math.min(this.total, this.drawn.length);
    setText(
      this.note,
      shown < this.total
        ? `The last ${count(shown)} of ${count(this.total)} events. All of them: natsjobs tail, or GET …/events?raw=1.`
        : `${count(this.total)} ${this.total === 1 ? "event" : "events"}.`,
    );
  }

  #row({ index, type, cursor, raw }) {
    const long = raw.length > KEPT_EVENT;
    const kept = long || raw.length > 2 * PREVIEW ? detached(raw.slice(0, KEPT_EVENT)) : raw;
    const length = raw.length;
    const summary = h(
      "summary",
      {},
      h("span", { class: "index" }, type === "event" ? String(index) : "end"),
      type === "event" ? null : h("span", { class: `kind ${type}` }, foreign(type)),
      h("code", { class: "preview" }, foreign(kept.slice(0, PREVIEW) + (length > PREVIEW ? "…" : ""))),
      length > PREVIEW ? h("span", { class: "small" }, size(length)) : null,
    );
    const row = h("details", {}, summary);
    row.addEventListener("toggle", () => {
      if (!row.open || row.childElementCount > 1) return;
      row.append(
        h("p", { class: "small cursor" }, "Cursor ", h("code", {}, cursor), " ", copier(() => cursor, "the cursor")),
        h("pre", { dir: "ltr" }, pretty(kept, long)),
        long ? h("p", { class: "small" }, `The first ${size(KEPT_EVENT)} of ${size(length)}.`) : "",
      );
    });
    return h("li", {}, row);
  }
}

function pretty(raw, cut) {
  if (cut) return raw;
  try {
    return JSON.stringify(JSON.parse(raw), null, 2).slice(0, 2 * KEPT_EVENT);
  } catch {
    return raw;
  }
}

export function drawRecord(element, job) {
  const raw = JSON.stringify(job, null, 2);
  element.replaceChildren(
    h("p", { class: "small" }, "The job record, as ", h("code", {}, "GET /streams/{id}"), " gives it. ", copier(() => raw, "the record")),
    h("pre", {}, raw.length > 2 * KEPT_EVENT ? `${raw.slice(0, 2 * KEPT_EVENT)}…` : raw),
  );
}
