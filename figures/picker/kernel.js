// The picker in a notebook: the kernel answers what the browser asks for.

const PATIENCE = 300;  // seconds for the kernel to answer; large models take some on a CPU

export default {
  render({ model, el }) {
    const waiting = new Map();
    let count = 0;
    const heard = (message, buffers) => {
      const wanted = waiting.get(message.key);
      waiting.delete(message.key);
      if (message.failed) wanted?.fail(new Error(message.failed));
      else wanted?.done({ ...message, buffers });
    };
    const ask = (kind, given) => new Promise((done, fail) => {
      const key = `${kind}${count++}`;
      waiting.set(key, { done, fail });
      setTimeout(() => fail(new Error(`the kernel did not answer in ${PATIENCE} s: wait until it is idle, or run the cell again`)),
        1000 * PATIENCE);
      model.send({ kind, key, given });
    });
    model.on("msg:custom", heard);
    mount(el, {
      meta: model.get("meta"),
      entries: model.get("entries"),
      frame: async (index) => URL.createObjectURL(new Blob([(await ask("frame", index)).buffers[0]], { type: "image/jpeg" })),
      mask: async (entry) => (await ask("mask", entry)).runs,
      tell: (entries) => { model.set("entries", entries); model.save_changes(); },
    });
    return () => model.off("msg:custom", heard);
  },
};
