// Taking home what is shown: as a picture, and as a table.

function offer(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// shown: {title, caption, pair: [{canvas, words}], strip: {words, tiles: [{canvas, words}]}, scale, ticks, above},
// look: {ink, faint, paper}; everything that is on the page, one below the other
function pictureOf(shown, look) {
  const [width, edge, gap] = [1320, 20, 12];
  const canvas = make("canvas", { width, height: 4000 });
  const pen = canvas.getContext("2d");
  let y = edge;
  const clear = () => { pen.fillStyle = look.paper; pen.fillRect(0, 0, width, canvas.height); };
  // words, broken so that they fit; returns the height they take
  const write = (words, x, top, room, size = 14, shade = look.faint) => {
    Object.assign(pen, { font: `${size}px system-ui, "DejaVu Sans", Arial, sans-serif`, fillStyle: shade });
    const lines = [""];
    for (const word of words.split(" ")) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (pen.measureText(longer).width <= room || !lines.at(-1)) lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    lines.forEach((line, i) => pen.fillText(line, x, top + (i + 1) * 1.35 * size));
    return lines.length * 1.35 * size + 4;
  };
  const row = (pictures, columns) => {
    const wide = (width - 2 * edge - (columns - 1) * gap) / columns;
    let tall = 0;
    pictures.forEach(({ canvas: picture, words }, i) => {
      const high = wide * picture.height / picture.width;
      const x = edge + i * (wide + gap);
      pen.drawImage(picture, x, y, wide, high);
      tall = Math.max(tall, high + write(words, x, y + high, wide, 13));
    });
    y += tall + gap;
  };
  clear();
  y += write(shown.title, edge, y - 8, width - 2 * edge, 19, look.ink) + 4;
  row(shown.pair, 2);
  if (shown.strip) {
    y += write(shown.strip.words, edge, y - 8, width - 2 * edge);
    row(shown.strip.tiles, 7);
  }
  pen.drawImage(shown.scale, edge, y, width - 2 * edge, 12);
  for (const [words, share] of shown.ticks) {
    pen.textAlign = share === 0 ? "left" : share > 0.99 ? "right" : "center";
    write(words, edge + share * (width - 2 * edge), y + 12, width);
  }
  pen.textAlign = "left";
  y += 40;
  for (const words of [shown.above, shown.caption]) y += write(words, edge, y, width - 2 * edge) + 2;
  const made = make("canvas", { width, height: Math.ceil(y + edge / 2) });
  made.getContext("2d").drawImage(canvas, 0, 0);
  return made;
}

// a line a cell of all maps; maps: [{told: {column: value}, heat}]
function tableOf(maps) {
  const quoted = (value) => (/[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
  const lines = [[...Object.keys(maps[0]?.told ?? {}), "column", "row", "even_shares"]];
  for (const { told, heat: { side, found } } of maps) {
    found.forEach((value, i) => lines.push([...Object.values(told), i % side, Math.floor(i / side), Number(value.toPrecision(5))]));
  }
  return `${lines.map((line) => line.map((value) => quoted(value ?? "")).join(",")).join("\n")}\n`;
}
