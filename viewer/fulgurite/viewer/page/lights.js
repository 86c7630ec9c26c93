// The light of one replica over time: nodes, cache and bolts as the texels that the shaders read. The page's part of
// `glow.py`, `carpet.py`, `bolts.Bolts` and `scene.ReplicaScene`: the same rules, the same constants.

export const NOT_CAPTURED = -2, NO_PUSH = -3;
const HIDDEN = 2, TEXELS = 4, GRID_S = 0.02, REFUSED_FOR_S = 0.03, NEVER = -1e6, RUNS_APART = 12;

/** The display function of a node kind, from the two ends of its scale; null where there is none. */
export function displayOf(ends) {
  if (!ends || !(ends[1] > ends[0])) return null;
  const [low, high] = ends, isLog = low > 0;
  const whole = isLog ? Math.max(Math.log(high / low), 1e-9) : high - low;
  const show = (value) => Math.min(1, Math.max(0, isLog ? Math.log(Math.max(value, low) / low) / whole : (value - low) / whole));
  return Object.assign(show, { low, high, isLog });
}

/** From signed logits to -1 ... 1. */
export function hueOf(logits, constants) {
  const reach = Math.log1p(constants.largest_logits / constants.linear_logits);
  return Math.sign(logits) * Math.min(1, Math.log1p(Math.abs(logits) / constants.linear_logits) / reach);
}

/** A grid of nodes, shape (layers, width): each shows its largest recent display value, fading; in `texels`, whose lines have `wide`, from `first` on. */
export class Glow {
  constructor(layers, width, constants, texels, wide, first) {
    Object.assign(this, { texels, wide, first });
    this.layers = layers;
    this.width = width;
    this.constants = constants;
    const n = layers * width;
    this.display = new Float32Array(n);
    this.stamp = new Float64Array(n);
    this.push = new Float32Array(n);
    this.measured = new Float64Array(n);
    this.missing = new Float64Array(n);
    this.leaves = () => false;  // whether a layer is left out of what is looked at
    this.clear();
  }

  clear() {
    this.display.fill(0);
    this.push.fill(NaN);
    for (const stamps of [this.stamp, this.measured, this.missing]) stamps.fill(-Infinity);
    this.isStale = true;
  }

  /** A value arrives at a node; NaN: there is none. */
  hit(layer, index, display, at, push) {
    const i = layer * this.width + index;
    this.isStale = true;
    if (!(display >= 0)) { this.missing[i] = Math.max(this.missing[i], at); return; }
    this.measured[i] = Math.max(this.measured[i], at);
    const left = this.stamp[i] > -Infinity ? this.display[i] * Math.exp((this.stamp[i] - at) / this.constants.fade_s) : -1;
    if (display < left) return;
    this.display[i] = display;
    this.stamp[i] = at;
    this.push[i] = push;
  }

  isUnmeasured(i) {
    return this.measured[i] === -Infinity || this.missing[i] > this.measured[i] + this.constants.fades_over_s;
  }

  light(i, now) {
    return this.stamp[i] === -Infinity ? 0 : this.display[i] * Math.exp(Math.min(0, (this.stamp[i] - now) / this.constants.fade_s));
  }

  /** Write the texels anew, stamps relative to `origin`. */
  writeTexels(origin) {
    const { layers, width, texels, wide, first } = this;
    for (let layer = 0; layer < layers; layer++) {
      for (let index = 0; index < width; index++) {
        const i = layer * width + index, t = (layer * wide + first + index) * 4;
        texels[t] = this.display[i];
        texels[t + 1] = this.stamp[i] === -Infinity ? NEVER : this.stamp[i] - origin;
        texels[t + 2] = this.leaves(layer) ? HIDDEN : this.isUnmeasured(i) ? 1 : 0;
        texels[t + 3] = Number.isNaN(this.push[i]) ? NOT_CAPTURED : this.push[i];
      }
    }
    this.isStale = false;
  }
}

