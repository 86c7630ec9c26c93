// Where one person looks from: the presets of `camera.py`, their own turns on top, easing, following. Pure.

const RAD = Math.PI / 180;
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const less = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
const along = (a, b, t) => [a[0] + b[0] * t, a[1] + b[1] * t, a[2] + b[2] * t];
const clip = (value, low, high) => Math.min(high, Math.max(low, value));

/** Right, up and forward of a camera that looks from a direction. */
export function basis(azimuth, elevation) {
  const a = azimuth * RAD, e = elevation * RAD;
  const forward = [-Math.sin(a) * Math.cos(e), -Math.sin(e), -Math.cos(a) * Math.cos(e)];
  const right = [Math.cos(a), 0, -Math.sin(a)];
  return [right, cross(right, forward), forward];
}

/**
 * What a camera must keep in view, told by as few points as say the same. Of points on a line along x only the two ends
 * can be outermost, from wherever one looks, and layers stand one behind the other along x: of the 66,000 points of 126
 * layers of 128 heads fewer than 800 are left.
 */
export class Outline {
  /** `lines`: (x from, x to, y, z) of each; `middle`: the mean of all `count` points. */
  constructor(lines, middle, count) { Object.assign(this, { lines, middle, count }); }

  static of(points) {
    const found = new Map(), middle = [0, 0, 0], count = points.length / 3;
    for (let i = 0; i < points.length; i += 3) {
      const x = points[i], y = points[i + 1], z = points[i + 2];
      for (let k = 0; k < 3; k++) middle[k] += points[i + k] / count;
      if (!found.has(y)) found.set(y, new Map());
      const line = found.get(y).get(z);
      if (!line) found.get(y).set(z, [x, x, y, z]);
      else if (x < line[0]) line[0] = x;
      else if (x > line[1]) line[1] = x;
    }
    return new Outline(Float64Array.from([...found.values()].flatMap((lines) => [...lines.values()].flat())), middle, count);
  }

  static join(outlines) {
    if (outlines.length === 1) return outlines[0];
    const count = outlines.reduce((sum, one) => sum + one.count, 0), lines = outlines.flatMap((one) => [...one.lines]);
    return new Outline(Float64Array.from(lines), [0, 1, 2].map((k) => outlines.reduce((sum, one) => sum + one.middle[k] * one.count / count, 0)), count);
  }

  /** The least and the greatest distance from a place: of the lines, not only of their ends. */
  reach([x, y, z]) {
    const { lines } = this;
    let near = Infinity, far = 0;
    for (let i = 0; i < lines.length; i += 4) {
      const before = lines[i] - x, behind = x - lines[i + 1], dy = lines[i + 2] - y, dz = lines[i + 3] - z, across = dy * dy + dz * dz;
      const short = Math.max(0, before, behind), long = Math.max(Math.abs(before), Math.abs(behind));
      near = Math.min(near, across + short * short);
      far = Math.max(far, across + long * long);
    }
    return [Math.sqrt(near), Math.sqrt(far)];
  }
}

/** The nearest view from a direction that keeps an outline in the free area of a viewport. */
export function fit({ lines, middle }, azimuth, elevation, angle, aspect, insets) {
  const [right, up, forward] = basis(azimuth, elevation);
  const low = [-1 + 2 * insets.left, -1 + 2 * insets.bottom], high = [1 - 2 * insets.right, 1 - 2 * insets.top];
  const tangent = Math.tan(angle * RAD / 2);
  let focal = middle, distance = 30;
  for (let turn = 0; turn < 24; turn++) {
    const least = [Infinity, Infinity], most = [-Infinity, -Infinity];
    for (let i = 0; i < lines.length; i += 4) {
      const y = lines[i + 2] - focal[1], z = lines[i + 3] - focal[2];
      const ahead = distance + y * forward[1] + z * forward[2], aside = y * right[1] + z * right[2], above = y * up[1] + z * up[2];
      for (let end = 0; end < 2; end++) {
        const x = lines[i + end] - focal[0], depth = Math.max(0.05, ahead + x * forward[0]) * tangent;
        const u = (aside + x * right[0]) / aspect / depth, v = (above + x * up[0]) / depth;
        if (u < least[0]) least[0] = u;
        if (u > most[0]) most[0] = u;
        if (v < least[1]) least[1] = v;
        if (v > most[1]) most[1] = v;
      }
    }
    const shift = [0, 1].map((k) => (least[k] + most[k] - low[k] - high[k]) / 2 * distance * tangent);
    focal = along(along(focal, right, shift[0] * aspect), up, shift[1]);
    distance *= Math.max((most[0] - least[0]) / (high[0] - low[0]), (most[1] - least[1]) / (high[1] - low[1]));
  }
  return { position: along(focal, forward, -distance), focal, up, angle };
}

/** Projects points of a viewport: (x, y, depth) in its pixels, from the upper left; depth NaN behind the camera. */
export class Lens {
  constructor(view, width, height, outline) {
    Object.assign(this, { view, width, height });
    const toward = less(view.focal, view.position), distance = Math.hypot(...toward);
    this.forward = toward.map((part) => part / distance);
    const right = cross(this.forward, view.up), long = Math.hypot(...right);
    this.right = right.map((part) => part / long);
    this.up = cross(this.right, this.forward);
    this.tangent = Math.tan(view.angle * RAD / 2);
    this.pixels = height / 2 / this.tangent;
    const [near, far] = outline.reach(view.position);
    this.near = Math.max(0.05, 0.5 * near);
    this.far = 1.5 * far;
  }

