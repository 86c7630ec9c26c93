// Words in the scene: quads of a fixed size in pixels at a place in space, kept inside the viewport.
//# vertex declarations
in vec2 pixelOff;
in vec2 atlasAt;
in vec2 wordSpan;
out vec2 vAt;
//# vertex main
vec2 anchor = floor((gl_Position.xy / gl_Position.w * 0.5 + 0.5) * uViewport);
anchor.x = clamp(anchor.x, 8.0 - wordSpan.x, max(8.0 - wordSpan.x, uViewport.x - 8.0 - wordSpan.y));
anchor.y = clamp(anchor.y, 11.0, uViewport.y - 11.0);
vec2 snapped = anchor + pixelOff;
gl_Position = vec4((snapped / uViewport * 2.0 - 1.0) * gl_Position.w, gl_Position.z, gl_Position.w);
vAt = atlasAt;
//# fragment declarations
in vec2 vAt;
uniform sampler2D uAtlas;
//# fragment main
fragOutput0 = texelFetch(uAtlas, ivec2(vAt), 0);
