// The interactive parts of the page: filters, the table of rows, the dialog with a hand. Names are inserted as text, never as HTML.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const rowOf = new Map(data.rows.filter((row) => row.hand !== null).map((row) => [row.hand, row]));
const one = (selector, inside = document) => inside.querySelector(selector);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const FIRST_CARDS = 8, FIRST_ROWS = 50;

/** Create an element with attributes and children; strings become text. */
function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

for (const section of all("main > section[id]")) {
  const title = one("h2", section)?.textContent || "Summary";
  one("nav").append(element("a", { href: `#${section.id}`, textContent: title }));
}

/* Filters */

const form = one("#filters");

function readFilters() {
  const { text, side, outcome, low, high } = form.elements;
  const limit = (input, none) => (input.value === "" || Number.isNaN(input.valueAsNumber) ? none : input.valueAsNumber);
  const filters = { text: text.value.trim().toLowerCase(), side: side.value, outcome: outcome.value, low: limit(low, -Infinity), high: limit(high, Infinity) };
  filters.std = filters.low !== -Infinity || filters.high !== Infinity;
  filters.any = filters.std || filters.text || filters.side || filters.outcome;
  return filters;
}

function meets(row, filters) {
  return row.name.toLowerCase().includes(filters.text) && (!filters.side || row.side === filters.side) && (!filters.outcome || row.outcome === filters.outcome)
    && (!filters.std || (row.std !== null && row.std >= filters.low && row.std <= filters.high));
}

const open = new Set(); // galleries that show all their hands

function showGallery(gallery, filters) {
  let fit = 0;
  for (const card of all("li", gallery)) {
    const meeting = meets(rowOf.get(Number(one("button", card).dataset.hand)), filters);
    fit += meeting;
    card.hidden = !meeting || (fit > FIRST_CARDS && !open.has(gallery));
  }
  one(".count", gallery).textContent = fit;
  one(".none", gallery).hidden = fit > 0;
  const more = one(".more", gallery);
  more.hidden = fit <= FIRST_CARDS || open.has(gallery);
  more.textContent = `Show all ${fit}`;
  return fit;
}

function apply() {
  const filters = readFilters();
  const hands = all(".gallery").reduce((sum, gallery) => sum + showGallery(gallery, filters), 0);
  rows = data.rows.filter((row) => meets(row, filters));
  one("#found").textContent = filters.any
    ? `${hands.toLocaleString("en")} of ${rowOf.size.toLocaleString("en")} hands with pictures and ${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} rows meet the filters.`
    : "";
  shownRows = FIRST_ROWS;
  showRows();
}

form.addEventListener("input", apply);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(apply));
for (const gallery of all(".gallery")) {
  one(".more", gallery).addEventListener("click", () => {
    open.add(gallery);
    apply();
    one(`li:nth-of-type(${FIRST_CARDS + 1}) button`, gallery)?.focus();
  });
}

/* Rows */

const number = (digits) => (value) => (value === null ? "" : value.toFixed(digits));
const columns = [
  { key: "name", title: "name" },
  { key: "side", title: "side" },
  { key: "words", title: "outcome" },
  { key: "std", title: "mean std, mm", text: number(1) },
  { key: "largest", title: "largest std, mm", text: number(1) },
  { key: "score", title: "hand score", text: number(2) },
  ...(data.truth ? [{ key: "off", title: "error, mm", text: number(1) }] : []),
];
let rows = data.rows, shownRows = FIRST_ROWS, sorted = { key: "std", up: true };

function inOrder(a, b) {
  const [x, y] = [a[sorted.key], b[sorted.key]];
  if (x === null || y === null) return (x === null) - (y === null); // unknown values last in both directions
  const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
  return sorted.up ? order : -order;
}

function cell(row, column) {
  const made = element("td", { className: column.text ? "number" : "" });
  const text = column.text ? column.text(row[column.key]) : row[column.key];
  if (column.key === "name") {
    const name = element("bdi", {}, text);
    made.title = text;
    made.append(row.hand === null ? name : element("button", { className: "link", type: "button", onclick: () => show(row.hand) }, name));
  } else {
    made.append(text);
    if (column.key === "words" && row.error) made.title = row.error;
  }
  return made;
}

