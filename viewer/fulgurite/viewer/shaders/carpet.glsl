// The key-value cache: fill as dim blue, writes as a cyan flash, reads as amber, unmeasured as hatch. One strip per layer;
// its cells are found per pixel: drawn one by one, those of a deep model took a fifth of a picture's time.
//# vertex declarations
in vec3 stripAt;  // layer, side of its strip (-1 or 1), cells from the back
flat out float vLayer;
out vec2 vAt;
//# vertex main
vLayer = stripAt.x;
vAt = stripAt.yz;
//# fragment declarations
flat in float vLayer;
in vec2 vAt;
uniform sampler2D uNodes;
//# fragment main
float cell = clamp(floor(vAt.y + 0.002), 0.0, uCells - 1.0);  // what lies on a seam belongs to one side, however it rounds
vec4 node = texelFetch(uNodes, ivec2(vec2(cell, vLayer) + 0.5), 0);
// Cells touch; the seams between them are drawn here, as wide as a pixel can show.
vec2 from = 1.0 - abs(vec2(vAt.x, 2.0 * (vAt.y - cell) - 1.0));
vec2 soft = max(fwidth(vAt) * vec2(1.0, 2.0), vec2(1e-4));
float side = 1.0 - smoothstep(0.0, 1.5, from.x / soft.x);
float seam = clamp(0.5 - from.y / soft.y + 0.25, 0.0, 1.0) * clamp(0.9 / soft.y, 0.0, 1.0);
vec3 color = vec3(0.011, 0.015, 0.034) + vec3(0.020, 0.032, 0.085) * max(side, 0.55 * seam);
float alpha = 0.92;
if (node.x < -0.5) {
  color = mix(vec3(0.02, 0.021, 0.025), vec3(0.155, 0.16, 0.175), stripe(gl_FragCoord.xy, 7.0));
} else {
  float across = 1.0 - 0.55 * vAt.x * vAt.x;
  vec3 lit = vec3(0.018, 0.120, 0.215) * node.x;
  lit += vec3(0.95, 0.52, 0.10) * faded(1.0, node.z, uTime) * 0.55;
  lit += vec3(0.20, 0.72, 0.95) * (0.50 * faded(1.0, node.y, uTime) + 0.50 * flare(node.y, uTime));
  color += lit * across * (1.0 - 0.45 * seam) + vec3(0.03, 0.12, 0.20) * side * node.x;
}
fragOutput0 = vec4(color, alpha);
