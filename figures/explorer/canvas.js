// Painting: a frame with heat over it, the cross at the query, the colour scale.

const FLOOR = 0.1;  // attention below a tenth of the even share is drawn as nothing

function load(address) {
  return new Promise((done, failed) => {
    const picture = new Image();
    picture.onload = () => done(picture);
    picture.onerror = () => failed(new Error("a frame can't be shown"));
    picture.src = address;
  });
}

// heat: {side, found} in multiples of the even share, or null; mark: [x, y] as shares, or null
function paint(canvas, picture, aspect, table, heat, width, mark) {
  canvas.width = width;
  canvas.height = Math.round(width / aspect);
  const pen = canvas.getContext("2d");
  pen.filter = heat ? "grayscale(1)" : "none";
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  pen.filter = "none";
  if (heat) {
    const small = document.createElement("canvas");
    small.width = small.height = heat.side;
    const image = new ImageData(heat.side, heat.side);
    heat.found.forEach((v, i) => {
      const share = Math.min(1, Math.max(0, (Math.log10(Math.max(v, FLOOR)) + 1) / 3));
      const entry = Math.round(255 * share);
      image.data.set(table.subarray(3 * entry, 3 * entry + 3), 4 * i);
      image.data[4 * i + 3] = 255 * Math.min(0.85, v < FLOOR ? 0 : 0.12 + 0.95 * share);
    });
    small.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  }
  if (mark) cross(pen, mark[0] * canvas.width, mark[1] * canvas.height);
}

function cross(pen, x, y) {
  for (const [shade, width] of [["#000", 5], ["#fff", 2.5]]) {
    pen.strokeStyle = shade;
    pen.lineWidth = width;
    pen.beginPath();
    pen.moveTo(x - 11, y); pen.lineTo(x + 11, y);
    pen.moveTo(x, y - 11); pen.lineTo(x, y + 11);
    pen.stroke();
  }
}

// the colours of the scale from 0.1 to 100 times the even share, as a CSS gradient
function gradient(table) {
  const stops = [];
  for (let i = 0; i <= 255; i += 15) {
    stops.push(`rgb(${table[3 * i]},${table[3 * i + 1]},${table[3 * i + 2]})`);
  }
  return `linear-gradient(90deg,${stops.join()})`;
}
