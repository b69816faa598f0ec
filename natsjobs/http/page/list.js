// The list of jobs: asks for one page of it again and again, and changes the table in place.

import { json } from "./api.js";
import { $, badge, clock, count, foreign, h, rate, setText, span, statusWord } from "./dom.js";
import { Rates } from "./rates.js";

const STATUSES = ["", "running", "complete", "error", "aborted"];
const ROWS = 50;
const PAUSE = 2000;
const LONGEST = 15_000;

export class ListView {
  constructor({ onRefused, onLink, onFilter }) {
    Object.assign(this, { onRefused, onLink, onFilter });
    this.filter = { status: "", q: "", offset: 0 };
    this.rates = new Rates();
    this.rows = new Map();
    this.jobs = [];
    this.total = 0;
    this.round = 0;
    this.skew = 0;
    this.open = null;
    this.buttons = STATUSES.map((status) => this.#statusButton(status));
    $("statuses").append(...this.buttons);
    $("search").addEventListener("input", () => this.set({ q: $("search").value, offset: 0 }, 250));
    $("newer").addEventListener("click", () => this.set({ offset: Math.max(0, this.filter.offset - ROWS) }));
    $("older").addEventListener("click", () => this.set({ offset: this.filter.offset + ROWS }));
    addEventListener("visibilitychange", () => document.hidden || this.refresh());
    addEventListener("online", () => this.refresh());
    setInterval(() => this.#ages(), 1000);
  }

  #statusButton(status) {
    const number = h("span", { class: "number" });
    const button = h("button", { type: "button", onclick: () => this.set({ status, offset: 0 }) }, status ? statusWord(status) : "All", " ", number);
    button.dataset.status = status;
    return button;
  }

  /** Change what is wanted and ask for it, at once or when typing has paused. */
  set(changes, pause = 0) {
    const filter = { ...this.filter, ...changes };
    if (JSON.stringify(filter) === JSON.stringify(this.filter)) return;
    this.filter = filter;
    if ($("search").value !== filter.q) $("search").value = filter.q;
    this.#buttons({});
    this.onFilter(filter);
    this.refresh(pause);
  }

  setStatus(number) {
    this.set({ status: STATUSES[number], offset: 0 });
  }

  refresh(pause = 0) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#ask(), pause);
  }

