// Elements of pages and widgets.

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function press(words, act) {
  const button = make("button", { type: "button" });
  button.textContent = words;
  button.addEventListener("click", act);
  return button;
}
