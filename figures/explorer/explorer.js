// The explorer: a frame to click on, the map of what that pixel attends to, and the memory film strip.
// The same code runs as an anywidget and in the offline page; only where the rows come from differs.

const KEPT = 40;  // pictures held as they are drawn
const REST = 120;  // milliseconds between frames that are played, at least
const KEYS = "Arrow keys move the query or, on the map, the place that is read; with Shift in larger steps. "
  + "Comma and full stop change the frame, the space bar plays.";

// source: {meta, rows(site, index) -> Promise of gzipped bytes}
export async function mount(el, source) {
  const { meta } = source;
  const { start } = meta;
  const [wide, tall] = meta.size;
  const aspect = wide / tall;
  const table = bytes(meta.heat);
  const state = { ...start, way: "to", query: "pixel", head: null, slot: 0, x: 0.5, y: 0.5, scale: "100", probe: null,
    playing: false, turn: 0 };
  const pictures = new Map();
  const place = new Map(meta.frames.map((frame, t) => [frame.index, t]));
  const attention = new Rows(source);
  let shown = { maps: [] };

  const title = make("h2");
  title.textContent = meta.title;
  const site = choice("site", meta.sites.map((item) => [item.name, item.name]));
  const head = choice("head", []);
  const way = choice("direction", [["to", "what it attends to"], ["from", "who attends to it"]], "");
  const asked = choice("query", [["pixel", "a pixel"], ["object", "the object's pixels"]]);
  const object = choice("object", meta.objects.map((id) => [id, id]));
  const scaled = choice("scale up to", [...["10", "100", "1000", "10000"].map((top) => [top, `${top} ×`]), ["peak", "the peak"]]);
  const slider = make("input", { type: "range", min: 0, max: meta.frames.length - 1, step: 1, "aria-label": "frame" });
  const counted = make("span", { class: "counted" });
  const play = press("Play", () => (state.playing ? stop() : run()));
  const help = `keys-${Math.random().toString(36).slice(2)}`;
  const query = make("canvas", { class: "query", tabindex: 0, role: "application", "aria-describedby": help });
  const map = make("canvas", { class: "map", tabindex: 0, role: "application", "aria-describedby": help });
  const queryNote = make("figcaption");
  const mapNote = make("figcaption", { class: "note", role: "status" });
  const readout = make("p", { class: "readout", role: "status" });
  const stripNote = make("div", { class: "strip-note" });
  const strip = make("div", { class: "strip", role: "group", "aria-label": "memory frames" });
  const bar = make("canvas", { class: "scale", width: 512, height: 1, role: "img" });
  const ticks = make("div", { class: "ticks", "aria-hidden": "true" });
  const above = make("p", { class: "above" });
  const caption = make("p");
  caption.textContent = meta.caption;
  const keys = make("p", { id: help });
  keys.textContent = KEYS;
  const tiles = Array.from({ length: 7 }, (_, slot) => {
    const canvas = make("canvas");
    const note = make("span");
    const button = press("", () => choose(slot));
    button.dataset.slot = slot;
    button.append(canvas, note);
    canvas.addEventListener("pointermove", (event) => read(canvas, shareOf(canvas, event)));
    canvas.addEventListener("pointerleave", () => read(null));
    return { canvas, note, button };
  });
  strip.append(...tiles.map(({ button }) => button));
  const root = make("div", { class: "look esx", "data-theme": meta.theme, "data-lm-suppress-shortcuts": "true" },
    title,
    make("div", { class: "bar" }, site.label, head.label, way.label, asked.label, object.label),
    make("div", { class: "bar" }, play, make("label", {}, "frame", slider, counted), scaled.label,
      press("PNG", savePicture), press("CSV", saveTable)),
    make("div", { class: "pair" }, make("figure", {}, query, queryNote), make("figure", {}, map, mapNote)),
    readout, stripNote, strip, bar, ticks, above, caption, keys);
  el.append(root);
  if (meta.objects.length < 2) object.label.style.display = "none";
  centre();

  function choice(text, options, words = text) {
    const select = make("select", { "aria-label": text });
    offerAll(select, options);
    return { select, label: make("label", {}, words, select) };
  }

  function offerAll(select, options) {
    select.replaceChildren(...options.map(([value, name]) => make("option", { value }, String(name))));
  }

  function siteNow() {
    return meta.sites.find((item) => item.name === state.site);
  }

  function rowAt(t) {
    return meta.rows[`${meta.frames[t].index}:${state.object}`];
  }

  function here() {
    return rowAt(state.t);
  }

  // the query lies on the object's centre, on the newest memory frame
  function centre() {
    state.slot = Math.max(0, here()?.memory.findLastIndex((t) => t >= 0) ?? 0);
    if (here()?.centre) [state.x, state.y] = here().centre;
  }

  function picture(t) {
    if (!pictures.has(t)) {
      if (pictures.size >= KEPT) pictures.delete(pictures.keys().next().value);
      pictures.set(t, load(meta.frames[t].picture));
    }
    return pictures.get(t);
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

  function headOf(info) {
    return state.head !== null && state.head < info.heads ? state.head : null;
  }

  // the map of a slot; the query lies on the frame at `t`. null where the object, which is asked for, is not seen
  function mapOf(rows, slot, t, way = state.way) {
    let frames = 1;
    if (rows.info.part === "memory") {
      const slots = here().memory.filter((index) => index >= 0).length;
      frames = (slots - 1 + summed(0)) / summed(slot);
    }
    let cells = [token(state.x, state.y, meta.cells)];
    let queries = [attention.nearest[token(state.x, state.y, meta.grid)]];
    if (state.query === "object" && rows.info.part !== "decoder") {
      cells = objectAt(t);
      if (!cells) return null;
      queries = attention.queriesOf(cells);
    }
    return attention.map(rows, slot, { way, head: headOf(rows.info), queries, cells }, frames);
  }

  // cells that the object covers, at least the one at its centre; null where it is not seen
  function objectAt(t) {
    const row = rowAt(t);
    if (!row?.centre) return null;
    const packed = bytes(row.inside);
    const cells = [];
    for (let c = 0; c < meta.cells ** 2; c++) if (packed[c >> 3] & (128 >> (c & 7))) cells.push(c);
    return cells.length ? cells : [token(...row.centre, meta.cells)];
  }

  // which frames the two pictures show, the one with the query and the one with the map, and their words
  function pictured(info) {
    const now = meta.frames[state.t].index;
    const what = state.query === "object" ? `the pixels of object ${state.object}` : "this pixel";
    const attends = state.query === "object" ? "attend" : "attends";
    const found = { pixel: state.t, map: state.t, left: `frame ${now}`, there: true,
      words: state.way === "to" ? `what ${what} ${attends} to` : `who attends to ${what}` };
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

  async function draw() {
    const turn = ++state.turn;
    const info = siteNow();
    const strips = info.part === "memory" ? state.site : meta.strip;
    const held = here() ? here().memory : [];
    const remembered = held.map((index) => place.get(index) ?? null);
    const { pixel, map: over, left, words, there } = pictured(info);
    let [rows, recalled, failed] = [null, null, ""];
    try {
      [rows, recalled] = await Promise.all([rowsOf(state.site), strips ? rowsOf(strips) : null]);
    } catch (error) {
      failed = error.message;
    }
    const drawn = new Map(await Promise.all([...new Set([state.t, pixel, over, ...remembered])]
      .filter((t) => t !== null).map(async (t) => [t, await picture(t)])));
    if (turn !== state.turn) return;

    const now = meta.frames[state.t].index;
    // a pixel of a memory frame attends to none of them
    const plain = info.part === "memory" && state.way === "from";
    const heat = rows && there ? mapOf(rows, info.part === "memory" ? state.slot : 0, pixel) : null;
    const heats = remembered.map((t, slot) =>
      (recalled && t !== null && !plain ? mapOf(recalled, slot, state.t, "to") : null));
    shown = { maps: [] };
    if (heat) shown.maps.push(noted(map, heat, info, state.way, over, pixel, info.part === "memory" ? state.slot : ""));
    heats.forEach((found, slot) => {
      if (found) shown.maps.push(noted(tiles[slot].canvas, found, recalled.info, "to", remembered[slot], state.t, slot));
    });
    const peak = heat ? peakOf(heat) : NaN;
    const highest = Math.max(...shown.maps.map((one) => peakOf(one.heat)), 1);
    const top = state.scale === "peak" ? Math.max(10, 10 ** (Math.ceil(Math.log10(highest) * 2) / 2)) : Number(state.scale);
    const paints = { table, top };
    const marked = state.query === "pixel" ? [state.x, state.y] : null;

    paint(query, drawn.get(pixel), aspect, paints, null, 640, marked);
    paint(map, drawn.get(over), aspect, paints, heat, 640,
      heat && ["encoder", "self"].includes(info.part) ? marked : null, heat && state.probe);
    tiles.forEach(({ canvas, button }, slot) => {
      const t = remembered[slot] ?? null;
      button.style.visibility = t === null ? "hidden" : "visible";
      button.setAttribute("aria-pressed", String(slot === state.slot && info.part === "memory"));
      if (t !== null) paint(canvas, drawn.get(t), aspect, paints, heats[slot], 200, plain ? marked : null);
    });
    tellScale(paints, highest);
    tellQuery(left, pixel);
    mapNote.textContent = failed || words + (heat ? `; peak ${figure(peak)} × even share`
      : !there ? "" : rows ? "; the object is not seen here" : "; nothing was stored for this frame");
    map.setAttribute("aria-label", mapNote.textContent);
    tellStrip(recalled?.info, plain, heats, now);
    tellControls(info);
    if (state.probe) read(map, state.probe);
    Object.assign(root.dataset, { frame: now, site: state.site, way: state.way, slot: state.slot, top,
      head: state.head ?? "mean", x: state.x.toFixed(3), y: state.y.toFixed(3), peak: peak.toFixed(3), ready: turn });
  }

  // a map that is shown, and what a table says of it
  function noted(canvas, heat, info, direction, t, asker, slot) {
    const of = headOf(info);
    const pixel = state.query === "pixel";
    return { canvas, heat, told: { site: info.name, head: of ?? "mean", direction, frame: meta.frames[state.t].index,
      object: state.object, query: info.part === "decoder" ? "output tokens" : state.query,
      query_frame: meta.frames[asker].index, query_x: pixel ? Math.floor(state.x * wide) : "",
      query_y: pixel ? Math.floor(state.y * tall) : "", slot, map_frame: meta.frames[t].index } };
  }

  function peakOf(heat) {
    return heat.found.reduce((a, b) => Math.max(a, b), 0);
  }

  function figure(value) {
    return value >= 0.095 ? value.toFixed(value < 9.95 ? 2 : 1) : value.toPrecision(1);
  }

  function tellScale(paints, highest) {
    paintScale(bar, paints);
    ticks.replaceChildren(...ticksOf(paints.top).map(([value, share]) => {
      const tick = make("span", {}, value === 1 ? "1 × even share" : `${value} ×`);
      tick.style.left = `${100 * share}%`;
      return tick;
    }));
    const cells = shown.maps.flatMap(({ heat }) => [...heat.found]);
    const over = cells.filter((value) => value > paints.top).length;
    const most = `the highest is ${figure(highest)} × even share`;
    above.textContent = !cells.length ? "" : over
      ? `${(100 * over / cells.length).toPrecision(2)} % of the cells shown lie above the scale: ${most}`
      : `no cell shown lies above the scale: ${most}`;
    above.classList.toggle("over", over > 0);
    bar.setAttribute("aria-label", `scale of attention over the even share, from 0.1 to ${figure(paints.top)}`);
    root.dataset.above = cells.length ? (over / cells.length).toFixed(5) : "";
  }

  function tellQuery(left, pixel) {
    const cells = objectAt(pixel) ?? [];
    const many = state.way === "from" ? `${cells.length} cells` : `${attention.queriesOf(cells).length} stored queries`;
    const at = state.query === "object" ? `${many} on object ${state.object}`
      : `pixel (${Math.floor(state.x * wide)}, ${Math.floor(state.y * tall)})`;
    queryNote.textContent = `${left}: click on a pixel, or move it with the arrow keys; ${at}` +
      (here() && pixel === state.t ? `; object score ${here().score.toFixed(1)}` : "");
    query.setAttribute("aria-label", queryNote.textContent);
  }

  function tellStrip(info, plain, heats, now) {
    for (const part of [stripNote, strip]) part.style.display = info ? "" : "none";
    if (!info) return;
    const whose = state.query === "object" ? `the pixels of object ${state.object} attend` : "this pixel attends";
    stripNote.textContent = plain ? "memory frames: click on the one that the query lies on"
      : `what ${whose} to in memory: ${info.name}`;
    tiles.forEach(({ note, button }, slot) => {
      const frame = here().memory[slot];
      const name = slot ? `${Math.abs(now - frame)} back` : summed(slot) > 1 ? `${summed(slot)} prompts` : "prompt";
      const similar = here().similarity[info.layer]?.[slot];
      const compared = similar ? `CS ${similar[0].toFixed(2)} (chance ${similar[1].toFixed(2)})` : "";
      note.replaceChildren(...(compared ? [name, " ", make("small", {}, compared)] : [name]));
      const most = heats[slot] ? `, peak ${figure(peakOf(heats[slot]))} × even share` : "";
      button.setAttribute("aria-label", `${note.textContent}: memory frame ${frame}${most}`);
    });
  }

  function tellControls(info) {
    slider.value = state.t;
    counted.textContent = String(meta.frames[state.t].index);
    for (const [list, value] of [[site, state.site], [object, state.object], [way, state.way], [asked, state.query],
      [scaled, state.scale]]) list.select.value = value;
    const all = Array.from({ length: info.heads }, (_, h) => [h, h]);
    const mean = info.heads ? `mean of ${info.heads}` : "mean: only it was stored";
    offerAll(head.select, info.heads === 1 ? [["", "the only one"]] : [["", mean], ...all]);
    head.select.disabled = info.heads < 2;
    head.select.value = headOf(info) ?? "";
    play.textContent = state.playing ? "Pause" : "Play";
  }

  // the value at a place of a map, in words
  function read(canvas, at = null) {
    const one = shown.maps.find((each) => each.canvas === canvas);
    if (!one || !at) { readout.textContent = ""; return; }
    const { heat, told } = one;
    const value = heat.found[Math.floor(at[1] * heat.found.length / heat.side) * heat.side + Math.floor(at[0] * heat.side)];
    readout.textContent = `frame ${told.map_frame}, pixel (${Math.floor(at[0] * wide)}, ${Math.floor(at[1] * tall)}): `
      + `${figure(value)} × even share`;
  }

  function shareOf(canvas, event) {
    const box = canvas.getBoundingClientRect();
    return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
  }

  function within(share) {
    return Math.min(0.999, Math.max(0, share));
  }

  function moved([x, y], event) {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const step = (event.shiftKey ? 4 : 1) / meta.grid;
    return by && [within(x + step * by[0]), within(y + step * by[1])];
  }

  function choose(slot) {
    state.slot = slot;
    if (siteNow().part !== "memory") state.site = meta.strip;
    draw();
  }

  function point(at) {
    [state.x, state.y] = at;
    state.query = "pixel";
    draw();
  }

  function step(by) {
    state.t = Math.min(meta.frames.length - 1, Math.max(0, state.t + by));
    return draw();
  }

  function stop() {
    state.playing = false;
    draw();
  }

  async function run() {
    state.playing = true;
    if (state.t === meta.frames.length - 1) state.t = -1;
    while (state.playing && root.isConnected && state.t < meta.frames.length - 1) {
      await Promise.all([step(1), new Promise((done) => setTimeout(done, REST))]);
    }
    stop();
  }

  function look() {
    const { color, backgroundColor } = getComputedStyle(root);
    return { ink: color, faint: getComputedStyle(caption).color, paper: backgroundColor };
  }

  function named(ending) {
    return `${meta.title}, frame ${meta.frames[state.t].index}`.replaceAll(/[^\p{L}\p{N}]+/gu, "-") + ending;
  }

  function savePicture() {
    const all = tiles.filter(({ button }) => button.style.visibility !== "hidden");
    const strips = strip.style.display === "none" ? null : { words: stripNote.textContent,
      tiles: all.map(({ canvas, note }) => ({ canvas, words: note.textContent })) };
    const of = siteNow().heads > 1 && headOf(siteNow()) === null ? "mean over heads" : `head ${headOf(siteNow()) ?? 0}`;
    pictureOf({ title: meta.title, caption: meta.caption, scale: bar, above: above.textContent, strip: strips,
      ticks: [...ticks.children].map((tick) => [tick.textContent, parseFloat(tick.style.left) / 100]),
      pair: [{ canvas: query, words: queryNote.textContent.replace("click on a pixel, or move it with the arrow keys; ", "") },
        { canvas: map, words: `${mapNote.textContent}; ${state.site}, ${siteNow().heads ? of : "mean over heads"}` }] }, look())
      .toBlob((blob) => offer(blob, named(".png")));
  }

  function saveTable() {
    offer(new Blob([tableOf(shown.maps)], { type: "text/csv" }), named(".csv"));
  }

  site.select.addEventListener("change", () => { state.site = site.select.value; draw(); });
  head.select.addEventListener("change", () => { state.head = head.select.value === "" ? null : Number(head.select.value); draw(); });
  way.select.addEventListener("change", () => { state.way = way.select.value; draw(); });
  asked.select.addEventListener("change", () => { state.query = asked.select.value; draw(); });
  scaled.select.addEventListener("change", () => { state.scale = scaled.select.value; draw(); });
  object.select.addEventListener("change", () => { state.object = Number(object.select.value); centre(); draw(); });
  slider.addEventListener("input", () => { state.t = Number(slider.value); draw(); });
  query.addEventListener("click", (event) => { query.focus({ preventScroll: true }); point(shareOf(query, event)); });
  map.addEventListener("pointermove", (event) => read(map, shareOf(map, event)));
  map.addEventListener("pointerleave", () => read(map, state.probe));
  map.addEventListener("blur", () => { state.probe = null; read(null); draw(); });
  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { target, key } = event;
    if (target === query && key.startsWith("Arrow")) point(moved([state.x, state.y], event));
    else if (target === map && key.startsWith("Arrow")) {
      state.probe = moved(state.probe ?? [state.x, state.y], event);
      draw();
    } else if (target.tagName !== "SELECT" && (key === "," || key === ".")) step(key === "." ? 1 : -1);
    else if (key === " " && target.tagName === "CANVAS") play.click();
    else return;
    event.preventDefault();
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
