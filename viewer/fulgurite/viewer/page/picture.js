// Draws what is lit: one viewport per replica under one camera, with the shared shaders. The page's `vtk/renderer.py`.
import { Camera, Lens, Outline, grid } from "./camera.js";
import { Drawing, Program, Texture, quads } from "./gl.js";
import { pick } from "./picking.js";
import { tag } from "./words.js";

export const GROUND = [0.006, 0.008, 0.020];
const ORIGIN_S = 256;
const NAME_PIXELS = 13, NUMBER_PIXELS = 12.5;
const LABELS_FROM_WIDTH = 420, STACKED_BELOW = 14;

/** The textures and drawings of one replica. */
class Body {
  constructor(stage, look, lights) {
    const { gl } = stage;
    Object.assign(this, { stage, look, lights, labels: null, labelScale: 0 });
    const { layers } = look, nodes = new Texture(gl, lights.nodes.width, layers, lights.nodes.texels);
    this.textures = { heads: nodes, plates: nodes, cells: new Texture(gl, lights.carpet.cells, layers, lights.carpet.texels) };
    this.drawings = look.sketches.map((sketch) => new Drawing(gl, stage.program(sketch.shader), sketch));
    this.origin = null;
    this._bolts();
  }

  /** Ribbons for as many arcs as there are slots: with their glow, and plain. */
  _bolts() {
    const { gl, constants: { segments, glow_segments: glow, glow_from: glowFrom, plain_segments: plain } } = this.stage;
    this.slots = this.lights.bolts.count;
    this.textures.arcs?.free();
    for (const ribbon of this.ribbons ?? []) ribbon.bolts.free();
    this.textures.arcs = new Texture(gl, 4, this.slots, this.lights.bolts.texels);
    this.ribbons = [this._ribbon(segments, glow, glowFrom), this._ribbon(plain, 0, 1)];
  }

  _ribbon(segments, glow, glowFrom) {
    const { slots, stage } = this, { at, index } = ribbons(slots, segments, glow);
    const bolts = new Drawing(stage.gl, stage.program("bolts"), {
      shader: "bolts", primitive: "triangles", blend: "brightest", points: new Float32Array(at.length), index,
      attributes: { arcAt: { data: at, size: 3 } }, textures: { uArcs: "arcs", uPushColors: "push_colors" },
      uniforms: { uStep: 1 / segments, uGlowStep: 1 / Math.max(1, glow), uGlowFrom: glowFrom },
    });
    return { bolts, each: index.length / slots };  // corners of triangles that one slot has
  }

  /** What is drawn of some ribbons: those of the slots that live. */
  alive({ each }, now) { return this.lights.bolts.runs(now).map(([first, count]) => [first * each, count * each]); }

  /** Send what changed. */
  update(origin) {
    const { heads, plates, carpet, bolts } = this.lights, moved = origin !== this.origin;
    this.origin = origin;
    const stale = [heads, plates, carpet].filter((part) => part.isStale || moved);
    for (const part of stale) part.writeTexels(origin);
    if (stale.some((part) => part !== carpet)) this.textures.heads.write(heads.texels);
    if (stale.includes(carpet)) this.textures.cells.write(carpet.texels);
    if (bolts.count !== this.slots) this._bolts();
    if (bolts.isStale) { this.textures.arcs.write(bolts.texels); bolts.isStale = false; }
  }

  /** The words of the scene as quads of an atlas, painted by the browser. */
  words(scale, colors) {
    if (this.labels && this.labelScale === scale) return this.labels;
    this.labelScale = scale;
    this.labels?.free();
    this.textures.atlas?.free();
    const { gl } = this.stage, made = paintWords(this.look.labels, scale, colors);
    this.textures.atlas = new Texture(gl, made.width, made.height, made.pixels, { bytes: true });
    this.labels = new Drawing(gl, this.stage.program("labels"), {
      shader: "labels", primitive: "triangles", blend: "premultiplied", points: made.anchors, index: quads(this.look.labels.length),
      attributes: { pixelOff: { data: made.offsets, size: 2 }, atlasAt: { data: made.places, size: 2 }, wordSpan: { data: made.spans, size: 2 } },
      textures: { uAtlas: "atlas" }, uniforms: {},
    });
    return this.labels;
  }

  free() {
    for (const drawing of [...this.drawings, ...this.ribbons.map(({ bolts }) => bolts), this.labels]) drawing?.free();
    for (const texture of new Set(Object.values(this.textures))) texture.free();
  }
}

