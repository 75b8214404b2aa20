// The tabs, and what they begin with.

import { get, guarded } from "/page/ask.js";
import { startSegment } from "/page/segment.js";
import { startClassify } from "/page/classify.js";
import { startSearch } from "/page/search.js";

const tabs = [...document.querySelectorAll('[role="tab"]')];

export function openTab(name) {
  for (const tab of tabs) {
    const chosen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  document.dispatchEvent(new CustomEvent("tab", { detail: name }));
}

tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => openTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    openTab(next.getAttribute("aria-controls"));
    next.focus();
    event.preventDefault();
    event.stopPropagation();
  });
});

guarded(async () => {
  const [state, folder] = await Promise.all([get("/page/state"), get("/page/folder")]);
  startClassify(state, folder);
  startSearch(state, folder, openTab);
  await startSegment(state, folder);
  document.body.dataset.ready = "yes";
})();