/** The key-value cache, shape (layers, cells). */
export class Carpet {
  constructor(layers, cells, constants) {
    Object.assign(this, { layers, cells, constants });
    this.written = new Float64Array(layers * cells);
    this.read = new Float64Array(layers * cells);
    this.filled = new Float32Array(layers * cells);
    this.texels = new Float32Array(layers * cells * 4);
    this.sequences = new Map();
    this.clear();
  }

  clear() {
    this.written.fill(-Infinity);
    this.read.fill(-Infinity);
    this.sequences.clear();
    this.isMeasured = false;
    this.perCell = 1;
    this.isStale = true;
  }

  /** After a pass a sequence has `tokens` positions cached in each layer; those from `first` on are new. */
  write(lane, tokens, at, first) {
    let most = -1;
    for (const count of tokens) most = Math.max(most, count);
    if (most < 0) return;
    while (most > this.cells * this.perCell) this.grow(this.perCell * 2);
    this.isMeasured = true;
    this.sequences.set(lane, { tokens, at });
    for (let layer = 0; layer < this.layers; layer++) {
      const count = tokens[layer];
      if (count < 0) continue;
      const begin = Math.floor(Math.min(first, count - 1) / this.perCell), end = Math.floor((count - 1) / this.perCell);
      for (let cell = Math.max(0, begin); cell <= Math.min(end, this.cells - 1); cell++) {
        const i = layer * this.cells + cell;
        this.written[i] = Math.max(this.written[i], at);
      }
    }
    this.isStale = true;
  }

  readAt(layer, cell, at) {
    const i = layer * this.cells + cell;
    this.read[i] = Math.max(this.read[i], at);
    this.isStale = true;
  }

  /** A cell stands for more tokens: two become one. */
  grow(perCell) {
    while (this.perCell < perCell) {
      this.perCell *= 2;
      for (const stamps of [this.written, this.read]) {
        for (let layer = 0; layer < this.layers; layer++) {
          const at = layer * this.cells;
          for (let cell = 0; cell < this.cells; cell++) {
            stamps[at + cell] = 2 * cell + 1 < this.cells ? Math.max(stamps[at + 2 * cell], stamps[at + 2 * cell + 1]) : -Infinity;
          }
        }
      }
      this.isStale = true;
    }
  }

  end(request) {
    for (const lane of this.sequences.keys()) {
      if (lane.startsWith(request + "/")) { this.sequences.delete(lane); this.isStale = true; }
    }
  }

  expire(now) {
    for (const [lane, { at }] of this.sequences) {
      if (at < now - this.constants.silent_s) { this.sequences.delete(lane); this.isStale = true; }
    }
  }

  /** Share of the sequences under way that have cached up to a cell. */
  fill(layer, cell) {
    if (!this.sequences.size) return 0;
    let longer = 0;
    for (const { tokens } of this.sequences.values()) if (tokens[layer] > cell * this.perCell) longer++;
    return longer / this.sequences.size;
  }

  /** `fill` of every cell of a layer at once. */
  fills(layer) {
    const { cells, perCell, sequences } = this, share = new Float32Array(cells);
    for (const { tokens } of sequences.values()) {
      const reached = Math.min(cells, Math.ceil(tokens[layer] / perCell));
      if (reached > 0) share[reached - 1]++;
    }
    for (let cell = cells - 1, longer = 0; cell >= 0; cell--) { longer += share[cell]; share[cell] = sequences.size ? longer / sequences.size : 0; }
    return share;
  }

  writeTexels(origin) {
    const { layers, cells, texels } = this;
    for (let layer = 0; layer < layers; layer++) {
      const fills = this.isMeasured ? this.fills(layer) : null;
      for (let cell = 0; cell < cells; cell++) {
        const i = layer * cells + cell, t = i * 4;
        texels[t] = fills ? fills[cell] : -1;
        texels[t + 1] = this.written[i] === -Infinity ? NEVER : this.written[i] - origin;
        texels[t + 2] = this.read[i] === -Infinity ? NEVER : this.read[i] - origin;
      }
    }
    this.isStale = false;
  }
}

/** The live arcs: a ring of slots, and the chains whose arcs are still to come. */
export class Bolts {
  constructor(slots, constants) {
    this.constants = constants;
    this.limit = slots;  // of the slots, how many may live at once; a chain alone may have them all
    this.resize(slots);
  }

