// Events per second, from counts that are looked at now and then: the server counts, so a replay adds nothing.

const WINDOW = 12_000;
const APART = 500; // two counts closer than this are one: answers are kept for a while by the gateway
const MOST = 1000;

export class Rates {
  #samples = new Map();

  /** `age`: how many seconds ago there were that many events. */
  add(key, events, age) {
    const at = performance.now() - age * 1000;
    const known = this.#samples.get(key) ?? [];
    if (!known.length || at - known.at(-1).at > APART) known.push({ at, events });
    while (known.length > 2 && at - known[0].at > WINDOW) known.shift();
    this.#samples.delete(key);
    this.#samples.set(key, known);
    if (this.#samples.size > MOST) this.#samples.delete(this.#samples.keys().next().value);
  }

  /** `null` before there are two counts. */
  of(key) {
    const known = this.#samples.get(key) ?? [];
    if (known.length < 2) return null;
    const [first, last] = [known[0], known.at(-1)];
    return Math.max(0, ((last.events - first.events) * 1000) / (last.at - first.at));
  }
}
