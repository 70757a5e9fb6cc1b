// Attention rows: fetched when they are needed, kept for a while, and read as maps of the token grid.

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

async function unpack(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function token(x, y, side) {
  return Math.floor(y * side) * side + Math.floor(x * side);
}

// for each token of the grid, the stored query that is nearest to it
function nearestQueries(meta) {
  const side = meta.grid;
  return Uint16Array.from({ length: side * side }, (_, i) => {
    let best = 0;
    let least = Infinity;
    meta.queries.forEach((q, n) => {
      const far = ((q % side) - (i % side)) ** 2
        + (Math.floor(q / side) - Math.floor(i / side)) ** 2;
      if (far < least) { least = far; best = n; }
    });
    return best;
  });
}

class Rows {
  constructor({ meta, rows }) {
    this.meta = meta;
    this.fetch = rows;
    this.cells = meta.cells * meta.cells;
    this.nearest = nearestQueries(meta);
    this.cache = new Map();
  }

  // scales [Q] and levels [Q, slots, cells] of a site's rows at an index; null where nothing was seen, which
  // is stored as zeros
  at(info, index) {
    const key = `${info.name}/${index}`;
    if (!this.cache.has(key)) {
      const found = this.fetch(info.name, index).then(unpack).then((buffer) => {
        const scales = new Float32Array(buffer.slice(0, 4 * info.queries));
        const levels = new Uint8Array(buffer, 4 * info.queries);
        const slots = info.part === "memory" ? 7 : 1;
        return scales.some((scale) => scale > 0) ? { info, scales, levels, slots } : null;
      });
      found.catch(() => this.cache.delete(key));
      this.cache.set(key, found);
      if (this.cache.size > 24) this.cache.delete(this.cache.keys().next().value);
    }
    return this.cache.get(key);
  }

  value(found, q, slot, cell) {
    const level = found.levels[(q * found.slots + slot) * this.cells + cell] / 255;
    return level * level * found.scales[q];
  }

  // the map of a slot, {side, found: Float32Array of side * side}, as multiples of the even share, which is
  // spread over as many `frames`; {way, x, y} says which pixel, and which way
  map(found, slot, { way, x, y }, frames) {
    const { meta, cells, nearest } = this;
    const shares = new Float32Array(cells);
    if (found.info.part === "decoder") {
      for (let q = 0; q < found.info.queries; q++) {
        for (let c = 0; c < cells; c++) shares[c] += this.value(found, q, 0, c) / found.info.queries;
      }
      return { side: meta.cells, found: shares.map((v) => v * cells) };
    }
    const even = cells * frames;
    if (way === "to") {
      const q = nearest[token(x, y, meta.grid)];
      return { side: meta.cells, found: shares.map((_, c) => this.value(found, q, slot, c) * even) };
    }
    const cell = token(x, y, meta.cells);
    return { side: meta.grid,
      found: Float32Array.from(nearest, (q) => this.value(found, q, slot, cell) * even) };
  }
}
