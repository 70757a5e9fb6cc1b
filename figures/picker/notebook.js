// The picker in a notebook.

export default {
  render({ model, el }) {
    const { ask, end } = listenTo(model);
    mount(el, {
      meta: model.get("meta"),
      entries: model.get("entries"),
      frame: async (index) => addressOf((await ask("frame", index)).buffers[0]),
      mask: async (entry) => (await ask("mask", entry)).runs,
      tell: (entries) => { model.set("entries", entries); model.save_changes(); },
    });
    return end;
  },
};
