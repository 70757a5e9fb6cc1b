// Tracking in a notebook: the picker over a video whose masks come while it is tracked; stop, go on, play, and what is
// laid over: masks, scores, reasons, windows.

const LAYERS = 48;  // masks that are kept as pictures
const PUSHED = 8;  // pictures that came by themselves and were not looked at yet

const WORDS = { tracking: "tracking", done: "all frames tracked", stopped: "stopped", failed: "failed",
  waiting: "click on an object to begin" };

export default {
  render({ model, el }) {
    const meta = model.get("meta");
    const { width, height, frames } = meta;
    const facts = new Map();  // of each frame that is tracked: scores, reason, windows
    const runs = new Map();  // masks of the latest frames
    const layers = new Map();
    const asked = new Set();
    const pushed = new Map();
    const state = { phase: "waiting", error: null, rate: 0, follow: true, steered: true, last: 0, playing: null };
    const { ask, end } = listenTo(model, heard);

    // ---- controls

    const go = press("Stop", () => toggle());
    const play = press("Play", () => playOrPause());
    const follow = tick("Follow", true, () => { state.follow = follow.checked; });
    follow.title = "show the frame that was tracked last";
    const laid = {};
    for (const [name, words, on] of [["masks", "Masks", true], ["scores", "Scores", true], ["reasons", "Reasons", true],
      ["windows", "Windows", false]]) {
      laid[name] = tick(words, on, () => picker.draw(false));
      const lacks = !meta.window && ["reasons", "windows"].includes(name);
      if (lacks) Object.assign(laid[name], { checked: false, disabled: true });
    }
    const shown = make("output");
    const filled = make("canvas", { class: "filled", role: "img" });
    const note = make("p", { class: "note", role: "status", "aria-live": "polite" });
    const switches = make("span", { class: "laid", role: "group", "aria-label": "laid over the frame" },
      ...Object.values(laid).map((box) => box.parentElement));
    const player = make("div", { class: "player", role: "group", "aria-label": "player" },
      go, play, follow.parentElement, switches, shown, filled, note);

    function tick(words, on, act) {
      const box = make("input", { type: "checkbox" });
      box.checked = on;
      box.addEventListener("change", act);
      make("label", {}, box, words);
      return box;
    }

    // ---- the picker

    const picker = mount(el, {
      meta,
      entries: [],
      player,
      keys: { t: toggle, " ": playOrPause },
      help: [["T", "stop, go on"], ["Space", "play, pause"]],
      frame: async (index) => {
        const bytes = pushed.get(index) ?? (await ask("frame", index)).buffers[0];
        pushed.delete(index);
        return addressOf(bytes);
      },
      tell,
      moved: () => { if (!state.steered) setFollow(false); },
      tracked,
      words,
      beneath,
      above,
    });
    state.steered = false;
    picker.root.classList.add("track");
    picker.canvas.addEventListener("pointerdown", () => setFollow(false), true);
    new ResizeObserver(drawFilled).observe(filled);
    ask("begin").then((begun) => {
      for (const fact of begun.frames) facts.set(fact.frame, fact);
      picker.take(begun.entries);
      took(begun);
      steer(state.phase === "tracking" ? Math.max(0, ...facts.keys()) : begun.entries[0]?.frame ?? 0);
    }).catch((error) => picker.say(error.message, true));

    function setFollow(on) {
      state.follow = follow.checked = on;
    }

    function steer(frame) {
      state.steered = true;
      const done = picker.go(frame);
      state.steered = false;
      return done;
    }

    // ---- what the kernel tells

    function heard(message, buffers) {
      if (message.kind === "tracked") {
        const { frame } = message;
        facts.set(frame, message);
        state.last = frame;
        forget(frame);
        if (message.runs) {
          keep(runs, frame, message.runs, LAYERS);
          keep(pushed, frame, buffers[0], PUSHED);
        }
        // under a pointer a picture stays, so that a click is on what was seen
        const free = state.follow && !state.playing && !picker.canvas.matches(":hover");
        if (free && message.runs) steer(frame);
        else if (frame === picker.frame()) picker.draw();
      } else if (message.kind === "back") {
        const kept = new Set(message.kept);
        for (const frame of [...facts.keys()]) if (!kept.has(frame)) { facts.delete(frame); forget(frame); }
        picker.draw();
      } else if (message.kind === "prompts") picker.take(message.entries);
      if (!message.phase) return;
      took(message);
      if (state.phase !== "tracking" && state.follow && facts.has(state.last)) steer(state.last);
    }

    function keep(map, key, value, most) {
      map.delete(key);
      map.set(key, value);
      if (map.size > most) map.delete(map.keys().next().value);
    }

    function forget(frame) {
      runs.delete(frame);
      for (const key of [...layers.keys()]) if (key.startsWith(`${frame}:`)) layers.delete(key);
    }

    function took({ phase, error, rate }) {
      Object.assign(state, { phase, error, rate });
      go.textContent = phase === "tracking" ? "Stop" : "Go on";
      go.disabled = ["waiting", "done"].includes(phase);
      play.disabled = !facts.size;
      const speed = rate ? `${rate.toFixed(1)} frames/s, ` : "";
      shown.textContent = `${speed}${facts.size} of ${frames} tracked`;
      const stock = meta.window ? "" : "; a stock predictor has neither windows nor reasons: accelerate(predictor, \"dense\") has";
      note.textContent = error ?? `${WORDS[phase]}${stock}`;
      note.classList.toggle("bad", Boolean(error));
      Object.assign(picker.root.dataset, { phase, tracked: facts.size });
      drawFilled();
    }

    function drawFilled() {
      filled.width = Math.max(1, filled.clientWidth);
      filled.height = 8;
      const pen = filled.getContext("2d");
      const wide = filled.width / frames;
      pen.fillStyle = getComputedStyle(filled).color;
      for (const frame of facts.keys()) pen.fillRect(Math.floor(frame * wide), 0, Math.ceil(wide), 8);
      filled.setAttribute("aria-label", `${facts.size} of ${frames} frames tracked`);
    }

    // ---- what a hand does

    async function tell(entries) {
      const { phase } = state;
      if (entries.length) took({ ...state, phase: "tracking", error: null });
      try {
        await ask("give", entries);
      } catch (error) {
        picker.say(error.message, true);
        took({ ...state, phase });
      }
    }

    function toggle() {
      if (!go.disabled) ask(state.phase === "tracking" ? "stop" : "go").catch((error) => picker.say(error.message, true));
    }

    function playOrPause() {
      if (state.playing) clearTimeout(state.playing);
      else setFollow(false);
      state.playing = state.playing ? null : setTimeout(next, 0);
      play.textContent = state.playing ? "Pause" : "Play";
    }

    // one frame on, when the last one is there
    async function next() {
      const begun = performance.now();
      if (!facts.size) { playOrPause(); return; }
      const later = [...facts.keys()].filter((frame) => frame > picker.frame());
      await steer(later.length ? Math.min(...later) : Math.min(...facts.keys()));
      if (!state.playing) return;
      const left = 1000 / (meta.fps || 24) - (performance.now() - begun);
      state.playing = setTimeout(next, Math.max(0, left));
    }

    // ---- what is laid over

    function tracked(frame, object) {
      if (!laid.masks.checked || !(object in (facts.get(frame)?.scores ?? {}))) return undefined;
      const key = `${frame}:${object}`;
      const found = runs.get(frame)?.[object];
      if (!found) { askForMasks(frame); return undefined; }
      if (!layers.has(key)) {
        keep(layers, key, painted(found, width, height, meta.colours[(object - 1) % meta.colours.length]), LAYERS);
      }
      return layers.get(key);
    }

    async function askForMasks(frame) {
      if (asked.has(frame)) return;
      asked.add(frame);
      const of = facts.get(frame);
      try {
        const found = (await ask("masks", frame)).runs;
        if (facts.get(frame) === of) keep(runs, frame, found, LAYERS);
      } catch (error) {
        picker.say(error.message, true);
      }
      asked.delete(frame);
      if (frame === picker.frame() && runs.has(frame)) picker.draw(false);
    }

    function scoreOf(frame, object) {
      const score = facts.get(frame)?.scores[object];
      return score === undefined ? "" : `score ${score.toFixed(1)}${score > 0 ? "" : ", not there"}`;
    }

    function reasonOf(frame) {
      const { reason, windows, total, trimmed } = facts.get(frame) ?? {};
      if (!reason) return "";
      const some = windows ? `${windows.length} of ${total} windows` : `all ${total} windows`;
      return `${reason}: ${some}${trimmed < 1 ? `, ${Math.round(100 * trimmed)} % of their cells` : ""}`;
    }

    function words(frame, object) {
      if (!facts.has(frame)) return state.phase === "tracking" ? "not tracked yet" : "";
      const score = scoreOf(frame, object);
      return [score ? `tracked, ${score}` : "this object is not tracked here", reasonOf(frame)].filter(Boolean).join("; ");
    }

    function beneath(pen, frame, { width: wide, height: tall }) {
      const { windows, side } = facts.get(frame) ?? {};
      if (!laid.windows.checked || !side) return;
      const computed = windows && new Set(windows);
      const [across, down] = [meta.window * wide, meta.window * tall];
      pen.save();
      Object.assign(pen, { fillStyle: "rgba(18,18,18,.68)", strokeStyle: "rgba(255,255,255,.45)", lineWidth: 1 });
      for (let i = 0; i < side * side; i++) {
        const place = [(i % side) * across, Math.floor(i / side) * down, across, down];
        if (computed && !computed.has(i)) pen.fillRect(...place);
        pen.strokeRect(...place);
      }
      pen.restore();
    }

    function above(pen, frame, { width: wide, height: tall }, nameOf) {
      const size = Math.max(12, Math.round(wide / 55));
      pen.save();
      Object.assign(pen, { font: `${size}px system-ui, sans-serif`, textBaseline: "top" });
      const absent = [];
      if (laid.scores.checked) {
        for (const object of Object.keys(facts.get(frame)?.scores ?? {}).map(Number)) {
          const line = `${nameOf(object)}: ${scoreOf(frame, object)}`;
          const { area, head } = layers.get(`${frame}:${object}`) ?? {};
          if (area) say(line, head[0] / width * wide, head[1] / height * tall - size);
          else absent.push(line);
        }
      }
      absent.forEach((line, n) => say(line, 0, n * 1.5 * size));
      if (laid.reasons.checked && reasonOf(frame)) say(reasonOf(frame), 0, tall);
      pen.restore();

      function say(line, x, y) {
        const [long, high] = [pen.measureText(line).width + 8, size + 6];
        const left = Math.min(Math.max(0, x - long / 2), wide - long);
        const top = Math.min(Math.max(0, y - high / 2), tall - high);
        pen.fillStyle = "rgba(0,0,0,.72)";
        pen.fillRect(left, top, long, high);
        pen.fillStyle = "#fff";
        pen.fillText(line, left + 4, top + 3);
      }
    }

    return () => { clearTimeout(state.playing); end(); };
  },
};
