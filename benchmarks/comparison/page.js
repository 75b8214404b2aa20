"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };

  // Tables: sorted by a column, filtered by words.
  const number = (text) => {
    if (text.startsWith("< ")) return 0.999 * number(text.slice(2)); // before the number itself
    return /^[+-]?[\d.]/.test(text) ? parseFloat(text) : NaN;
  };
  for (const head of document.querySelectorAll("th button")) head.addEventListener("click", () => {
    const cell = head.parentElement, body = cell.closest("table").tBodies[0], at = cell.cellIndex;
    const up = cell.getAttribute("aria-sort") !== "ascending";
    for (const one of cell.parentElement.cells) one.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[at].textContent.trim().replaceAll(",", "");
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)], [m, n] = [number(x), number(y)];
      const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
      return up ? order : -order;
    });
    body.append(...rows);
  });
  for (const input of document.querySelectorAll("input.filter")) input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...document.getElementById(input.dataset.table).tBodies[0].rows];
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    input.closest("p").querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  });

  // The run behind a point: told under the pointer and by the keyboard, kept by a click.
  const panel = document.getElementById("run");
  let kept = false;
  const open = (i) => {
    const run = data.runs[i];
    const facts = make("dl");
    for (const [name, value] of run.facts) facts.append(make("dt", name), make("dd", value));
    panel.replaceChildren(make("h3", run.name), facts);
    panel.hidden = false;
  };
  const close = () => { panel.hidden = true; };
  for (const point of document.querySelectorAll("[data-run]")) {
    const show = () => { if (!kept) open(point.dataset.run); };
    point.addEventListener("pointerenter", show);
    point.addEventListener("focus", show);
    point.addEventListener("pointerleave", () => { if (!kept) close(); });
    point.addEventListener("blur", () => { if (!kept) close(); });
    point.addEventListener("click", () => { kept = true; open(point.dataset.run); });
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { kept = false; close(); } });

  // A plot as a file.
  for (const button of document.querySelectorAll("button.save")) button.addEventListener("click", () => {
    const text = new XMLSerializer().serializeToString(document.getElementById(button.dataset.plot));
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.download = `${button.dataset.plot}.svg`;
    link.click();
    URL.revokeObjectURL(link.href);
  });

  // Which should I take? Of what was measured with about so many images, what keeps the limits.
  const form = document.getElementById("choose"), list = document.getElementById("survivors");
  const said = document.getElementById("choice-note");
  if (!form) return;
  const asked = (name) => (form.elements[name]?.value ? Number(form.elements[name].value) : null);
  const choose = () => {
    const images = asked("images"), classes = asked("classes"), ms = asked("ms"), mb = asked("mb");
    const file = asked("file");
    const counts = [...new Set(data.runs.map((run) => run.images))].sort((a, b) => a - b);
    const distance = (count) => Math.abs(Math.log(count / images));
    const nearest = images === null || images <= 0 ? counts[counts.length - 1]
      : counts.reduce((best, count) => (distance(count) < distance(best) ? count : best));
    const fits = data.runs.filter((run) => run.images === nearest && (ms === null || (run.ms !== null && run.ms <= ms))
      && (mb === null || run.mb <= mb) && (file === null || Object.values(run.files).some((size) => size <= file))).sort((a, b) => b.accuracy - a.accuracy);
    const notes = [`Measured with ${nearest.toLocaleString("en")} training images.`];
    if (classes !== null && classes !== data.classes) {
      notes.push(`These were measured on ${data.classes} classes: the order may hold for ${classes}, the numbers do not.`);
    }
    if (!fits.length) notes.push("Nothing keeps these limits.");
    said.textContent = notes.join(" ");
    list.replaceChildren(...fits.map((run, place) => {
      const item = make("li"), best = fits[0];
      item.append(make("strong", run.name), ` ${(100 * run.accuracy).toFixed(1)} %`,
        run.ms === null ? "" : `, ${run.ms.toFixed(2)} ms`, `, ${run.mb.toFixed(1)} MB`,
        ...Object.entries(run.files).map(([precision, size]) => `, ${size.toFixed(2)} MB as ONNX in ${precision}`));
      if (place && !run.compared.includes(best.key)) item.append(make("em", " not compared with the first"));
      else if (place && run.alike.includes(best.key)) item.append(make("em", " not told apart from the first"));
      return item;
    }));
  };
  form.addEventListener("input", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  choose();
})();
