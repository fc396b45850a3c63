// Autosave, time on task, keys, plain text. Without scripts every button still works: it posts the same form.

const form = document.querySelector("#work");
const status = document.querySelector("#status");
const conflict = document.querySelector("#conflict");
const field = (name) => form.elements.namedItem(name);

/* ---- time: what passes while the page is seen and somebody did something in the last minute ---- */

const IDLE = 60_000;
let worked = 0; // milliseconds since the last save
let total = Number(form.dataset.seconds) * 1000;
let lastTick = performance.now();
let lastSign = performance.now();

function tick() {
  const now = performance.now();
  const passed = now - lastTick;
  if (!document.hidden && now - lastSign < IDLE && passed < 5_000) {
    worked += passed;
    total += passed;
  }
  lastTick = now;
  const seconds = Math.round(total / 1000);
  const minutes = Math.floor(seconds / 60);
  document.querySelector("#clock").textContent = minutes ? `${minutes} min ${String(seconds % 60).padStart(2, "0")} s` : `${seconds} s`;
}
setInterval(tick, 1000);
for (const sign of ["pointerdown", "keydown", "scroll", "pointermove"]) {
  addEventListener(sign, () => { lastSign = performance.now(); }, { passive: true });
}

/* ---- autosave: one request at a time; what changed meanwhile goes with the next ---- */

const PAUSE = 350;
let dirty = false;
let timer = null;
let sending = null; // the promise of the request under way
let retry = 1_000;

function say(text, kind = "") {
  status.textContent = text;
  status.className = `status ${kind}`;
}

function changed() {
  dirty = true;
  say("Saving …", "waiting");
  clearTimeout(timer);
  timer = setTimeout(flush, PAUSE);
}

function post() {
  return fetch(form.dataset.draft, {
    method: "POST",
    body: new URLSearchParams(new FormData(form)),
    headers: { accept: "application/json" },
    redirect: "error",
    signal: AbortSignal.timeout(20_000),
  });
}

// Forms are bound to the browser's cookie. After a new sign-in in another tab there is a new one, which this page then uses.
async function renewed() {
  const page = await fetch(location.href, { signal: AbortSignal.timeout(20_000) });
  const csrf = /name="csrf" value="(\w+)"/.exec(await page.text())?.[1];
  if (!csrf || csrf === field("csrf").value) return false;
  for (const each of document.querySelectorAll("input[name=csrf]")) each.value = csrf;
  return true;
}

function writeTime() {
  tick();
  field("seconds").value = (worked / 1000).toFixed(1);
  return worked;
}

async function send() {
  const spent = writeTime();
  if (!field("nonce").value) field("nonce").value = crypto.randomUUID?.() ?? String(Math.random()).slice(2);
  dirty = false;
  let response, reply;
  let fault = "no connection";
  try {
    response = await post();
    if ([401, 403].includes(response.status) && (await renewed())) response = await post();
    fault = "the server cannot save now";
    if (response.status >= 500) throw new Error(response.statusText);
    reply = await response.json(); // a page, as of a proxy or of a network's own sign-in, is no reply of ours
  } catch {
    dirty = true; // the nonce stays: by it the server knows a save of this page that was stored after all
    say(`Not saved: ${fault}. Trying again …`, "failed");
    clearTimeout(timer);
    timer = setTimeout(flush, retry);
    retry = Math.min(retry * 2, 15_000);
    return false;
  }
  retry = 1_000;
  if (!response.ok) {
    dirty = true; // while it stands no form leaves the page, and closing it asks
    refuse(response.status, reply);
    return false;
  }
  conflict.hidden = true;
  worked -= spent;
  field("nonce").value = "";
  field("seconds").value = "0";
  for (const version of document.querySelectorAll("input[name=version]")) version.value = reply.version;
  document.querySelector("#undo button").disabled = !reply.undo;
  document.querySelector("#redo button").disabled = !reply.redo;
  for (const each of document.querySelectorAll(".problems")) each.textContent = reply.problems.join(" ");
  if (!dirty) say("Saved");
  return true;
}

function refuse(code, reply) {
  say("Not saved", "failed");
  conflict.hidden = false;
  const fix = reply.fix ? `${reply.fix[0].toUpperCase()}${reply.fix.slice(1)}` : "";
  conflict.textContent = [reply.error, fix].filter(Boolean).map((text) => text.replace(/\.?$/, ". ")).join("");
  if (code === 409) {
    const reload = document.createElement("button");
    reload.type = "button";
    reload.textContent = "Load the newer one";
    reload.addEventListener("click", () => { leaving = true; location.reload(); });
    conflict.append(reload);
  }
  conflict.scrollIntoView({ block: "nearest" });
}

