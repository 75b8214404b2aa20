// What /openapi.json says, for people.

import { get, guarded } from "/page/ask.js";

function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  parent.append(made);
  return made;
}

guarded(async () => {
  const { paths } = await get("/openapi.json");
  for (const [path, methods] of Object.entries(paths)) for (const [method, route] of Object.entries(methods)) {
    const article = document.createElement("article");
    element("h2", `${method.toUpperCase()} ${path}`, article);
    element("p", route.description ?? "", article);
    const list = element("ul", "", article);
    for (const { name, description, required, schema } of route.parameters ?? []) {
      const { type, anyOf = [], default: usual } = schema, kinds = [type, ...anyOf.map((kind) => kind.type)].filter((kind) => kind && kind !== "null");
      const row = element("li", "", list);
      element("code", name, row);
      row.append(` ${kinds.join(" or ")}${required ? ", required" : ""}${usual === undefined ? "" : `, usually ${usual}`}${description ? `: ${description}` : ""}`);
    }
    const sent = method === "post" ? " -H 'Content-Type: image/jpeg' --data-binary @photo.jpg" : "";
    const query = { "/v1/masks": "?point=120,80", "/v1/zeroshot": "?label=cat&label=dog" }[path] ?? "";
    element("pre", `curl '${location.origin}${path}${query}'${sent}`, article);
    document.getElementById("routes").append(article);
  }
})();
