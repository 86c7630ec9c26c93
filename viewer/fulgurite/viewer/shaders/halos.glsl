// The glow around lit heads. Unlit ones are moved out of view. What is the same all over a halo is made once, by its
// vertex: halos are wide, and lie over each other.
//# vertex declarations
in vec2 nodeAt;
uniform sampler2D uNodes;
uniform sampler2D uColors;
uniform sampler2D uPushColors;
flat out vec3 vLight;
//# vertex main
vec4 node = texelFetch(uNodes, ivec2(nodeAt + 0.5), 0);
float light = node.z > 0.5 ? 0.0 : faded(node.x, node.y, uTime);
float hit = light * flare(node.y, uTime);
vec3 lit = colored(uColors, light).rgb;
if (uPush > 0.5) lit = pushed(uPushColors, node.w);
vLight = lit * (light - uLeast + 0.02) * (1.0 + 0.6 * hit);
float wide = 1.5 + 1.9 * light + 0.6 * hit;
gl_PointSize = 2.0 * wide * uRadius * uPixels / gl_Position.w;
if (light < uLeast) gl_Position = vec4(4.0, 4.0, 4.0, 1.0);
//# fragment declarations
flat in vec3 vLight;
//# fragment main
float fall = max(0.0, 1.0 - length(gl_PointCoord * 2.0 - 1.0)), near = fall * fall;
fragOutput0 = vec4(vLight * (near * (0.10 + 0.50 * near)), 1.0);
