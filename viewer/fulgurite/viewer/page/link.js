// Links that restore a view: what one person looks at, as the part of the address behind `#`. Pure.

const NUMBER = (text) => (text === null || text === "" || Number.isNaN(Number(text)) ? null : Number(text));

/** What an address says. Unknown parts are left alone. */
export function read(hash) {
  const found = new URLSearchParams(hash.replace(/^#/, ""));
  const list = (name) => (found.get(name) ? found.get(name).split("~") : null);
  const numbers = (name) => list(name)?.map(Number).filter((value) => !Number.isNaN(value)) ?? null;
  const node = list("node"), token = list("token");
  return {
    at: NUMBER(found.get("t")),
    speed: NUMBER(found.get("speed")),
    replicas: list("replica"),
    camera: NUMBER(found.get("camera")),
    turn: numbers("turn"),
    view: numbers("view"),
    node: node && node.length === 4 ? { key: node[0], kind: node[1], layer: Number(node[2]), index: Number(node[3]) } : null,
    lead: found.get("about"),
    token: token && token.length === 4 ? { key: token[0], request: token[1], sequence: Number(token[2]), position: Number(token[3]) } : null,
    request: found.get("request"),
    layer: NUMBER((found.get("layer") ?? "").replace("not", "")),
    isHidden: (found.get("layer") ?? "").startsWith("not"),
    contribution: found.get("hue") === "push",
    palette: found.get("palette"),
    theme: found.get("theme"),
    hidden: list("hide") ?? [],
    panels: found.get("panels") !== "0",
    calm: found.has("calm") ? found.get("calm") === "1" : null,
    bare: found.get("bare") === "1",
    isFull: found.get("detail") === "full",
  };
}

/** The address of a view: only what differs from how a page opens. */
export function write(app) {
  const { clock, picture, only, node, token } = app, { camera } = picture, said = new URLSearchParams();
  const put = (name, value) => { if (value !== null && value !== undefined && value !== "") said.set(name, value); };
  const round = (value) => Number(value.toFixed(4));
  if (clock.mode !== "live" && clock.playhead !== null) put("t", clock.playhead.toFixed(3));
  if (clock.mode === "playing" && clock.speed !== 1) put("speed", round(clock.speed));
  if (app.chosen) put("replica", app.chosen.join("~"));
  if (camera.preset) put("camera", camera.preset);
  const turn = [camera.azimuth, camera.elevation, camera.zoom, ...camera.pan].map(round);
  if (turn.join() !== "0,0,1,0,0") put("turn", turn.join("~"));
  if (camera.fixed) put("view", [...camera.fixed.position, ...camera.fixed.focal, ...camera.fixed.up, camera.fixed.angle].map(round).join("~"));
  if (!node && !token) put("about", app.lead);
  if (node) put("node", [node.key, node.kind, node.layer, node.index].join("~"));
  if (token) put("token", [token.key, token.requestId, token.sequence, token.position].join("~"));
  put("request", only.request);
  put("layer", only.layer === null ? null : `${only.isHidden ? "not" : ""}${only.layer}`);
  if (picture.shows.contribution) put("hue", "push");
  if (app.palette !== app.palettes[0].name) put("palette", app.palette);
  if (app.theme === "light") put("theme", "light");
  put("hide", Object.entries(picture.parts).filter(([, shown]) => !shown).map(([part]) => part).join("~"));
  if (!app.hasPanels) put("panels", "0");
  if (picture.shows.calm !== app.prefersCalm) put("calm", picture.shows.calm ? "1" : "0");
  if (app.isBare) put("bare", "1");
  if (app.isFixedScale) put("detail", "full");
  return "#" + said.toString().replaceAll("%7E", "~").replaceAll("%2F", "/");
}