  resize(slots) {
    this.count = slots;
    this.texels = new Float32Array(slots * TEXELS * 4);
    this.births = new Float64Array(slots).fill(-Infinity);
    this.next = 0;
    this.coming = [];
    this.busy = new Map();
    this.origin = 0;
    this.isStale = true;
  }

  clear() { this.resize(this.count); }

  /** Whether a chain fits beside those admitted before; if so its room is taken. */
  admits(births) {
    const life = this.constants.life_s, change = new Map();
    let low = Infinity, high = -Infinity;
    for (const birth of births) {
      const first = Math.floor(birth / GRID_S), last = Math.ceil((birth + life) / GRID_S);
      change.set(first, (change.get(first) ?? 0) + 1);
      change.set(last + 1, (change.get(last + 1) ?? 0) - 1);
      low = Math.min(low, first);
      high = Math.max(high, last + 1);
    }
    const wanted = [];
    for (let i = low, sum = 0; i <= high; i++) {
      sum += change.get(i) ?? 0;
      const others = this.busy.get(i) ?? 0;
      if (others + sum > (others ? Math.min(this.limit, this.count) : this.count)) return false;
      wanted.push([i, sum]);
    }
    for (const [i, sum] of wanted) if (sum) this.busy.set(i, (this.busy.get(i) ?? 0) + sum);
    if (this.busy.size > 1024) for (const i of this.busy.keys()) if (i < low - 512) this.busy.delete(i);
    return true;
  }

  /** Let a chain begin: its arcs as texels (without births), and when each is born, rising. */
  add(texels, births) { this.coming.push({ texels, births, next: 0 }); }

  advance(now, origin) {
    if (origin !== this.origin) {
      this.origin = origin;
      for (let slot = 0; slot < this.count; slot++) {
        this.texels[slot * 16 + 3] = this.births[slot] > -Infinity ? this.births[slot] - origin : 0;
      }
      this.isStale = true;
    }
    for (const chain of this.coming) {
      while (chain.next < chain.births.length && chain.births[chain.next] <= now) {
        if (chain.births[chain.next] + this.constants.life_s > now) this.place(chain, chain.next);
        chain.next++;
      }
    }
    if (this.coming.length) this.coming = this.coming.filter((chain) => chain.next < chain.births.length);
  }

  place(chain, index) {
    const slot = this.next;
    this.texels.set(chain.texels.subarray(index * 16, index * 16 + 16), slot * 16);
    this.texels[slot * 16 + 3] = chain.births[index] - this.origin;
    this.births[slot] = chain.births[index];
    this.next = (slot + 1) % this.count;
    this.isStale = true;
  }

  /** The slots that live, as [first, count]; a few dead ones between two runs are taken along. */
  runs(now) {
    const found = [], { births, constants: { life_s: life } } = this;
    for (let slot = 0; slot < this.count; slot++) {
      if (!(births[slot] <= now && now < births[slot] + life)) continue;
      const last = found[found.length - 1];
      if (last && slot - last[0] - last[1] < RUNS_APART) last[1] = slot + 1 - last[0]; else found.push([slot, 1]);
    }
    return found;
  }

  live(now) {
    let count = 0;
    for (const birth of this.births) if (birth <= now && now < birth + this.constants.life_s) count++;
    return count;
  }
}

/** What is lit of one replica. */
export class Lights {
  /**
   * `shape`: {layers, heads, experts, layerHeads, unit, cells, residueBound}; `tint(color)` the RGB of a request's
   * colour; `slots` most live arcs.
   */
  constructor(shape, constants, tint, slots) {
    Object.assign(this, { shape, constants, tint });
    const { layers, heads } = shape, plates = Math.max(1, shape.experts), wide = heads + plates;
    this.nodes = { width: wide, texels: new Float32Array(layers * wide * 4) };
    this.heads = new Glow(layers, heads, constants, this.nodes.texels, wide, 0);
    this.plates = new Glow(layers, plates, constants, this.nodes.texels, wide, heads);
    this.carpet = new Carpet(shape.layers, shape.cells, constants);
    this.bolts = new Bolts(slots, constants);
    this.display = { head: null, ffn: null, expert: displayOf(shape.expertLight) };
    this.filter = null;       // (token row of a chunk) => whether it is drawn
    this.leaves = () => false;
    this.isCalm = false;
    this.clear();
  }

