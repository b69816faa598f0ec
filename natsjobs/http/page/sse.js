// Follows one job. `EventSource` cannot send a token, so this reads the same stream through `fetch`, and does what
// `EventSource` does: connects again with the id of the last event, and stops at the end.

import { refusal, request, streamPath } from "./api.js";

const SILENCE = 40_000; // the gateway breaks silence after 15 s at most: by then the connection is dead
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 10_000;
const SLICE = 8; // milliseconds of work before the browser gets a turn

/** Text in pieces of any size to frames of {id, event, data}; an unfinished frame at the end of a response is void. */
export class FrameParser {
  #line = "";
  #afterReturn = false;
  #frame = { id: null, event: "message", data: [] };

  *feed(text) {
    if (this.#afterReturn && text.startsWith("\n")) text = text.slice(1);
    this.#afterReturn = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop();
    for (const line of lines) {
      const frame = this.#take(line);
      if (frame) yield frame;
    }
  }

  #take(line) {
    if (line === "") {
      const { id, event, data } = this.#frame;
      this.#frame = { id: null, event: "message", data: [] };
      return data.length ? { id, event, data: data.join("\n") } : null;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return null;
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "data") this.#frame.data.push(value);
    else if (name === "id" && !value.includes("\0")) this.#frame.id = value;
    else if (name === "event") this.#frame.event = value;
    return null;
  }
}

/** Calls `onFrames(frames)` in order, `onState(state, detail)` with connecting, open, waiting, ended or refused. */
export class Follower {
  #stopped = false;
  #abort = new AbortController();
  #wake = () => {};
  #online = () => this.#wake();
  cursor = null;

  constructor(id, { onFrames, onState }) {
    Object.assign(this, { id, onFrames, onState });
    addEventListener("online", this.#online);
  }

  stop() {
    this.#stopped = true;
    removeEventListener("online", this.#online);
    this.#abort.abort();
    this.#wake();
  }

  async run() {
    let pause = FIRST_PAUSE;
    while (!this.#stopped) {
      this.onState("connecting");
      const before = this.cursor;
      const after = await this.#connect();
      if (this.#stopped || after === "over") return;
      pause = this.cursor !== before ? FIRST_PAUSE : Math.min(pause * 2, LONGEST_PAUSE);
      this.onState("waiting", { seconds: pause / 1000 });
      await this.#sleep(pause * (0.8 + 0.4 * Math.random()));
    }
  }

  #sleep(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  async #connect() {
    const attempt = new AbortController();
    const giveUp = () => attempt.abort();
    this.#abort.signal.addEventListener("abort", giveUp);
    let silence = setTimeout(giveUp, SILENCE);
    try {
      // Without `Accept: text/event-stream`, which would hide a status that passes, for the sake of `EventSource`.
      const headers = this.cursor ? { "Last-Event-ID": this.cursor } : {};
      const response = await request(streamPath(this.id, "/events"), { headers, signal: attempt.signal });
      if (this.#stopped) return "over";
      if (response.status === 204) return this.#over("ended");
      if (!response.ok) {
        if (response.status === 429 || response.status >= 500) return "again";
        return this.#over("refused", await refusal(response));
      }
      this.onState("open");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new FrameParser();
      for (;;) {
        const { done, value } = await reader.read();
        if (done || this.#stopped) return "again";
        clearTimeout(silence);
        silence = setTimeout(giveUp, SILENCE);
        if (await this.#hand(parser.feed(value))) return this.#over("ended");
      }
    } catch (error) {
      if (error.name !== "AbortError" && !(error instanceof TypeError)) console.error(error);
      return "again"; // the connection broke
    } finally {
      clearTimeout(silence);
      this.#abort.signal.removeEventListener("abort", giveUp);
      giveUp();
    }
  }

  /** Hand on the frames, in slices; true: that was the end. */
  async #hand(frames) {
    let batch = [];
    let until = performance.now() + SLICE;
    let over = false;
    for (const frame of frames) {
      batch.push(frame);
      this.cursor = frame.id ?? this.cursor;
      over ||= ["done", "error", "aborted"].includes(frame.event);
      if (performance.now() > until) {
        this.onFrames(batch);
        batch = [];
        await new Promise((resolve) => setTimeout(resolve));
        if (this.#stopped) return true;
        until = performance.now() + SLICE;
      }
    }
    if (batch.length && !this.#stopped) this.onFrames(batch);
    return over;
  }

  #over(state, detail) {
    if (!this.#stopped) this.onState(state, detail);
    this.stop();
    return "over";
  }
}
