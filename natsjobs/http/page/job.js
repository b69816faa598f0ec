// One job: follows its stream, draws it, aborts it. Owns the follower and everything below the heading of the job.

import { json, streamPath, unreachable } from "./api.js";
import { $, badge, clock, copier, count, foreign, h, rate, say, setText, span, statusWord } from "./dom.js";
import { ContentPanel, EventsPanel, drawRecord } from "./panels.js";
import { Rates } from "./rates.js";
import { Follower } from "./sse.js";

const TABS = ["content", "events", "record"];
const STATUS = { done: "complete", error: "error", aborted: "aborted" };
const ENDED = Object.values(STATUS); // a status that a newer version has is that of a running job
const LOOK = 3000;

/** The JSON of `data` in a frame: the fields before it are ours and hold no such text. */
function rawData(text) {
  const start = text.indexOf(',"data":') + 8;
  const end = text.lastIndexOf(',"endReason":');
  return text.slice(start, end > start && text.length - end < 80 ? end : text.length - 1);
}

export class JobView {
  constructor({ onRefused, onLink }) {
    Object.assign(this, { onRefused, onLink });
    this.id = null;
    this.rates = new Rates();
    this.tab = "content";
    this.content = new ContentPanel($("panel-content"));
    this.events = new EventsPanel($("panel-events"));
    for (const tab of TABS) {
      $(`tab-${tab}`).addEventListener("click", () => this.show(tab));
      $(`tab-${tab}`).addEventListener("keydown", (event) => this.#arrow(event, tab));
    }
    $("abort").addEventListener("click", () => this.askAbort());
    $("abort-no").addEventListener("click", () => $("abort-dialog").close());
    $("abort-yes").addEventListener("click", () => this.#abort());
    $("panel-events").addEventListener("click", () => ($("follow").checked = false)); // to read one, it must stand still
    addEventListener("wheel", () => this.#scrolled(), { passive: true });
    addEventListener("touchmove", () => this.#scrolled(), { passive: true });
    this.show("content");
  }

  open(id) {
    if (id === this.id) return;
    this.close();
    this.id = id;
    this.now = null;
    $("job").hidden = false;
    $("job-id").replaceChildren(foreign(id), " ", copier(() => id, "the id"));
    $("job").focus({ preventScroll: true });
    if (unreachable(id)) {
      this.#note("bad", "Browsers cannot ask for an id of dots. On a shell: natsjobs show, natsjobs tail.");
      return;
    }
    this.#begin();
  }

  close() {
    this.follower?.stop();
    clearInterval(this.timer);
    this.follower = null;
    this.id = this.job = null;
    $("job").hidden = true;
    this.#reset();
  }

  #reset() {
    Object.assign(this, { status: null, seen: 0, cursor: null, live: false, terminal: null, row: null });
    this.content.clear();
    this.events.clear();
    for (const name of ["job-notes", "facts", "job-status", "panel-record"]) $(name).replaceChildren();
    setText($("tab-count"), "");
    $("abort").hidden = true;
  }

  #begin() {
    this.#reset();
    const id = this.id;
    this.follower = new Follower(id, {
      onFrames: (frames) => this.#take(frames),
      onState: (state, detail) => this.#state(state, detail),
    });
    this.follower.run();
    this.#load();
    this.#fold();
    clearInterval(this.timer);
    this.timer = setInterval(() => this.#tick(), 1000);
    this.looked = 0;
    this.#tick();
  }

  // -- what comes in --------------------------------------------------------------------------------------------

  #take(frames) {
    const records = [];
    for (const frame of frames) {
      const record = JSON.parse(frame.data);
      record.raw = rawData(frame.data);
      records.push(record);
      this.cursor = record.cursor;
      if (record.type === "event") {
        this.seen = record.index + 1;
        this.content.event(record.index, record.data);
      } else if (record.type in STATUS) {
        this.terminal = record;
        this.content.end(record.type, record.data);
      }
    }
    this.events.add(records, $("follow").checked);
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = null;
      if (this.id === null) return;
      setText($("tab-count"), this.seen ? count(this.seen) : "");
      this.#facts();
      this.#toEnd();
    });
    if (document.hidden) {
      cancelAnimationFrame(this.drawing); // it would not come
      this.drawing = null;
    }
  }

