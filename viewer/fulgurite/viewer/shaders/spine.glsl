// The axis: where the residual stream runs. Structure, not a measurement: its light is constant.
//# vertex declarations
in vec3 ribbonTo;
in vec2 ribbonAt;
out vec2 vAt;
//# vertex main
vec4 ahead = MCDCMatrix * vec4(ribbonTo, 1.0);
vec2 way = (ahead.xy / ahead.w - gl_Position.xy / gl_Position.w) * uViewport;
vec2 side = normalize(vec2(-way.y, way.x)) * ribbonAt.y * uWidth / uViewport * 2.0;
gl_Position.xy += side * gl_Position.w;
vAt = ribbonAt;
//# fragment declarations
in vec2 vAt;
//# fragment main
float s = abs(vAt.y);
float ends = smoothstep(0.0, 0.06, vAt.x) * (1.0 - smoothstep(0.94, 1.0, vAt.x));
float glow = pow(1.0 - s, 3.0) * 0.34 + exp(-s * s * 160.0) * 0.85;
fragOutput0 = vec4(vec3(0.12, 0.20, 0.62) * glow * ends, 1.0);
