// The objects of one picture: what each was asked for by, its mask, its name and its colour.

import { colourOf, painted } from "/page/masks.js";

let made = 0;

export function empty(name = "object") {
  return { name, points: [], box: null, text: null, mask: null, canvas: null, colour: colourOf(made++) };
}

/** Objects with a list that shows them. `changed` is called when a person renames, chooses or removes one. */
export class Objects {
  constructor(list, changed) {
    this.list = list;
    this.changed = changed;
    this.all = [];
    this.current = null;
  }

  reset(objects) {
    this.all = objects;
    this.current = null;
    this.draw();
  }

  /** The object that clicks belong to; a new one where there is none. */
  active() {
    if (!this.current) {
      this.current = empty(this.all.at(-1)?.name);
      this.all.push(this.current);
    }
    return this.current;
  }

  remove(object) {
    this.all = this.all.filter((other) => other !== object);
    if (this.current === object) this.current = null;
    this.draw();
    this.changed();
  }

  give(object, mask) {
    object.mask = mask;
    object.canvas = mask && painted(mask.segmentation, object.colour);
  }

  sent() {
    return this.all.filter((object) => object.mask).map(({ name, mask }) => ({ name, segmentation: mask.segmentation }));
  }

  draw() {
    document.getElementById("no-objects").hidden = this.all.length > 0;
    this.list.replaceChildren(...this.all.map((object, i) => {
      const row = document.createElement("li"), swatch = document.createElement("span");
      const name = document.createElement("input"), gone = document.createElement("button");
      swatch.className = "swatch";
      swatch.style.setProperty("background", `rgb(${object.colour})`);
      name.type = "text"; name.value = object.name; name.maxLength = 300;
      name.setAttribute("aria-label", `Name of object ${i + 1}`);
      name.addEventListener("focus", () => { this.current = object; this.mark(); });
      name.addEventListener("change", () => { object.name = name.value.trim() || "object"; this.changed(); });
      gone.type = "button"; gone.textContent = "✕";
      gone.setAttribute("aria-label", `Remove object ${i + 1}, ${object.name}`);
      gone.addEventListener("click", () => this.remove(object));
      row.append(swatch, name, gone);
      return row;
    }));
    this.mark();
  }

  mark() {
    [...this.list.children].forEach((row, i) => row.setAttribute("aria-current", String(this.all[i] === this.current)));
  }
}
