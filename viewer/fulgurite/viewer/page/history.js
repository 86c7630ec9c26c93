// What the page remembers of one replica: its tokens with their columns, in the order in which they are played.

const NO_ROW = 0xffff;

/** The tokens of one message. Times `at` never decrease. */
export class Chunk {
  constructor(header, arrays) {
    this.key = header.key;
    this.serial = header.serial;
    this.live = header.live;
    this.requests = header.requests;
    this.texts = header.texts;
    this.perCell = header.per_cell;
    this.at = arrays.at.data;
    this.n = this.at.length;
    this.arrays = arrays;
    this.rows = arrays.row ? arrays.row.data : null;
    this.fold = arrays["fold:at"] ? arrays : null;
    this.chains = this._chains();
  }

  get first() { return this.at[0]; }
  get last() { return this.at[this.n - 1]; }

  /** Which arcs belong to which token: Map of row -> [from, to]. */
  _chains() {
    const found = new Map();
    const rows = this.arrays["a:row"]?.data ?? [];
    for (let from = 0, i = 1; i <= rows.length; i++) {
      if (i === rows.length || rows[i] !== rows[from]) { found.set(rows[from], [from, i]); from = i; }
    }
    return found;
  }

  /** A scalar of token i; null where it was not captured. */
  fact(name, i) {
    const value = this.arrays[name]?.data[i];
    return value === undefined || Number.isNaN(value) ? null : value;
  }

  /** The values of a channel of token i, or null; their shape is `shape(name)`. */
  column(name, i) {
    const array = this.arrays["c:" + name];
    if (!array) return null;
    const row = this.rows ? this.rows[i] : i;
    if (row === NO_ROW) return null;
    const size = array.data.length / array.shape[0];
    return array.data.subarray(row * size, (row + 1) * size);
  }

  /** One value of a channel of token i, or null. */
  value(name, i, at) {
    const array = this.arrays["c:" + name], row = this.rows ? this.rows[i] : i;
    if (!array || row === NO_ROW) return null;
    const { data, shape } = array, index = at.reduce((before, part, axis) => before * shape[axis + 1] + part, 0), size = data.length / shape[0];
    const found = index < size ? data.at(row * size + index) : undefined;
    return found === undefined || Number.isNaN(found) ? null : found;
  }

  shape(name) { return this.arrays["c:" + name].shape.slice(1); }
  has(name) { return this.arrays["c:" + name] !== undefined; }
  request(i) { return this.requests[this.arrays.request_index.data[i]]; }
  text(i) { return this.texts ? this.texts[i] : null; }
}

/** One token of a chunk. */
export class Token {
  constructor(chunk, i) { this.chunk = chunk; this.i = i; }
  get at() { return this.chunk.at[this.i]; }
  get key() { return this.chunk.key; }
  get requestId() { return this.chunk.request(this.i)[0]; }
  get traceId() { return this.chunk.request(this.i)[1]; }
  get sequence() { return this.fact("sequence") ?? 0; }
  get position() { return this.fact("position"); }
  get text() { return this.chunk.text(this.i); }
  get lane() { return `${this.requestId}/${this.sequence}`; }
  get probability() { const l = this.fact("logprob"); return l === null ? null : Math.exp(Math.min(0, l)); }
  fact(name) { return this.chunk.fact(name, this.i); }
  column(name) { return this.chunk.column(name, this.i); }
  value(name, ...at) {
    return this.chunk.value(name, this.i, at);
  }
  is(other) { return other && other.chunk === this.chunk && other.i === this.i; }
}

export class History {
  constructor(keep) {
    this.keep = keep;
    this.chunks = [];
    this.serials = new Set();
    this.texts = new Map();    // token id -> the text with which it was emitted last
    this.places = new Map();   // lane -> Map of position -> text
    this.prompts = new Map();  // request -> tokens of its prompt per row
    this.counts = new Map();   // half second -> tokens
  }

  /** Keep a chunk; false where it is here already. */
  add(chunk) {
    if (this.serials.has(chunk.serial)) return false;
    this.serials.add(chunk.serial);
    let at = this.chunks.length;
    while (at > 0 && this.chunks[at - 1].serial > chunk.serial) at--;
    this.chunks.splice(at, 0, chunk);
    for (let i = 0; i < chunk.n; i++) {
      const slot = Math.floor(chunk.at[i] * 2);
      this.counts.set(slot, (this.counts.get(slot) ?? 0) + 1);
      const text = chunk.text(i), id = chunk.fact("token_id", i);
      if (text === null) continue;
      if (id !== null && id >= 0) this.texts.set(id, text);
      const lane = `${chunk.request(i)[0]}/${chunk.fact("sequence", i) ?? 0}`;
      if (!this.places.has(lane)) this.places.set(lane, new Map());
      this.places.get(lane).set(chunk.fact("position", i), text);
    }
    const newest = this.chunks[this.chunks.length - 1].last;
    while (this.chunks.length > 1 && this.chunks[0].last < newest - this.keep) this.serials.delete(this.chunks.shift().serial);
    if (this.places.size > 400) this.places.delete(this.places.keys().next().value);
    if (this.counts.size > 600) {
      for (const slot of this.counts.keys()) if (slot < (newest - this.keep) * 2) this.counts.delete(slot);
    }
    return true;
  }

  get span() {
    return this.chunks.length ? [this.chunks[0].first, this.chunks[this.chunks.length - 1].last] : null;
  }

  /** Every token with from < at <= to, as [chunk, i0, i1], in order. */
  between(from, to) {
    const found = [];
    for (let c = this.chunks.length - 1; c >= 0; c--) {
      const chunk = this.chunks[c];
      if (chunk.first > to) continue;
      if (chunk.last <= from) break;
      const i0 = above(chunk.at, from), i1 = above(chunk.at, to);
      if (i1 > i0) found.push([chunk, i0, i1]);
    }
    return found.reverse();
  }

  /** The last tokens at or before a time, newest first, at most `limit`; `wanted(token)` chooses. */
  *back(time, wanted = () => true) {
    for (let c = this.chunks.length - 1; c >= 0; c--) {
      const chunk = this.chunks[c];
      if (chunk.first > time) continue;
      for (let i = above(chunk.at, time) - 1; i >= 0; i--) {
        const token = new Token(chunk, i);
        if (wanted(token)) yield token;
      }
    }
  }

  /** The tokens after a time, oldest first. */
  *forth(time, wanted = () => true) {
    for (const chunk of this.chunks) {
      if (chunk.last <= time) continue;
      for (let i = above(chunk.at, time); i < chunk.n; i++) {
        const token = new Token(chunk, i);
        if (wanted(token)) yield token;
      }
    }
  }

  last(time, wanted) { return this.back(time, wanted).next().value ?? null; }

  /** The text at a position of a token's own sequence: null where it was not emitted here. */
  textAt(token, position) { return this.places.get(token.lane)?.get(position) ?? null; }

  promptTokens(token) {
    const rows = this.prompts.get(token.requestId);
    return rows ? rows[Math.min(token.sequence, rows.length - 1)] : null;
  }
}

/** How many of the rising values are at most `limit`. */
export function above(values, limit) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= limit) low = middle + 1; else high = middle;
  }
  return low;
}
