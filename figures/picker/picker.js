// Pointing at objects: a frame to click, to draw boxes on and to paint on; the prompts of several objects and frames.
// The same code runs as an anywidget and in the page of a small server; only where frames and masks come from differs.

const KEPT = 24;  // pictures of frames and of masks
const DRAG = 5;  // pixels of the screen from which on a click is a box
const HELP = [
  ["click", "point on the object"], ["right click, Shift+click", "point beside it"], ["drag", "box"],
  ["arrows", "move the cross, 10 pixels with Shift"], ["Enter", "click at the cross, or paint there"],
  ["Shift+Enter", "point beside the object"], ["B", "a corner of a box at the cross, then the other"],
  [", and .", "frame before and after"], ["1 … 9", "object"], ["N", "new object"], ["U, Ctrl+Z", "undo"],
  ["X", "the object ends here"], ["P, R, E", "points, brush, eraser"], ["[ and ]", "size of the brush"],
];

// source: {meta, entries, frame(index) -> Promise of an address, mask(entry) -> Promise of run lengths, tell(entries),
// and where prompts go to a file: save(entries) -> Promise of words, finish() -> Promise;
// and where the video is tracked meanwhile: player, an element below the frame, keys {key: act}, help [[key, words]],
// tracked(frame, object) -> {layer, area} or undefined, beneath and above(pen, frame, canvas, nameOf), what is drawn
// under and over masks, words(frame, object), moved(frame)}
export function mount(el, source) {
  const { width, height, frames, colours } = source.meta;
  const group = `pick${Math.random().toString(36).slice(2)}`;
  const given = source.entries ?? [];
  const known = new Map([[given[0]?.object ?? 1, ""]]);
  for (const { object, label } of given) if (label || !known.has(object)) known.set(object, label ?? "");
  // objects and entries are replaced by what changes them, never written into, so that undo can go back to them
  const state = { frame: given[0]?.frame ?? 0, object: [...known.keys()][0], tool: "point", brush: 0.05, cross: null,
    corner: null, picture: null, stroke: null, saved: true,
    objects: [...known].map(([id, name]) => ({ id, name })),
    entries: given.map(({ label, ...entry }) => entry) };
  const past = [];
  const pictures = new Map();
  const masks = new Map();  // the predictor's, by prompt: {runs} or {failed}
  let asking = false;

  const title = make(source.save ? "h1" : "h2");  // a page of its own, or a part of a notebook
  title.textContent = `${source.meta.title} · ${width} × ${height}, ${frames} frames`;
  const tools = [["point", "Points and boxes"], ["brush", "Brush"], ["eraser", "Eraser"]].map(([name, words]) => {
    const button = press(words, () => choose(name));
    button.dataset.tool = name;
    return button;
  });
  const size = make("input", { type: "range", min: 0.005, max: 0.2, step: 0.005, "aria-label": "size of the brush" });
  const sized = make("label", {}, "size", size);
  const undo = press("Undo", goBack);
  const clear = press("Clear prompt", () => change({ entries: state.entries.filter((e) => e !== here()) },
    `cleared ${nameOf(state.object)} on frame ${state.frame}`));
  const end = press("Ends here", endHere);
  const ends = make("span", { class: "ends" });
  const canvas = make("canvas", { tabindex: 0, role: "application", "aria-describedby": `${group}-help` });
  const slider = make("input", { type: "range", min: 0, max: frames - 1, step: 1, "aria-label": "frame" });
  const shown = make("output");
  const marked = make("div", { class: "marked" });
  const list = make("fieldset", { class: "objects" });
  const add = press("New object", addObject);
  const status = make("p", { class: "status", role: "status", "aria-live": "polite" });
  const keys = make("dl", { id: `${group}-help` });
  for (const [key, words] of [...HELP, ...(source.help ?? [])]) {
    const row = make("div", {}, make("dt"), make("dd"));
    row.firstChild.textContent = key;
    row.lastChild.textContent = words;
    keys.append(row);
  }
  const root = make("div", { class: "look pick", "data-lm-suppress-shortcuts": "true" }, title,
    make("div", { class: "bar", role: "toolbar", "aria-label": "tools" }, ...tools, undo, clear, end, sized, ends),
    make("div", { class: "both" },
      make("div", { class: "stage" }, canvas, ...(source.player ? [source.player] : []),
        make("div", { class: "time" }, make("label", {}, "frame", slider), shown, marked), status),
      make("div", { class: "side" }, list, add)),
    make("details", {}, make("summary", {}, "Keys and mouse"), keys));
  if (source.save) ends.append(press("Save", save), press("Save and finish", async () => {
    if (await save()) await source.finish();
  }));
  el.append(root);
  root.style.setProperty("--aspect", width / height);
  size.value = state.brush;

  function say(words, bad = false) {
    status.textContent = words;
    status.classList.toggle("bad", bad);
  }

  // ---- what there is

  const nameOf = (id) => state.objects.find((o) => o.id === id)?.name || `object ${id}`;
  const colourOf = (id) => colours[(id - 1) % colours.length];
  const entryOf = (object, frame) => state.entries.find((e) => e.object === object && e.frame === frame);
  const here = () => entryOf(state.object, state.frame);
  const before = () => state.entries.findLast((e) => e.object === state.object && e.frame < state.frame);
  const isTracked = () => Boolean(before() && !before().remove);
  const isOnIt = (e) => Boolean(e.box || e.mask || e.points?.some((p) => p.length < 3));
  const counted = (n, what, more = `${what}s`) => `${n} ${n === 1 ? what : more}`;

  // what the file is to hold
  function told() {
    return state.entries.map(({ frame, object, ...rest }) => {
      const { name } = state.objects.find((o) => o.id === object);
      return { frame, object, ...(name ? { label: name } : {}), ...rest };
    });
  }

  function summary() {
    const entry = here();
    const result = source.words?.(state.frame, state.object) ?? "";
    if (entry?.remove) return `frame ${state.frame}: ${nameOf(state.object)} ends here, and is not tracked from this frame on`;
    if (!entry) return `frame ${state.frame}: ${result || `nothing on ${nameOf(state.object)} yet`}; click on it, or drag a box around it`;
    const found = source.tracked ? null : maskOf(entry);
    const alone = !entry.mask && isTracked() ? ", by this prompt alone: tracked, it corrects the object" : "";
    const parts = [entry.box && "a box", entry.points && counted(entry.points.length, "point"), entry.mask && "a painted mask"];
    const mask = found?.failed ? `; no mask: ${found.failed}`
      : found ? `; mask covers ${(100 * found.area / width / height).toFixed(1)} % of the frame${alone}`
        : result ? `; ${result}` : !source.meta.masks ? "" : isOnIt(entry) ? "; computing the mask …" : "; its mask shows when it is tracked";
    return `frame ${state.frame}: ${parts.filter(Boolean).join(" and ")} on ${nameOf(state.object)}${mask}`;
  }

  // ---- changes

  function change(next, words) {
    const { objects, entries, object, frame } = state;
    past.push({ objects, entries, object, frame });
    keep(next, words);
  }

  function keep(next, words) {
    Object.assign(state, next, { saved: false });
    source.tell(told());
    draw();
    if (words) say(words);
  }

  function goBack() {
    if (!past.length) { say("nothing to undo"); return; }
    const before = past.pop();
    const moved = before.frame !== state.frame;
    keep(before);
    if (moved) go(before.frame);
  }

  function put(entry) {
    const entries = [...state.entries.filter((e) => e.object !== entry.object || e.frame !== entry.frame), entry];
    change({ entries: entries.sort((a, b) => a.frame - b.frame || a.object - b.object) });
  }

  // a mask stands alone: points and boxes begin anew
  function base() {
    const { frame, object, points, box } = here() ?? state;
    return { frame, object, ...(points ? { points } : {}), ...(box ? { box } : {}) };
  }

  function point(x, y, on) {
    if (!on && !isTracked() && !(here() && isOnIt(base()))) {
      say(`first click on ${nameOf(state.object)} itself, then beside it`, true);
      return;
    }
    const entry = base();
    put({ ...entry, points: [...(entry.points ?? []), on ? [x, y] : [x, y, 0]] });
  }

  function box(from, to) {
    const [left, right] = [from[0], to[0]].sort((a, b) => a - b);
    const [top, bottom] = [from[1], to[1]].sort((a, b) => a - b);
    if (right - left < 1 || bottom - top < 1) { say("a box needs a width and a height", true); return; }
    put({ ...base(), box: [left, top, right, bottom] });
  }

  function endHere() {
    if (isTracked()) put({ frame: state.frame, object: state.object, remove: true });
    else say(`${nameOf(state.object)} has no prompt on a frame before: it can't end here; clear its prompt instead`, true);
  }

  function addObject() {
    const id = Math.max(...state.objects.map((o) => o.id)) + 1;
    change({ objects: [...state.objects, { id, name: "" }], object: id }, `object ${id} added: click on it`);
  }

  function removeObject(id) {
    const left = state.objects.filter((o) => o.id !== id);
    const objects = left.length ? left : [{ id: 1, name: "" }];
    change({ objects, entries: state.entries.filter((e) => e.object !== id),
      object: state.object === id ? objects[0].id : state.object }, `${nameOf(id)} removed; undo brings it back`);
  }

  function select(id) {
    state.object = id;
    state.corner = null;
    draw();
  }

  function choose(tool) {
    state.tool = tool;
    state.corner = null;
    draw();
  }

  async function go(frame) {
    state.frame = Math.min(frames - 1, Math.max(0, frame));
    state.corner = null;
    const wanted = state.frame;
    source.moved?.(wanted);
    slider.value = wanted;
    shown.textContent = `${wanted} of ${frames - 1}`;
    try {
      if (!pictures.has(wanted)) {
        const picture = new Image();
        picture.src = await source.frame(wanted);
        await picture.decode();
        URL.revokeObjectURL(picture.src);
        pictures.set(wanted, picture);
        if (pictures.size > KEPT) pictures.delete(pictures.keys().next().value);
      }
    } catch (error) {
      if (wanted === state.frame) say(`frame ${wanted} can't be shown: ${error.message}`, true);
      return;
    }
    if (wanted !== state.frame) return;
    state.picture = pictures.get(wanted);
    draw();
  }

  async function save() {
    try {
      say(await source.save(told()));
      state.saved = true;
      draw(false);
      return true;
    } catch (error) {
      say(error.message, true);
      return false;
    }
  }

  // ---- masks

  const layers = new Map();  // by prompt: the latest few, as one takes megabytes

  // {layer, area}, {failed}, or undefined
  function maskOf(entry) {
    const found = entry?.mask ? { runs: entry.mask.counts } : masks.get(JSON.stringify(entry));
    if (!found || found.failed) return found;
    if (!layers.has(entry)) layers.set(entry, painted(found.runs, width, height, colourOf(entry.object)));
    if (layers.size > KEPT) layers.delete(layers.keys().next().value);
    return layers.get(entry);
  }

  // what shows of an object on this frame
  function maskAt(id) {
    return source.tracked?.(state.frame, id) ?? maskOf(entryOf(id, state.frame));
  }

  // one at a time, so that a slow model is asked for what is wanted when it is free
  async function askForMasks() {
    if (asking || !source.meta.masks) return;
    const entry = state.entries.find((e) => e.frame === state.frame && !e.mask && isOnIt(e) && !masks.has(JSON.stringify(e)));
    if (!entry) return;
    asking = true;
    const key = JSON.stringify(entry);
    try {
      masks.set(key, { runs: await source.mask(entry) });
    } catch (error) {
      masks.set(key, { failed: error.message });
    }
    asking = false;
    draw();
  }

  // ---- painting

  function stroke(from, to) {
    state.stroke ??= begun();
    if (!state.stroke) return;
    const pen = state.stroke.getContext("2d");
    pen.globalCompositeOperation = state.tool === "brush" ? "source-over" : "destination-out";
    Object.assign(pen, { strokeStyle: colourOf(state.object), lineCap: "round", lineWidth: state.brush * width });
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(to[0] + 0.01, to[1]);
    pen.stroke();
    draw(false);
  }

  // a canvas that begins with the mask that shows
  function begun() {
    const found = maskAt(state.object);
    if (!found?.layer && state.tool === "eraser") { say("there is no mask to erase from; paint one with the brush", true); return null; }
    const layer = layerOf(width, height);
    if (found?.layer) layer.getContext("2d").drawImage(found.layer, 0, 0);
    return layer;
  }

  function endStroke() {
    const layer = state.stroke;
    state.stroke = null;
    if (!layer) return;
    const counts = runsOf(layer);
    const { frame, object } = state;
    if (counts) put({ frame, object, mask: { size: [height, width], counts } });
    else change({ entries: state.entries.filter((e) => e !== here()) });
  }

  // ---- drawing

  function draw(tell = true) {
    const scale = Math.min(2, window.devicePixelRatio || 1);
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
    canvas.height = Math.max(1, Math.round(canvas.width * height / width));
    const pen = canvas.getContext("2d");
    const zoom = canvas.width / width;
    if (state.picture) pen.drawImage(state.picture, 0, 0, canvas.width, canvas.height);
    source.beneath?.(pen, state.frame, canvas);
    const now = state.entries.filter((e) => e.frame === state.frame)
      .sort((a, b) => (a.object === state.object) - (b.object === state.object));
    let seen = 0;
    for (const { id } of [...state.objects].sort((a, b) => (a.id === state.object) - (b.id === state.object))) {
      const layer = state.stroke && id === state.object ? null : maskAt(id)?.layer;
      if (layer) { lay(pen, layer); seen++; }
    }
    if (state.stroke) lay(pen, state.stroke);
    source.above?.(pen, state.frame, canvas, nameOf);
    for (const entry of now) drawPrompt(pen, entry, colourOf(entry.object), entry.object === state.object, zoom, scale);
    const { corner, cross, pointing } = state;
    if (corner && cross) outlined(pen, [...corner, ...cross], zoom, colourOf(state.object), 2 * scale);
    if (cross && !pointing) drawCross(pen, cross, state.tool === "point" ? 0 : state.brush * width / 2, zoom, scale);
    for (const button of tools) button.setAttribute("aria-pressed", button.dataset.tool === state.tool);
    sized.style.display = state.tool === "point" ? "none" : "";
    undo.disabled = !past.length;
    clear.disabled = !here();
    end.setAttribute("aria-pressed", Boolean(here()?.remove));
    canvas.setAttribute("aria-label", `frame ${state.frame}, ${nameOf(state.object)}: click on it`);
    drawObjects();
    drawMarked();
    if (tell) say(summary());
    Object.assign(root.dataset, { frame: state.picture === pictures.get(state.frame) ? state.frame : "",
      object: state.object, prompts: state.entries.length, masks: seen, saved: state.saved });
    askForMasks();
  }

  function lay(pen, layer) {
    pen.globalAlpha = 0.5;
    pen.drawImage(layer, 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = 1;
  }

  let listed = null;

  function drawObjects() {
    if (listed !== state.objects) {
      listed = state.objects;
      list.replaceChildren(make("legend", {}, "Objects"), ...state.objects.map(objectRow));
    }
    for (const row of list.querySelectorAll(".object")) {
      const id = Number(row.dataset.id);
      row.querySelector("[type=radio]").checked = id === state.object;
      row.querySelector("small").textContent = counted(state.entries.filter((e) => e.object === id).length, "frame");
    }
  }

  function objectRow({ id, name }) {
    const radio = make("input", { type: "radio", name: group, "aria-label": `point at object ${id}` });
    radio.addEventListener("change", () => select(id));
    const swatch = make("span", { class: "swatch" });
    swatch.style.background = colourOf(id);
    const field = make("input", { type: "text", placeholder: `object ${id}`, "aria-label": `name of object ${id}`, maxlength: 80 });
    field.value = name;
    field.addEventListener("focus", () => { if (state.object !== id) select(id); });
    field.addEventListener("change", () => {
      // the row shows it already, and whoever left it with Tab goes on from there
      listed = state.objects.map((o) => (o.id === id ? { id, name: field.value.trim() } : o));
      change({ objects: listed });
    });
    const remove = press("×", () => removeObject(id));
    remove.setAttribute("aria-label", `remove object ${id}`);
    return make("div", { class: "object", "data-id": id }, radio, swatch, field, make("small"), remove);
  }

  function drawMarked() {
    const prompted = [...new Set(state.entries.map((e) => e.frame))].sort((a, b) => a - b);
    marked.replaceChildren(...(prompted.length ? ["prompts on "] : []), ...prompted.map((frame) => {
      const button = press(String(frame), () => go(frame));
      button.setAttribute("aria-label", `go to frame ${frame}`);
      return button;
    }));
  }

  // ---- hands

  function place(event) {
    const area = canvas.getBoundingClientRect();
    const share = (at, start, length) => Math.min(1, Math.max(0, (at - start) / length));
    return inside([width * share(event.clientX, area.left, area.width), height * share(event.clientY, area.top, area.height)]);
  }

  // at most the last pixel, to a tenth
  function inside([x, y]) {
    const held = (value, most) => Math.round(10 * Math.min(most - 1, Math.max(0, value))) / 10;
    return [held(x, width), held(y, height)];
  }

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => {
    if (!state.picture || event.button === 1) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    const at = place(event);
    state.pointing = { at, x: event.clientX, y: event.clientY, last: at, on: event.button === 0 && !event.shiftKey && !event.ctrlKey, drags: false };
    if (state.tool !== "point") stroke(at, at);
  });
  canvas.addEventListener("pointermove", (event) => {
    const { pointing } = state;
    if (!pointing) return;
    const at = place(event);
    if (state.tool !== "point") stroke(pointing.last, at);
    else if (pointing.drags || Math.hypot(event.clientX - pointing.x, event.clientY - pointing.y) >= DRAG) {
      pointing.drags = true;
      Object.assign(state, { corner: pointing.at, cross: at });
      draw(false);
    }
    pointing.last = at;
  });
  canvas.addEventListener("pointerup", (event) => {
    const { pointing } = state;
    if (!pointing) return;
    Object.assign(state, { pointing: null, corner: null, cross: null });
    if (state.tool !== "point") endStroke();
    else if (pointing.drags) box(pointing.at, place(event));
    else point(...pointing.at, pointing.on);
  });
  canvas.addEventListener("pointercancel", () => {
    Object.assign(state, { pointing: null, corner: null, cross: null, stroke: null });
    draw();
  });
  canvas.addEventListener("blur", () => { state.cross = null; draw(false); });
  slider.addEventListener("input", () => go(Number(slider.value)));
  size.addEventListener("input", () => { state.brush = Number(size.value); draw(false); });

  function atCross(event) {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const cross = state.cross ?? inside([width / 2, height / 2]);
    if (by) {
      const step = event.shiftKey ? 10 : 1;
      state.cross = state.cross ? inside([cross[0] + step * by[0], cross[1] + step * by[1]]) : cross;
      draw(false);
      say(`cross at ${state.cross.join(", ")}`);
    } else if (event.key === "Enter") {
      state.cross = cross;
      if (state.tool === "point") point(...cross, !event.shiftKey);
      else { stroke(cross, cross); endStroke(); }
    } else if (event.key.toLowerCase() === "b" && state.tool === "point") {
      const { corner } = state;
      Object.assign(state, { cross, corner: corner ? null : cross });
      if (corner) box(corner, cross);
      else { draw(false); say("first corner of a box: move the cross to the other one and press B"); }
    } else return false;
    return true;
  }

  function everywhere(event) {
    const key = event.key.toLowerCase();
    const sized = { "[": 0.8, "]": 1.25 }[key];
    if (key === "u" || (key === "z" && (event.ctrlKey || event.metaKey))) goBack();
    else if (event.ctrlKey || event.metaKey || event.altKey) return false;
    else if (key === "," || key === ".") go(state.frame + (key === "." ? 1 : -1));
    else if (key === "n") addObject();
    else if (key === "x") endHere();
    else if (source.keys?.[key]) source.keys[key]();
    else if ("pre".includes(key)) choose({ p: "point", r: "brush", e: "eraser" }[key]);
    else if (sized) { size.value = state.brush * sized; state.brush = Number(size.value); draw(false); }
    else if (/^[1-9]$/.test(key) && state.objects[key - 1]) select(state.objects[key - 1].id);
    else return false;
    return true;
  }

  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.target.type === "text") return;
    if ((event.target === canvas && atCross(event)) || everywhere(event)) event.preventDefault();
  });
  new ResizeObserver(() => draw(false)).observe(canvas);
  go(state.frame);
  // other prompts than a hand made here
  function take(entries) {
    const named = new Map(state.objects.map((o) => [o.id, o.name]));
    const names = new Map(entries.map((e) => [e.object, named.get(e.object) ?? ""]));
    for (const { object, label } of entries) if (label) names.set(object, label);
    state.objects = names.size ? [...names].map(([id, name]) => ({ id, name })) : state.objects;
    state.entries = entries.map(({ label, ...entry }) => entry);
    if (!state.objects.some((o) => o.id === state.object)) state.object = state.objects[0].id;
    past.length = 0;
    draw();
  }

  return { unsaved: () => !state.saved && state.entries.length > 0, say, go, draw, take, root, canvas, frame: () => state.frame };
}
