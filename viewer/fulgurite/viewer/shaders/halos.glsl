// The glow around lit heads. Unlit ones are moved out of view, so they cost nothing.
//# vertex declarations
in vec2 nodeAt;
uniform sampler2D uNodes;
out vec4 vNode;
//# vertex main
vec4 node = texelFetch(uNodes, ivec2(nodeAt + 0.5), 0);
float light = node.z > 0.5 ? 0.0 : faded(node.x, node.y, uTime);
float hit = light * flare(node.y, uTime);
vNode = vec4(light, hit, uLeast, node.w);
float wide = 1.5 + 1.9 * light + 0.6 * hit;
gl_PointSize = 2.0 * wide * uRadius * uPixels / gl_Position.w;
if (light < uLeast) gl_Position = vec4(4.0, 4.0, 4.0, 1.0);
//# fragment declarations
in vec4 vNode;
uniform sampler2D uColors;
uniform sampler2D uPushColors;
//# fragment main
float d = length(gl_PointCoord * 2.0 - 1.0);
if (d > 1.0) discard;
vec3 lit = texture(uColors, vec2((vNode.x * 255.0 + 0.5) / 256.0, 0.5)).rgb;
if (uPush > 0.5) lit = pushed(uPushColors, vNode.w);
float fall = 1.0 - d;
float amount = fall * fall * (0.10 + 0.50 * fall * fall) * (vNode.x - vNode.z + 0.02) * (1.0 + 0.6 * vNode.y);
fragOutput0 = vec4(lit * amount, 1.0);
