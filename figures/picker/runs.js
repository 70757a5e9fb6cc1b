// Masks between run lengths (down the columns, what is outside first: COCO's code) and canvases of the video's size.

function layerOf(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

// a canvas with what is inside in one colour, "#rrggbb", the number of its pixels, and where it is highest: [x of
// its middle, y]
function painted(runs, width, height, colour) {
  const layer = layerOf(width, height);
  const image = new ImageData(width, height);
  const shade = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  let at = 0;
  let area = 0;
  let across = 0;
  let top = height;
  runs.forEach((length, n) => {
    if (n % 2) {
      area += length;
      for (let i = at; i < at + length; i++) {
        const [x, y] = [Math.floor(i / height), i % height];
        const place = 4 * (y * width + x);
        across += x;
        top = Math.min(top, y);
        [image.data[place], image.data[place + 1], image.data[place + 2]] = shade;
        image.data[place + 3] = 255;
      }
    }
    at += length;
  });
  layer.getContext("2d").putImageData(image, 0, 0);
  return { layer, area, head: [across / area, top] };
}

// the run lengths of what is more than half opaque; null where nothing is
function runsOf(layer) {
  const { width, height } = layer;
  const { data } = layer.getContext("2d").getImageData(0, 0, width, height);
  const runs = [];
  let inside = false;
  let length = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      if ((data[4 * (y * width + x) + 3] > 127) !== inside) {
        runs.push(length);
        length = 0;
        inside = !inside;
      }
      length++;
    }
  }
  runs.push(length);
  return runs.length > 1 ? runs : null;
}
