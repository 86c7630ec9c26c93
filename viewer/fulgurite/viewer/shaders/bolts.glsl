// Lightning: jagged paths, each segment a capsule expanded on screen, so that sharp bends neither fold nor gape.
// Brightness and width are the display value, fading with age, the width of a strike its attention weight; the hue is
// the request's, or (uPush 1) the signed push of the node, dashed where that was not captured; the jags are decoration, hashed from the frame's id
// and a 14 Hz tick: they move the path and nothing else.
//# vertex declarations
in vec4 arcAt;  // slot, first u of the segment, which end (0 or 1), which side (-1 or 1)
uniform sampler2D uArcs;
uniform sampler2D uPushColors;
out vec4 vTint;
out vec4 vAt;    // pixels along and across, length of the segment, 1 / half the width
out vec4 vWhen;  // u at both ends of the segment, share of the arc that has grown, 1: dashed

float jag(float u, float seed, float knots) {
  float x = u * knots;
  float i = floor(x);
  return mix(hash1(seed + i), hash1(seed + i + 1.0), x - i) * 2.0 - 1.0;
}

vec3 path(float u, vec3 from, vec3 to, float seed, float tick, float amount) {
  vec3 way = to - from;
  vec3 a = normalize(cross(way, vec3(0.31, 0.87, 0.38)));
  vec3 b = normalize(cross(way, a));
  float still = seed * 97.0, alive = still + tick * 389.0;
  vec2 off = vec2(jag(u, still, 4.0), jag(u, still + 40.0, 4.0));
  off += 0.60 * vec2(jag(u, alive + 80.0, 7.0), jag(u, alive + 120.0, 7.0));
  off += 0.34 * vec2(jag(u, alive + 160.0, 14.0), jag(u, alive + 200.0, 14.0));
  float envelope = min(1.0, min(u, 1.0 - u) * 5.0);
  return from + way * u + (a * off.x + b * off.y) * amount * length(way) * envelope;
}
//# vertex main
ivec2 slot = ivec2(0, int(arcAt.x + 0.5));
vec4 from = texelFetch(uArcs, slot, 0);
vec4 to = texelFetch(uArcs, slot + ivec2(1, 0), 0);
vec4 tint = texelFetch(uArcs, slot + ivec2(2, 0), 0);
vec4 shape = texelFetch(uArcs, slot + ivec2(3, 0), 0);
float age = uTime - from.w;
float grown = age / max(1e-6, 0.26 * to.w);
gl_Position = vec4(4.0, 4.0, 4.0, 1.0);
vTint = vec4(0.0);
vAt = vec4(0.0, 0.0, 1.0, 1.0);
vWhen = vec4(0.0);
if (to.w > 0.0 && age >= 0.0 && age < to.w && arcAt.y <= grown) {
  float kind = shape.y;
  float tick = floor(age * 14.0);
  float amount = kind < 0.5 ? 0.085 : 0.115;
  vec4 head = MCDCMatrix * vec4(path(arcAt.y, from.xyz, to.xyz, shape.x, tick, amount), 1.0);
  vec4 tail = MCDCMatrix * vec4(path(arcAt.y + uStep, from.xyz, to.xyz, shape.x, tick, amount), 1.0);
  if (min(head.w, tail.w) > 1e-3) {
    vec2 half_ = 0.5 * uViewport;
    vec2 a = head.xy / head.w * half_, b = tail.xy / tail.w * half_;
    float len = max(1e-3, distance(a, b));
    vec2 way = (b - a) / len;
    float wide = uWidth * (kind < 0.5 ? 1.7 : 1.0) * (0.30 + 0.85 * shape.z);
    if (kind > 2.5) wide = uWidth * (0.12 + 0.66 * shape.z);
    float along = mix(-0.75 * wide, len + 0.75 * wide, arcAt.z);
    vec2 place = a + way * along + vec2(-way.y, way.x) * arcAt.w * wide;
    gl_Position = vec4(place / half_, mix(head.z / head.w, tail.z / tail.w, arcAt.z), 1.0);
    float share = age / to.w;
    float fade = exp(-4.0 * max(0.0, share - 0.18)) * (1.0 - smoothstep(0.85, 1.0, share));
    float strokes = 0.84 + 0.16 * cos(age * 72.0);  // return strokes, the same for every arc
    vec3 hue = uPush > 0.5 ? pushed(uPushColors, shape.w) : tint.rgb;
    vTint = vec4(hue, (0.14 + 0.86 * tint.w) * fade * strokes * (kind > 2.5 ? 0.65 : 1.0));
    vAt = vec4(along, arcAt.w * wide, len, 1.0 / wide);
    vWhen = vec4(arcAt.y, arcAt.y + uStep, grown, uPush * unknown(shape.w));
  }
}
//# fragment declarations
in vec4 vTint;
in vec4 vAt;
in vec4 vWhen;
//# fragment main
float at = clamp(vAt.x, 0.0, vAt.z);
float s = min(1.0, length(vec2(vAt.x - at, vAt.y)) * vAt.w);
float u = mix(vWhen.x, vWhen.y, at / vAt.z);
float lit = 1.0 - smoothstep(vWhen.z - 0.06, vWhen.z + 0.001, u);
lit *= 1.0 - 0.85 * vWhen.w * stripe(gl_FragCoord.xy, 9.0);
float tip = vWhen.z < 1.1 ? exp(-18.0 * abs(u - vWhen.z)) : 0.0;
float core = exp(-s * s * 26.0);
float halo = (1.0 - s) * (1.0 - s) * 0.50;
vec3 hot = mix(vTint.rgb, vec3(1.0), (0.36 * vTint.a + 0.40 * tip) * core);
fragOutput0 = vec4(min(hot * (halo + core) * vTint.a * lit, vec3(1.0)), 1.0);