function showRows() {
  const fit = [...rows].sort(inOrder);
  const body = one(".rows tbody");
  body.replaceChildren(...fit.slice(0, shownRows).map((row) => element("tr", {}, ...columns.map((column) => cell(row, column)))));
  if (!fit.length) body.append(element("tr", {}, element("td", { colSpan: columns.length, className: "none" }, "No row meets the filters.")));
  const more = one("#rows .more");
  more.hidden = fit.length <= shownRows;
  more.textContent = `Show more (${Math.min(shownRows, fit.length)} of ${fit.length})`;
  for (const head of all(".rows th")) {
    if (head.dataset.key === sorted.key) head.setAttribute("aria-sort", sorted.up ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
    one("span", head).textContent = head.dataset.key === sorted.key ? (sorted.up ? " ↑" : " ↓") : "";
  }
}

for (const column of columns) {
  const button = element("button", { type: "button" }, column.title, element("span"));
  button.addEventListener("click", () => {
    sorted = { key: column.key, up: sorted.key === column.key ? !sorted.up : true };
    showRows();
  });
  const head = element("th", { scope: "col", className: column.text ? "number" : "" }, button);
  head.dataset.key = column.key;
  one(".rows thead tr").append(head);
}
one("#rows .more").addEventListener("click", () => { shownRows += 200; showRows(); });
one("#rows-of").textContent = data.rows.length < data.of
  ? `A sample: ${data.rows.length.toLocaleString("en")} of ${data.of.toLocaleString("en")} rows: those with pictures, and others at random. The filters above apply to the sample; counts and histograms cover all rows.`
  : `All ${data.of.toLocaleString("en")} rows: one per hand, or per photo without a hand. The filters above apply here too.`;

/* The dialog with one hand */

const dialog = one("#viewer");
const meshes = new Map(); // by hand; each is a small script, because a page opened from disk can load scripts but not fetch files
const HINT = one(".hint", dialog).textContent;
let viewer = null, current = null, mode = "uncertainty";

function unpacked(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

window.amvurMesh = (hand, mesh) => meshes.get(hand).resolve({
  vertices: Float32Array.from(unpacked(mesh.vertices, Int16Array), (v) => v / 16),
  std: Float32Array.from(unpacked(mesh.std, Uint16Array), (v) => v / 16),
  rgb: mesh.rgb && Float32Array.from(unpacked(mesh.rgb, Uint8Array), (v) => v / 255),
  left: mesh.left,
});

function load(hand) {
  if (!meshes.has(hand)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    meshes.set(hand, entry);
    const script = element("script", { src: `${data.hands[hand].stem}.js` });
    script.onerror = () => { meshes.delete(hand); entry.reject(new Error("gone")); };
    document.head.append(script);
  }
  return meshes.get(hand).promise;
}

function ramp(std) {
  const [low, high] = data.range, last = data.stops.length - 1, colours = new Float32Array(3 * std.length);
  std.forEach((value, i) => {
    const position = Math.min(Math.max((value - low) / (high - low), 0), 1) * last;
    const below = Math.min(Math.floor(position), last - 1), part = position - below;
    for (let k = 0; k < 3; k++) colours[3 * i + k] = data.stops[below][k] * (1 - part) + data.stops[below + 1][k] * part;
  });
  return colours;
}

function coloursOf(mesh) {
  if (mode === "uncertainty") return ramp(mesh.std);
  if (mode === "texture" && mesh.rgb) return mesh.rgb;
  return Float32Array.from(mesh.vertices, (_, i) => data.skin[i % 3]);
}

function setMode(wanted) {
  mode = wanted;
  for (const button of all("[data-mode]", dialog)) button.setAttribute("aria-pressed", button.dataset.mode === mode);
  one(".stage .ramp", dialog).style.visibility = mode === "uncertainty" ? "" : "hidden";
}

async function show(hand) {
  current = hand;
  const row = rowOf.get(hand), { stem, kinds } = data.hands[hand];
  one("#viewer-name").replaceChildren(element("bdi", { title: row.name }, row.name));
  one(".pair", dialog).replaceChildren(...kinds.filter((kind) => kind === "photo" || kind === "overlay")
    .map((kind) => element("img", { src: `${stem}-${kind}.webp`, alt: `${kind} of ${row.name}`, width: 256, height: 256 })));
  const facts = [["hand", row.side], ["mean std of joints", row.std === null ? "–" : `${row.std.toFixed(1)} mm`],
    ["largest", row.largest === null ? "–" : `${row.largest.toFixed(1)} mm`], ["hand score", row.score === null ? "–" : row.score.toFixed(2)],
    ...(row.off === null ? [] : [["error, wrists aligned", `${row.off.toFixed(1)} mm`]])];
  one(".facts", dialog).replaceChildren(...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  one(".hint", dialog).textContent = HINT;
  if (!dialog.open) dialog.showModal();
  const order = visible();
  for (const [step, by] of [["previous", -1], ["next", 1]]) one(`[data-do=${step}]`, dialog).disabled = neighbour(order, by) === undefined;
  try {
    const mesh = await load(hand);
    if (current !== hand) return; // another hand was opened meanwhile
    viewer ||= new Viewer(one("canvas", dialog), unpacked(data.faces, Uint32Array));
    one("[data-mode=texture]", dialog).disabled = !mesh.rgb;
    if (mode === "texture" && !mesh.rgb) setMode("uncertainty");
    viewer.show(mesh.vertices, coloursOf(mesh), mesh.left);
  } catch (error) {
    if (error.message !== "gone") throw error;
    one(".hint", dialog).textContent = `No mesh: ${stem}.js is missing beside this page.`;
  }
}

/** Return the hands that meet the filters, in page order. */
function visible() {
  const filters = readFilters();
  return all(".card").map((card) => Number(card.dataset.hand)).filter((hand) => meets(rowOf.get(hand), filters));
}

function neighbour(order, by) {
  return order[order.indexOf(current) + by];
}

for (const card of all(".card")) card.addEventListener("click", () => show(Number(card.dataset.hand)));
dialog.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (event.target === dialog) dialog.close(); // a click outside the dialog
  if (!button) return;
  if (button.dataset.mode) {
    setMode(button.dataset.mode);
    load(current).then((mesh) => viewer.recolour(coloursOf(mesh)));
  }
  const does = {
    close: () => dialog.close(),
    reset: () => viewer?.reset(),
    previous: () => show(neighbour(visible(), -1)),
    next: () => show(neighbour(visible(), 1)),
  };
  does[button.dataset.do]?.();
});

setMode(mode);
apply();
