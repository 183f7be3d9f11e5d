"use strict";
const VIEWS = JSON.parse(document.getElementById("views").textContent);
const state = { layer: 1, head: "mean", shown: "attention", cls: 0, effect: "" };

const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
};
const svg = (tag, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const bytes = (packed) => packed && Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
const percent = (p) => `${(100 * p).toFixed(p < 0.0995 ? 2 : 1)}\u00a0%`;

for (const view of VIEWS) {
  for (const key of ["attention", "rollout", "gradient"]) if (view[key]) view[key].bytes = bytes(view[key]);
  if (view.lens) for (const key of ["top_probability", "of_classes", "logits"]) view.lens[key].bytes = bytes(view.lens[key]);
  view.n = view.tokens.length;
  view.depth = view.norms.length - 1;
  view.query = Math.max(0, view.tokens.findIndex((t) => t.role === "cls"));
  view.patches = view.tokens.map((t, i) => (t.role === "patches" ? i : -1)).filter((i) => i >= 0);
}
const deepest = Math.max(...VIEWS.map((view) => view.depth));
// models of different depth share one slider: the same share of the way through
const layerOf = (view) => Math.max(1, Math.round((state.layer / deepest) * view.depth));

// viridis at nine places: even in lightness, and told apart whatever colours the eye knows
const EVEN = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
const SIGNED = [[5, 48, 97], [67, 147, 195], [247, 247, 247], [244, 165, 130], [178, 24, 43]];
const colour = (ramp, t) => {
  const x = Math.min(1, Math.max(0, t)) * (ramp.length - 1), i = Math.min(ramp.length - 2, Math.floor(x));
  return ramp[i].map((a, k) => Math.round(a + (ramp[i + 1][k] - a) * (x - i)));
};

const attention = (view, layer, head, query, key) => view.attention.bytes[((layer * view.attention.shape[1] + head) * view.n + query) * view.n + key] ** 2 / 65025;
const overHeads = (view, layer, query, key) => {
  const heads = view.attention.shape[1];
  if (state.head !== "mean" && state.head !== "largest") return attention(view, layer, Math.min(heads - 1, Number(state.head)), query, key);
  const values = Array.from({ length: heads }, (_, h) => attention(view, layer, h, query, key));
  return state.head === "mean" ? values.reduce((a, b) => a + b, 0) / heads : Math.max(...values);
};

const patchKind = (view, shown) => view.patch_effects.find((kind) => `patch ${kind.label}` === shown);
const nearest = (layers, l) => layers.reduce((best, x, i) => (Math.abs(x - l) < Math.abs(layers[best] - l) ? i : best), 0);
// an inserted token is there from the layer that it enters
const absent = (view, layer) => (view.tokens[view.query].from ?? 0) > layer;

/** What is drawn over the patches: values, the ends of their scale, and what they are. */
function mapOf(view) {
  const layer = layerOf(view), l = layer - 1, at = view.patches, q = view.query, who = view.tokens[q].label;
  if (absent(view, layer) && ["attention", "attended", "rollout"].includes(state.shown)) return null;
  if (state.shown === "attention") return { values: at.map((k) => overHeads(view, l, q, k)), unit: `attention from ${who}` };
  if (state.shown === "attended") return { values: at.map((k) => overHeads(view, l, k, q)), unit: `attention of each patch to ${who}` };
  if (state.shown === "rollout") return { values: at.map((k) => view.rollout.bytes[(l * view.n + q) * view.n + k] ** 2 / 65025), unit: `rollout from ${who}, up to this layer` };
  if (state.shown === "norm") return { values: at.map((k) => view.norms[layer][k]), unit: "norm of the stream behind the layer" };
  if (state.shown === "gradient" && view.gradient) {
    const [, layers, n] = view.gradient.shape, c = Math.min(state.cls, view.classes.length - 1);
    const values = at.map((_, i) => (view.gradient.bytes[(c * layers + l) * n + i] / 255 - 0.5) * 2 * view.gradient.largest);
    return { values, unit: `attention × gradient of ${view.classes[c]}, read from ${view.gradient.from}`, signed: view.gradient.largest };
  }
  if (state.shown === "class" && view.lens) {
    const n = view.classes.length, c = Math.min(state.cls, n - 1);
    return { values: at.map((k) => (view.lens.of_classes.bytes[(layer * view.n + k) * n + c] / 255) ** 2), unit: `the head on each patch: probability of ${view.classes[c]}`, top: 1 };
  }
  if (state.shown === "logit" && view.lens) {
    const n = view.classes.length, c = Math.min(state.cls, n - 1), { low, high, bytes } = view.lens.logits;
    const values = at.map((k) => low + ((high - low) * bytes[(layer * view.n + k) * n + c]) / 255);
    const least = Math.min(...values), most = Math.max(...values);
    const scale = least < 0 && most > 0 ? { signed: Math.max(-least, most) } : { bottom: least, top: most };
    return { values, unit: `the head on each patch: logit of ${view.classes[c]}`, ...scale };
  }
  if (state.shown.startsWith("patch ") && view.patch_effects.length) {
    const kind = patchKind(view, state.shown);
    if (!kind) return null;
    const { layers, values, label } = kind, near = nearest(layers, l);
    const change = values[near].map((v) => v - view.answer[0]);
    return { values: change, unit: `change of ${view.classes[0] ?? "the output's cosine"} when the patch ${label}, layer ${layers[near]}`, signed: Math.max(1e-6, ...values.flat().map((v) => Math.abs(v - view.answer[0]))) };
  }
  return null;
}

function draw(view) {
  const { canvas, picture } = view, found = mapOf(view), [rows, columns] = view.grid;
  const context = canvas.getContext("2d"), w = canvas.width, h = canvas.height, dx = w / columns, dy = h / rows;
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, w, h);
  view.scale.replaceChildren();
  if (found) {
    const low = found.signed ? -found.signed : found.bottom ?? 0, high = found.signed || (found.top ?? 0) || Math.max(1e-9, ...found.values);
    const ramp = found.signed ? SIGNED : EVEN;
    found.values.forEach((value, i) => {
      const { row, col } = view.tokens[view.patches[i]], t = (value - low) / (high - low || 1);
      context.fillStyle = `rgba(${colour(ramp, t)}, 0.66)`;
      context.fillRect(col * dx, row * dy, dx, dy);
    });
    const stops = ramp.map((c) => `rgb(${c})`).join(", ");
    const told = (x) => (Math.abs(x) >= 1000 || (x !== 0 && Math.abs(x) < 0.001) ? x.toExponential(1) : Number(x.toPrecision(3)).toString());
    view.scale.append(told(low), make("span", { class: found.signed ? "ramp signed" : "ramp", style: `background: linear-gradient(to right, ${stops})` }), told(high));
  }
  view.unit.textContent = found ? found.unit : absent(view, layerOf(view)) ? "this token is not there yet at this layer" : "not there for this model";
  context.lineWidth = 1;
  context.strokeStyle = "rgba(255, 255, 255, 0.25)";
  for (let c = 1; c < columns; c++) { context.beginPath(); context.moveTo(c * dx, 0); context.lineTo(c * dx, h); context.stroke(); }
  for (let r = 1; r < rows; r++) { context.beginPath(); context.moveTo(0, r * dy); context.lineTo(w, r * dy); context.stroke(); }
  for (const at of view.outliers[layerOf(view)]) {
    const { row, col } = view.tokens[at];
    context.strokeStyle = "#ffffff"; context.lineWidth = 2;
    context.beginPath(); context.arc((col + 0.5) * dx, (row + 0.5) * dy, Math.min(dx, dy) * 0.28, 0, 7); context.stroke();
  }
  const chosen = view.tokens[view.query];
  if (chosen.role === "patches") {
    context.lineWidth = 6; context.strokeStyle = "#000000"; context.strokeRect(chosen.col * dx, chosen.row * dy, dx, dy);
    context.lineWidth = 3; context.strokeStyle = "#ffffff"; context.strokeRect(chosen.col * dx, chosen.row * dy, dx, dy);
  }
}