/** The ribbons of every slot, as `drawings.bolt_ribbons`: (slot, u, side) of each vertex, and the triangles. */
function ribbons(slots, segments, glow) {
  const edges = [], quadsOf = [];
  for (const [count, side] of [[glow, 2], [segments, 1]]) {
    const first = edges.length;
    for (let u = 0; u <= count; u++) edges.push([u / count, -side], [u / count, side]);
    for (let u = 0; u < count; u++) quadsOf.push(first + 2 * u);
  }
  const at = new Float32Array(slots * edges.length * 3), index = new Uint32Array(slots * quadsOf.length * 6);
  for (let slot = 0, i = 0; slot < slots; slot++) {
    const from = slot * edges.length;
    edges.forEach((edge, n) => at.set([slot, ...edge], (from + n) * 3));
    for (const first of quadsOf) for (const corner of [0, 1, 2, 2, 1, 3]) index[i++] = from + first + corner;
  }
  return { at, index };
}

const wordPixels = (label, scale) => Math.max(8, Math.round((label.kind === "layer" ? NUMBER_PIXELS : NAME_PIXELS) * scale));
const wordFont = (size) => `${size}px "Fulgurite Inter", Inter, sans-serif`;

function paintWords(labels, scale, colors) {
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
  const sizes = labels.map((label) => wordPixels(label, scale)), font = wordFont;
  const widths = labels.map((label, i) => { pen.font = font(sizes[i]); return Math.ceil(pen.measureText(label.text).width) + 2; });
  const heights = sizes.map((size) => Math.ceil(size * 1.3));
  canvas.width = Math.max(1, ...widths);
  canvas.height = Math.max(1, heights.reduce((a, b) => a + b + 1, 0));
  const n = labels.length;
  const made = { anchors: new Float32Array(n * 12), offsets: new Float32Array(n * 8), places: new Float32Array(n * 8), spans: new Float32Array(n * 8) };
  labels.forEach((label, i) => {
    const w = widths[i], h = heights[i], top = heights.slice(0, i).reduce((a, b) => a + b + 1, 0), [r, g, b] = colors[label.kind];
    pen.font = font(sizes[i]);
    pen.textBaseline = "alphabetic";
    pen.fillStyle = `rgb(${r},${g},${b})`;
    pen.fillText(label.text, 1, top + Math.round(sizes[i] * 1.02));
    const left = label.align ? Math.round(-w * (1 - label.align) / 2) : -Math.floor(w / 2), low = -Math.floor(h / 2);
    const bottom = canvas.height - top - h, corners = [[0, 0], [w, 0], [w, h], [0, h]];
    corners.forEach(([x, y], c) => {
      made.anchors.set(label.anchor, (4 * i + c) * 3);
      made.offsets.set([left + x, low + y], (4 * i + c) * 2);
      made.places.set([x, bottom + y], (4 * i + c) * 2);
      made.spans.set([left, left + w], (4 * i + c) * 2);
    });
  });
  const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data, row = canvas.width * 4;
  made.pixels = new Uint8Array(pixels.length);
  for (let y = 0; y < canvas.height; y++) {  // the first row at the bottom, premultiplied
    for (let x = 0; x < row; x += 4) {
      const from = (canvas.height - 1 - y) * row + x, to = y * row + x, alpha = pixels[from + 3] / 255;
      for (let k = 0; k < 3; k++) made.pixels[to + k] = Math.round(pixels[from + k] * alpha);
      made.pixels[to + 3] = pixels[from + 3];
    }
  }
  return { ...made, width: canvas.width, height: canvas.height };
}

/** The words of a replica as pieces of the page. */
class Words {
  constructor(look, scale, ratio, colors) {
    Object.assign(this, { look, ratio });
    const pen = document.createElement("canvas").getContext("2d");
    this.places = look.labels.map((label) => {
      const size = wordPixels(label, scale), height = Math.ceil(size * 1.3);
      pen.font = wordFont(size);
      const width = Math.ceil(pen.measureText(label.text).width) + 2, left = label.align ? Math.round(-width * (1 - label.align) / 2) : -Math.floor(width / 2);
      return { label, size, width, height, left };
    });
    this.nodes = this.places.map(({ label, size, height }) => tag("span", { style: `font: ${size / ratio}px/${height / ratio}px "Fulgurite Inter", Inter, sans-serif; color: rgb(${colors[label.kind].join()})` }, label.text));
  }

