// The page of `efficient-sam2 pick`: frames, masks and the file come from the server that gave it.
import { mount } from "./picker.js";

const ALIVE = 30;  // seconds between two words to the server

async function ask(what, given) {
  let answer;
  try {
    answer = await fetch(what, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(given ?? null) });
  } catch {
    throw new Error("efficient-sam2 pick has ended: start it again to go on");
  }
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.failed);
  return said;
}

const { meta, entries } = await ask("begin");
document.title = `pick: ${meta.title}`;
let finished = false;
const picker = mount(document.getElementById("picker"), {
  meta,
  entries,
  frame: async (index) => `frames/${index}.jpg`,
  mask: async (entry) => (await ask("mask", entry)).runs,
  tell: () => {},
  save: async (told) => (await ask("save", told)).words,
  finish: async () => {
    finished = true;
    await ask("done");
    document.querySelector(".pick").inert = true;
    picker.say("saved; this page can be closed");
  },
});
setInterval(() => { if (!finished) ask("alive").catch((error) => picker.say(error.message, true)); }, 1000 * ALIVE);
addEventListener("beforeunload", (event) => { if (!finished && picker.unsaved()) event.preventDefault(); });
addEventListener("pagehide", () => { if (!finished) navigator.sendBeacon("closed"); });
