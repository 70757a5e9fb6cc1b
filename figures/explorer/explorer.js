// The explorer: a frame to click on, the map of what that pixel attends to, and the memory film strip.
// The same code runs as an anywidget and in the offline page; only where the rows come from differs.

// source: {meta, rows(site, index) -> Promise of gzipped bytes}
export async function mount(el, source) {
  const { meta } = source;
  const table = bytes(meta.heat);
  const held = Object.values(meta.rows).map((row) => row.memory.findLastIndex((t) => t >= 0));
  const state = { t: 0, object: meta.objects[0], site: meta.sites[0].name, way: "to", slot: Math.max(0, ...held),
    x: 0.5, y: 0.5, turn: 0 };
  const pictures = await Promise.all(meta.frames.map((frame) => load(frame.picture)));
  const place = new Map(meta.frames.map((frame, t) => [frame.index, t]));
  const attention = new Rows(source);

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
  const stripNote = make("div", { class: "strip-note" });
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
  const root = make("div", { class: "look esx", tabindex: 0, "data-theme": meta.theme },
    title,
    make("div", { class: "bar" }, site.label, way.label, object.label,
      make("label", {}, "frame", slider, shown)),
    make("div", { class: "pair" }, make("figure", {}, query, queryNote),
      make("figure", {}, map, mapNote)),
    stripNote, strip, scale, ticks, caption);
  el.append(root);
  if (meta.objects.length < 2) object.label.style.display = "none";
  scale.style.background = gradient(table);
  for (const text of ["0.1 ×", "1 × even share", "10 ×", "100 ×"]) {
    ticks.append(make("span", {}, text));
  }

  function choice(text, options) {
    const select = make("select", { "aria-label": text || "direction" });
    for (const [value, name] of options) {
      const option = make("option", { value });
      option.textContent = name;
      select.append(option);
    }
    return { select, label: make("label", {}, text, select) };
  }

  function siteNow() {
    return meta.sites.find((item) => item.name === state.site);
  }

  function here() {
    return meta.rows[`${meta.frames[state.t].index}:${state.object}`];
  }

  // the rows of a site now, or null where there are none
  async function rowsOf(name) {
    const info = meta.sites.find((item) => item.name === name);
    const index = info.part === "encoder" ? meta.frames[state.t].position
      : here() ? here().row : -1;
    return index < 0 ? null : attention.at(info, index);
  }

  // how many frames a slot sums: that of the prompt holds all prompted frames
  function summed(slot) {
    return slot === 0 ? Math.max(1, here().prompts.length) : 1;
  }

  function mapOf(rows, slot, way = state.way) {
    let frames = 1;
    if (rows.info.part === "memory") {
      const slots = here().memory.filter((t) => t >= 0).length;
      frames = (slots - 1 + summed(0)) / summed(slot);
    }
    return attention.map(rows, slot, { ...state, way }, frames);
  }

  // which frames the two pictures show, the one with the pixel and the one with the map, and their words
  function pictured(info) {
    const now = meta.frames[state.t].index;
    const found = { pixel: state.t, map: state.t, left: `frame ${now}`, there: true,
      words: state.way === "to" ? "what this pixel attends to" : "who attends to this pixel" };
    if (info.part === "decoder") found.words = "what the object's output tokens attend to";
    if (info.part !== "memory") return found;
    const frame = here() ? here().memory[state.slot] : -1;
    if (!place.has(frame)) {
      found.words = frame >= 0 ? `memory frame ${frame} was not recorded`
        : here()?.prompted ? "a prompted frame recalls nothing" : "no such memory frame yet";
      return { ...found, there: false };
    }
    const name = summed(state.slot) > 1
      ? `the mean of ${summed(state.slot)} prompted frames (${here().prompts.join(", ")}), drawn over frame ${frame}`
      : `memory frame ${frame}, ${Math.abs(now - frame)} back`;
    if (state.way === "to") {
      return { ...found, map: place.get(frame), words: `${found.words} in ${name}` };
    }
    return { ...found, pixel: place.get(frame), left: name, words: `${found.words}, on frame ${now}` };
  }

  function show(canvas, t, heat, width, marked) {
    paint(canvas, pictures[t], meta.aspect, table, heat, width, marked ? [state.x, state.y] : null);
  }

  async function draw() {
    const turn = ++state.turn;
    const info = siteNow();
    const strips = info.part === "memory" ? state.site : meta.strip;
    let rows = null;
    let remembered = null;
    let failed = "";
    try {
      [rows, remembered] = await Promise.all([rowsOf(state.site), strips ? rowsOf(strips) : null]);
    } catch (error) {
      failed = error.message;
    }
    if (turn !== state.turn) return;
    const now = meta.frames[state.t].index;
    const { pixel, map: over, left, words, there } = pictured(info);
    slider.value = state.t;
    shown.textContent = String(now);
    show(query, pixel, null, 640, true);
    queryNote.textContent = `${left}: click on a pixel` +
      (here() && pixel === state.t ? `; object score ${here().score.toFixed(1)}` : "");
    const heat = rows && there ? mapOf(rows, info.part === "memory" ? state.slot : 0) : null;
    show(map, over, heat, 640, heat && ["encoder", "self"].includes(info.part));
    const peak = heat ? heat.found.reduce((a, b) => Math.max(a, b), 0) : NaN;
    mapNote.textContent = failed || words + (heat ? `; peak ${peak.toFixed(1)} × even share`
      : there ? "; nothing was stored for this frame" : "");
    drawStrip(remembered);
    Object.assign(root.dataset, { frame: now, site: state.site, way: state.way, slot: state.slot,
      x: state.x.toFixed(3), y: state.y.toFixed(3), peak: peak.toFixed(3), ready: turn });
  }

  function drawStrip(rows) {
    for (const part of [stripNote, strip]) part.style.display = rows ? "" : "none";
    if (!rows) return;
    const now = meta.frames[state.t].index;
    // a pixel of a memory frame attends to none of them
    const plain = siteNow().part === "memory" && state.way === "from";
    stripNote.textContent = plain ? "memory frames: click on the one that the pixel lies on"
      : `what this pixel attends to in memory: ${rows.info.name}`;
    tiles.forEach(({ canvas, note, figure }, slot) => {
      const frame = here().memory[slot];
      const there = frame >= 0 && place.has(frame);
      figure.style.visibility = there ? "visible" : "hidden";
      figure.classList.toggle("chosen", slot === state.slot);
      if (!there) return;
      show(canvas, place.get(frame), plain ? null : mapOf(rows, slot, "to"), 200, plain);
      const similar = here().similarity[rows.info.layer]?.[slot];
      const name = summed(slot) > 1 ? `${summed(slot)} prompts` : "prompt";
      note.textContent = (slot ? `${Math.abs(now - frame)} back` : name) +
        (similar === null || similar === undefined ? "" : `, CS ${similar.toFixed(2)}`);
    });
  }

  function choose(slot) {
    state.slot = slot;
    if (siteNow().part !== "memory") { state.site = meta.strip; site.select.value = meta.strip; }
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

export default {
  render({ model, el }) {
    const { ask, end } = listenTo(model);
    const rows = async (site, index) => {
      const [view] = (await ask("rows", { site, index })).buffers;
      return new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength);
    };
    mount(el, { meta: model.get("meta"), rows });
    return end;
  },
};