const row = (cells) => make("tr", {}, ...cells);
const bar = (p) => make("td", { class: "bar" }, make("span", { style: `width: ${Math.max(0, Math.min(100, 100 * p))}%` }));

function tell(view) {
  const layer = layerOf(view), who = view.tokens[view.query];
  view.where.textContent = `behind layer ${layer - 1} of 0 to ${view.depth - 1}, query ${who.label}`;
  for (const button of view.prefix.children) button.setAttribute("aria-pressed", String(Number(button.dataset.token) === view.query));
  const mass = {};
  view.tokens.forEach((t, k) => { mass[t.role] = (mass[t.role] ?? 0) + overHeads(view, layer - 1, view.query, k); });
  const total = Object.values(mass).reduce((a, b) => a + b, 0) || 1;
  view.mass.replaceChildren(...Object.entries(mass).map(([role, x]) => row([make("th", {}, role), make("td", { class: "number" }, percent(x / total)), bar(x / total)])));
  view.normNote.textContent = `norm ${view.norms[layer][view.query].toPrecision(4)}; ${view.outliers[layer].length} high-norm patches in this layer, circled`;
  const lens = (token, body) => {
    const from = (layer * view.n + token) * view.lens.top_probability.shape[2];
    body.replaceChildren(...view.lens.top[layer][token].map((c, i) => {
      const p = view.lens.top_probability.bytes[from + i] / 255;
      return row([make("td", {}, String(view.lens.names[c])), make("td", { class: "number" }, percent(p)), bar(p)]);
    }));
  };
  if (view.lens) {
    if (absent(view, layer)) view.lensBody.replaceChildren();
    else lens(view.query, view.lensBody);
    view.lensTitle.textContent = `What the head reads from ${who.label} here`;
    // beside a clicked patch the lens of CLS stays, to be compared
    const cls = view.tokens.findIndex((t) => t.role === "cls");
    view.clsLens.hidden = cls < 0 || cls === view.query;
    if (!view.clsLens.hidden) lens(cls, view.clsBody);
  }
  effect(view, layer - 1);
}

