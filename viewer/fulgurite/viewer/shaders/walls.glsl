// Attention heads of a very deep or wide model: one cell each of a wall, lit by their display value. In the
// contribution view (uPush 1) the hue is the signed push, hatched where that was not captured.
//# vertex declarations
in vec2 nodeAt;
in vec2 corner;
uniform sampler2D uNodes;
out vec4 vNode;
out vec2 vAt;
//# vertex main
vec4 node = texelFetch(uNodes, ivec2(nodeAt + 0.5), 0);
float light = faded(node.x, node.y, uTime);
vNode = vec4(light, flare(node.y, uTime) * node.x, node.z, node.w);
vAt = corner;
//# fragment declarations
in vec4 vNode;
in vec2 vAt;
uniform sampler2D uColors;
uniform sampler2D uPushColors;
//# fragment main
float swell = 1.0 - 0.35 * dot(vAt, vAt) * 0.5;
vec3 color;
if (vNode.z > 0.5) {
  color = mix(vec3(0.030, 0.032, 0.038), vec3(0.26, 0.265, 0.285), stripe(gl_FragCoord.xy, 6.0));
} else {
  vec4 lit = texture(uColors, vec2((vNode.x * 255.0 + 0.5) / 256.0, 0.5));
  if (uPush > 0.5) {
    float ink = 1.0 - 0.75 * unknown(vNode.w) * stripe(gl_FragCoord.xy, 6.0);
    lit.rgb = pushed(uPushColors, vNode.w) * (0.25 + 0.75 * vNode.x) * ink;
  }
  color = mix(vec3(0.030, 0.050, 0.125), lit.rgb * (0.92 + 0.25 * vNode.y), lit.a) * swell;
}
fragOutput0 = vec4(color, 1.0);
