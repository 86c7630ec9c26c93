// A painted sheet, one texel per pixel.
//# vertex declarations
in vec2 sheetAt;
out vec2 vAt;
//# vertex main
vAt = sheetAt;
//# fragment declarations
in vec2 vAt;
uniform sampler2D uSheet;
//# fragment main
fragOutput0 = texelFetch(uSheet, ivec2(vAt), 0);