function effect(view, layer) {
  const ofPatch = state.effect.startsWith("patch ") ? patchKind(view, state.effect) : undefined;
  if (state.effect.startsWith("patch ")) return patchEffect(view, layer, ofPatch);
  const chosen = view.effects.find((e) => e.label === state.effect);
  if (!chosen) return noEffect(view, "This change cannot be made in this model.");
  const now = chosen.layers[layer];
  const named = view.classes.length ? view.classes : ["cosine with the clean output"];
  view.effectBody.replaceChildren(...named.map((name, i) => row([
    make("td", {}, name), make("td", { class: "number" }, percent(view.answer[i])), make("td", { class: "number" }, "→"),
    make("td", { class: "number" }, percent(now.values[i])), bar(now.values[i]),
  ])));
  const first = view.classes[0];
  view.effectNote.textContent = now.first === null ? "" : now.first === first ? `The answer stays ${first}.` : `The answer becomes ${now.first}.`;
  view.effectNote.className = now.first !== null && now.first !== first ? "changed" : "";
  curve(view, chosen.layers.map((_, l) => l), chosen.layers.map((l) => l.values[0]), layer);
}

function noEffect(view, why) {
  view.effectBody.replaceChildren(); view.curve.replaceChildren();
  view.effectNote.textContent = why; view.effectNote.className = "";
}

/** What one clicked patch does, at the layers where every patch was changed. */
function patchEffect(view, layer, kind) {
  const at = view.patches.indexOf(view.query);
  if (!kind) return noEffect(view, "This change was not made in this model.");
  if (at < 0) return noEffect(view, "Click a patch: the change is made to one patch alone.");
  const near = nearest(kind.layers, layer), now = kind.values[near][at];
  view.effectBody.replaceChildren(row([
    make("td", {}, view.classes[0] ?? "cosine with the clean output"), make("td", { class: "number" }, percent(view.answer[0])),
    make("td", { class: "number" }, "→"), make("td", { class: "number" }, percent(now)), bar(now),
  ]));
  view.effectNote.textContent = `${view.tokens[view.query].label} ${kind.label}, layer ${kind.layers[near]}.`;
  view.effectNote.className = "";
  curve(view, kind.layers, kind.values.map((values) => values[at]), kind.layers[near]);
}

