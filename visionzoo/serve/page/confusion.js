// What the classifier took for what, as the report of its run draws it.

import { get, guarded } from "/page/ask.js";

export const showConfusion = guarded(async () => {
  const place = document.getElementById("confusion"), { html, data, why } = await get("/page/confusion");
  if (why) {
    const line = document.createElement("p");
    line.className = "quiet";
    line.textContent = why;
    place.replaceChildren(line);
    return;
  }
  place.innerHTML = html; // escaped by the server, which draws it with the report's own templates
  const held = document.createElement("script"), script = document.createElement("script");
  held.type = "application/json";
  held.id = "data";
  held.textContent = JSON.stringify(data);
  script.src = "/page/report/page.js";
  place.append(held, script);
});
