// Chats of the playground: streams of one or two versions, with their tokens and times.
"use strict";

const form = document.getElementById("chat");
const field = (id) => document.getElementById(id);
const panels = [0, 1].map((number) => ({ root: field(`chat-${number}`), version: field(`version-${number}`), messages: [] }));
let stopping = null;

const figure = (panel, name, text) => { panel.root.querySelector(`[data-figure=${name}]`).textContent = text; };
const duration = (ms) => (ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`);

// Text only: an answer is never read as HTML.
const show = (panel, role, text) => {
  const message = document.createElement("div");
  message.className = `message ${role}`;
  const who = document.createElement("strong");
  who.textContent = role === "user" ? "You" : panel.root.querySelector("h2").textContent;
  const body = document.createElement("p");
  body.textContent = text;
  message.append(who, body);
  const log = panel.root.querySelector(".messages");
  log.append(message);
  log.scrollTop = log.scrollHeight;
  return body;
};

const problem = (panel, text) => {
  const place = panel.root.querySelector(".problem");
  place.textContent = text;
  place.hidden = !text;
};

// The data of each event of a stream, without its end.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    waiting += done ? "\n\n" : value;
    const parts = waiting.split(/\r?\n\r?\n/);
    waiting = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
    if (done) return;
  }
}

const failure = async (response) => {
  const text = await response.text();
  try { return JSON.parse(text).error.message; } catch { return text || `HTTP status ${response.status}`; }
};

const ask = async (panel, signal) => {
  const messages = panel.messages; // a new chat has others
  const body = new URLSearchParams({
    csrf_token: form.elements.csrf_token.value,
    key: field("key").value,
    version: panel.version.value,
    messages: JSON.stringify(messages),
    max_tokens: field("max-tokens").value,
    temperature: field("temperature").value,
  });
  for (const name of ["first", "rate", "input", "output"]) figure(panel, name, "-");
  const began = performance.now();
  const place = show(panel, "assistant", "");
  const log = panel.root.querySelector(".messages");
  let text = "", first = null, last = null, pieces = 0, usage = null;
  const rate = (tokens) => { if (tokens > 1 && last > first) figure(panel, "rate", ((tokens - 1) / (last - first) * 1000).toFixed(1)); };
  try {
    const response = await fetch(form.action, { method: "POST", body, signal });
    if (!response.ok) throw new Error(await failure(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message || "the answer was cut");
      usage = event.usage || usage;
      const delta = event.choices?.[0]?.delta ?? {};
      const piece = delta.content || delta.reasoning_content || "";
      if (!piece) continue;
      last = performance.now();
      pieces += 1;
      if (first === null) { first = last; figure(panel, "first", duration(first - began)); }
      text += piece;
      const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      place.textContent = text;
      if (follows) log.scrollTop = log.scrollHeight;
      figure(panel, "output", pieces);
      rate(pieces);
    }
    if (usage) {
      figure(panel, "input", usage.prompt_tokens);
      figure(panel, "output", usage.completion_tokens);
      rate(usage.completion_tokens);
    }
  } catch (error) {
    if (messages === panel.messages) problem(panel, signal.aborted ? "Stopped." : error.message);
  }
  if (text) {
    messages.push({ role: "assistant", content: text });
  } else {
    messages.pop(); // the next message does not follow one without an answer
    place.parentElement.remove();
  }
  return text;
};

const arrange = () => {
  panels[1].root.hidden = panels[1].version.value === "none";
  for (const { root, version } of panels) {
    root.querySelector("h2").textContent = version.selectedOptions[0].textContent;
  }
};

const clear = () => {
  stopping?.abort();
  for (const panel of panels) {
    panel.messages = [];
    panel.root.querySelector(".messages").replaceChildren();
    problem(panel, "");
    for (const name of ["first", "rate", "input", "output"]) figure(panel, name, "-");
  }
};

const setBusy = (isBusy) => {
  field("send").disabled = isBusy;
  field("stop").disabled = !isBusy;
};

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (stopping) return;
  const prompt = field("prompt").value;
  const system = field("system").value.trim();
  const shown = panels.filter((panel) => !panel.root.hidden);
  for (const panel of shown) {
    problem(panel, "");
    if (system && !panel.messages.length) panel.messages.push({ role: "system", content: system });
    panel.messages.push({ role: "user", content: prompt });
    show(panel, "user", prompt);
  }
  field("prompt").value = "";
  const own = stopping = new AbortController();
  setBusy(true);
  const answers = await Promise.all(shown.map((panel) => ask(panel, own.signal)));
  document.getElementById("say").textContent = answers.filter(Boolean).join(". ").slice(0, 1000);
  stopping = null;
  setBusy(false);
  field("prompt").focus();
});
field("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
field("stop").addEventListener("click", () => stopping?.abort());
field("clear").addEventListener("click", clear);
for (const { version } of panels) version.addEventListener("change", () => { clear(); arrange(); });
arrange();
