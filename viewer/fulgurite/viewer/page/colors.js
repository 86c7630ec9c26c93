// Values to CSS colours, from the same tables that the shaders read.

const css = ([r, g, b]) => `rgb(${r},${g},${b})`;

export class Colors {
  constructor(hello, arrays) {
    Object.assign(this, { hello, arrays, glass: hello.constants.glass });
    this.use(hello.palettes[0].name);
  }

  use(name) {
    this.palette = this.hello.palettes.find((palette) => palette.name === name) ?? this.hello.palettes[0];
    this.table = this.arrays["palette:" + this.palette.name].data;
    const push = this.arrays.push_colors.data, count = push.length / 4, { table, glass } = this;
    const bytes = (of) => Uint8ClampedArray.from({ length: 3 * count }, (_, n) => 255 * of(Math.floor(n / 3), n % 3));
    this.nodeBytes = bytes((i, k) => table[4 * i + k] * table[4 * i + 3] + glass[k] * (1 - table[4 * i + 3]));
    this.pushBytes = bytes((i, k) => push[4 * i + k]);
    [this.nodes, this.pushes] = [this.nodeBytes, this.pushBytes].map((all) => Array.from({ length: count }, (_, i) => css(all.subarray(3 * i, 3 * i + 3))));
  }

  /** Of a display value, 0 ... 1. */
  node(display) { return this.nodes[Math.round(Math.min(1, Math.max(0, display)) * (this.nodes.length - 1))]; }

  /** Of a signed push, -1 ... 1. */
  push(hue) { return this.pushes[Math.round((0.5 + 0.5 * hue) * (this.pushes.length - 1))]; }

  request(color) { return this.palette.requests[color % this.palette.requests.length]; }

  rgb(color) {
    const text = this.request(color);
    return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16) / 255);
  }
}