  place({ x, y, width: across, height: down, lens }) {
    const { ratio } = this, w = Math.round(across * ratio), h = Math.round(down * ratio), clip = (value, low, high) => Math.min(high, Math.max(low, value));
    this.places.forEach(({ label, width, height, left }, i) => {
      const [at, line, depth] = lens.project(...label.anchor), { style } = this.nodes[i];
      if (!(depth > 0)) { style.transform = "translate(-9999px)"; return; }  // behind the camera
      const px = clip(Math.floor(at * ratio), 8 - left, Math.max(8 - left, w - 8 - left - width)), py = clip(Math.floor(h - line * ratio), 11, h - 11);
      style.transform = `translate(${x + (px + left + 1) / ratio}px,${y + (h - py + Math.floor(height / 2) - height) / ratio}px)`;
    });
  }
}

/** The canvas with everything on it. */
export class Picture {
  /** Throws where the browser has no WebGL2. */
  constructor(canvas, hello, arrays) {
    const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: true, powerPreference: "high-performance", preserveDrawingBuffer: false });
    if (!gl) throw new Error("this browser has no WebGL2");
    Object.assign(this, { canvas, gl, shaders: hello.shaders, constants: hello.constants, labelColors: hello.label_colors });
    this.sheet = tag("div", { class: "words", hidden: true });
    canvas.after(this.sheet);
    this.programs = new Map();
    this.bodies = new Map();
    this.camera = new Camera(hello.presets, hello.constants.ease_s);
    this.tables = {};
    for (const [name, { data, shape }] of Object.entries(arrays)) this.tables[name] = { data, width: shape[0] };
    this.shared = { push_colors: this._table("push_colors") };
    this.usePalette(hello.palettes[0].name);
    this.viewports = [];
    this.parts = { heads: true, ffn: true, cells: true, bolts: true, words: true };
    this.insets = { top: 84, bottom: 66 };
    this.shows = { contribution: false, calm: false };
    this.scale = 1;
    this.shed = 0;  // which ornaments are left out: an index into `pace.SHED`
  }

  _table(name) { return new Texture(this.gl, this.tables[name].width, 1, this.tables[name].data, { smooth: true }); }

  usePalette(name) {
    this.shared.colors?.free();
    this.shared.colors = this._table("palette:" + name);
    this.palette = this.tables["palette:" + name].data;
  }

  program(name) {
    if (!this.programs.has(name)) this.programs.set(name, new Program(this.gl, name, this.shaders.common, this.shaders[name]));
    return this.programs.get(name);
  }

  /** A replica, or another one under the same name. */
  put(key, look, lights) {
    this.bodies.get(key)?.free();
    this.bodies.set(key, new Body(this, look, lights));
  }

  /** Viewports for these replicas; sizes in pixels of the screen. */
  arrange(keys, width, height, ratio) {
    this.ratio = ratio;
    const w = Math.max(2, Math.round(width * ratio)), h = Math.max(2, Math.round(height * ratio));
    if (this.canvas.width !== w || this.canvas.height !== h) { this.canvas.width = w; this.canvas.height = h; }
    this.size = [width, height];
    const [columns, rows] = grid(keys.length, width, height), before = this.viewports;
    // In a stack only the lowest has the legend beneath it: its room is taken once, from all.
    this.foot = rows > 1 ? Math.max(0, this.insets.bottom - STACKED_BELOW) : 0;
    const tall = height - this.foot;
    this.viewports = keys.filter((key) => this.bodies.has(key)).map((key, index) => {
      const row = Math.floor(index / columns), column = index % columns;
      const x = Math.floor(column * width / columns), y = Math.floor(row * tall / rows);
      const x1 = Math.floor((column + 1) * width / columns), y1 = Math.floor((row + 1) * tall / rows);
      const known = before.find((one) => one.key === key && one.width === x1 - x && one.height === y1 - y);
      return { key, body: this.bodies.get(key), x, y, width: x1 - x, height: y1 - y, lens: known?.lens };
    });
  }

  /** Look at the shown replicas at `clock`. */
  aim(clock) {
    const first = this.viewports[0];
    if (!first) return;
    const outline = this._outline(), { width, height } = first;
    const insets = { top: Math.min(0.3, this.insets.top / height), bottom: Math.min(0.3, (this.insets.bottom - this.foot) / height), left: 0.035, right: 0.03 };
    const view = this.camera.view(outline, width / height, insets, clock);
    for (const viewport of this.viewports) viewport.lens = new Lens(view, viewport.width, viewport.height, outline);
  }

  /** Around all that is shown. */
  _outline() {
    const looks = this.viewports.map((viewport) => viewport.body.look);
    if (this.outlined?.length !== looks.length || looks.some((look, i) => look !== this.outlined[i])) {
      this.outlined = looks;
      this.outline = Outline.join(looks.map((look) => look.outline));
    }
    return this.outline;
  }

  /**
   * The picture at `now`. Where `scale` is below 1 it takes that much of the canvas, from its upper left, and the page
   * shows that part as large as the whole: nothing is made anew for it, so it may change with every picture. Words stand
   * over it then, as sharp and as large as ever.
   */
  draw(now, clock) {
    const { gl, canvas, ratio } = this, origin = Math.floor(now / ORIGIN_S) * ORIGIN_S, isCoarse = this.scale < 1;
    this.aim(clock);
    const size = [canvas.width, canvas.height].map((side) => (isCoarse ? Math.max(2, Math.round(side * this.scale)) : side));
    this._clear();
    for (const viewport of this.viewports) {
      viewport.body.lights.advance(now, origin);
      viewport.body.update(origin);
      this._scene(viewport, now, origin, ratio * this.scale, size);
      if (this.parts.words && !isCoarse && viewport.width >= LABELS_FROM_WIDTH) this._words(viewport, size);
    }
    gl.bindVertexArray(null);
    const shown = isCoarse ? `scale(${canvas.width / size[0]}, ${canvas.height / size[1]})` : "";
    if (this.shown !== shown) { this.shown = shown; canvas.style.transform = shown; }
    this._write(isCoarse && this.parts.words);
  }

  _clear() {
    const { gl, canvas } = this;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.disable(gl.SCISSOR_TEST);
    gl.depthMask(true);
    gl.clearColor(...GROUND, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    gl.enable(gl.SCISSOR_TEST);
  }

  /** Draw into the pixels of one viewport: their width and height. */
  _enter(viewport, factor, [across, down]) {
    const { gl, canvas } = this, x = Math.round(viewport.x * factor), y = Math.round(viewport.y * factor);
    const w = Math.min(across - x, Math.round(viewport.width * factor)), h = Math.min(down - y, Math.round(viewport.height * factor));
    gl.viewport(x, canvas.height - y - h, w, h);
    gl.scissor(x, canvas.height - y - h, w, h);
    return [w, h];
  }

  /** How large words are, in pixels of the canvas. */
  _wordScale({ width, height }) { return Math.min(3, Math.max(0.72, Math.min(height / 620, width / 620))) * this.ratio; }

  _words(viewport, size) {
    const { body, lens } = viewport, pixels = this._enter(viewport, this.ratio, size);
    body.words(this._wordScale(viewport), this.labelColors).draw({ MCDCMatrix: lens.matrix, uViewport: pixels }, body.textures);
  }

  /** The words over a coarse picture, where `labels.glsl` puts them; the browser moves them and paints none anew. */
  _write(isOn) {
    if (this.sheet.hidden !== !isOn) this.sheet.hidden = !isOn;
    if (!isOn) return;
    const named = this.viewports.filter((viewport) => viewport.width >= LABELS_FROM_WIDTH), key = named.map((viewport) => [viewport.key, this._wordScale(viewport)]).join();
    if (this.sheetOf !== key || this.wordsOf?.some((words, i) => words.look !== named[i].body.look)) {
      this.sheetOf = key;
      this.wordsOf = named.map((viewport) => new Words(viewport.body.look, this._wordScale(viewport), this.ratio, this.labelColors));
      this.sheet.replaceChildren(...this.wordsOf.flatMap((words) => words.nodes));
    }
    named.forEach((viewport, i) => this.wordsOf[i].place(viewport));
  }

  _scene(viewport, now, origin, factor, size) {
    const { constants } = this, { body, lens } = viewport, [w, h] = this._enter(viewport, factor, size);
    const lines = Math.min(h, 0.75 * w) / 720, wide = (most, least) => Math.max(least, most * lines ** 0.6);
    const uniforms = {
      MCDCMatrix: lens.matrix, uTime: now - origin, uViewport: [w, h], uPixels: lens.pixels * h / viewport.height, uPush: this.shows.contribution ? 1 : 0, uStill: this.shows.calm ? 1 : 0, uWidth: 1,
    };
    const textures = { ...body.textures, ...this.shared };
    const draw = (drawing, more = {}, runs) => drawing.draw({ ...uniforms, ...more }, textures, runs);
    const seen = body.drawings.filter((drawing) => this._isShown(drawing.sketch) && !(this.shed && drawing.sketch.shader === "halos"));
    for (const drawing of seen) if (drawing.blend === "opaque") draw(drawing);
    for (const drawing of seen) {
      if (drawing.blend === "opaque") continue;
      draw(drawing, drawing.sketch.shader === "spine" ? { uWidth: wide(constants.spine_pixels, 4) } : {});
    }
    const ribbon = body.ribbons[this.shed > 1 ? 1 : 0];
    if (this.parts.bolts) draw(ribbon.bolts, { uWidth: wide(constants.bolt_pixels, 1.4) }, body.alive(ribbon, now));
  }

  /** Whether the part that a drawing belongs to is shown: the texture that it reads tells. */
  _isShown({ shader, textures }) {
    const part = { heads: "heads", plates: "ffn", cells: "cells" }[textures.uNodes] ?? (shader === "lines" ? "heads" : undefined);
    return part === undefined || this.parts[part];
  }

  /** The replica and the node under a place of the canvas, in pixels of the screen. */
  pick(x, y, now) {
    for (const viewport of this.viewports) {
      const dx = x - viewport.x, dy = y - viewport.y;
      if (dx < 0 || dy < 0 || dx >= viewport.width || dy >= viewport.height || !viewport.lens) continue;
      const node = pick(viewport.lens, viewport.body.look, viewport.body.lights, now, dx, dy);
      return node ? { key: viewport.key, ...node } : null;
    }
    return null;
  }

  viewportAt(x, y) {
    return this.viewports.find((v) => x >= v.x && y >= v.y && x < v.x + v.width && y < v.y + v.height) ?? null;
  }

  /** Where a node is seen: {x, y, reach} in pixels of the screen, or null. */
  place(node) {
    const viewport = this.viewports.find((one) => one.key === node.key);
    if (!viewport?.lens) return null;
    const { look } = viewport.body, { lens } = viewport;
    const [points, radius] = look.corners(node);
    const seen = points.map((point) => lens.project(...point));
    const x = seen.reduce((sum, p) => sum + p[0], 0) / seen.length, y = seen.reduce((sum, p) => sum + p[1], 0) / seen.length;
    const reach = radius ? radius * lens.pixels / seen[0][2] : Math.max(...seen.map((p) => Math.hypot(p[0] - x, p[1] - y)));
    return Number.isFinite(x + y) ? { x: x + viewport.x, y: y + viewport.y, reach, inside: x >= 0 && y >= 0 && x < viewport.width && y < viewport.height } : null;
  }
}

