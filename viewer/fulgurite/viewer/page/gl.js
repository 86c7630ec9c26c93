// WebGL2: compiles the shared `.glsl` files, holds textures, draws drawings. Knows nothing of models.

const SECTIONS = ["vertex declarations", "vertex main", "fragment declarations", "fragment main"];
const VECTORS = { uViewport: "vec2", uColor: "vec3" };

/** The four sections of a shader file. */
export function sections(text) {
  const found = {};
  for (const part of text.split("//# ").slice(1)) {
    const line = part.indexOf("\n");
    found[part.slice(0, line).trim()] = part.slice(line + 1);
  }
  return SECTIONS.map((name) => found[name] ?? "");
}

/** Uniforms that a text uses and does not declare: VTK declares them by itself, here they are floats. */
function undeclared(...texts) {
  const all = texts.join("\n").replace(/\/\/[^\n]*/g, ""), names = new Set(all.match(/\bu[A-Z]\w*/g) ?? []);
  const declared = new Set([...all.matchAll(/uniform\s+\w+\s+(\w+)/g)].map((match) => match[1]));
  return [...names].filter((name) => !declared.has(name)).sort()
    .map((name) => `uniform ${VECTORS[name] ?? "float"} ${name};`).join("\n");
}

const HEAD = "#version 300 es\nprecision highp float;\nprecision highp int;\nprecision highp sampler2D;\n";

/** Both stages of a shader, as WebGL2 compiles them. */
export function stages(common, text) {
  const [vertexHead, vertexMain, fragmentHead, fragmentMain] = sections(text);
  const vertex = `${HEAD}in vec3 vertexMC;\nuniform mat4 MCDCMatrix;\n${undeclared(common, vertexHead, vertexMain)}\n`
    + `${common}\n${vertexHead}\nvoid main() {\ngl_Position = MCDCMatrix * vec4(vertexMC, 1.0);\n${vertexMain}}\n`;
  const fragment = `${HEAD}layout(location = 0) out vec4 fragOutput0;\n${undeclared(common, fragmentHead, fragmentMain)}\n`
    + `${common}\n${fragmentHead}\nvoid main() {\n${fragmentMain}}\n`;
  return [vertex, fragment];
}

export class Program {
  constructor(gl, name, common, text) {
    this.gl = gl;
    const [vertex, fragment] = stages(common, text);
    this.handle = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(`shader ${name}: ${gl.getShaderInfoLog(shader)}`);
      gl.attachShader(this.handle, shader);
    }
    gl.linkProgram(this.handle);
    if (!gl.getProgramParameter(this.handle, gl.LINK_STATUS)) throw new Error(`shader ${name}: ${gl.getProgramInfoLog(this.handle)}`);
    this.places = new Map();
  }

  place(name) {
    if (!this.places.has(name)) this.places.set(name, this.gl.getUniformLocation(this.handle, name));
    return this.places.get(name);
  }

  set(uniforms) {
    const { gl } = this;
    for (const [name, value] of Object.entries(uniforms)) {
      const at = this.place(name);
      if (at === null) continue;
      if (typeof value === "number") gl.uniform1f(at, value);
      else if (value.length === 2) gl.uniform2fv(at, value);
      else if (value.length === 3) gl.uniform3fv(at, value);
      else gl.uniformMatrix4fv(at, false, value);
    }
  }
}

/** Numbers on the GPU: RGBA, float32 to be fetched, or (smooth) float16 to be interpolated. */
export class Texture {
  constructor(gl, width, height, texels, { smooth = false, bytes = false } = {}) {
    Object.assign(this, { gl, width, height });
    this.handle = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.handle);
    const filter = smooth ? gl.LINEAR : gl.NEAREST;
    for (const [name, value] of [[gl.TEXTURE_MIN_FILTER, filter], [gl.TEXTURE_MAG_FILTER, filter],
      [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE], [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE]]) gl.texParameteri(gl.TEXTURE_2D, name, value);
    this.type = bytes ? gl.UNSIGNED_BYTE : gl.FLOAT;
    const inside = bytes ? gl.RGBA8 : smooth ? gl.RGBA16F : gl.RGBA32F;
    gl.texImage2D(gl.TEXTURE_2D, 0, inside, width, height, 0, gl.RGBA, this.type, texels);
  }

  write(texels) {
    const { gl } = this;
    gl.bindTexture(gl.TEXTURE_2D, this.handle);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, this.width, this.height, gl.RGBA, this.type, texels);
  }

  free() { this.gl.deleteTexture(this.handle); }
}

const BLENDS = {
  over: (gl) => { gl.blendEquation(gl.FUNC_ADD); gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA); },
  premultiplied: (gl) => { gl.blendEquation(gl.FUNC_ADD); gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA); },
  screen: (gl) => { gl.blendEquation(gl.FUNC_ADD); gl.blendFuncSeparate(gl.ONE, gl.ONE_MINUS_SRC_COLOR, gl.ONE, gl.ONE); },
  brightest: (gl) => { gl.blendEquation(gl.MAX); gl.blendFunc(gl.ONE, gl.ONE); },
};

/** One drawn thing. */
export class Drawing {
  /** `sketch`: {shader, primitive, blend, points, index, attributes: {name: {data, size}}, textures, uniforms}. */
  constructor(gl, program, sketch) {
    Object.assign(this, { gl, program, sketch, blend: sketch.blend, textures: sketch.textures, uniforms: sketch.uniforms });
    this.array = gl.createVertexArray();
    this.buffers = [];
    gl.bindVertexArray(this.array);
    this._attribute("vertexMC", sketch.points, 3);
    for (const [name, { data, size }] of Object.entries(sketch.attributes)) this._attribute(name, data, size);
    const index = gl.createBuffer();
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, index);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, sketch.index, gl.STATIC_DRAW);
    this.buffers.push(index);
    gl.bindVertexArray(null);
    this.count = sketch.index.length;
    this.mode = { points: gl.POINTS, lines: gl.LINES, triangles: gl.TRIANGLES }[sketch.primitive];
  }

  _attribute(name, data, size) {
    const { gl } = this, at = gl.getAttribLocation(this.program.handle, name);
    if (at < 0) return;
    const buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, size, gl.FLOAT, false, 0, 0);
    this.buffers.push(buffer);
  }

  /** Draw with these uniforms and textures (by the names that `sketch.textures` gives); `runs`: only these of `index`. */
  draw(uniforms, textures, runs = [[0, this.count]]) {
    if (!runs.length) return;
    const { gl, program } = this;
    gl.useProgram(program.handle);
    program.set(this.uniforms);
    program.set(uniforms);
    let unit = 0;
    for (const [sampler, name] of Object.entries(this.textures)) {
      const at = program.place(sampler);
      if (at === null) continue;
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, textures[name].handle);
      gl.uniform1i(at, unit++);
    }
    if (this.blend === "opaque") { gl.disable(gl.BLEND); gl.depthMask(true); } else { gl.enable(gl.BLEND); gl.depthMask(false); BLENDS[this.blend](gl); }
    gl.bindVertexArray(this.array);
    for (const [first, count] of runs) gl.drawElements(this.mode, count, gl.UNSIGNED_INT, 4 * first);
  }

  free() {
    this.gl.deleteVertexArray(this.array);
    for (const buffer of this.buffers) this.gl.deleteBuffer(buffer);
  }
}

/** The triangles of `count` quadrilaterals. */
export function quads(count) {
  const index = new Uint32Array(count * 6);
  for (let q = 0; q < count; q++) index.set([0, 1, 2, 0, 2, 3].map((corner) => 4 * q + corner), q * 6);
  return index;
}
