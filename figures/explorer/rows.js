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

  // scales [heads, Q] and levels [heads, Q, slots, cells] of a site's rows at an index, one head where only their
  // mean was stored; null where nothing was seen, which is stored as zeros
  at(info, index) {
    const key = `${info.name}/${index}`;
    if (!this.cache.has(key)) {
      const found = this.fetch(info.name, index).then(unpack).then((buffer) => {
        const rows = Math.max(1, info.heads) * info.queries;
        const scales = new Float32Array(buffer.slice(0, 4 * rows));
        const levels = new Uint8Array(buffer, 4 * rows);
        const slots = info.part === "memory" ? 7 : 1;
        return scales.some((scale) => scale > 0) ? { info, scales, levels, slots } : null;
      });
      found.catch(() => this.cache.delete(key));
      this.cache.set(key, found);
      if (this.cache.size > 24) this.cache.delete(this.cache.keys().next().value);
    }
    return this.cache.get(key);
  }

  // attention of a query to a cell; of a head, or the mean over them where it is null
  value(found, head, q, slot, cell) {
    const { info, scales, levels, slots } = found;
    const all = Math.max(1, info.heads);
    const [first, last] = head === null ? [0, all] : [head, head + 1];
    let sum = 0;
    for (let h = first; h < last; h++) {
      const row = h * info.queries + q;
      const level = levels[(row * slots + slot) * this.cells + cell] / 255;
      sum += level * level * scales[row];
    }
    return sum / (last - first);
  }

  // the stored queries that answer for cells
  queriesOf(cells) {
    const { queries, grid, cells: side } = this.meta;
    const there = new Set(cells);
    const inside = [...queries.keys()].filter((n) => there.has(
      token((queries[n] % grid + 0.5) / grid, (Math.floor(queries[n] / grid) + 0.5) / grid, side)));
    return inside.length ? inside : [...new Set(cells.map((cell) => this.nearest[
      token((cell % side + 0.5) / side, (Math.floor(cell / side) + 0.5) / side, grid)]))];
  }

  // the map of a slot, {side, found: Float32Array of side * side}, as multiples of the even share, which is
  // spread over as many `frames`; {way, head, queries, cells} says of which queries it is the mean, or who attends
  // to which cells
  map(found, slot, { way, head, queries, cells }, frames) {
    const { meta, nearest } = this;
    const decoder = found.info.part === "decoder";
    const even = this.cells * (decoder ? 1 : frames);
    if (decoder || way === "to") {
      const asked = decoder ? Array.from({ length: found.info.queries }, (_, q) => q) : queries;
      const shares = new Float32Array(this.cells);
      for (const q of asked) {
        for (let c = 0; c < this.cells; c++) shares[c] += this.value(found, head, q, slot, c);
      }
      return { side: meta.cells, found: shares.map((v) => v * even / asked.length) };
    }
    const answers = Float32Array.from(meta.queries, (_, q) => cells.reduce(
      (sum, cell) => sum + this.value(found, head, q, slot, cell), 0) * even / cells.length);
    return { side: meta.grid, found: Float32Array.from(nearest, (q) => answers[q]) };
  }
}
