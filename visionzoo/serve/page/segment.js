// Clicks, boxes and names become masks; every change is saved where the picture is one of the folder.

import { fetched, guarded, json, onFile, post, send, shown } from "/page/ask.js";
import { startEverything } from "/page/everything.js";
import { covers } from "/page/masks.js";
import { Objects, empty } from "/page/objects.js";
import { View } from "/page/view.js";

const by = (id) => document.getElementById(id);
const DRAG = 5; // pixels of the screen that make a drag of a click
const HOLD = 550; // milliseconds that make a long press

export async function startSegment(state, folder) {
  const view = new View(by("canvas"));
  const objects = new Objects(by("objects"), () => { remember(); draw(); save(); });
  const picture = { id: null, index: null, name: "picture", width: 0, height: 0 };
  let past = [], suggestion = null, asking = 0, saving = Promise.resolve(), tried = 0, opening = 0;
  let kept = []; // what the server has of this picture, as keys

  const draw = () => view.draw(objects.all, objects.current);
  const status = (text) => { by("segment-status").textContent = text; };

  // What was there before each change, for undo.
  const snapshot = () => objects.all.map((object) => ({ object, kept: { ...object, points: [...object.points] } }));
  let now = [];
  function remember() {
    past.push(now);
    now = snapshot();
  }
  const undo = guarded(async () => {
    if (!past.length) return;
    now = past.pop();
    const current = objects.current;
    objects.reset(now.map(({ object, kept }) => Object.assign(object, kept, { points: [...kept.points] })));
    objects.current = objects.all.includes(current) ? current : objects.all.at(-1) ?? null;
    objects.mark();
    draw();
    await save();
  });

  /** The address of the question that an object's prompts are. */
  function question({ points, box, text }) {
    const query = new URLSearchParams({ picture: picture.id });
    for (const point of points) query.append("point", point.map((value) => +value.toFixed(2)).join(","));
    if (box) query.append("box", box.map((value) => +value.toFixed(2)).join(","));
    if (text) query.append("text", text);
    return `/v1/masks?${query}`;
  }

  async function ask(object) {
    const turn = ++asking, where = picture.id, mask = await post(question(object));
    if (where !== picture.id || !objects.all.includes(object) || (turn !== asking && object === objects.current)) return;
    if (!mask.area) status("The model sees nothing there; try a box, or another click.");
    else status(`${object.name}: ${mask.area.toLocaleString()} pixels, predicted IoU ${mask.predicted_iou.toFixed(2)}`);
    objects.give(object, mask.area ? mask : null);
    remember();
    draw();
    await save();
  }

  const prompt = guarded(async (change) => {
    stopPreview();
    const object = objects.active();
    change(object);
    objects.draw();
    draw();
    await ask(object);
  });

  const click = (x, y, label) => picture.id && prompt((object) => { object.points.push([x, y, label]); });
  const drawBox = (box) => prompt((object) => { object.box = box; });

  function save() {
    if (picture.index === null) return saving;
    const index = picture.index;
    let sent = objects.sent();
    by("saved").textContent = "saving …";
    saving = saving.then(guarded(async () => {
      const here = picture.index === index, put = () => post(`/page/folder/${index}/objects`, { objects: sent, revision: here ? picture.revision : null });
      try {
        const answer = await put().catch(async (error) => {
          if (error.status !== 409 || !here) throw error;
          await merge(await post(`/page/folder/${index}/open`));
          sent = objects.sent();
          return put();
        });
        folder.pictures[index].objects = answer.objects;
        if (here) { picture.revision = answer.revision; kept = sent.map(keyOf); }
        by("saved").textContent = `${answer.objects} saved in ${answer.file}`;
      } catch (error) {
        by("saved").textContent = "Not saved. The next change tries again.";
        throw error;
      }
    }));
    return saving;
  }

  const keyOf = ({ name, segmentation }) => JSON.stringify([name, segmentation.counts]);
  const keyOfObject = ({ name, mask }) => mask && keyOf({ name, segmentation: mask.segmentation });

  /** Another window has saved meanwhile: what it drew comes in, what it removed goes, what is new here stays. */
  function merge(opened) {
    const theirs = opened.objects.map(keyOf), mine = objects.all.map(keyOfObject);
    objects.all = objects.all.filter((_, i) => !kept.includes(mine[i]) || theirs.includes(mine[i]));
    if (!objects.all.includes(objects.current)) objects.current = null;
    opened.objects.forEach((one, i) => { if (!kept.includes(theirs[i]) && !mine.includes(theirs[i])) objects.all.push(restored(one)); });
    picture.revision = opened.revision;
    kept = theirs;
    objects.draw();
    past = [];
    now = snapshot();
    draw();
    status("Another window has changed this picture; what it drew is here too.");
  }

  function restored({ name, segmentation }) {
    const object = empty(name);
    objects.give(object, { segmentation });
    return object;
  }

  /** Of pictures that were asked for one after the other the last is shown, whichever comes first. */
  async function show(opened, turn = ++opening) {
    if (turn !== opening) return;
    const image = await shown(opened.id);
    if (turn !== opening) return;
    Object.assign(picture, { index: null, name: "picture" }, opened);
    status("The picture is being looked at …");
    view.show(image, picture.width, picture.height);
    past = [];
    objects.reset((opened.objects ?? []).map(restored));
    kept = (opened.objects ?? []).map(keyOf);
    now = snapshot();
    by("saved").textContent = "";
    by("place").textContent = picture.index === null ? picture.name : `${picture.index + 1} of ${folder.pictures.length}: ${picture.name}`;
    draw();
    await suggest();
  }

  /** What the model sees in the middle, so that there is something to look at. */
  async function suggest() {
    suggestion = [picture.width / 2, picture.height / 2, 1];
    const where = picture.id, mask = await post(question({ points: [suggestion] }));
    if (where !== picture.id) return;
    status("");
    if (objects.all.length || !mask.area) { suggestion = null; return; }
    await preview(mask);
  }

  async function preview(mask) {
    const object = empty();
    object.colour = [255, 255, 255];
    objects.give(object, mask.area ? mask : null);
    view.preview = object.canvas;
    draw();
  }

  const open = guarded(async (index) => {
    await saving;
    const count = folder.pictures.length;
    tried = (index + count) % count; // one that cannot be read is no wall: the next step goes on from it
    const turn = ++opening;
    await show(await post(`/page/folder/${tried}/open`), turn);
  });
  const step = (change) => open(tried + change);

  // Pointer: a click, a drag, a long press.
  const canvas = view.canvas;
  let pressed = null, hovering = null, held = null;

  function stopPreview() {
    hovering?.abort();
    clearTimeout(held);
    view.preview = null;
    suggestion = null;
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || !view.picture) return;
    canvas.setPointerCapture(event.pointerId);
    pressed = { at: view.at(event), x: event.clientX, y: event.clientY, start: performance.now() };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!view.picture) return;
    const at = view.at(event);
    if (!pressed) { if (event.pointerType === "mouse") hover(at); return; }
    if (Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) > DRAG) {
      view.box = boxOf(pressed.at, at);
      draw();
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!pressed) return;
    const { at, start } = pressed, box = view.box;
    pressed = view.box = null;
    if (box) { drawBox(box); return; }
    const long = event.pointerType !== "mouse" && performance.now() - start > HOLD;
    click(...at, event.shiftKey || long || by("removing").checked ? 0 : 1);
  });
  canvas.addEventListener("pointercancel", () => { pressed = view.box = null; draw(); });
  canvas.addEventListener("pointerleave", () => { if (!pressed && view.preview && !suggestion) { stopPreview(); draw(); } });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());

  function hover(at) {
    if (!by("hover").checked) return;
    clearTimeout(held);
    held = setTimeout(guarded(async () => {
      hovering?.abort();
      hovering = new AbortController();
      if (objects.all.some((object) => object.mask && covers(object.mask.segmentation, ...at))) { view.preview = null; draw(); return; }
      const { signal } = hovering, mask = await post(question({ points: [[...at, 1]] }), undefined, { signal });
      if (!signal.aborted) { suggestion = null; await preview(mask); }
    }), 60);
  }

  const boxOf = ([x0, y0], [x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];

  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) {
      const far = event.shiftKey ? 1 : Math.max(1, picture.width / 40), [x, y] = view.cross ?? [picture.width / 2, picture.height / 2];
      view.cross = [Math.min(Math.max(x + move[0] * far, 0), picture.width), Math.min(Math.max(y + move[1] * far, 0), picture.height)];
      draw();
      status(`Cross at ${Math.round(view.cross[0])}, ${Math.round(view.cross[1])}`);
    } else if (event.key === " " && view.cross) click(...view.cross, event.shiftKey || by("removing").checked ? 0 : 1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  function nextObject() {
    if (suggestion && !objects.all.length) { click(...suggestion); return; }
    objects.current = null;
    objects.mark();
    draw();
    status("The next click begins a new object.");
  }

  document.addEventListener("keydown", (event) => {
    if (by("segment").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea, button, summary, a")) return;
    const action = { n: () => step(1), p: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1), u: undo, Enter: nextObject }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  by("new-object").addEventListener("click", nextObject);
  by("undo").addEventListener("click", undo);
  by("next").addEventListener("click", () => step(1));
  by("previous").addEventListener("click", () => step(-1));
  onFile(by("segment-file"), by("segment"), guarded(async (file) => { await show({ ...(await send(file)), name: file.name }); }));
  document.addEventListener("open-picture", (event) => open(event.detail));

  by("name-form").hidden = !state.segment.text;
  by("name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = by("text-prompt").value.trim();
    if (!name) return;
    objects.current = null;
    prompt((object) => { object.text = object.name = name; });
  });

  for (const button of document.querySelectorAll("[data-export]")) button.addEventListener("click", guarded(async () => {
    const kind = button.dataset.export, chosen = kind === "cutout" && objects.current?.mask ? [objects.current] : objects.all;
    const sent = chosen.filter((o) => o.mask).map(({ name, mask }) => ({ name, segmentation: mask.segmentation }));
    if (!sent.length) throw new Error("There is nothing to take away yet: click on an object first.");
    const response = await fetched(`/page/pictures/${picture.id}/export?kind=${kind}`, { method: "POST", ...json({ file_name: picture.name, objects: sent }) });
    const link = document.createElement("a"), base = picture.name.split("/").at(-1).replace(/\.[^.]*$/, "");
    link.href = URL.createObjectURL(await response.blob());
    link.download = `${base}-${kind}.${kind === "coco" ? "json" : "png"}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }));

  startEverything(picture, (masks) => {
    stopPreview();
    for (const mask of masks) {
      objects.current = null;
      objects.give(objects.active(), mask);
    }
    objects.current = null;
    objects.draw();
    remember();
    draw();
    return save();
  });

  by("retrain-command").textContent = state.retrain;
  by("own-folder").hidden = !state.folder.own;
  by("segment-name").textContent = state.segment.name;
  by("copy").addEventListener("click", guarded(() => navigator.clipboard.writeText(state.retrain)));
  by("reload").addEventListener("click", guarded(async () => {
    by("segment-name").textContent = (await post("/page/reload")).name;
    status("The new model answers now.");
  }));
  new ResizeObserver(() => {
    if (!view.picture || by("segment").hidden) return;
    view.fit();
    draw();
  }).observe(canvas.parentElement.parentElement);
  await open(0);
}
