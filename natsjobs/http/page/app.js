// The page: which view is shown (the address says it), keys, dialogs, and how the gateway is doing.

import { token } from "./api.js";
import { $, say, setText } from "./dom.js";
import { JobView } from "./job.js";
import { ListView } from "./list.js";

const LINK = { busy: "Connecting…", open: "Live", waiting: "Reconnecting…" };
const KEYS = "natsjobs-keys";

function onLink(state) {
  if ($("link").dataset.state === state) return;
  $("link").dataset.state = state;
  setText($("link-text"), LINK[state]);
  if (state === "waiting") say("The connection to the gateway was lost");
}

function onRefused(error) {
  if (error.status !== 401 || $("token-dialog").open || asked === token.get()) return;
  asked = token.get(); // once per token: whoever closes the dialog is left in peace
  setText($("token-why"), token.get() ? "The gateway does not know this token." : "This gateway wants to know who you are. The token stays in this tab.");
  openToken();
}

let asked = null;
const list = new ListView({ onRefused, onLink, onFilter: () => history.replaceState(null, "", list.link(job.id)) });
const job = new JobView({ onRefused, onLink });

// -- the address ------------------------------------------------------------------------------------------------------

function route() {
  const [path, query = ""] = location.hash.slice(1).split("?");
  const wanted = new URLSearchParams(query);
  const offset = Number.parseInt(wanted.get("offset") ?? "0", 10);
  list.set({
    status: wanted.get("status") ?? "",
    q: wanted.get("q") ?? "",
    offset: Number.isSafeInteger(offset) && offset > 0 ? offset : 0,
  });
  let id = null;
  try {
    id = path.startsWith("/job/") ? decodeURIComponent(path.slice(5)) || null : null;
  } catch {
    // Not an address of ours.
  }
  const before = job.id;
  document.body.classList.toggle("has-job", id !== null);
  if (id === null) job.close();
  else job.open(id);
  list.mark(id);
  document.title = id === null ? "natsjobs" : `${id} · natsjobs`;
  if (id === null && before !== null) {
    const row = [...list.rows].find(([name]) => name === before)?.[1];
    (row?.link ?? $("list")).focus();
  }
}

addEventListener("hashchange", route);

// -- dialogs ----------------------------------------------------------------------------------------------------------

function openToken() {
  $("token").value = token.get();
  $("token-dialog").showModal();
  $("token").focus();
}

function useToken(value) {
  token.set(value.trim());
  $("token-dialog").close();
  showToken();
  asked = null;
  list.refresh();
  const id = job.id;
  if (id !== null) {
    job.close();
    job.open(id);
  }
}

function showToken() {
  setText($("open-token"), token.get() ? "Token ✓" : "Token");
  $("open-token").setAttribute("aria-label", token.get() ? "Bearer token: given" : "Bearer token: none");
}

$("open-token").addEventListener("click", () => {
  setText($("token-why"), "Sent as Authorization: Bearer … to this gateway only. It stays in this tab and is forgotten when the tab is closed.");
  openToken();
});
$("token-use").addEventListener("click", () => useToken($("token").value));
$("token-forget").addEventListener("click", () => useToken(""));
$("token-close").addEventListener("click", () => $("token-dialog").close());
$("token").addEventListener("keydown", (event) => {
  if (event.key === "Enter") useToken($("token").value);
});
$("open-help").addEventListener("click", () => $("help-dialog").showModal());
$("help-close").addEventListener("click", () => $("help-dialog").close());

// -- keys -------------------------------------------------------------------------------------------------------------

const KEY_ACTIONS = {
  "/": () => $("search").focus(),
  "?": () => $("help-dialog").showModal(),
  j: () => list.move(1),
  k: () => list.move(-1),
  c: () => job.id !== null && job.show("content"),
  e: () => job.id !== null && job.show("events"),
  r: () => job.id !== null && job.show("record"),
  f: () => job.id !== null && $("follow").click(),
  a: () => job.id !== null && job.askAbort(),
};
for (let number = 0; number <= 4; number++) KEY_ACTIONS[number] = () => list.setStatus(number);

$("keys-on").checked = localStorage.getItem(KEYS) !== "off";
$("keys-on").addEventListener("change", () => localStorage.setItem(KEYS, $("keys-on").checked ? "on" : "off"));

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest?.("input:not([type=checkbox]), textarea");
  if (event.key === "Escape") {
    if (typing) typing.blur();
    else if (job.id !== null) location.hash = list.link(null).slice(1);
    return;
  }
  if (typing || !$("keys-on").checked || !Object.hasOwn(KEY_ACTIONS, event.key)) return;
  event.preventDefault();
  KEY_ACTIONS[event.key]();
});

showToken();
route();
list.refresh();
