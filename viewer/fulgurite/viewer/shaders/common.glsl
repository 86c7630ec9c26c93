// Shared by every shader: hashed noise for the shape of bolts, the fading of light, the hatch of what is not measured.
// Nodes are texels: a line per layer, its heads and then its plates, which begin at uFirst.
// Plain GLSL without inputs or outputs of its own, so that desktop GL and WebGL2 compile the same text.

const float FADE_S = 0.28;   // glow.FADE_S

float hash1(float n) {
  uint x = uint(int(n)) * 747796405u + 2891336453u;
  x = ((x >> ((x >> 28u) + 4u)) ^ x) * 277803737u;
  x = (x >> 22u) ^ x;
  return float(x) * (1.0 / 4294967295.0);
}

float faded(float display, float stamp, float now) {
  return display * exp(-max(0.0, now - stamp) / FADE_S);
}

// A fresh hit flares for a quarter as long: its fading to the fourth power, so that one exponential gives both.
float flare(float stamp, float now) {
  float left = faded(1.0, stamp, now), twice = left * left;
  return twice * twice;
}

// The colour of a node by its display value, 0 to 1, from the table of `colors.node_colors`: the nearest of its steps,
// which lie closer than a screen tells apart; software draws one fetch in a quarter of the time of a smooth one.
vec4 colored(sampler2D colors, float display) {
  return texelFetch(colors, ivec2(int(display * 255.0 + 0.5), 0), 0);
}

// The hue of a signed push, -1 to 1, from the table of `colors.push_colors`; grey where there is none.
vec3 pushed(sampler2D colors, float push) {
  if (push < -1.5) return vec3(0.46, 0.47, 0.50);
  return texture(colors, vec2(((0.5 + 0.5 * push) * 255.0 + 0.5) / 256.0, 0.5)).rgb;
}

// 1 where the push of a node was not captured (contribution.NOT_CAPTURED), 0 else.
float unknown(float push) {
  return step(-2.5, push) * step(push, -1.5);
}

// 0 or 1: diagonal stripes in pixels.
float stripe(vec2 pixel, float period) {
  return step(0.62, fract((pixel.x + pixel.y) / period));
}