/** What a replica looks like, from its message. */
export class Look {
  constructor(header, arrays, constants) {
    const { topology } = header;
    Object.assign(this, { header, topology, layers: topology.layers, heads: topology.heads, labels: header.labels });
    this.places = arrays.heads.data;
    this.walls = arrays.walls?.data ?? null;
    this.plates = arrays.plates.data;
    this.plateCount = arrays.plates.shape[1];
    this.cells = arrays.cells.data;
    this.cellCount = arrays.cells.shape[1];
    this.spine = arrays.spine.data;
    this.outline = Outline.of(arrays.points.data);
    this.radius = header.head_radius;
    this.growth = constants.head_growth - 1;
    this.isDisc = header.ffn_kind === "disc";
    this.least = 0;
    this.sketches = header.drawings.map((sketch, index) => ({
      ...sketch,
      points: arrays[`${index}:points`].data,
      index: arrays[`${index}:index`].data,
      attributes: Object.fromEntries(sketch.attributes.map((name) => [name, { data: arrays[`${index}:${name}`].data, size: arrays[`${index}:${name}`].shape[1] }])),
    }));
  }

  get shape() {
    return {
      layers: this.layers, heads: this.heads, experts: this.topology.experts, layerHeads: this.topology.layer_heads,
      unit: this.header.unit, cells: this.cellCount, residueBound: this.header.residue_bound, expertLight: this.header.expert_light,
    };
  }

  /** The points that make up a node, and the radius of a sphere around the only one. */
  corners({ kind, layer, index }) {
    const four = (data, n) => [0, 1, 2, 3].map((c) => [...data.subarray(12 * n + 3 * c, 12 * n + 3 * c + 3)]);
    if (kind === "ffn") return [four(this.plates, layer * this.plateCount + Math.max(0, index)), 0];
    if (kind === "cell") return [four(this.cells, layer * this.cellCount + index), 0];
    const n = layer * this.heads + index;
    if (this.walls) return [four(this.walls, n), 0];
    return [[[...this.places.subarray(3 * n, 3 * n + 3)]], this.radius * (1 + this.growth)];
  }
}
