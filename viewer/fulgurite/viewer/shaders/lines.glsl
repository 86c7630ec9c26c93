// Thin structure lines: the ribs that the heads sit on.
//# vertex declarations
//# vertex main
//# fragment declarations
//# fragment main
fragOutput0 = vec4(uColor, 1.0);
