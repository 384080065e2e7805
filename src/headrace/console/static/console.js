// Live updates, copy buttons and theme switch of the console's pages.
"use strict";

const byId = (id) => document.getElementById(id);

// Theme.

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (systemIsDark.matches ? "dark" : "light")) === "dark";

const setUpTheme = (button) => {
  const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("headrace-theme", theme); } catch { /* for this page only */ }
    label();
  });
  systemIsDark.addEventListener("change", label);
  label();
  button.hidden = false;
};

// Copy buttons. Delegated: live parts add buttons.

const showCopyButtons = (place) => {
  for (const button of place.querySelectorAll(".copy")) button.hidden = !navigator.clipboard;
};
document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
  const text = button.firstChild;
  text.textContent = "Copied";
  setTimeout(() => { text.textContent = "Copy"; }, 1500);
});

// Live parts.

const isSelectedIn = (place) => {
  const selection = getSelection();
  return selection && !selection.isCollapsed && place.contains(selection.anchorNode);
};

const nameOf = (element) => {
  if (element.id) return `#${CSS.escape(element.id)}`;
  const link = element.getAttribute("href");
  return link ? `a[href="${CSS.escape(link)}"]` : null;
};

// The new part takes over what the visitor did to the old one: opened, scrolled, focused.
const put = (place, html) => {
  const next = place.cloneNode(false);
  next.innerHTML = html;
  showCopyButtons(next);
  for (const one of place.querySelectorAll("details[open][id]")) {
    next.querySelector(`#${CSS.escape(one.id)}`)?.setAttribute("open", "");
  }
  if (next.isEqualNode(place)) return;
  const held = place.contains(document.activeElement) ? document.activeElement : null;
  const heldName = held && nameOf(held);
  const scrolls = [...place.querySelectorAll(".scroll")];
  const scrolled = scrolls.map((one) => one.scrollLeft);
  const heldScroll = scrolls.indexOf(held);
  place.replaceChildren(...next.childNodes);
  const newScrolls = [...place.querySelectorAll(".scroll")];
  newScrolls.forEach((one, i) => { one.scrollLeft = scrolled[i] || 0; });
  const again = heldName ? place.querySelector(heldName) : newScrolls[heldScroll];
  again?.focus({ preventScroll: true });
};

const setUpLive = (page) => {
  const state = byId("live-state");
  const pause = byId("pause");
  const say = byId("say");
  const waiting = new Map();
  let said = null;
  let source = null;

  const show = (name, text) => { state.dataset.state = name; state.textContent = text; };
  let isPressed = false;
  const apply = () => {
    if (isPressed) return; // a click on what is replaced meanwhile would be lost
    for (const [part, html] of waiting) {
      const place = document.querySelector(`[data-live="${CSS.escape(part)}"]`);
      if (place && isSelectedIn(place)) continue; // the user is copying from it
      waiting.delete(part);
      if (place) put(place, html);
    }
  };
  const open = () => {
    source = new EventSource(`/live?page=${encodeURIComponent(page)}`);
    source.addEventListener("open", () => show("on", "Live"));
    source.addEventListener("error", () => show("off", source.readyState === EventSource.CLOSED ? "Disconnected: reload the page" : "Connecting"));
    source.addEventListener("gone", () => { source.close(); show("off", "Disconnected: reload the page"); });
    source.addEventListener("part", (event) => {
      const { part, html } = JSON.parse(event.data);
      if (part === "say") {
        if (said !== null && said !== html) say.textContent = html;
        said = html;
        return;
      }
      waiting.set(part, html);
      apply();
    });
  };
  document.addEventListener("selectionchange", apply);
  addEventListener("pointerdown", () => { isPressed = true; });
  for (const end of ["pointerup", "pointercancel"]) {
    addEventListener(end, () => { isPressed = false; setTimeout(apply); });
  }
  pause.addEventListener("click", () => {
    const isPaused = pause.getAttribute("aria-pressed") === "true";
    pause.setAttribute("aria-pressed", String(!isPaused));
    pause.textContent = isPaused ? "Pause updates" : "Resume updates";
    if (isPaused) { open(); } else { source.close(); show("off", "Paused"); }
  });
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => { if (event.persisted && pause.getAttribute("aria-pressed") !== "true") open(); });
  pause.hidden = false;
  show("off", "Connecting");
  open();
};

setUpTheme(byId("theme"));
showCopyButtons(document);
if (document.body.dataset.livePage) setUpLive(document.body.dataset.livePage);
