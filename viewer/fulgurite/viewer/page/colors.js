// Values to CSS colours, from the same tables that the shaders read.

const css = (r, g, b) => `rgb(${Math.round(255 * r)},${Math.round(255 * g)},${Math.round(255 * b)})`;

export class Colors {
  constructor(hello, arrays) {
    Object.assign(this, { hello, arrays, glass: hello.constants.glass });
    this.use(hello.palettes[0].name);
  }

  use(name) {
    this.palette = this.hello.palettes.find((palette) => palette.name === name) ?? this.hello.palettes[0];
    this.table = this.arrays["palette:" + this.palette.name].data;
    const push = this.arrays.push_colors.data, count = push.length / 4;
    this.nodes = Array.from({ length: count }, (_, i) => {
      const cover = this.table[4 * i + 3];
      return css(...[0, 1, 2].map((k) => this.table[4 * i + k] * cover + this.glass[k] * (1 - cover)));
    });
    this.pushes = Array.from({ length: count }, (_, i) => css(push[4 * i], push[4 * i + 1], push[4 * i + 2]));
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
