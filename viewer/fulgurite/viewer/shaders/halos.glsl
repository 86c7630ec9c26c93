// The glow around lit heads. Unlit ones are moved out of view. What is the same all over a halo is made once, by its
// vertex: halos are wide, and lie over each other. Each ends where it is less than half a step of a screen's 255.
//# vertex declarations
in vec2 nodeAt;
uniform sampler2D uNodes;
uniform sampler2D uColors;
uniform sampler2D uPushColors;
flat out vec4 vLight;  // and how much of its radius is drawn
//# vertex main
vec4 node = texelFetch(uNodes, ivec2(nodeAt.yx + 0.5), 0);
float light = node.z > 0.5 ? 0.0 : faded(node.x, node.y, uTime);
float hit = light * flare(node.y, uTime);
vec3 lit = colored(uColors, light).rgb;
if (uPush > 0.5) lit = pushed(uPushColors, node.w);
lit *= (light - uLeast + 0.02) * (1.0 + 0.6 * hit);
float least = 0.5 / 255.0 / max(1e-3, max(lit.r, max(lit.g, lit.b)));
vLight = vec4(lit, max(0.0, 1.0 - sqrt(sqrt(0.01 + 2.0 * least) - 0.10)));
float wide = (1.5 + 1.9 * light + 0.6 * hit) * vLight.a;
gl_PointSize = 2.0 * wide * uRadius * uPixels / gl_Position.w;
if (light < uLeast) gl_Position = vec4(4.0, 4.0, 4.0, 1.0);
//# fragment declarations
flat in vec4 vLight;
//# fragment main
float fall = max(0.0, 1.0 - vLight.a * length(gl_PointCoord * 2.0 - 1.0)), near = fall * fall;
fragOutput0 = vec4(vLight.rgb * (near * (0.10 + 0.50 * near)), 1.0);