  clear() {
    this.heads.clear();
    this.plates.clear();
    this.carpet.clear();
    this.bolts.clear();
    this.pulses = [];
    this.lastPass = -Infinity;  // when the last pass came
    this.joined = null;         // what the last passes travel with
    this.seen = [];
    this.refusedUntil = -Infinity;
  }

  /** Look at one layer alone, or (`isHidden`) at every other; null: at all. */
  setLayer(layer, isHidden = false) {
    this.leaves = (other) => layer !== null && (layer === other) === isHidden;
    for (const glow of [this.heads, this.plates]) { glow.leaves = this.leaves; glow.isStale = true; }
  }

  setScale(kinds) {
    this.display = { ...this.display, head: displayOf(kinds.head), ffn: displayOf(kinds.ffn) };
  }

  /** Tokens i0 ... i1 of a chunk become due; `late`: those before this time are lit at it. */
  apply(chunk, i0, i1, late = -Infinity) {
    this.carpet.grow(chunk.perCell);
    for (let i = i0; i < i1;) {
      let end = i + 1;
      while (end < i1 && chunk.at[end] === chunk.at[i]) end++;
      this._pass(chunk, i, end, Math.max(late, chunk.at[i]));
      i = end;
    }
    if (chunk.fold && !this.filter && i1 === chunk.n) this._folded(chunk, Math.max(late, chunk.fold["fold:at"].data[0]));
  }

  /** One forward pass: nodes show the largest value of its rows, with the hue of that row. */
  _pass(chunk, from, to, at) {
    const isFolded = Boolean(chunk.fold && !this.filter);  // then the light of these rows is told in one
    let pulse = null;
    for (let i = from; i < to; i++) {
      const drawn = this.filter === null || this.filter(chunk, i);
      if (drawn && !isFolded) this._row(chunk, i, pulse ??= this._pulse(at));
      this._cache(chunk, i, at, drawn);
      const chain = drawn && this._strike(chunk, i, at);
      this.seen.push({ at, chain, read: chunk.has("attended_positions") && chunk.column("attended_positions", i) !== null,
        push: chunk.has("head_contribution") && this._isVerified(chunk, i) });
    }
    if (pulse) this._begin(this._shown(pulse));
  }

  /** A pass begins. Those that come closer upon each other than pictures travel as one, each faded by its wait: `pulses.py`. */
  _begin(pulse) {
    const { joined_per_s: rate, fade_s: fade } = this.constants, since = pulse.at - this.lastPass;
    this.lastPass = pulse.at;
    if (!(since > 0 && since < 1 / rate)) { this.pulses.push(pulse); return; }
    const end = (Math.floor(pulse.at * rate) + 1) / rate, left = Math.exp((pulse.at - end) / fade);
    for (const values of [pulse.heads, pulse.plates]) for (let n = 0; n < values.length; n++) values[n] *= left;
    pulse.at = end;
    if (this.joined?.at !== end) this.pulses.push(this.joined = pulse);
    else for (const [values, hues] of [["heads", "headHues"], ["plates", "plateHues"]]) this._join(this.joined, pulse, values, hues);
  }

  _join(pulse, other, values, hues) {
    const mine = pulse[values], theirs = other[values];
    for (let n = 0; n < mine.length; n++) {
      if (!(theirs[n] >= mine[n] || Number.isNaN(mine[n]))) continue;
      mine[n] = theirs[n];
      pulse[hues][n] = other[hues][n];
    }
  }

  _pulse(at) {
    const { layers, heads, experts } = this.shape, nodes = layers * heads, plates = layers * Math.max(1, experts), none = (n) => new Float32Array(n).fill(NaN);
    return { at, nextHeads: 0, nextPlates: 0, heads: none(nodes), headHues: none(nodes), plates: none(plates), plateHues: none(plates) };
  }

