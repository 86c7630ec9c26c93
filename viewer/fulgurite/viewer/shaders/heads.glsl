// Attention heads: point sprites shaded as glass spheres, lit by their display value. In the contribution view (uPush 1)
// hue and a ring are the signed push, the ring hatched where that was not captured.
//# vertex declarations
in vec2 nodeAt;
uniform sampler2D uNodes;
flat out vec4 vNode;
//# vertex main
vec4 node = texelFetch(uNodes, ivec2(nodeAt.yx + 0.5), 0);
float light = faded(node.x, node.y, uTime);
vNode = vec4(light, flare(node.y, uTime) * node.x, node.z, node.w);
float radius = uRadius * (node.z > 1.5 ? 0.6 : 1.0 + uGrowth * light);
gl_PointSize = max(2.0, 2.0 * radius * uPixels / gl_Position.w);
//# fragment declarations
flat in vec4 vNode;
uniform sampler2D uColors;
uniform sampler2D uPushColors;
//# fragment main
vec2 p = gl_PointCoord * 2.0 - 1.0;
p.y = -p.y;
float r2 = dot(p, p);
if (r2 > 1.0) discard;
float z = sqrt(1.0 - r2);
float away = 1.0 - z, rim = away * away * sqrt(sqrt(away));
vec3 color;
if (vNode.z > 1.5) {  // left out by a focus
  color = vec3(0.014, 0.020, 0.044) * (0.30 + 0.70 * z) + vec3(0.05, 0.08, 0.18) * rim * 0.80;
} else if (vNode.z > 0.5) {
  float ink = stripe(gl_FragCoord.xy, 5.0);
  color = mix(vec3(0.055, 0.058, 0.066), vec3(0.31, 0.32, 0.35), ink) * (0.55 + 0.45 * z) + 0.10 * rim;
} else {
  vec4 lit = colored(uColors, vNode.x);
  vec3 glass = vec3(0.022, 0.040, 0.100) * (0.30 + 0.70 * z) + vec3(0.15, 0.26, 0.62) * rim * 0.80;
  vec4 hot = colored(uColors, min(1.0, vNode.x + 0.16 * z * z));
  if (uPush > 0.5) {
    vec3 tone = pushed(uPushColors, vNode.w);
    lit.rgb = tone * (0.20 + 0.60 * vNode.x);
    hot.rgb = tone * (0.24 + 0.70 * vNode.x) + 0.22 * vNode.x * z * z;
  }
  vec3 body = hot.rgb * (0.30 + 0.80 * z * z) + lit.rgb * rim * 0.42;
  color = mix(glass, body, lit.a);
  color += hot.rgb * lit.a * 0.30 * vNode.y * z * z;
  float s = max(0.0, dot(vec3(p, z), normalize(vec3(-0.45, 0.62, 0.64))));
  float s2 = s * s, s4 = s2 * s2, s8 = s4 * s4, shine = s8 * s8 * s8 * s4 * s2;  // to the power of 30
  color += shine * mix(vec3(0.17, 0.23, 0.38), vec3(0.26), lit.a * vNode.x);
}
if (uPush > 0.5 && vNode.z < 0.5) {
  float ring = smoothstep(0.70, 0.78, sqrt(r2)) * (0.55 + 0.45 * vNode.x);
  float ink = 1.0 - 0.85 * unknown(vNode.w) * stripe(gl_FragCoord.xy, 5.0);
  color = mix(color, pushed(uPushColors, vNode.w) * ink, ring);
}
float edge = clamp((1.0 - sqrt(r2)) / max(1e-4, fwidth(p.x)), 0.0, 1.0);  // no stairs against the dark
fragOutput0 = vec4(color * (0.45 + 0.55 * edge), 1.0);
