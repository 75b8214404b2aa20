// Questions to the server, and what went wrong in words.

const box = document.getElementById("error");

export function say(message) {
  box.textContent = message;
  box.hidden = !message;
}

/** The answer, or an Error whose message is for a person. */
export async function fetched(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is visionzoo demo still running?");
  }
  if (response.ok) return response;
  let why = `The server answered ${response.status}.`;
  try {
    why = (await response.json()).error || why;
  } catch { /* no words came */ }
  throw Object.assign(new Error(why), { status: response.status });
}

export const get = async (path) => (await fetched(path)).json();

export const post = async (path, value, options = {}) =>
  (await fetched(path, { method: "POST", ...json(value), ...options })).json();

export const json = (value) =>
  value === undefined ? {} : { body: JSON.stringify(value), headers: { "Content-Type": "application/json" } };

/** Send a file; gives {id, width, height}. */
export const send = async (file) =>
  (await fetched("/v1/pictures", {
    method: "POST", body: file, headers: { "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream" },
  })).json();

/** Runs what a person started; what goes wrong is shown. */
export function guarded(action) {
  return async (...given) => {
    try {
      say("");
      return await action(...given);
    } catch (error) {
      if (error.name !== "AbortError") say(error.message);
      return undefined;
    }
  };
}

/** A picture that the server keeps, as the browser draws it. */
export function shown(id) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("The picture cannot be shown."));
    image.src = `/v1/pictures/${id}`;
  });
}

/** Calls action with each file that is chosen, dropped on an element, or pasted while it is visible. */
export function onFile(input, area, action) {
  input.addEventListener("change", () => { if (input.files[0]) action(input.files[0]); input.value = ""; });
  area.addEventListener("dragover", (event) => event.preventDefault());
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) action(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file && !area.hidden) action(file);
  });
}
