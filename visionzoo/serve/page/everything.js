// Everything in a picture, by a grid of clicks, with progress.

import { fetched, guarded, json } from "/page/ask.js";

const by = (id) => document.getElementById(id);

export function startEverything(picture, found) {
  by("everything").addEventListener("click", guarded(async () => {
    const [iou, stability] = by("strict").value.split(" ").map(Number), where = picture.id, bar = by("progress");
    const options = { points_per_side: Number(by("grid").value), min_iou: iou, min_stability: stability };
    by("everything").disabled = true;
    bar.hidden = false;
    bar.value = 0;
    try {
      const response = await fetched(`/page/pictures/${where}/everything`, { method: "POST", ...json(options) });
      for await (const line of linesOf(response)) {
        if (line.error) throw new Error(line.error);
        if (line.of) bar.value = line.done / line.of;
        if (!line.masks || picture.id !== where) continue;
        if (!line.masks.length) throw new Error(`Nothing is that sure (the highest predicted IoU is ${line.highest_iou}); keep masks that are less so.`);
        await found(line.masks);
        by("segment-status").textContent = `${line.masks.length} objects found`;
      }
    } finally {
      bar.hidden = true;
      by("everything").disabled = false;
    }
  }));
}

async function* linesOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (left + value).split("\n");
    left = lines.pop();
    yield* lines.map((line) => JSON.parse(line));
  }
}
