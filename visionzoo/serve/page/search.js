// The folder by words, or by a picture.

import { guarded, onFile, post, send } from "/page/ask.js";

const by = (id) => document.getElementById(id);

export function startSearch(state, folder, openTab) {
  let opened = false;
  by("by-words").hidden = !state.clip.texts;
  by("no-words").hidden = state.clip.texts;
  by("query").value = state.folder.own && state.clip.texts ? "a red circle" : "";
  by("query").placeholder = "a red car";

  const find = guarded(async (query, words) => {
    by("found-status").textContent = "looking …";
    try {
      const { found } = await post(`/page/search?${new URLSearchParams(query)}`);
      by("found-status").textContent = `${found.length} of ${folder.pictures.length} pictures, best first: ${words}`;
      by("found").replaceChildren(...found.map(card));
    } catch (error) {
      by("found-status").textContent = "";
      throw error;
    }
  });

  function card({ index, name, score }) {
    const item = document.createElement("li"), button = document.createElement("button");
    const image = document.createElement("img"), text = document.createElement("span");
    button.type = "button";
    image.src = `/page/folder/${index}/thumbnail`; image.alt = ""; image.loading = "lazy";
    text.textContent = `${score.toFixed(3)}  ${name}`;
    button.setAttribute("aria-label", `${name}, similarity ${score.toFixed(3)}; open to segment`);
    button.append(image, text);
    button.addEventListener("click", () => {
      openTab("segment");
      document.dispatchEvent(new CustomEvent("open-picture", { detail: index }));
    });
    item.append(button);
    return item;
  }

  by("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = by("query").value.trim();
    if (text) find({ text }, text);
  });
  onFile(by("search-file"), by("search"), guarded(async (file) => find({ picture: (await send(file)).id }, file.name)));
  document.addEventListener("tab", (event) => {
    if (event.detail !== "search" || opened) return;
    opened = true;
    if (by("query").value) find({ text: by("query").value }, by("query").value);
  });
}
