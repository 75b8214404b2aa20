"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  document.documentElement.classList.add("scripted");
  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };

  // Small pictures show their pixels: enlarged smoothly, a digit of 16 pixels is fog.
  const sharpen = (image) => {
    const look = () => image.classList.toggle("pixels", image.naturalWidth > 0 && image.naturalWidth <= 48);
    if (image.complete) look();
    image.addEventListener("load", look);
  };
  document.querySelectorAll(".figures img").forEach(sharpen);

  // What a click opens.
  const dialog = document.getElementById("opened");
  const figureOf = (one) => {
    const figure = make("figure"), image = make("img"), caption = make("figcaption");
    if (one.place !== null) figure.dataset.place = one.place;
    sharpen(image);
    image.alt = image.title = one.alt;
    image.src = one.src;
    for (const [text, tone] of one.lines) {
      const line = make("span", undefined, tone || "plain");
      line.append(make("bdi", text));
      caption.append(line);
    }
    figure.append(image, caption);
    return figure;
  };
  const open = (key) => {
    const group = data.groups[key];
    document.getElementById("opened-title").textContent = group.title;
    document.getElementById("opened-note").textContent = group.note;
    document.getElementById("opened-figures").replaceChildren(...group.images.map((i) => figureOf(data.images[i])));
    dialog.showModal();
    dialog.scrollTop = 0;
  };
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-opens]");
    if (opener) open(opener.dataset.opens);
  });
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  // A matrix is one stop of the tabulator; arrows go from cell to cell.
  for (const matrix of document.querySelectorAll(".matrix")) {
    const names = [...matrix.querySelectorAll("thead th")];
    matrix.classList.toggle("long", names.some((name) => name.textContent.trim().length > 4));
    const rows = [...matrix.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")].map((cell) => cell.querySelector("button")));
    const all = rows.flat().filter(Boolean);
    all.forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    matrix.addEventListener("keydown", (event) => {
      const [down, right] = step[event.key] || [];
      if (down === undefined) return;
      let row = rows.findIndex((buttons) => buttons.includes(event.target));
      if (row < 0) return;
      let column = rows[row].indexOf(event.target);
      event.preventDefault();
      do { row += down; column += right; } while (rows[row] && column >= 0 && column < rows[row].length && !rows[row][column]);
      if (rows[row] && rows[row][column]) rows[row][column].focus();
    });
    matrix.addEventListener("focusin", (event) => {
      if (!all.includes(event.target)) return;
      all.forEach((button) => { button.tabIndex = button === event.target ? 0 : -1; });
    });
  }

  // Tables: sorted by a column, numbers by their value; searched in all of them.
  const orderOf = (cell) => {
    const given = cell.dataset.order, text = given === undefined ? cell.textContent.trim() : given;
    const value = Number(text);
    return text === "" ? null : Number.isNaN(value) ? text.toLocaleLowerCase() : value;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sorted")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const column = Number(button.dataset.column), head = heads[column];
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const way = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way);
      const keyed = [...body.rows].map((row) => [orderOf(row.cells[column]), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);  // what has no value comes last
        return way === "ascending" ? compare(a, b) : compare(b, a);
      });
      body.append(...keyed.map(([, row]) => row));
    });
  }
  for (const input of document.querySelectorAll("[data-searches]")) {
    const rows = [...document.getElementById(input.dataset.searches).tBodies[0].rows];
    const said = input.parentElement.querySelector("output");
    const texts = rows.map((row) => row.textContent.toLocaleLowerCase());
    input.addEventListener("input", () => {
      const words = input.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        shown += !row.hidden;
      });
      said.textContent = words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
    });
  }

  // Charts: the values at the pointer, or where the arrows have led.
  const svg = (tag, values) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
    return node;
  };
  for (const [id, chart] of Object.entries(data.charts)) {
    const figure = document.getElementById(`chart-${id}`), drawing = figure.querySelector("svg");
    const pointer = figure.querySelector(".pointer"), readout = figure.querySelector(".readout");
    const stops = [...new Set(chart.lines.flatMap((line) => line.at.map(([x]) => x)))].sort((a, b) => a - b);
    if (!stops.length) continue;
    const note = readout.textContent;
    let stop = -1;
    const nearest = (values, x) => values.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(values[best] - x) ? i : best), 0);
    const show = (i) => {
      stop = i;
      const x = stops[i], parts = [];
      const there = chart.lines.find((line) => line.at.some(([at]) => at === x));
      const said = there.x[there.at.findIndex(([at]) => at === x)];
      pointer.replaceChildren(svg("line", { x1: x, x2: x, y1: chart.top, y2: chart.bottom }));
      for (const line of chart.lines) {
        if (line.tone === "faint") continue;
        const k = nearest(line.at.map(([at]) => at), x);
        parts.push(`${line.name} ${line.y[k]}${line.x[k] === said ? "" : ` (at ${line.x[k]})`}`);
        pointer.append(svg("circle", { class: line.tone, cx: line.at[k][0], cy: line.at[k][1], r: 3.5 }));
      }
      pointer.removeAttribute("hidden");
      readout.textContent = [`${chart.x_name} ${said}`, ...parts].join("  ·  ");
    };
    const hide = () => { stop = -1; pointer.setAttribute("hidden", ""); readout.textContent = note; };
    const follow = (event) => {
      const box = drawing.getBoundingClientRect();
      show(nearest(stops, (event.clientX - box.left) / box.width * chart.width));
    };
    drawing.addEventListener("pointermove", follow);
    drawing.addEventListener("pointerdown", follow);
    drawing.addEventListener("pointerleave", () => { if (document.activeElement !== drawing) hide(); });
    drawing.addEventListener("focus", () => { if (stop < 0) show(stops.length - 1); });
    drawing.addEventListener("blur", hide);
    drawing.addEventListener("keydown", (event) => {
      const next = { ArrowLeft: stop - 1, ArrowRight: stop + 1, Home: 0, End: stops.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      show(Math.min(Math.max(next, 0), stops.length - 1));
    });
  }

  // Frames: a slider chooses one.
  for (const input of document.querySelectorAll(".slider input")) {
    const frames = [...input.closest(".frames").querySelectorAll(".frame")], label = input.closest(".slider").querySelector("label");
    const choose = () => {
      frames.forEach((frame, i) => frame.classList.toggle("shown", i === Number(input.value)));
      label.textContent = frames[input.value].dataset.name;
      input.setAttribute("aria-valuetext", label.textContent);
    };
    input.addEventListener("input", choose);
    choose();
  }
})();