function curve(view, layers, values, chosen) {
  const w = 620, h = 180, left = 44, bottom = 46, x = (l) => left + ((w - left - 12) * l) / Math.max(1, view.depth - 1), y = (p) => 8 + (h - bottom - 8) * (1 - Math.max(0, p));
  const line = (at, ys) => ys.map((p, i) => `${i ? "L" : "M"}${x(at[i]).toFixed(1)},${y(p).toFixed(1)}`).join("");
  view.curve.replaceChildren(
    ...[0, 0.5, 1].flatMap((p) => [svg("line", { x1: left, x2: w - 12, y1: y(p), y2: y(p), stroke: "var(--line)" }), svg("text", { x: left - 8, y: y(p) + 4, "text-anchor": "end" }, p)]),
    svg("path", { d: line([0, view.depth - 1], [view.answer[0], view.answer[0]]), stroke: "var(--soft)", "stroke-dasharray": "5 4", fill: "none", "stroke-width": 1.5 }),
    svg("path", { d: line(layers, values), stroke: "var(--accent)", fill: "none", "stroke-width": 2.5 }),
    ...layers.map((l, i) => svg("circle", { cx: x(l), cy: y(values[i]), r: l === chosen ? 6 : 3, fill: "var(--accent)" })),
    ...Array.from({ length: view.depth }, (_, i) => (view.depth <= 14 || i % 2 === 0 ? svg("text", { x: x(i), y: h - 28, "text-anchor": "middle" }, i) : svg("g", {}))),
    svg("text", { x: w - 12, y: h - 8, "text-anchor": "end" }, "layer at which it is done; dashed: untouched"),
  );
  view.curve.setAttribute("viewBox", `0 0 ${w} ${h}`);
}

function refresh() {
  for (const view of VIEWS) { draw(view); tell(view); }
  const shown = document.getElementById("layer-now");
  shown.textContent = VIEWS.map((view) => layerOf(view) - 1).filter((l, i, all) => all.indexOf(l) === i).join(" / ");
}

function build(view) {
  const [rows, columns] = view.grid, side = 46 * Math.min(20, Math.max(8, columns));
  view.canvas = make("canvas", { width: side, height: Math.round((side * rows) / columns), tabindex: 0, role: "img",
    "aria-label": `${view.title || "the image"} with what is chosen above drawn over its patches; arrow keys choose a patch, Escape returns to CLS`,
    onclick: (event) => {
      const box = view.canvas.getBoundingClientRect();
      choose(view, Math.floor(((event.clientY - box.top) / box.height) * rows), Math.floor(((event.clientX - box.left) / box.width) * columns));
    },
    onkeydown: (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      const here = view.tokens[view.query];
      if (step) { event.preventDefault(); choose(view, (here.row ?? 0) + step[0], (here.col ?? 0) + step[1]); }
      if (event.key === "Escape") { view.query = Math.max(0, view.tokens.findIndex((t) => t.role === "cls")); refresh(); }
    } });
  view.scale = make("div", { class: "scale" });
  view.unit = make("p"); view.where = make("p"); view.normNote = make("p");
  view.prefix = make("div", { class: "prefix" }, ...view.tokens.map((t, i) => (t.role === "patches" ? null
    : make("button", { "data-token": i, onclick: () => { view.query = i; refresh(); } }, t.label))).filter(Boolean));
  view.clsBody = make("tbody");
  view.clsLens = make("div", { hidden: "" }, make("h3", {}, "Beside it, from CLS"), make("table", {}, view.clsBody));
  view.mass = make("tbody"); view.lensBody = make("tbody"); view.lensTitle = make("h3");
  view.effectBody = make("tbody"); view.effectNote = make("p", { "aria-live": "polite" });
  view.curve = svg("svg", { role: "img", "aria-label": "the answer against the layer at which the change is made" });
  const answer = view.classes.length ? `says ${view.classes[0]}, ${percent(view.answer[0])}` : "gives features, no classes";
  return make("section", {}, make("h2", {}, [view.name, view.title].filter(Boolean).join(" · ")), make("p", {}, `${view.about}; ${answer}`),
    view.where, make("div", { class: "sides" }, make("div", {}, view.canvas, view.scale, view.unit, view.prefix, view.normNote), make("div", {},
    view.classes.length ? make("h3", {}, "What the model says") : null,
    view.classes.length ? make("table", { class: "says" }, make("tbody", {}, ...view.classes.map((name, i) => row([
      make("td", {}, name), make("td", { class: "number" }, `logit ${view.logits[i].toFixed(2)}`), make("td", { class: "number" }, percent(view.answer[i])), bar(view.answer[i]),
    ])))) : null,
    view.classes.length ? make("p", { class: "shares" }, view.shares) : null,
    make("h3", {}, "Where the query's attention goes"), make("table", {}, view.mass),
    view.lens ? view.lensTitle : make("h3", {}, "No head, so no class lens"), view.lens ? make("table", {}, view.lensBody) : null, view.lens ? view.clsLens : null,
    make("h3", {}, "What the answer becomes"), view.effectNote, make("table", {}, view.effectBody), view.curve)));
}

