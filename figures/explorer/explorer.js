// The explorer: a frame to click on, the map of what that pixel attends to, and the memory film strip.
// The same code runs as an anywidget and in the offline page; only where the rows come from differs.

const FLOOR = 0.1;  // attention below a tenth of the even share is drawn as nothing

const STYLE = `
.esx{font:14px/1.4 system-ui,'DejaVu Sans',Arial,sans-serif;color:var(--ink);background:var(--paper);
 padding:14px 16px;max-width:1120px;outline:none;box-sizing:border-box}
.esx[data-theme=light]{--ink:#1f2328;--faint:#59636e;--paper:#fff;--line:#d5dade;--hot:#0072b2}
.esx[data-theme=dark]{--ink:#e8eaed;--faint:#a3abb4;--paper:#14181d;--line:#39424c;--hot:#56b4e9}
.esx h2{font-size:17px;font-weight:500;margin:0 0 10px}
.esx .bar{display:flex;flex-wrap:wrap;gap:8px 16px;align-items:center;margin-bottom:10px}
.esx label{color:var(--faint);display:flex;gap:6px;align-items:center}
.esx select,.esx button{font:inherit;color:var(--ink);background:var(--paper);border:1px solid var(--line);
 border-radius:4px;padding:2px 6px}
.esx input[type=range]{width:220px;accent-color:var(--hot)}
.esx .pair{display:grid;grid-template-columns:1fr 1fr;gap:12px}
.esx figure{margin:0}.esx figcaption{color:var(--faint);font-size:13px;min-height:20px}
.esx canvas{width:100%;display:block;background:#000}
.esx .query{cursor:crosshair}
.esx .strip{display:grid;grid-template-columns:repeat(7,1fr);gap:8px;margin-top:10px}
.esx .strip figure{cursor:pointer;border-bottom:3px solid transparent}
.esx .strip figure.chosen{border-bottom-color:var(--hot)}
.esx .strip figcaption{font-size:12px}
.esx .scale{height:10px;margin-top:10px;border-radius:2px}
.esx .ticks{display:flex;justify-content:space-between;color:var(--faint);font-size:12px}
.esx p{color:var(--faint);font-size:13px;margin:8px 0 0}`;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

