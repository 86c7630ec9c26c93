// Heads of a very deep or wide model, or a great many experts: cells of one sheet, lit by their display value, found and
// smoothed per pixel; where a pixel covers several cells it shows the brightest of up to 8. Heads that share a key-value
// head lie side by side, with a seam between such groups (uGroup), and every uEvery layers there is a brighter rib. In the
// contribution view (uPush 1) the hue is the signed push, hatched where it was not captured.
//# vertex declarations
in vec2 cellAt;  // layer and head; the middle of a cell is at a half
out vec2 vAt;
//# vertex main
vAt = cellAt;
//# fragment declarations
in vec2 vAt;
uniform sampler2D uNodes;
uniform sampler2D uColors;
uniform sampler2D uPushColors;
//# fragment main
vec2 cell = floor(vAt);
int rows = int(min(8.0, floor(fwidth(vAt.y)))), first = int(uFirst);
vec4 texel = texelFetch(uNodes, ivec2(cell.yx + 0.01) + ivec2(first, 0), 0);
float light = faded(texel.x, texel.y, uTime);
for (int k = 1; k < rows; k++) {  // counted in whole numbers: else it is unrolled, and software looks at all 8
  int row = int(cell.y) + ((k & 1) == 1 ? (k + 1) / 2 : -(k / 2));
  vec4 other = texelFetch(uNodes, ivec2(first + clamp(row, 0, int(uRows) - 1), int(cell.x)), 0);
  float its = faded(other.x, other.y, uTime);
  if (its > light) { light = its; texel = other; }
}
float flash = flare(texel.y, uTime) * texel.x;
vec2 from = abs(vAt - cell - 0.5) * 2.0;              // 0 in the middle of the cell, 1 at its edge
vec2 soft = max(fwidth(vAt) * 2.0, vec2(1e-4));
vec2 in2 = clamp((0.84 - from) / soft + 0.5, 0.0, 1.0);  // layout.WALL_CELL
float cover = max(0.30, in2.x) * mix(1.0, max(0.30, in2.y), clamp(2.0 - fwidth(vAt.y) * 2.0, 0.0, 1.0));
float rib = 1.0 - step(0.5, mod(cell.x, uEvery));
float seam = step(uGroup - 1.0 - 0.01, mod(cell.y, uGroup)) * step(1.5, uGroup) * step(0.80, fract(vAt.y));
vec3 glass = vec3(0.018, 0.029, 0.078) * (1.0 + 0.85 * rib) + vec3(0.010, 0.020, 0.055) * seam;
vec3 color;
if (texel.z > 1.5) {
  color = glass * 0.45;
} else if (texel.z > 0.5) {
  color = mix(vec3(0.016, 0.017, 0.022), mix(vec3(0.030, 0.032, 0.038), vec3(0.21, 0.215, 0.235), stripe(gl_FragCoord.xy, 6.0)), cover);
} else {
  vec4 lit = colored(uColors, light);
  if (uPush > 0.5) {
    float ink = 1.0 - 0.75 * unknown(texel.w) * stripe(gl_FragCoord.xy, 6.0);
    lit.rgb = pushed(uPushColors, texel.w) * (0.25 + 0.75 * light) * ink;
  }
  float bulge = 1.0 - 0.30 * dot(from, from) * 0.5;
  color = mix(glass, lit.rgb * (0.94 + 0.30 * flash) * bulge, lit.a * cover);
}
fragOutput0 = vec4(color, 1.0);