  project(x, y, z) {
    const at = [x - this.view.position[0], y - this.view.position[1], z - this.view.position[2]];
    const depth = dot(at, this.forward);
    if (!(depth > 1e-6)) return [NaN, NaN, NaN];
    const scale = this.pixels / depth;
    return [this.width / 2 + dot(at, this.right) * scale, this.height / 2 - dot(at, this.up) * scale, depth];
  }

  /** `project` as three rows of four: pixel across and down, each times the depth, and the depth. */
  frame() {
    const { forward, width, height, pixels, view: { position } } = this;
    const row = (way, far, middle) => { const r = way.map((part, k) => far * part + middle * forward[k]); return [...r, -dot(r, position)]; };
    return Float64Array.from([...row(this.right, pixels, width / 2), ...row(this.up, -pixels, height / 2), ...row(forward, 1, 0)]);
  }

  /** The matrix from places to clip space, columns first. */
  get matrix() {
    const { right: r, up: u, forward: f, near, far, view: { position: p } } = this;
    const b = 1 / this.tangent, a = b * this.height / this.width, c = (far + near) / (far - near), d = 2 * far * near / (far - near);
    const x = -dot(r, p), y = -dot(u, p), z = -dot(f, p);
    return new Float32Array([
      a * r[0], b * u[0], c * f[0], f[0], a * r[1], b * u[1], c * f[1], f[1], a * r[2], b * u[2], c * f[2], f[2],
      a * x, b * y, c * z - d, z,
    ]);
  }
}

/** Columns and rows of viewports: those whose cells come closest to 1.7 : 1. */
export function grid(count, width, height) {
  let best = [1, Math.max(1, count)], least = Infinity;
  for (let columns = 1; columns <= Math.max(1, count); columns++) {
    const rows = Math.ceil(Math.max(1, count) / columns);
    const cost = Math.abs(Math.log(width / columns / (height / rows) / 1.7)) + 0.35 * (columns * rows - count);
    if (cost < least - 1e-9) { best = [columns, rows]; least = cost; }
  }
  return best;
}

export class Camera {
  constructor(presets, ease) {
    Object.assign(this, { presets, ease, preset: 0, from: null, since: null, shown: null, isCalm: false });
    this.fixed = null;   // a whole view, given from outside
    this.home();
  }

  home() { Object.assign(this, { azimuth: 0, elevation: 0, zoom: 1, pan: [0, 0], front: null }); }

  show(index) {
    this.from = this.isCalm ? null : this.shown;
    this.since = null;
    this.preset = clip(index, 0, this.presets.length - 1);
    this.fixed = null;
    this.home();
  }

  orbit(azimuth, elevation) {
    this.fixed = null;
    this.azimuth += azimuth;
    this.elevation = clip(this.elevation + elevation, -60, 80);
  }

  near(factor) { this.fixed = null; this.zoom = clip(this.zoom * factor, 0.25, 12); }
  move(right, up) { this.fixed = null; this.pan = [this.pan[0] + right, this.pan[1] + up]; }

  /** Whether the view changes by itself. */
  isMoving(clock) {
    return (this.presets[this.preset].orbit_s > 0 && !this.isCalm) || (this.from !== null && clock - (this.since ?? clock) < this.ease) || this.front !== null;
  }

  direction(aspect, clock) {
    const preset = this.presets[this.preset], high = clip((2.55 - aspect) / 1.35, -0.25, 1);
    let azimuth = preset.azimuth_deg + high * (preset.azimuth_high_deg - preset.azimuth_deg);
    let elevation = preset.elevation_deg + high * (preset.elevation_high_deg - preset.elevation_deg);
    if (preset.orbit_s && !this.isCalm) {
      azimuth += 26 * Math.sin(2 * Math.PI * clock / preset.orbit_s);
      elevation += 5 * Math.sin(2 * Math.PI * clock / (0.73 * preset.orbit_s));
    }
    const eased = this._eased([azimuth, elevation, preset.angle_deg], clock);
    return [eased[0] + this.azimuth, clip(eased[1] + this.elevation, -30, 88), eased[2]];
  }

  _eased(wanted, clock) {
    if (this.from !== null) {
      this.since ??= clock;
      let t = clip((clock - this.since) / this.ease, 0, 1);
      if (t >= 1) this.from = null;
      t = t * t * (3 - 2 * t);
      if (this.from !== null) wanted = this.from.map((a, i) => a + t * (wanted[i] - a));
    }
    this.shown = wanted;
    return wanted;
  }

  /** The view of a viewport of that aspect, fitted to an outline. */
  view(outline, aspect, insets, clock) {
    if (this.fixed) return this.fixed;
    const free = aspect * (1 - insets.left - insets.right) / (1 - insets.top - insets.bottom);
    const how = this.direction(free, clock), key = JSON.stringify([how, aspect, insets]);
    if (this.fitKey !== key || this.outline !== outline) { Object.assign(this, { fitKey: key, outline, fitted: fit(outline, ...how, aspect, insets) }); }
    const fitted = this.fitted, [right, up, forward] = basis(how[0], how[1]);
    const distance = Math.hypot(...less(fitted.focal, fitted.position)) / this.zoom;
    const span = 2 * distance * Math.tan(how[2] * RAD / 2);
    let focal = along(along(fitted.focal, right, -this.pan[0] * span), up, -this.pan[1] * span);
    if (this.front) focal = along(focal, less(this.front, focal), 0.85);
    return { position: along(focal, forward, -distance), focal, up: fitted.up, angle: how[2] };
  }
}