async function flush() {
  clearTimeout(timer);
  while (sending) await sending;
  if (!dirty) return true;
  sending = send();
  const fine = await sending;
  sending = null;
  return fine && dirty ? flush() : fine;
}

form.addEventListener("input", changed);
form.addEventListener("change", changed);

/* ---- leaving: forms wait for the draft, and go once; closing the window with something unsaved asks ---- */

let leaving = false;
for (const each of document.querySelectorAll("form[method=post]")) {
  each.addEventListener("submit", async (event) => {
    if (!leaving && !dirty && !sending) {
      leaving = true;
      writeTime(); // read since the last save: what changes nothing is work too
      setTimeout(() => { leaving = false; }, 30_000); // still here: somebody stopped it, and may want to go all the same
      return;
    }
    event.preventDefault();
    const button = event.submitter;
    if (!leaving && (await flush())) each.requestSubmit(button);
  });
}
addEventListener("beforeunload", (event) => {
  if ((dirty || sending) && !leaving) event.preventDefault();
});
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload(); // a page out of the browser's memory has an old version
});
addEventListener("visibilitychange", () => { if (dirty) flush(); }); // gone elsewhere, or back from signing in there

/* ---- keys ---- */

const switchBox = document.querySelector("#single-keys");
switchBox.checked = localStorage.getItem("single-keys") !== "off";
switchBox.addEventListener("change", () => localStorage.setItem("single-keys", switchBox.checked ? "on" : "off"));

const isTyping = (target) => target.matches("textarea, select, input:not([type=radio], [type=checkbox])");

function choose(radio) {
  radio.checked = true;
  radio.dispatchEvent(new Event("change", { bubbles: true }));
}

function answerQuestion(value) {
  const questions = [...document.querySelectorAll("[data-question]")];
  if (!questions.length) return false;
  const inFocus = document.activeElement.closest("[data-question]");
  const current = inFocus ?? questions.find((each) => !each.querySelector("input:checked")) ?? questions[0];
  const radio = current.querySelector(`input[value=${value}]`);
  if (!radio) return false;
  choose(radio);
  const next = questions[questions.indexOf(current) + 1] ?? current;
  (next.querySelector("input:checked") ?? next.querySelector("input")).focus();
  return true;
}

function restNo() {
  for (const question of document.querySelectorAll("[data-question]")) {
    if (!question.querySelector("input:checked")) choose(question.querySelector("input[value=no]"));
  }
  return true;
}

function singleKey(key) {
  if (/^[1-7]$/.test(key)) {
    const verdict = document.querySelectorAll("input[name=verdict]")[Number(key) - 1];
    const rating = document.querySelector(`input[name=rating][value="${key}"]`);
    if (verdict ?? rating) choose(verdict ?? rating);
    return Boolean(verdict ?? rating);
  }
  const answers = { y: "yes", n: "no", a: "na" };
  if (key in answers) return answerQuestion(answers[key]);
  return key === "r" && document.querySelector("#rest-no") ? restNo() : false;
}

addEventListener("keydown", (event) => {
  const ctrl = event.ctrlKey || event.metaKey;
  if (ctrl && event.key === "Enter") {
    event.preventDefault();
    if (!event.repeat) form.requestSubmit(document.querySelector("#go")); // held down, it would go on on the next page
  } else if (ctrl && !isTyping(event.target) && ["z", "y"].includes(event.key.toLowerCase())) {
    const redo = event.key.toLowerCase() === "y" || event.shiftKey;
    event.preventDefault();
    if (!event.repeat) document.querySelector(redo ? "#redo button" : "#undo button").click();
  } else if (event.key === "Enter" && event.target.matches("#work input, #work select")) {
    event.preventDefault(); // it would press the first button of the form
  } else if (event.key === "Escape") {
    for (const menu of document.querySelectorAll("details.menu[open]")) menu.open = false;
  } else if (!ctrl && !event.altKey && switchBox.checked && !isTyping(event.target) && singleKey(event.key)) {
    event.preventDefault();
  }
});

/* ---- small things that need scripts ---- */

const answer = document.querySelector("#completion"); // to write at once, but below a long prompt, which is read first
if (answer && answer.getBoundingClientRect().top < innerHeight) answer.focus({ preventScroll: true });

const rest = document.querySelector("#rest-no");
if (rest) {
  rest.hidden = false;
  rest.addEventListener("click", restNo);
}

const plain = document.querySelector("#plain");
function showPlain(on) {
  document.body.classList.toggle("show-plain", on);
  plain.setAttribute("aria-pressed", String(on));
  localStorage.setItem("plain", on ? "on" : "off");
}
plain.hidden = false;
plain.addEventListener("click", () => showPlain(plain.getAttribute("aria-pressed") !== "true"));
showPlain(localStorage.getItem("plain") === "on");
