// FFN blocks: discs on the axis, or plates on a shelf (uDisc 0). The etching is glass, the light is the display value.
// In the contribution view (uPush 1) hue and rim are the signed push, the rim hatched where that was not captured.
//# vertex declarations
in vec2 nodeAt;
in vec2 corner;
uniform sampler2D uNodes;
flat out vec4 vNode;
out vec2 vAt;
//# vertex main
vec4 node = texelFetch(uNodes, ivec2(nodeAt.yx + vec2(uFirst, 0.0) + 0.5), 0);
float light = faded(node.x, node.y, uTime);
vNode = vec4(light, flare(node.y, uTime) * node.x, node.z, node.w);
vAt = corner;
//# fragment declarations
flat in vec4 vNode;
in vec2 vAt;
uniform sampler2D uColors;
uniform sampler2D uPushColors;
//# fragment main
vec4 lit = colored(uColors, vNode.x);
float cover, edge;
if (uDisc > 0.5) {
  float r = length(vAt);
  if (r > 1.0) discard;
  float soft = fwidth(r) * 1.2;
  float rim = smoothstep(0.90 - soft, 0.90, r) * (1.0 - smoothstep(1.0 - soft, 1.0, r));
  float turn = atan(vAt.y, vAt.x) * 2.5464791 + 2.2 * r;  // 16 curved blades
  float ring = abs(fract(r * 4.0 + 0.35) - 0.5) * 2.0;
  float line = 1.0 - smoothstep(0.0, 0.10 + 6.0 * soft, ring);
  float blade = abs(fract(turn) - 0.5) * 2.0;
  float vane = (1.0 - smoothstep(0.0, 0.14 + 1.5 * soft / max(r, 0.1), blade)) * smoothstep(0.16, 0.30, r);
  float body = 1.0 - smoothstep(0.90 - soft, 0.90, r);
  edge = rim;
  cover = body * (0.20 + 0.34 * r * r + 0.42 * line + 0.34 * vane);
} else {
  vec2 from = 1.0 - abs(vAt);
  vec2 soft = fwidth(vAt) * 1.5;
  float inner = min(from.x / max(soft.x, 1e-4), from.y / max(soft.y, 1e-4));
  float pixels = 2.0 / max(1e-4, max(fwidth(vAt.x), fwidth(vAt.y)));  // of the narrower side
  edge = (1.0 - smoothstep(0.6, 1.6, inner)) * smoothstep(3.0, 9.0, pixels);
  cover = 1.0 - edge;
}
vec3 color;
float alpha;
if (vNode.z > 1.5) {  // left out by a focus
  color = vec3(0.020, 0.034, 0.085) * cover + vec3(0.05, 0.08, 0.20) * edge;
  alpha = max(edge * 0.6, cover * 0.35);
} else if (vNode.z > 0.5) {
  float ink = stripe(gl_FragCoord.xy, 7.0);
  color = mix(vec3(0.05, 0.052, 0.06), vec3(0.31, 0.32, 0.35), ink);
  alpha = max(0.9 * edge, cover * 0.75);
} else {
  vec3 glass = vec3(0.035, 0.060, 0.150) * cover + vec3(0.13, 0.22, 0.55) * edge;
  if (uPush > 0.5) lit.rgb = pushed(uPushColors, vNode.w) * (0.30 + 0.70 * vNode.x);
  vec3 body = lit.rgb * (cover * (0.75 + 0.35 * vNode.y) + edge * 1.0);
  color = mix(glass, body, lit.a);
  alpha = max(edge * 0.85, cover * mix(0.55, 0.95, lit.a));
}
if (uPush > 0.5 && vNode.z < 0.5) {
  float ink = 1.0 - 0.85 * unknown(vNode.w) * stripe(gl_FragCoord.xy, 6.0);
  color = mix(color, pushed(uPushColors, vNode.w) * ink, 0.85 * edge * (0.55 + 0.45 * vNode.x));
}
fragOutput0 = vec4(color * uFade, alpha);
