// Lightning: jagged ribbons in the plane of the screen. Two per arc: a thin hot core of many segments (side -1 or 1),
// and a soft glow of few (side -2 or 2) that is left out where the arc is dimmer than uGlowFrom. Brightness and width are
// the display value, fading with age, the width of a strike its attention weight; the hue is the request's, or (uPush 1)
// the signed push of the node, dashed where that was not captured; the jags are decoration, hashed from the frame's id
// and a 14 Hz tick: they move the path and nothing else. uStill 1 (reduced motion): no growing, no ticks, no strokes.
//# vertex declarations
in vec3 arcAt;  // slot, u along the arc (0 to 1), side of the ribbon (core -1 or 1, glow -2 or 2)
uniform sampler2D uArcs;
uniform sampler2D uPushColors;
flat out vec4 vTint;  // light of the edge; 1: dashed
out vec3 vAt;  // across (-1 to 1), how far behind the growing end, white of the middle

const float KNOTS = 4.0;

vec2 jags(float n) {
  uint x = uint(int(n)) * 747796405u + 2891336453u;
  x = ((x >> ((x >> 28u) + 4u)) ^ x) * 277803737u;
  x = (x >> 22u) ^ x;
  return vec2(float(x & 0xffffu), float(x >> 16u)) * (2.0 / 65535.0) - 1.0;
}

// How far the path is off the straight line at u: slow swings that belong to the arc, a zigzag that belongs to the tick.
vec2 off(float u, float still, float alive, float fine) {
  float x = u * KNOTS, i = floor(x);
  vec2 by = mix(jags(still + i), jags(still + i + 1.0), x - i) + fine * jags(alive + floor(u * 24.0 + 0.5));
  return by * min(1.0, min(u, 1.0 - u) * 5.0);
}
//# vertex main
ivec2 slot = ivec2(0, int(arcAt.x + 0.5));
vec4 from = texelFetch(uArcs, slot, 0);
vec4 to = texelFetch(uArcs, slot + ivec2(1, 0), 0);
float age = uTime - from.w;
float grown = uStill > 0.5 ? 2.0 : age / max(1e-6, 0.26 * to.w);
bool glow = abs(arcAt.z) > 1.5;
float span = glow ? uGlowStep : uStep;
float u = min(arcAt.y, span * (floor(grown / span) + 1.0));  // what has not grown yet lies at its end, and covers nothing
gl_Position = vec4(4.0, 4.0, 4.0, 1.0);
vTint = vec4(0.0);
vAt = vec3(0.0);
if (to.w > 0.0 && age >= 0.0 && age < to.w) {
  vec4 tint = texelFetch(uArcs, slot + ivec2(2, 0), 0);
  vec4 shape = texelFetch(uArcs, slot + ivec2(3, 0), 0);
  float left = 1.0 - max(0.0, age / to.w - 0.15) / 0.85;
  float strokes = uStill > 0.5 ? 1.0 : 0.84 + 0.16 * cos(age * 72.0);  // return strokes, the same for every arc
  float fade = left * left * (shape.y < 0.5 ? 1.0 : left);  // the trunk stays a little longer
  float bright = (0.12 + 0.88 * pow(tint.w, 0.65)) * fade * strokes * (shape.y > 2.5 ? 0.62 : 1.0);
  if (!glow || bright > uGlowFrom) {
    vec3 way = to.xyz - from.xyz;
    float amount = shape.y < 0.5 ? 0.105 : 0.125;
    vec4 a = MCDCMatrix * vec4(cross(way, vec3(0.31, 0.87, 0.38)) * amount, 0.0);
    vec4 b = MCDCMatrix * vec4(cross(way, vec3(-0.52, 0.20, 0.83)) * amount, 0.0);
    float still = shape.x * 97.0, alive = still + 80.0 + (uStill > 0.5 ? 0.0 : floor(age * 14.0)) * 389.0;
    float fine = glow ? 0.0 : 0.36, ahead = u + span;
    float sense = 1.0;
    if (ahead > 1.001) { ahead = u - span; sense = -1.0; }
    vec2 here = off(u, still, alive, fine), next = off(ahead, still, alive, fine);
    vec4 start = MCDCMatrix * vec4(from.xyz, 1.0), through = MCDCMatrix * vec4(way, 0.0);
    vec4 at = start + through * u + a * here.x + b * here.y;
    vec4 then = start + through * ahead + a * next.x + b * next.y;
    if (min(at.w, then.w) > 1e-3) {
      vec2 along = (then.xy / then.w - at.xy / at.w) * uViewport;
      along *= sense / max(1e-3, length(along));
      float wide = uWidth * (shape.y < 0.5 ? 1.45 : 1.0) * (0.36 + 0.80 * shape.z);
      if (shape.y > 2.5) wide = max(0.6, uWidth * (0.24 + 0.66 * shape.z));
      else wide = max(0.8, wide * (0.45 + 0.55 * min(1.0, 1.6 * bright)));
      if (glow) wide *= 3.8;
      float side = sign(arcAt.z);
      at.xy += vec2(-along.y, along.x) * side * wide * 2.0 / uViewport * at.w;
      gl_Position = at;
      vec3 hue = uPush > 0.5 ? pushed(uPushColors, shape.w) : tint.rgb;
      float tip = grown < 1.1 ? exp(-18.0 * abs(u - grown)) : 0.0;
      vTint = vec4(hue * (glow ? 0.55 * (bright - uGlowFrom) : min(1.0, 1.25 * bright)), glow ? 0.0 : unknown(shape.w));
      vAt = vec3(side, (grown - u) * 16.0, glow ? 0.0 : 0.55 * bright * bright + 0.30 * tip * bright);
    }
  }
}
//# fragment declarations
flat in vec4 vTint;
in vec3 vAt;
//# fragment main
float edge = 1.0 - vAt.x * vAt.x;
float body = edge * edge;
float lit = clamp(vAt.y, 0.0, 1.0);
if (uPush > 0.5) lit *= 1.0 - 0.85 * vTint.a * stripe(gl_FragCoord.xy, 9.0);
fragOutput0 = vec4((vTint.rgb + vAt.z * body) * (body * lit), 1.0);
