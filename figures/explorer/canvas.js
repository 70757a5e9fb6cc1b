// Painting: a frame with heat over it, the cross at the query, the colour scale.

const FLOOR = 0.1;  // attention below a tenth of the even share is drawn as nothing
const UNDERNEATH = 85;  // mean grey level, at most, of what heat is laid over

// {image, brightness}: by how much the grey picture is dimmed under heat, so that its colours stand out
async function load(address) {
  const image = await new Promise((done, failed) => {
    const picture = new Image();
    picture.onload = () => done(picture);
    picture.onerror = () => failed(new Error("a frame can't be shown"));
    picture.src = address;
  });
  const pen = make("canvas", { width: 32, height: 32 }).getContext("2d");
  pen.drawImage(image, 0, 0, 32, 32);
  const { data } = pen.getImageData(0, 0, 32, 32);
  let sum = 0;
  for (let i = 0; i < data.length; i += 4) sum += data[i] + data[i + 1] + data[i + 2];
  return { image, brightness: Math.min(1, UNDERNEATH / Math.max(1, sum / 3 / 1024)) };
}

// colours of values in multiples of the even share, on a scale that ends at `top`, as wide as they are
function coloured(found, side, table, top) {
  const small = make("canvas", { width: side, height: found.length / side });
  const image = new ImageData(side, small.height);
  found.forEach((v, i) => {
    const share = Math.min(1, Math.max(0, (Math.log10(Math.max(v, FLOOR)) + 1) / (Math.log10(top) + 1)));
    const entry = Math.round(255 * share);
    image.data.set(table.subarray(3 * entry, 3 * entry + 3), 4 * i);
    image.data[4 * i + 3] = 255 * Math.min(0.85, v < FLOOR ? 0 : 0.12 + 0.95 * share);
  });
  small.getContext("2d").putImageData(image, 0, 0);
  return small;
}

// heat: {side, found} in multiples of the even share, or null; mark and probe: [x, y] as shares, or null
function paint(canvas, { image, brightness }, aspect, { table, top }, heat, width, mark, probe) {
  canvas.width = width;
  canvas.height = Math.round(width / aspect);
  const pen = canvas.getContext("2d");
  pen.filter = heat ? `grayscale(1) brightness(${brightness})` : "none";
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.filter = "none";
  pen.imageSmoothingEnabled = false;
  if (heat) pen.drawImage(coloured(heat.found, heat.side, table, top), 0, 0, canvas.width, canvas.height);
  const lines = (draw) => {
    for (const [shade, thick] of [["#000", 5], ["#fff", 2.5]]) {
      Object.assign(pen, { strokeStyle: shade, lineWidth: thick });
      pen.beginPath();
      draw();
      pen.stroke();
    }
  };
  if (mark) {
    const [x, y] = [mark[0] * canvas.width, mark[1] * canvas.height];
    lines(() => { pen.moveTo(x - 11, y); pen.lineTo(x + 11, y); pen.moveTo(x, y - 11); pen.lineTo(x, y + 11); });
  }
  if (probe) lines(() => pen.arc(probe[0] * canvas.width, probe[1] * canvas.height, 8, 0, 2 * Math.PI));
}

// the scale as colours are seen: laid over grey, as maps are over their dimmed frames
function paintScale(canvas, { table, top }) {
  const values = Float32Array.from({ length: canvas.width }, (_, i) =>
    10 ** ((i + 0.5) / canvas.width * (Math.log10(top) + 1) - 1));
  const pen = canvas.getContext("2d");
  pen.fillStyle = `rgb(${UNDERNEATH},${UNDERNEATH},${UNDERNEATH})`;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(coloured(values, canvas.width, table, top), 0, 0, canvas.width, canvas.height);
}

// the powers of ten on the scale, [value, share of its length]
function ticksOf(top) {
  const all = Math.log10(top) + 1;
  return Array.from({ length: Math.floor(all + 1e-9) + 1 }, (_, i) => [10 ** (i - 1), i / all]);
}