async function unpack(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function load(address) {
  return new Promise((done, failed) => {
    const picture = new Image();
    picture.onload = () => done(picture);
    picture.onerror = () => failed(new Error("a frame can't be shown"));
    picture.src = address;
  });
}

// source: {meta, rows(site, index) -> Promise of gzipped bytes}
export async function mount(el, source) {
  const { meta } = source;
  const table = bytes(meta.heat);
  const cells = meta.cells * meta.cells;
  const state = { t: 0, object: meta.objects[0], site: meta.sites[0].name, way: "to", slot: 6,
    x: 0.5, y: 0.5, turn: 0 };
  const pictures = await Promise.all(meta.frames.map((frame) => load(frame.picture)));
  const place = new Map(meta.frames.map((frame, t) => [frame.index, t]));
  const cache = new Map();
  const nearest = nearestQueries(meta);

  const title = make("h2");
  title.textContent = meta.title;
  const site = choice("site", meta.sites.map((item) => [item.name, item.name]));
  const way = choice("", [["to", "this pixel attends to"], ["from", "who attends to this pixel"]]);
  const object = choice("object", meta.objects.map((id) => [id, id]));
  const slider = make("input", { type: "range", min: 0, max: meta.frames.length - 1, step: 1,
    "aria-label": "frame" });
  slider.value = 0;
  const shown = make("span");
  const query = make("canvas", { class: "query" });
  const map = make("canvas", { class: "map" });
  const queryNote = make("figcaption");
  const mapNote = make("figcaption", { class: "note" });
  const strip = make("div", { class: "strip" });
  const scale = make("div", { class: "scale" });
  const ticks = make("div", { class: "ticks" });
  const caption = make("p");
  caption.textContent = meta.caption;
  const tiles = Array.from({ length: 7 }, (_, slot) => {
    const canvas = make("canvas");
    const note = make("figcaption");
    const figure = make("figure", { "data-slot": slot }, canvas, note);
    figure.addEventListener("click", () => choose(slot));
    return { canvas, note, figure };
  });
  strip.append(...[1, 2, 3, 4, 5, 6, 0].reverse().map((slot) => tiles[slot].figure));
  const root = make("div", { class: "esx", tabindex: 0, "data-theme": meta.theme },
    make("style"), title,
    make("div", { class: "bar" }, site.label, way.label, object.label,
      make("label", {}, "frame", slider, shown)),
    make("div", { class: "pair" }, make("figure", {}, query, queryNote),
      make("figure", {}, map, mapNote)),
    strip, scale, ticks, caption);
  root.querySelector("style").textContent = STYLE;
  el.append(root);
  if (meta.objects.length < 2) object.label.style.display = "none";
  drawScale();

  function choice(text, options) {
    const select = make("select", { "aria-label": text || "direction" });
    for (const [value, name] of options) {
      const option = make("option", { value });
      option.textContent = name;
      select.append(option);
    }
    return { select, label: make("label", {}, text, select) };
  }

  function drawScale() {
    const stops = [];
    for (let i = 0; i <= 255; i += 15) {
      stops.push(`rgb(${table[3 * i]},${table[3 * i + 1]},${table[3 * i + 2]})`);
    }
    scale.style.background = `linear-gradient(90deg,${stops.join()})`;
    for (const text of ["0.1 ×", "1 × even share", "10 ×", "100 ×"]) {
      ticks.append(make("span", {}, text));
    }
  }

  function here() {
    return meta.rows[`${meta.frames[state.t].index}:${state.object}`];
  }

  // levels and scales of one site now: {values(query, slot, cell)}
  async function rowsOf(name) {
    const info = meta.sites.find((item) => item.name === name);
    const index = info.part === "encoder" ? state.t : here() ? here().row : -1;
    if (index < 0) return null;
    const key = `${name}/${index}`;
    if (!cache.has(key)) {
      cache.set(key, source.rows(name, index).then(unpack).then((buffer) => {
        const scales = new Float32Array(buffer.slice(0, 4 * info.queries));
        const levels = new Uint8Array(buffer, 4 * info.queries);
        return { info, scales, levels, slots: info.part === "memory" ? 7 : 1 };
      }));
      if (cache.size > 24) cache.delete(cache.keys().next().value);
    }
    return cache.get(key);
  }

  function value(rows, q, slot, cell) {
    const level = rows.levels[(q * rows.slots + slot) * cells + cell] / 255;
    return level * level * rows.scales[q];
  }

  // cells that the even share is spread over: those of all remembered frames, or of the one image
  function even(rows) {
    return cells * (rows.info.part === "memory" ? here().memory.filter((t) => t >= 0).length : 1);
  }

  // the map of a slot: Float32Array of side * side, as multiples of the even share
  function mapOf(rows, slot) {
    if (rows.info.part === "decoder") {
      const found = new Float32Array(cells);
      for (let q = 0; q < rows.info.queries; q++) {
        for (let c = 0; c < cells; c++) found[c] += value(rows, q, 0, c) / rows.info.queries;
      }
      return { side: meta.cells, found: found.map((v) => v * cells) };
    }
    if (state.way === "to") {
      const q = nearest[token(state.x, state.y, meta.grid)];
      const found = new Float32Array(cells);
      for (let c = 0; c < cells; c++) found[c] = value(rows, q, slot, c) * even(rows);
      return { side: meta.cells, found };
    }
    const cell = token(state.x, state.y, meta.cells);
    const found = new Float32Array(meta.grid * meta.grid);
    for (let i = 0; i < found.length; i++) {
      found[i] = value(rows, nearest[i], slot, cell) * even(rows);
    }
    return { side: meta.grid, found };
  }

  function paint(canvas, t, heat, width, mark) {
    const picture = pictures[t];
    canvas.width = width;
    canvas.height = Math.round(width / meta.aspect);
    const pen = canvas.getContext("2d");
    pen.filter = heat ? "grayscale(1)" : "none";
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    pen.filter = "none";
    if (heat) {
      const small = document.createElement("canvas");
      small.width = small.height = heat.side;
      const image = new ImageData(heat.side, heat.side);
      heat.found.forEach((v, i) => {
        const share = Math.min(1, Math.max(0, (Math.log10(Math.max(v, FLOOR)) + 1) / 3));
        const entry = Math.round(255 * share);
        image.data.set(table.subarray(3 * entry, 3 * entry + 3), 4 * i);
        image.data[4 * i + 3] = 255 * Math.min(0.85, v < FLOOR ? 0 : 0.12 + 0.95 * share);
      });
      small.getContext("2d").putImageData(image, 0, 0);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(small, 0, 0, canvas.width, canvas.height);
    }
    if (mark) cross(pen, state.x * canvas.width, state.y * canvas.height);
  }

  function cross(pen, x, y) {
    for (const [shade, width] of [["#000", 5], ["#fff", 2.5]]) {
      pen.strokeStyle = shade;
      pen.lineWidth = width;
      pen.beginPath();
      pen.moveTo(x - 11, y); pen.lineTo(x + 11, y);
      pen.moveTo(x, y - 11); pen.lineTo(x, y + 11);
      pen.stroke();
    }
  }

  async function draw() {
    const turn = ++state.turn;
    const info = meta.sites.find((item) => item.name === state.site);
    const strips = info.part === "memory" ? state.site : meta.strip;
    const [rows, remembered] = await Promise.all([rowsOf(state.site),
      strips ? rowsOf(strips) : Promise.resolve(null)]);
    if (turn !== state.turn) return;
    const now = meta.frames[state.t].index;
    slider.value = state.t;
    shown.textContent = String(now);
    paint(query, state.t, null, 640, true);
    queryNote.textContent = `frame ${now}: click on a pixel` +
      (here() ? `; object score ${here().score.toFixed(1)}` : "");
    let over = state.t;
    let words = state.way === "to" ? "what this pixel attends to" : "who attends to this pixel";
    if (info.part === "decoder") words = "what the object's output tokens attend to";
    let peak = NaN;
    let heat = null;
    if (info.part === "memory") {
      const frame = here() ? here().memory[state.slot] : -1;
      over = place.has(frame) ? place.get(frame) : state.t;
      words = frame < 0 ? "no such memory frame yet"
        : `${words} in memory frame ${frame}, ${Math.abs(now - frame)} back`;
      if (rows && frame >= 0) heat = mapOf(rows, state.slot);
    } else if (rows) heat = mapOf(rows, 0);
    paint(map, over, heat, 640, heat && info.part === "encoder");
    if (heat) peak = heat.found.reduce((a, b) => Math.max(a, b), 0);
    mapNote.textContent = words + (heat ? `; peak ${peak.toFixed(1)} × even share`
      : info.part === "memory" ? "" : "; nothing was stored for this frame");
    drawStrip(remembered, strips);
    Object.assign(root.dataset, { frame: now, site: state.site, way: state.way, slot: state.slot,
      x: state.x.toFixed(3), y: state.y.toFixed(3), peak: peak.toFixed(3), ready: turn });
  }

  function drawStrip(rows, name) {
    strip.style.display = name && rows ? "" : "none";
    if (!rows || !here()) { strip.style.display = "none"; return; }
    const now = meta.frames[state.t].index;
    tiles.forEach(({ canvas, note, figure }, slot) => {
      const frame = here().memory[slot];
      const there = frame >= 0 && place.has(frame);
      figure.style.visibility = there ? "visible" : "hidden";
      figure.classList.toggle("chosen", slot === state.slot);
      if (!there) return;
      paint(canvas, place.get(frame), mapOf(rows, slot), 200, false);
      const similar = here().similarity[rows.info.layer]?.[slot];
      note.textContent = `${slot ? "" : "prompt, "}${Math.abs(now - frame)} back` +
        (similar === null || similar === undefined ? "" : `, CS ${similar.toFixed(2)}`);
    });
  }

  function choose(slot) {
    state.slot = slot;
    if (!state.site.startsWith("memory")) { state.site = meta.strip; site.select.value = meta.strip; }
    draw();
  }

  function step(by) {
    state.t = Math.min(meta.frames.length - 1, Math.max(0, state.t + by));
    draw();
  }

  site.select.addEventListener("change", () => { state.site = site.select.value; draw(); });
  way.select.addEventListener("change", () => { state.way = way.select.value; draw(); });
  object.select.addEventListener("change", () => { state.object = Number(object.select.value); draw(); });
  slider.addEventListener("input", () => { state.t = Number(slider.value); draw(); });
  query.addEventListener("click", (event) => {
    const box = query.getBoundingClientRect();
    state.x = Math.min(0.999, Math.max(0, (event.clientX - box.left) / box.width));
    state.y = Math.min(0.999, Math.max(0, (event.clientY - box.top) / box.height));
    root.focus();
    draw();
  });
  root.addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT" || event.target === slider) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); event.stopPropagation(); step(by); }
  });
  await draw();
}

function token(x, y, side) {
  return Math.floor(y * side) * side + Math.floor(x * side);
}

// for each token of the grid, the stored query that is nearest to it
function nearestQueries(meta) {
  const side = meta.grid;
  return Uint16Array.from({ length: side * side }, (_, i) => {
    let best = 0;
    let least = Infinity;
    meta.queries.forEach((q, n) => {
      const far = ((q % side) - (i % side)) ** 2
        + (Math.floor(q / side) - Math.floor(i / side)) ** 2;
      if (far < least) { least = far; best = n; }
    });
    return best;
  });
}

export default {
  render({ model, el }) {
    const waiting = new Map();
    const heard = (message, buffers) => {
      if (message.kind !== "rows") return;
      const view = buffers[0];
      waiting.get(message.key)?.(new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength));
      waiting.delete(message.key);
    };
    model.on("msg:custom", heard);
    const rows = (site, index) => new Promise((done) => {
      const key = `${site}/${index}`;
      waiting.set(key, done);
      model.send({ kind: "rows", key, site, index });
    });
    mount(el, { meta: model.get("meta"), rows });
    return () => model.off("msg:custom", heard);
  },
};
