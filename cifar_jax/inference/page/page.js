"use strict";

const SIDE = 1024; // pixels of the longer side of an image that is too large to send, once it is made smaller
const LARGE = 1 << 20; // bytes from which it is worth a look whether an image has too many pixels
const MOST = 8; // images that are answered at a time
const byId = (id) => document.getElementById(id);
const status = byId("status");
let token = "";
let model = null;
let call = 0; // a later call replaces the answers of an earlier one

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    byId("token").hidden = false;
    byId("secret").focus();
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.error || `the service answered ${answer.status}`);
  }
  return answer;
}

async function describe() {
  try {
    model = await (await ask("v1/model")).json();
  } catch (error) {
    byId("about").textContent = `The service cannot be used: ${error.message}`;
    return;
  }
  byId("token").hidden = true;
  const shown = model.classes.slice(0, 12).join(", ") + (model.classes.length > 12 ? ", …" : "");
  const index = model.index ? ` Similar images are found among ${model.index.images.toLocaleString("en")}.` : "";
  byId("about").textContent = `The model ${model.architecture} knows ${model.classes.length} classes: ${shown}.${index}`;
  byId("limits").textContent = `${model.limits.formats.join(", ")}; nothing is stored.`;
}

/* An image that the service would refuse, for its size or its format, becomes a JPEG of at most SIDE pixels. */
async function sendable(file) {
  const kinds = model.limits.formats.map((name) => `image/${name.toLowerCase()}`);
  const fits = kinds.includes(file.type) && file.size <= model.limits.bytes;
  if (fits && file.size < LARGE) return file;
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    return file; // the service says what is wrong
  }
  if (fits && image.width * image.height <= model.limits.pixels) return file;
  const scale = Math.min(1, SIDE / Math.max(image.width, image.height));
  const canvas = element("canvas", { width: Math.max(1, image.width * scale), height: Math.max(1, image.height * scale) });
  const drawing = canvas.getContext("2d");
  drawing.fillStyle = "white";
  drawing.fillRect(0, 0, canvas.width, canvas.height);
  drawing.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob((made) => resolve(made || file), "image/jpeg", 0.95));
}

const percent = (value) => `${(100 * value).toFixed(1)}%`;

function classList(top) {
  const list = element("ol", { className: "classes", role: "list", ariaLabel: "Most probable classes" });
  for (const each of top) {
    const bar = element("div", { className: "bar" });
    bar.style.width = percent(each.probability);
    const track = element("div", { className: "track", ariaHidden: "true" }, bar);
    const name = element("span", {}, each.class);
    list.append(element("li", {}, name, element("span", { className: "share" }, percent(each.probability)), track));
  }
  list.firstElementChild.className = "first";
  return list;
}

async function picture(place, neighbour) {
  try {
    const blob = await (await ask(`v1/images/${neighbour.id}`)).blob();
    const image = element("img", { alt: neighbour.label || neighbour.name, src: URL.createObjectURL(blob) });
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    place.replaceWith(image);
  } catch {
    // its file is gone: the text below it stays
  }
}

function similarList(neighbours) {
  const list = element("ol", { className: "similar", role: "list", ariaLabel: "Most similar images" });
  for (const each of neighbours) {
    const place = element("div", { className: "none" });
    const said = element("small", {}, `${each.label || each.name} ${each.similarity.toFixed(3)}`);
    list.append(element("li", {}, place, said));
    picture(place, each);
  }
  return list;
}

async function first(path, file) {
  const answer = await (await ask(path, { method: "POST", body: file })).json();
  return answer.results[0];
}

async function answer(file, article) {
  const sent = await sendable(file);
  const preview = element("img", { alt: `Your image ${file.name}`, src: URL.createObjectURL(sent) });
  preview.addEventListener("load", () => URL.revokeObjectURL(preview.src), { once: true });
  preview.addEventListener("error", () => preview.remove(), { once: true });
  const body = element("div", { className: "answer" }, preview);
  article.append(body);
  let said = "";
  if (model.predicts) {
    const found = await first("v1/predict?top=" + Math.min(5, model.classes.length), sent);
    said = `${found.class} ${percent(found.top.find((each) => each.class === found.class)?.probability ?? 0)}`;
    body.append(classList(found.top));
  }
  if (model.index) {
    const found = await first("v1/similar?top=10", sent);
    article.append(element("h3", {}, "Most similar images"), similarList(found.neighbours));
  }
  return said || "similar images found";
}

async function show(files) {
  if (!files.length) return;
  if (!model) await describe();
  if (!model) return;
  const own = ++call;
  const chosen = [...files].slice(0, MOST);
  byId("results").replaceChildren();
  status.textContent = "Asking the model …";
  const told = [];
  for (const file of chosen) {
    const name = file.name || "pasted image";
    const article = element("article", { ariaLabel: name }, element("h2", {}, name));
    byId("results").append(article);
    try {
      told.push(`${name}: ${await answer(file, article)}`);
    } catch (error) {
      article.append(element("p", { className: "wrong" }, error.message));
      told.push(`${name}: ${error.message}`);
    }
    if (own !== call) return;
  }
  const more = files.length > MOST ? ` Only the first ${MOST} of ${files.length} images were taken.` : "";
  status.textContent = told.join("; ") + "." + more;
}

for (const id of ["files", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // so that the same file can be chosen again
    show(files);
  });
}
const drop = byId("drop");
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  show(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    show(event.clipboardData.files);
  }
});
byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("secret").value.trim();
  describe();
});
describe();
