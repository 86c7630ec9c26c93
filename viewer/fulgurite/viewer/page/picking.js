// Which node is under a pixel: by projecting what is drawn, exactly as large as it is drawn. Pure.
//
// Spheres and cells of the wall are opaque and hide what is behind them; plates and the carpet are painted over each
// other in this order. So of everything under a pixel the nearest opaque node wins, unless a flat one is before it.

const SLACK = 0.01;  // pixels: what `inside` rounds otherwise than the box

/** A node: {kind: "head" | "ffn" | "cell", layer, index}. */
export function pick(lens, look, lights, time, x, y) {
  const solid = look.walls ? polygons(lens, look.walls, look.layers, look.heads, x, y, "head") : spheres(lens, look, lights, time, x, y);
  const flat = polygons(lens, look.plates, look.layers, look.plateCount, x, y, "ffn", look.isDisc)
    ?? polygons(lens, look.cells, look.layers, look.cellCount, x, y, "cell");
  if (!solid) return flat;
  return flat && flat.depth < solid.depth ? flat : solid;
}

/** The nearest sphere that covers the pixel, at its present size. */
function spheres(lens, look, lights, time, x, y) {
  let found = null;
  for (let n = 0; n < look.layers * look.heads; n++) {
    const at = 3 * n;
    if (Number.isNaN(look.places[at])) continue;
    const [px, py, depth] = lens.project(look.places[at], look.places[at + 1], look.places[at + 2]);
    const grown = look.radius * (1 + look.growth * lights.heads.light(n, time));
    const reach = Math.max(2, 2 * grown * lens.pixels / depth) / 2;
    if (Math.hypot(px - x, py - y) <= Math.max(reach, look.least) && (!found || depth < found.depth)) {
      found = { kind: "head", layer: Math.floor(n / look.heads), index: n % look.heads, depth };
    }
  }
  return found;
}

/** The nearest quadrilateral (or, of discs, the circle in it) that covers the pixel. */
function polygons(lens, corners, layers, width, x, y, kind, isDisc = false) {
  let found = null;
  const frame = lens.frame();
  for (let n = 0; n < layers * width; n++) {
    const at = 12 * n;
    if (Number.isNaN(corners[at]) || !isNear(frame, corners, at, x, y)) continue;
    const seen = [];
    for (let c = 0; c < 4; c++) seen.push(lens.project(corners[at + 3 * c], corners[at + 3 * c + 1], corners[at + 3 * c + 2]));
    const place = inside(seen, x, y);
    if (!place || (isDisc && Math.hypot(...place) > 1)) continue;
    const depth = seen.reduce((sum, corner) => sum + corner[2], 0) / 4;
    if (!found || depth < found.depth) found = { kind, layer: Math.floor(n / width), index: n % width, depth };
  }
  return found;
}

/** Whether a pixel is within the box around the four corners as they are seen. */
function isNear(frame, corners, at, x, y) {
  let left = false, right = false, above = false, below = false;
  for (let c = at; c < at + 12; c += 3) {
    const cx = corners[c], cy = corners[c + 1], cz = corners[c + 2];
    const px = frame[0] * cx + frame[1] * cy + frame[2] * cz + frame[3], py = frame[4] * cx + frame[5] * cy + frame[6] * cz + frame[7];
    const depth = frame[8] * cx + frame[9] * cy + frame[10] * cz + frame[11];
    if (!(depth > 0)) return true;
    if (px <= (x + SLACK) * depth) left = true;
    if (px >= (x - SLACK) * depth) right = true;
    if (py <= (y + SLACK) * depth) above = true;
    if (py >= (y - SLACK) * depth) below = true;
  }
  return left && right && above && below;
}

/** Where a pixel lies in a quadrilateral seen in perspective, -1 ... 1 both ways; null: outside. */
function inside(seen, x, y) {
  let sign = 0;
  for (let c = 0; c < 4; c++) {
    const a = seen[c], b = seen[(c + 1) % 4];
    const side = (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]);
    if (Number.isNaN(side)) return null;
    if (side !== 0) {
      if (sign && Math.sign(side) !== sign) return null;
      sign = Math.sign(side);
    }
  }
  // homogeneous: the corners are (-1,-1) (1,-1) (1,1) (-1,1), the quadrilateral a parallelogram in space
  const w = seen.map((corner) => corner[2]);
  const p = [0, 1, 3].map((c) => [seen[c][0] * w[c], seen[c][1] * w[c], w[c]]);
  const e = [0, 1, 2].map((k) => p[1][k] - p[0][k]), f = [0, 1, 2].map((k) => p[2][k] - p[0][k]);
  // p0 + s e + t f ~ (x, y, 1)
  const row = (k, value) => [e[k] - value * e[2], f[k] - value * f[2], value * p[0][2] - p[0][k]];
  const [a, b, c] = row(0, x), [d, g, h] = row(1, y), det = a * g - b * d;
  if (!det) return null;
  const s = (c * g - b * h) / det, t = (a * h - c * d) / det;
  return [2 * s - 1, 2 * t - 1];
}