  #state(state, detail) {
    this.link = state;
    if (state === "open") {
      this.live = true;
      this.onLink("open");
      this.#clearNote("link");
    } else if (state === "waiting") {
      this.onLink("waiting");
      this.#note("warn", "The connection was lost. Connecting again; nothing will be missing.", "link");
    } else if (state === "ended") {
      this.#ended();
    } else if (state === "refused") {
      this.#refused(detail);
    }
    this.#facts();
  }

  #ended() {
    this.#clearNote("link");
    this.onLink("open");
    const end = this.terminal;
    if (end) {
      this.status = STATUS[end.type];
      say(`Job ${this.id}: ${statusWord(this.status)}`);
    }
    this.#load();
    this.#fold();
  }

  #refused(problem) {
    this.onLink("open");
    const again = (label) => h("button", { type: "button", onclick: () => this.#begin() }, label);
    if (problem.status === 401 || problem.status === 403) {
      this.#note("bad", "You may not see this job.");
      if (problem.status === 401) this.onRefused(problem);
    } else if (problem.status === 404) {
      this.#note("bad", "There is no such job, or not any more: ended jobs leave after a while.");
    } else if (problem.status === 409) {
      this.#note("warn", "A newer turn of this job has begun; what is shown is the one before. ", "turn", again("Show the newest"));
    } else if (problem.status === 410) {
      this.#note("warn", "Events that come next are not in the log any more. ", "lost", again("Begin with what is left"));
    } else {
      this.#note("bad", `The gateway refused to go on: ${problem.message} `, "refused", again("Try again"));
    }
  }

  async #load() {
    const id = this.id;
    try {
      const job = await json(streamPath(id));
      if (id !== this.id) return;
      this.job = job;
      this.status = job.status;
      drawRecord($("panel-record"), job);
    } catch (error) {
      if (id !== this.id) return;
      if (error.status === 401) this.onRefused(error);
    }
    this.#facts();
  }

  async #fold() {
    const id = this.id;
    try {
      const state = await json(streamPath(id, "/state"));
      if (id !== this.id || !state.aggregatedContent?.length) return;
      this.content.fold(state.aggregatedContent, Number(state.cursor.split("-")[1]));
      if (this.terminal) this.content.end(this.terminal.type, this.terminal.data);
      this.#toEnd();
    } catch {
      // The stream says what is wrong; the content read out of the events stays.
    }
  }

  async #tick() {
    const now = performance.now();
    if (this.live) this.content.caughtUp();
    this.#facts();
    if (ENDED.includes(this.status) || document.hidden || now - this.looked < LOOK) return;
    this.looked = now;
    const id = this.id;
    try {
      const found = await json(`streams?activity=1&id=${encodeURIComponent(id)}`);
      if (id !== this.id) return;
      this.row = found.jobs[0] ?? null;
      if (this.row?.events !== undefined) this.rates.add(this.row.generation, this.row.events, this.row.age);
      this.now = found.now - Date.now();
    } catch {
      this.row = null; // who may see a job need not be somebody who may list
    }
  }

  // -- drawing --------------------------------------------------------------------------------------------------

  #facts() {
    const { job, row } = this;
    if (this.id === null) return;
    const status = this.status ?? "";
    $("job-status").replaceChildren(status ? badge(status, job?.endReason ?? this.terminal?.endReason) : "");
    const running = Boolean(job) && !ENDED.includes(status);
    $("abort").hidden = !running;
    if (!job) return;
    const now = Date.now() + (this.now ?? 0);
    const speed = this.rates.of(job.generation);
    const facts = [
      ["User", foreign(job.userId)],
      ["Started", h("time", { title: clock(job.createdAt) }, `${span(now - job.createdAt)} ago`)],
      running ? null : ["Took", span((job.completedAt ?? job.createdAt) - job.createdAt)],
      ["Events", `${count(this.seen)}${running && speed !== null ? ` · ${rate(speed)}/s` : ""}`],
      running ? ["Viewers", h("span", { title: "On all replicas, this page included" }, count(row?.viewers))] : null,
      job.model ? ["Model", foreign(job.model)] : null,
      job.tenantId ? ["Tenant", foreign(job.tenantId)] : null,
      running ? ["Owner", h("code", {}, foreign(job.owner ?? "nobody"))] : null,
      ["Cursor", h("code", { id: "cursor" }, this.cursor ?? "–"), this.cursor ? copier(() => this.cursor, "the cursor") : null],
    ];
    const drawn = facts.filter(Boolean).map(([name, ...value]) => h("div", {}, h("dt", {}, name), h("dd", {}, ...value)));
    if (document.activeElement?.closest("#facts") || getSelection()?.anchorNode?.parentElement?.closest?.("#facts")) {
      setText($("cursor") ?? h("i"), this.cursor ?? "–"); // do not pull away what somebody is about to copy
      return;
    }
    $("facts").replaceChildren(...drawn);
  }

  #note(kind, text, name = "problem", ...more) {
    this.#clearNote(name);
    $("job-notes").append(h("p", { class: `note ${kind}`, "data-name": name }, text, ...more));
    if (name !== "usage") say(text); // it comes with another note, which is what is to be heard
  }

  #clearNote(name) {
    for (const old of $("job-notes").querySelectorAll(`[data-name="${name}"]`)) old.remove();
  }

  show(tab) {
    this.tab = tab;
    for (const one of TABS) {
      const chosen = one === tab;
      $(`tab-${one}`).setAttribute("aria-selected", String(chosen));
      $(`tab-${one}`).tabIndex = chosen ? 0 : -1;
      $(`panel-${one}`).hidden = !chosen;
    }
    this.#toEnd();
  }

  #arrow(event, tab) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length];
    this.show(next);
    $(`tab-${next}`).focus();
  }

  #scroller() {
    const pane = $("job");
    return pane.scrollHeight > pane.clientHeight && getComputedStyle(pane).overflowY === "auto" ? pane : document.scrollingElement;
  }

  #toEnd() {
    if (!$("follow").checked || this.tab === "record" || !this.follower || this.terminal) return;
    const scroller = this.#scroller();
    scroller.scrollTop = scroller.scrollHeight;
  }

  /** Whoever scrolls up wants to read there; whoever comes back to the end wants to follow. */
  #scrolled() {
    if (this.id === null) return;
    requestAnimationFrame(() => {
      const at = this.#scroller();
      $("follow").checked = at.scrollHeight - at.scrollTop - at.clientHeight < 60;
    });
  }

  // -- abort ----------------------------------------------------------------------------------------------------

  askAbort() {
    if ($("abort").hidden || $("abort-dialog").open) return;
    $("abort-id").replaceChildren(foreign(this.id));
    $("abort-problem").hidden = true;
    $("abort-dialog").showModal();
    $("abort-no").focus();
  }

  async #abort() {
    const { id, job } = this;
    $("abort-yes").disabled = true;
    try {
      const body = JSON.stringify({ generation: job.generation });
      const result = await json(streamPath(id, "/abort"), { method: "POST", body, headers: { "Content-Type": "application/json" } });
      $("abort-dialog").close();
      if (id !== this.id) return;
      const how = result.acknowledged ? "Its owner confirmed that the work has stopped." : "Its owner has not confirmed; the job has ended all the same.";
      this.#note("good", `Aborted. ${how}`, "aborted");
      if (result.collectedUsage?.length) {
        const usage = JSON.stringify(result.collectedUsage, null, 2);
        const why = "This abort has claimed the usage below. Nobody else gets it again: bill it. ";
        this.#note("warn", why, "usage", copier(() => usage, "the usage"), h("pre", {}, usage));
      }
    } catch (error) {
      setText($("abort-problem"), `It was not aborted: ${error.message}`);
      $("abort-problem").hidden = false;
    } finally {
      $("abort-yes").disabled = false;
    }
  }
}