  _isVerified(chunk, i) {
    const residue = chunk.fact("residue", i);
    return residue !== null && Math.abs(residue) <= this.shape.residueBound;
  }

  /** A row's values, where they are the largest; as they were captured, with pushes in logits, until `_shown`. */
  _row(chunk, i, pulse) {
    const verified = this._isVerified(chunk, i), column = (name, isWanted = true) => (isWanted ? chunk.column(name, i) : null);
    this._largest(pulse.heads, pulse.headHues, column("head_write"), column("head_contribution", verified));
    const push = column("ffn_contribution", verified);
    if (this.shape.experts) this._experts(chunk, i, pulse, push);
    else this._largest(pulse.plates, pulse.plateHues, column("ffn_write"), push);
  }

  _largest(values, pushes, row, push) {
    for (let n = 0; row && n < row.length; n++) {
      const value = row[n];
      if (value <= values[n] || value !== value) continue;  // NaN is not measured
      values[n] = value;
      pushes[n] = push ? push[n] : NaN;
    }
  }

  _larger(values, pushes, n, display, logits) {
    if (!(display >= 0) || display <= values[n]) return;
    values[n] = display;
    pushes[n] = logits;
  }

  /** The largest values as light, their pushes as hues: the display function rises, so the largest is taken of what was measured. */
  _shown(pulse) {
    const { shape: { heads, layerHeads, experts }, display, constants } = this, show = (values, of) => { for (let n = 0; n < values.length; n++) values[n] = of ? of(values[n]) : NaN; };
    show(pulse.heads, display.head);
    for (let n = 0; n < pulse.heads.length; n++) if (n % heads >= layerHeads[Math.floor(n / heads)]) pulse.heads[n] = NaN;
    if (!experts) show(pulse.plates, display.ffn);
    for (const hues of [pulse.headHues, pulse.plateHues]) for (let n = 0; n < hues.length; n++) if (!Number.isNaN(hues[n])) hues[n] = hueOf(hues[n], constants);
    return pulse;
  }

  _experts(chunk, i, pulse, push) {
    const ids = chunk.column("expert_ids", i), weights = chunk.column("expert_weights", i);
    if (!ids || !weights) return;
    const { layers, experts } = this.shape, each = ids.length / layers;
    for (let layer = 0; layer < layers; layer++) {
      let any = false;
      for (let e = 0; e < each; e++) any ||= ids[layer * each + e] >= 0;
      if (!any) continue;
      const logits = push ? push[layer] : NaN;
      for (let expert = 0; expert < experts; expert++) this._larger(pulse.plates, pulse.plateHues, layer * experts + expert, 0, logits);
      for (let e = 0; e < each; e++) {
        const expert = ids[layer * each + e];
        if (expert >= 0) this._larger(pulse.plates, pulse.plateHues, layer * experts + expert, this.display.expert(Math.max(0, weights[layer * each + e])), logits);
      }
    }
  }

  /** The light of more tokens than came with their columns: already display values, 255 for none. */
  _folded(chunk, at) {
    const { layers, heads, experts } = this.shape, width = Math.max(1, experts);
    const read = (name, n) => {
      const values = new Float32Array(n).fill(NaN), data = chunk.fold[name]?.data;
      for (let i = 0; data && i < n; i++) if (data[i] !== 255) values[i] = data[i] / 254;
      return values;
    };
    this.pulses.push({ ...this._pulse(at), heads: read("fold:head", layers * heads), plates: read(experts ? "fold:expert" : "fold:ffn", layers * width) });
  }

  _cache(chunk, i, at, drawn) {
    const tokens = chunk.column("kv_tokens", i);
    if (!tokens || !drawn) return;
    let most = -1;
    for (const count of tokens) most = Math.max(most, count);
    const first = chunk.fact("phase", i) === 0 ? 0 : most - 1;
    this.carpet.write(`${chunk.request(i)[0]}/${chunk.fact("sequence", i) ?? 0}`, tokens, at, first);
  }