  async #ask() {
    if (document.hidden) return; // it asks when it is looked at
    const round = ++this.round;
    const started = performance.now();
    this.asking?.abort();
    this.asking = new AbortController();
    let pause = PAUSE;
    try {
      const { status, q, offset } = this.filter;
      const query = new URLSearchParams({ activity: "1", limit: String(ROWS), offset: String(offset) });
      if (status) query.set("status", status);
      if (q.trim()) query.set("q", q);
      const found = await json(`streams?${query}`, { signal: this.asking.signal });
      if (round !== this.round) return;
      this.failures = 0;
      this.#draw(found);
      this.onLink("open");
      pause = Math.max(PAUSE, 4 * (performance.now() - started));
    } catch (error) {
      if (round !== this.round) return;
      this.failures = (this.failures ?? 0) + 1;
      pause = PAUSE * 2 ** Math.min(this.failures - 1, 3);
      this.#failed(error);
    }
    this.refresh(Math.min(pause, LONGEST));
  }

  #failed(error) {
    if (error.status === 401 || error.status === 403) {
      this.#draw({ jobs: [], counts: {}, total: 0, now: Date.now() });
      const what = error.status === 401 ? "A token is needed to see jobs here." : "You may not list jobs here; a job can still be opened by its address, #/job/ID.";
      setText($("empty"), what);
      this.onLink("open");
      this.onRefused(error);
      return;
    }
    this.#note(error.status ? `The list could not be had: ${error.message}` : "The gateway does not answer. What is shown is from before; still trying.");
    this.onLink("waiting");
  }

  #note(text) {
    $("list-note").hidden = !text;
    $("list-note").className = "note warn";
    setText($("list-note"), text);
  }

  #draw(found) {
    this.#note("");
    this.skew = found.now - Date.now();
    this.jobs = found.jobs;
    this.total = found.total;
    for (const job of found.jobs) {
      if (job.events !== undefined) this.rates.add(`${job.streamId} ${job.generation}`, job.events, job.age);
    }
    this.#buttons(found.counts);
    const rows = new Map();
    const body = $("rows");
    found.jobs.forEach((job, place) => {
      const row = this.rows.get(job.streamId) ?? this.#row(job.streamId);
      rows.set(job.streamId, row);
      this.#fill(row, job);
      if (body.children[place] !== row.element) body.insertBefore(row.element, body.children[place] ?? null);
    });
    for (const [id, row] of this.rows) if (!rows.has(id)) row.element.remove();
    this.rows = rows;
    this.mark(this.open);
    this.#foot(found);
  }

  #foot(found) {
    const { offset, q, status } = this.filter;
    const some = found.jobs.length > 0;
    $("empty").hidden = some;
    document.querySelector("#list table").hidden = !some;
    if (!some) {
      const none = "No jobs yet. Start one, for example: some-command | natsjobs pipe my-job --user me";
      setText($("empty"), q || status ? "No job matches." : offset ? "Nothing here any more." : none);
    }
    $("pages").hidden = found.total <= ROWS && offset === 0;
    setText($("range"), some ? `${count(offset + 1)}–${count(offset + found.jobs.length)} of ${count(found.total)}` : `of ${count(found.total)}`);
    $("newer").disabled = offset === 0;
    $("older").disabled = offset + found.jobs.length >= found.total;
  }

  #buttons(counts) {
    const all = Object.values(counts).reduce((sum, n) => sum + n, 0);
    for (const button of this.buttons) {
      const { status } = button.dataset;
      button.setAttribute("aria-pressed", String(status === this.filter.status));
      if (Object.keys(counts).length || this.jobs.length === 0) setText(button.lastChild, count(status ? (counts[status] ?? 0) : all));
    }
  }

  #row(id) {
    const cell = (label, name = "") => h("td", { role: "cell", class: name, "data-label": label });
    const link = h("a", { class: "open" }, foreign(id));
    const about = h("span", { class: "about" });
    const who = h("span", { class: "who", "aria-hidden": "true" });
    const cells = {
      status: cell("Status", "status"),
      user: cell("User", "user"),
      age: cell("Age", "number"),
      events: cell("Events", "number"),
      rate: cell("Events/s", "number"),
      viewers: cell("Viewers", "number"),
      owner: cell("Owner", "owner"),
    };
    const element = h("tr", { role: "row" }, h("td", { role: "cell", class: "id" }, link, about), ...Object.values(cells));
    element.addEventListener("click", (event) => {
      if (event.target.closest("a") || getSelection().toString()) return;
      link.click();
    });
    return { element, link, about, who, cells, shown: "" };
  }

  #fill(row, job) {
    row.job = job;
    const shown = JSON.stringify([job.status, job.endReason, job.userId, job.owner, job.error, job.model, job.conversationId]);
    if (row.shown !== shown) {
      row.shown = shown;
      row.cells.status.replaceChildren(badge(job.status, job.endReason));
      row.cells.user.replaceChildren(foreign(job.userId));
      row.cells.owner.replaceChildren(job.owner ? h("code", {}, foreign(job.owner)) : "–");
      row.who.replaceChildren(foreign(job.userId));
      const about = [job.model, job.conversationId !== job.streamId ? job.conversationId : null, job.error].filter(Boolean);
      row.about.replaceChildren(row.who, ...about.map((text) => foreign(text)));
    }
    const running = job.status === "running";
    setText(row.cells.events, job.events === undefined ? "–" : count(job.events));
    setText(row.cells.rate, running ? rate(this.rates.of(`${job.streamId} ${job.generation}`)) : "–");
    setText(row.cells.viewers, job.viewers === undefined ? "–" : count(job.viewers));
    row.cells.age.title = `Started ${clock(job.createdAt)}`;
    this.#age(row);
  }

  #age(row) {
    setText(row.cells.age, span(Date.now() + this.skew - row.job.createdAt));
  }

  #ages() {
    for (const row of this.rows.values()) this.#age(row);
  }

  link(id) {
    const { status, q, offset } = this.filter;
    const query = new URLSearchParams();
    if (status) query.set("status", status);
    if (q) query.set("q", q);
    if (offset) query.set("offset", String(offset));
    const rest = query.size ? `?${query}` : "";
    return `#/${id === null ? "" : `job/${encodeURIComponent(id)}`}${rest}`;
  }

  /** Show which job is open. */
  mark(id) {
    this.open = id;
    for (const [name, row] of this.rows) {
      row.element.classList.toggle("chosen", name === id);
      if (name === id) row.link.setAttribute("aria-current", "true");
      else row.link.removeAttribute("aria-current");
      row.link.href = this.link(name);
    }
    $("back").href = this.link(null);
  }

  /** Move the focus among the rows. */
  move(step) {
    const links = [...$("rows").querySelectorAll("a.open")];
    const at = links.indexOf(document.activeElement);
    const chosen = links.findIndex((link) => link.hasAttribute("aria-current"));
    const from = at >= 0 ? at : chosen >= 0 ? chosen : step > 0 ? -1 : links.length;
    links[Math.min(links.length - 1, Math.max(0, from + step))]?.focus();
  }
}
