// A widget and its kernel: the kernel answers what the browser asks for, and may tell something by itself.

const PATIENCE = 300;  // seconds for the kernel to answer; large models take some on a CPU

// told(message, buffers): what the kernel says without being asked
function listenTo(model, told = () => {}) {
  const view = Math.random().toString(36).slice(2);  // other views of the same widget hear all answers too
  const waiting = new Map();
  let count = 0;
  const heard = (message, buffers) => {
    if (message.key === undefined) { told(message, buffers); return; }
    const wanted = waiting.get(message.key);
    waiting.delete(message.key);
    if (message.failed) wanted?.fail(new Error(message.failed));
    else wanted?.done({ ...message, buffers });
  };
  model.on("msg:custom", heard);
  return {
    ask: (kind, given) => new Promise((done, fail) => {
      const key = `${view}-${count++}`;
      waiting.set(key, { done, fail });
      setTimeout(() => fail(new Error(`the kernel did not answer in ${PATIENCE} s: wait until it is idle, or run the cell again`)),
        1000 * PATIENCE);
      model.send({ kind, key, given });
    }),
    end: () => model.off("msg:custom", heard),
  };
}

// an address of a picture that came as bytes
function addressOf(bytes) {
  return URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
}