  /** Draw a token's chain, if it was told and there is room. */
  _strike(chunk, i, at) {
    const span = chunk.chains.get(i);
    if (!span || at < this.refusedUntil) return false;
    const { arrays } = chunk, spread = this.isCalm ? 0 : this.constants.spread_s;
    const delay = arrays["a:delay"].data, kinds = arrays["a:kind"].data, nodes = arrays["a:node"].data;
    const kept = [];
    for (let a = span[0]; a < span[1]; a++) if (kinds[a] === 0 || !this.leaves(nodes[2 * a])) kept.push(a);
    const births = kept.map((a) => at + delay[a] * spread);
    if (!this.bolts.admits(births)) { this.refusedUntil = at + REFUSED_FOR_S; return false; }
    this.bolts.add(this._texels(chunk, i, kept, span[0]), births);
    for (const [n, a] of kept.entries()) if (kinds[a] === 3) this.carpet.readAt(nodes[2 * a], nodes[2 * a + 1], births[n]);
    return true;
  }

  _texels(chunk, i, arcs, first) {
    const { arrays } = chunk, { unit } = this.shape, texels = new Float32Array(arcs.length * 16);
    const start = arrays["a:start"].data, end = arrays["a:end"].data, tint = this.tint(chunk.fact("color", i) ?? 0);
    const seed = seedOf(`${chunk.request(i)[0]}/${chunk.fact("sequence", i) ?? 0}/${chunk.fact("position", i)}`);
    arcs.forEach((a, n) => {
      const t = n * 16;
      for (let axis = 0; axis < 3; axis++) {
        texels[t + axis] = start[3 * a + axis] * unit;
        texels[t + 4 + axis] = end[3 * a + axis] * unit;
        texels[t + 8 + axis] = tint[axis];
      }
      texels[t + 7] = this.constants.life_s;
      texels[t + 11] = arrays["a:display"].data[a];
      texels[t + 12] = (seed + 131 * (a - first)) % 65536;
      texels[t + 13] = arrays["a:kind"].data[a];
      texels[t + 14] = arrays["a:width"].data[a];
      texels[t + 15] = arrays["a:push"].data[a];
    });
    return texels;
  }

  /** Light what is due by `now`. */
  advance(now, origin) {
    for (const pulse of this.pulses) this._travel(pulse, now);
    this.pulses = this.pulses.filter((pulse) => pulse.nextPlates < this.shape.layers);
    this.carpet.expire(now);
    const old = this.seen.findIndex((seen) => seen.at >= now - this.constants.rate_over_s);
    if (old > 0) this.seen.splice(0, old); else if (old < 0) this.seen.length = 0;
    this.bolts.advance(now, origin);
  }

  _travel(pulse, now) {
    const { layers } = this.shape, spread = this.isCalm ? 0 : this.constants.spread_s;
    const progress = spread > 0 ? (now - pulse.at) / spread * layers : Infinity;
    pulse.nextHeads = this._light(this.heads, pulse.heads, pulse.headHues, pulse, pulse.nextHeads, progress, 0.25, spread);
    pulse.nextPlates = this._light(this.plates, pulse.plates, pulse.plateHues, pulse, pulse.nextPlates, progress, 0.60, spread);
  }

  _light(glow, values, hues, pulse, begin, progress, offset, spread) {
    const { layers } = this.shape, end = Math.min(layers, Math.max(begin, Math.floor(Math.min(progress - offset, layers)) + 1));
    for (let layer = begin; layer < end; layer++) {
      const at = pulse.at + spread * (layer + offset) / layers;
      for (let index = 0; index < glow.width; index++) {
        const n = layer * glow.width + index;
        glow.hit(layer, index, values[n], at, hues[n]);
      }
    }
    return end;
  }

  /** Of the last seconds: {tokens, chains, read, push}. */
  get rates() {
    const count = (name) => this.seen.reduce((sum, seen) => sum + (seen[name] ? 1 : 0), 0);
    return { tokens: this.seen.length, chains: count("chain"), read: count("read"), push: count("push") };
  }
}

const CRC = new Uint32Array(256).map((_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** The number that shapes a frame's bolts: `bolts.frame_seed`. Decoration only. */
export function seedOf(name) {
  let crc = -1;
  for (const byte of new TextEncoder().encode(name)) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ -1) & 0xffff;
}
