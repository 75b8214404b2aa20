// Labels that are typed in, the classifier's own, and where each looks.

import { guarded, onFile, post, send, shown } from "/page/ask.js";
import { showConfusion } from "/page/confusion.js";
import { View } from "/page/view.js";

const by = (id) => document.getElementById(id);
const TEMPLATES = [["a {}", "a …"], ["{}", "the label alone"], ["a photo of a {}.", "a photo of a …"], ["imagenet-simple", "7 of ImageNet's"], ["imagenet", "80 of ImageNet's"]];

export function startClassify(state, folder) {
  const view = new View(by("classify-canvas"));
  let labels = state.clip.texts ? state.clip.labels.slice(0, 12) : [], id = null, opened = false, turn = 0;

  by("label-form").hidden = by("sentences").hidden = !state.clip.texts;
  by("fixed").hidden = state.clip.texts;
  if (!state.clip.texts) by("words-title").textContent = `The labels of ${state.clip.name}`;
  by("known").hidden = !state.folder.own;
  by("classify-name").textContent = state.classify.name;
  by("template").append(...TEMPLATES.map(([value, text]) => new Option(text, value)));
  for (const [model, name] of [["classify", "the classifier"], ["clip", "CLIP"]]) {
    if (state[model].attention) by("attention").append(new Option(name, model));
  }
  by("level-label").hidden = !state.classify.levels.length;
  by("level").append(new Option("off", ""), ...[0.8, 0.9, 0.95].filter((p) => p <= Math.max(0, ...state.classify.levels)).map((p) => new Option(`${100 * p} % of the time`, p)));
  by("level").value = [...by("level").options].some((option) => option.value === "0.9") ? "0.9" : "";

  const show = guarded(async (picture) => {
    id = picture.id;
    const image = await shown(id);
    if (id !== picture.id) return; // another was asked for meanwhile
    view.show(image, picture.width, picture.height);
    view.draw([], null);
    await Promise.all([answer(), words(), look()]);
  });

  const answer = guarded(async () => {
    const where = id, level = by("level").value;
    if (!where) return;
    const { answers } = await post(`/v1/classify?picture=${id}&top=5`);
    const set = level ? (await post(`/v1/classify?picture=${id}&sets=${level}`)).answers : [];
    if (where !== id) return;
    bars(by("answers"), answers, new Set(set.map((a) => a.label)));
    by("set").textContent = set.length ? `The set: ${set.map((a) => a.label).join(", ")}` : "";
  });

  const words = guarded(async () => {
    const mine = ++turn;
    if (!id) return;
    if (state.clip.texts && !labels.length) { by("zeroshot").replaceChildren(); return; }
    const query = new URLSearchParams({ picture: id, top: 8 });
    if (state.clip.texts) { query.set("template", by("template").value); query.set("multi_label", by("each").checked); }
    labels.forEach((label) => query.append("label", label));
    const { answers } = await post(`/v1/zeroshot?${query}`);
    if (mine === turn) bars(by("zeroshot"), answers, new Set());
  });

  const look = guarded(async () => {
    const model = by("attention").value, where = id;
    if (!model || !where) { view.draw([], null); return; }
    const { seen, heat } = await post(`/v1/attention?picture=${id}&model=${model}`);
    const image = new Image();
    image.src = seen;
    await image.decode();
    if (where !== id) return;
    const { canvas, context } = view;
    context.imageSmoothingEnabled = true;
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 0.6;
    context.drawImage(heatCanvas(heat), 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
  });

  function chips() {
    by("labels").replaceChildren(...labels.map((label) => {
      const item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      const text = document.createElement("bdi"); // a label may turn the reading direction
      text.textContent = label;
      button.append(text, " ✕");
      button.setAttribute("aria-label", `Remove the label ${label}`);
      button.addEventListener("click", () => { labels = labels.filter((other) => other !== label); chips(); words(); });
      item.append(button);
      return item;
    }));
  }

  by("label-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const label = by("label").value.trim();
    if (!label) return;
    if (!labels.some((other) => other.toLowerCase() === label.toLowerCase())) labels.unshift(label);
    by("label").value = "";
    chips();
    words();
  });
  by("template").addEventListener("change", words);
  by("each").addEventListener("change", words);
  by("attention").addEventListener("change", look);
  by("level").addEventListener("change", answer);
  onFile(by("classify-file"), by("classify"), guarded(async (file) => show(await send(file))));

  const open = guarded(async (index) => show(await post(`/page/folder/${index}/open`)));
  const choices = samples(folder.pictures);
  by("samples").append(...choices.map((index) => {
    const button = document.createElement("button"), image = document.createElement("img");
    button.type = "button";
    button.setAttribute("aria-label", folder.pictures[index].name);
    image.src = `/page/folder/${index}/thumbnail`; image.alt = "";
    button.append(image);
    button.addEventListener("click", () => open(index));
    return button;
  }));
  chips();
  document.addEventListener("tab", (event) => {
    if (event.detail !== "classify" || opened) return;
    opened = true;
    open(choices[0]);
    showConfusion();
  });
}

/** Some pictures of the folder: those that lie in folders by their kind first. */
function samples(pictures) {
  const all = pictures.map((_, i) => i), digits = all.filter((i) => pictures[i].name.startsWith("digits/"));
  const others = all.filter((i) => !digits.includes(i)), every = Math.floor(others.length / 8);
  const named = others.filter((i) => /^shapes\/(red-star|green-circle)/.test(pictures[i].name));  // by the first labels
  return [...named, ...digits.slice(2, 6), ...others.filter((_, i) => i % (every + 1) === every).slice(0, 8)];
}

function bars(list, answers, set) {
  list.replaceChildren(...answers.map(({ label, probability }) => {
    const row = document.createElement("li"), name = document.createElement("bdi"), value = document.createElement("span");
    const meter = document.createElement("meter");
    name.textContent = label;
    value.textContent = `${(100 * probability).toFixed(1)} %`;
    meter.value = probability;
    meter.setAttribute("aria-hidden", "true");
    row.className = set.has(label) ? "in-set" : "";
    row.append(name, value, meter);
    return row;
  }));
}

/** From blue, seldom looked at, to yellow. */
function heatCanvas(heat) {
  const canvas = document.createElement("canvas"), values = heat.flat(), low = Math.min(...values), high = Math.max(...values);
  canvas.width = heat[0].length;
  canvas.height = heat.length;
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  values.forEach((value, i) => {
    const t = (value - low) / (high - low || 1);
    image.data.set([Math.round(40 + 215 * t), Math.round(20 + 200 * t * t), Math.round(140 * (1 - t)), 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}
