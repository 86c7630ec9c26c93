// How finely to draw, with which ornaments, and how many arcs may live: adapts to the time between pictures, as it is
// measured. The page's `pace.py`. While a hand turns the model, pictures come first and fineness second; when it rests,
// the other way round.
// Pure: who draws brings the times.

/** Live arcs over all replicas, by level. Below the last whole chains are left out, never parts of one. */
export const ARCS = [150, 225, 300];
/** Ornaments that can be left out, before anything that says something: `pace.SHED`. */
const MOST_SHED = 2, MOST_PATIENCE = 64;
const STEP = 0.82, MOST_MS = 1000;
const SMALLEST = 0.5, LEAST = 0.35;  // below the first there is little to gain but where drawing itself is what takes long
const PICTURES = 6, OVER_MS = 250;  // a change is judged by so many pictures over so long
const BY_FAR = 1.7;
const FEWEST = 22;  // pictures a second, at rest: with fewer, arcs and fineness go

/** One fineness, kept so that pictures are neither slower than `slow` a second nor needlessly coarse. */
class Fineness {
  constructor({ slow, fine, poor }) { Object.assign(this, { slow, fine, poor, scale: 1, times: [], typical: 1000 / fine }); }

  /** A picture came so long after the one before it; by how much pictures are too slow (above 1) or fast (below 1), or 0. */
  learn(ms) {
    const { times } = this;
    times.push(ms);
    if (times.length < PICTURES || times.reduce((a, b) => a + b) < OVER_MS) return 0;
    times.sort((a, b) => a - b);
    this.typical = times[times.length >> 1];
    times.length = 0;
    const fps = 1000 / this.typical;
    return fps < this.slow ? this.slow / fps : fps > this.fine ? this.fine / fps : 0;
  }

  /** Pictures are slow by that factor, were they nothing but pixels. */
  coarser(by) {
    const least = 1000 / this.typical < this.poor ? LEAST : SMALLEST;
    this.scale = Math.min(this.scale, Math.max(least, this.scale * Math.max(0.5, Math.min(STEP, Math.sqrt(1 / by)))));
  }

  finer(most) { this.scale = Math.min(most, this.scale / STEP); }
}

export class Pace {
  constructor() {
    this.resting = new Fineness({ slow: 30, fine: 50, poor: 12 });
    this.moving = new Fineness({ slow: 36, fine: 56, poor: 18 });
    this.shed = this.movingShed = 0;  // how many ornaments are left out, at rest and while a hand turns the model
    this.patience = 1;                // rounds for which they stay away: longer each time that they did not fit
    this.waited = 0;
    this.level = ARCS.length - 1;
    this.tooRich = ARCS.length;  // a level that was tried and cost too much
    this.fps = 0;
  }

  /** How many arcs may live. */
  get arcs() { return ARCS[this.level]; }

  /** The share of the screen's fineness at which to draw; `isMoving`: a hand turns the model. */
  scale(isMoving) { return isMoving ? Math.min(this.moving.scale, this.resting.scale) : this.resting.scale; }

  /** How many ornaments are left out. */
  left(isMoving) { return isMoving ? Math.max(this.shed, this.movingShed) : this.shed; }

  /** A hand takes hold: what pictures took until now tells how coarse they must be from the first on. */
  turn() {
    const { resting, moving } = this, by = resting.typical * moving.slow / 1000;
    this.movingShed = by > 1 ? MOST_SHED : 0;
    if (by > 1) moving.scale = Math.min(moving.scale, Math.max(SMALLEST, resting.scale * Math.sqrt(1 / by)));
  }

  /** A picture came `ms` after the one before it, which was drawn in the frame before. */
  learn(ms, isMoving) {
    if (!(ms > 0 && ms <= MOST_MS)) return;
    this.fps = this.fps ? this.fps + 0.1 * (1000 / ms - this.fps) : 1000 / ms;
    const { resting, moving } = this;
    if (!isMoving) {
      const by = resting.learn(ms);
      if (by > 1 && this.shed < MOST_SHED) this._plainer(by);
      else if (by > 1 && resting.typical * FEWEST > 1000) this._less(resting.typical * FEWEST / 1000);
      else if (by && by < 1) this._more();
      return;
    }
    const by = moving.learn(ms);
    moving.scale = Math.min(moving.scale, resting.scale);
    if (by > 1 && this.movingShed < MOST_SHED) this.movingShed = MOST_SHED;
    else if (by > 1) moving.coarser(by);
    else if (by) moving.finer(resting.scale);
  }

  /** Ornaments go first: one, or where much is missing all. */
  _plainer(by) {
    this.shed = by > BY_FAR ? MOST_SHED : this.shed + 1;
    this.patience = Math.min(MOST_PATIENCE, 2 * this.patience);
    this.waited = 0;
  }

  /** Then fewer arcs, then a coarser picture; where much is missing, both. */
  _less(by) {
    const { level } = this;
    if (level) { this.tooRich = level; this.level = by > BY_FAR ? 0 : level - 1; }
    if (!level || by > BY_FAR) this.resting.coarser(by);
  }

  _more() {
    if (this.resting.scale < 1) this.resting.finer(1);
    else if (this.shed) { if (++this.waited >= this.patience) { this.shed--; this.waited = 0; } }
    else if (this.level + 1 < this.tooRich) this.level++;
  }
}