function choose(view, r, c) {
  const [rows, columns] = view.grid, at = [Math.min(rows - 1, Math.max(0, r)), Math.min(columns - 1, Math.max(0, c))];
  view.query = view.patches.find((i) => view.tokens[i].row === at[0] && view.tokens[i].col === at[1]);
  refresh();
}

function select(id, text, options, key) {
  const box = make("select", { id, onchange: () => { state[key] = box.value; refresh(); } }, ...options.map(([value, label]) => make("option", { value }, label)));
  return make("label", { for: id }, text, box);
}

const heads = Math.max(...VIEWS.map((view) => view.attention.shape[1]));
const shown = [["attention", "attention from the query"], ["attended", "attention to the query"], ["rollout", "rollout"], ["norm", "norm of the stream"]];
if (VIEWS.some((view) => view.gradient)) shown.push(["gradient", "class gradient"]);
if (VIEWS.some((view) => view.lens)) shown.push(["class", "class lens on every patch"], ["logit", "class logit on every patch"]);
const distinct = (labels) => [...new Set(labels)];
const ofPatches = distinct(VIEWS.flatMap((view) => view.patch_effects.map((kind) => kind.label)));
for (const label of ofPatches) shown.push([`patch ${label}`, `effect: each patch ${label}`]);
const effects = distinct(VIEWS.flatMap((view) => view.effects.map((e) => e.label)));
state.effect = effects[0];
const ranked = VIEWS.reduce((a, b) => (b.classes.length > a.classes.length ? b : a));
const slider = make("input", { type: "range", id: "layer", min: 1, max: deepest, value: deepest, oninput: () => { state.layer = Number(slider.value); refresh(); } });
state.layer = deepest;
document.querySelector(".controls").append(
  make("label", { for: "layer" }, make("span", {}, "layer ", make("b", { id: "layer-now" })), slider),
  select("shown", "drawn over the picture", shown, "shown"),
  select("head", "heads", [["mean", "mean of the heads"], ["largest", "largest of the heads"], ...Array.from({ length: heads }, (_, h) => [String(h), `head ${h}`])], "head"),
  ...(ranked.classes.length ? [select("cls", "class", ranked.classes.map((_, i) => [String(i), VIEWS.length > 1 ? `answer no. ${i + 1}` : ranked.classes[i]]), "cls")] : []),
  select("effect", "change", [...effects.map((label) => [label, label]), ...ofPatches.map((label) => [`patch ${label}`, `the clicked patch ${label}`])], "effect"),
  make("button", { id: "theme", onclick: () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark"; refresh();
  } }, "light / dark"),
);
const main = document.querySelector("main");
Promise.all(VIEWS.map((view) => new Promise((ready) => {
  const image = new Image();
  image.onload = () => { view.picture = image; ready(); };
  image.src = view.picture;
}))).then(() => { main.append(...VIEWS.map(build)); refresh(); document.documentElement.dataset.ready = "yes"; });
