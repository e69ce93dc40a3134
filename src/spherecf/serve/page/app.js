// Login and tabs of the page. The views are in views.js.

import { call, keepToken, takeToken } from "./service.js";
import { views } from "./views.js";

const byId = id => document.getElementById(id);

function login(problem) {
  byId("login").hidden = false;
  document.querySelector("[role=tablist]").hidden = true;
  for (const panel of document.querySelectorAll("[role=tabpanel]")) panel.hidden = true;
  byId("login-problem").textContent = problem;
  byId("token").focus();
}

byId("login").addEventListener("submit", event => {
  event.preventDefault();
  keepToken(byId("token").value.trim());
  byId("token").value = "";
  start();
});

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(tab, focus = false) {
  for (const other of tabs) {
    const selected = other === tab;
    other.setAttribute("aria-selected", selected);
    other.tabIndex = selected ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !selected;
  }
  if (focus) tab.focus();
}

for (const tab of tabs) tab.addEventListener("click", () => show(tab));
document.querySelector("[role=tablist]").addEventListener("keydown", event => {
  const current = tabs.indexOf(document.activeElement);
  const target = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (target === undefined || current < 0) return;
  event.preventDefault();
  show(tabs[(target + tabs.length) % tabs.length], true);
});

// Without this, the browser would open a photo that is dropped outside the drop zones.
for (const name of ["dragover", "drop"]) addEventListener(name, event => event.preventDefault());

let connected = false;
async function start() {
  try {
    const info = await call("GET", "info");
    byId("login").hidden = true;
    document.querySelector("[role=tablist]").hidden = false;
    show(tabs.find(tab => tab.getAttribute("aria-selected") === "true"));
    if (!connected) for (const view of views) view(info);
    connected = true;
    for (const panel of document.querySelectorAll("[role=tabpanel]")) panel.inert = false; // the views are ready
  } catch (error) {
    if (!byId("login").hidden) return;
    const status = document.querySelector("#quality .status");
    status.classList.add("problem");
    status.textContent = error.message;
  }
}

takeToken();
addEventListener("no-token", event => login(event.detail));
addEventListener("hashchange", () => { takeToken(); start(); });
start();
