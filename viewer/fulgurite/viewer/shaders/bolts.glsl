// Lightning: ribbons along jagged paths, expanded on screen. Brightness and width are the display value; the jags are
// decoration, hashed from the frame's id and a 14 Hz tick.
//# vertex declarations
in vec3 arcAt;
uniform sampler2D uArcs;
out vec4 vTint;
out vec3 vAt;

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
  vec2 off = vec2(jag(u, still, 5.0), jag(u, still + 40.0, 5.0));
  off += 0.55 * vec2(jag(u, alive + 80.0, 9.0), jag(u, alive + 120.0, 9.0));
  off += 0.32 * vec2(jag(u, alive + 160.0, 19.0), jag(u, alive + 200.0, 19.0));
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
float u = arcAt.y;
if (to.w <= 0.0 || age < 0.0 || age >= to.w) {
  gl_Position = vec4(4.0, 4.0, 4.0, 1.0);
  vTint = vec4(0.0);
  vAt = vec3(0.0);
} else {
  float kind = shape.y;
  float tick = floor(age * 14.0);
  float amount = kind < 0.5 ? 0.085 : 0.115;
  float du = uStep;
  vec4 here = MCDCMatrix * vec4(path(u, from.xyz, to.xyz, shape.x, tick, amount), 1.0);
  vec4 back = MCDCMatrix * vec4(path(max(0.0, u - du), from.xyz, to.xyz, shape.x, tick, amount), 1.0);
  vec4 ahead = MCDCMatrix * vec4(path(min(1.0, u + du), from.xyz, to.xyz, shape.x, tick, amount), 1.0);
  vec2 way = (ahead.xy / ahead.w - back.xy / back.w) * uViewport;
  way /= max(1e-6, length(way));
  float thick = kind < 0.5 ? 1.15 : (kind > 2.5 ? 0.45 : 1.0);
  float wide = uWidth * thick * (0.30 + 0.85 * tint.w);
  gl_Position = here;
  gl_Position.xy += vec2(-way.y, way.x) * arcAt.z * wide / uViewport * 2.0 * here.w;
  float share = age / to.w;
  float fade = exp(-3.2 * max(0.0, share - 0.18)) * (1.0 - smoothstep(0.85, 1.0, share));
  float flicker = 0.80 + 0.20 * hash1(shape.x * 13.0 + tick * 7.0);
  vTint = vec4(tint.rgb, (0.12 + 0.88 * tint.w) * fade * flicker * (kind > 2.5 ? 0.7 : 1.0));
  vAt = vec3(u, arcAt.z, share / 0.26);
}
//# fragment declarations
in vec4 vTint;
in vec3 vAt;
//# fragment main
float s = abs(vAt.y);
float grown = 1.0 - smoothstep(vAt.z - 0.06, vAt.z + 0.001, vAt.x);
float tip = vAt.z < 1.1 ? exp(-18.0 * abs(vAt.x - vAt.z)) : 0.0;
float core = exp(-s * s * 42.0);
float halo = (1.0 - s) * (1.0 - s) * 0.30;
vec3 hot = mix(vTint.rgb, vec3(1.0), 0.50 + 0.35 * tip);
vec3 color = (vTint.rgb * halo + hot * core) * vTint.a * grown;
fragOutput0 = vec4(min(color, vec3(1.0)), 1.0);
