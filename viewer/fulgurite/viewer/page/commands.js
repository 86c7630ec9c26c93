// What a person can ask for: the table comes from the server (`panel.py`, `page_controls.py`), what it does is here.
import { SLOWEST, FASTEST } from "./clock.js";
import { tag } from "./words.js";

const TURN = 12;

/** What each command does to the app. */
const DO = {
  pause: (app) => app.togglePause(),
  live: (app) => app.goLive(),
  back: (app) => app.seekBy(-1),
  forward: (app) => app.seekBy(1),
  back_10: (app) => app.seekBy(-10),
  forward_10: (app) => app.seekBy(10),
  step_back: (app) => app.step(-1),
  step: (app) => app.step(1),
  start: (app) => app.seek(app.window[0]),
  end: (app) => app.seek(app.window[1]),
  slower: (app) => app.faster(0.5),
  faster: (app) => app.faster(2),
  next_slow: (app) => app.jump("slow"),
  next_surprising: (app) => app.jump("surprising"),
  next_uncertain: (app) => app.jump("uncertain"),
  loop: (app) => app.loop(),
  reset: (app) => app.showCamera(0),
  follow: (app) => app.toggleFollow(),
  turn_left: (app) => app.turn(-TURN, 0),
  turn_right: (app) => app.turn(TURN, 0),
  turn_up: (app) => app.turn(0, TURN / 2),
  turn_down: (app) => app.turn(0, -TURN / 2),
  nearer: (app) => app.zoom(1.2),
  farther: (app) => app.zoom(1 / 1.2),
  next_replica: (app) => app.nextReplica(1),
  previous_replica: (app) => app.nextReplica(-1),
  all_replicas: (app) => app.showReplicas(null),
  most_active: (app) => app.chooseMostActive(),
  least_probable: (app) => app.chooseLeastProbable(),
  layer_up: (app) => app.moveNode(1, 0),
  layer_down: (app) => app.moveNode(-1, 0),
  head_next: (app) => app.moveNode(0, 1),
  head_previous: (app) => app.moveNode(0, -1),
  search: (app) => app.searchField.open(),
  isolate: (app) => app.toggleRequest(),
  layer_only: (app) => app.toggleLayer(false),
  hide_layer: (app) => app.toggleLayer(true),
  hud: (app) => app.toggleHud(),
  tokens: (app) => app.toggleStrip(),
  panels: (app) => app.togglePanels(),
  contribution: (app) => app.toggleContribution(),
  palette: (app) => app.nextPalette(),
  theme: (app) => app.useTheme(app.theme === "light" ? "dark" : "light"),
  motion: (app) => app.useCalm(!app.picture.shows.calm),
  link: (app) => app.copyLink(),
  picture: (app) => app.savePicture(),
  fullscreen: () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen()),
  help: (app) => app.toggleHelp(),
  clear: (app) => app.clear(),
};

/** The keys of an event as the table may name them, the likeliest first. */
function keysOf(event) {
  const key = event.key === " " ? "Space" : event.key, held = [event.ctrlKey || event.metaKey ? "Control" : "", event.altKey ? "Alt" : ""].filter(Boolean);
  const shifted = [...held, "Shift", key].join("+"), plain = [...held, key].join("+");
  if (!event.shiftKey) return [plain, [...held, key.length === 1 ? key.toLowerCase() : key].join("+")];
  return key.length > 1 ? [shifted] : [shifted, [...held, "Shift", key.toUpperCase()].join("+"), plain];
}

export class Commands {
  constructor(app, table) {
    this.app = app;
    this.table = table.filter((command) => DO[command.name] || command.name.startsWith("camera_"));
    this.byName = new Map(this.table.map((command) => [command.name, command]));
    this.byKey = new Map(this.table.flatMap((command) => command.shortcut.map((keys) => [keys, command])));
    window.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("click", (event) => {
      const named = event.target.closest("[data-command]");
      if (named) { event.preventDefault(); this.run(named.dataset.command); named.blur?.(); }
    });
  }

  key(event) {
    if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    const command = keysOf(event).map((keys) => this.byKey.get(keys)).find(Boolean);
    if (!command || (command.name !== "help" && command.name !== "clear" && document.querySelector("dialog[open]"))) return;
    event.preventDefault();
    this.run(command.name);
  }

  run(name) {
    const camera = name.match(/^camera_(\d+)$/);
    if (camera) this.app.showCamera(Number(camera[1]) - 1);
    else DO[name]?.(this.app);
    this.app.touch();
  }

  title(name) {
    const command = this.byName.get(name);
    return command ? `${command.tooltip}${command.keys.length ? ` (${command.keys[0]})` : ""}` : "";
  }

  button(name, label, extra = "") {
    return this.byName.has(name) ? tag("button", { class: `button ${extra}`, "data-command": name, title: this.title(name), "aria-label": this.byName.get(name).label }, label) : null;
  }

  /** Fill the bar. */
  bar(node) {
    const put = (where, ...buttons) => node.querySelector(where).replaceChildren(...buttons.filter(Boolean));
    put(".times", this.button("step_back", "‹"), this.button("pause", "❚❚"), this.button("step", "›"), this.button("live", "LIVE", "live"));
    put(".cameras", ...this.table.filter((command) => command.name.startsWith("camera_")).map((command) => this.button(command.name, command.label)));
    put(".views", this.button("contribution", "±"), this.button("palette", "◐"), this.button("theme", "☀"), this.button("panels", "▥"), this.button("help", "?"));
  }

  /** What is pressed, as the app is now. */
  press(state) {
    for (const [name, on] of Object.entries(state)) for (const button of document.querySelectorAll(`[data-command="${name}"]`)) button.setAttribute("aria-pressed", String(on));
  }

  help() {
    const groups = new Map();
    for (const command of this.table) groups.set(command.group, [...(groups.get(command.group) ?? []), command]);
    const keys = [...groups].map(([group, commands]) => [tag("h3", {}, group), tag("div", { class: "keys" }, commands.flatMap((command) => [tag("kbd", {}, command.keys[0] ?? ""), tag("span", { title: command.tooltip }, command.label)]))]);
    const { channels } = this.app, lights = { head_write: "light and size of heads", ffn_write: "light of feed-forward blocks", expert_weights: "light of experts", kv_tokens: "fill of the cache", head_contribution: "hue of heads (±)", ffn_contribution: "hue of feed-forward blocks (±)", attended_weights: "width of a strike from the cache", kv_heat: "heat by distance", logprob: "bar under a token", lens_prob: "logit lens" };
    const rows = Object.entries(lights).map(([name, light]) => tag("tr", {}, tag("td", {}, light), tag("td", {}, tag("code", {}, name)), tag("td", {}, tag("code", {}, channels[name].formula)), tag("td", {}, channels[name].unit)));
    const say = (...parts) => tag("li", {}, ...parts);
    return [
      tag("h2", {}, "What am I looking at?"),
      tag("div", { class: "columns" },
        tag("div", {},
          tag("p", {}, "Each bolt of lightning is one token that a running model has just emitted. Left to right are the layers; along the axis runs the residual stream, to which every part of the model adds."),
          tag("ul", {},
            say(tag("b", {}, "Spheres"), " are attention heads, ", tag("b", {}, "discs or plates"), " feed-forward blocks or experts, the ", tag("b", {}, "carpet"), " the key-value cache: the first token at the back."),
            say(tag("b", {}, "Light"), ", size and width are how much a node added, relative to the stream it joined; each kind of node has its own scale (the bars below the picture). It fades over 0.8 s."),
            say(tag("b", {}, "Thin strikes"), " from the cache show where a head looked. That is routing, not importance."),
            say(tag("b", {}, "Hue"), " of a bolt is its request; with ", tag("kbd", {}, "C"), " it is the signed push on the emitted token."),
            say(tag("b", {}, "Hatched"), " is what was not captured. Dark is a small value. Nothing is invented; only the jagged shape of a bolt is decoration."),
            say("The residual stream is a sum, not a route: lightning does not say that a token needed a node. Whether light predicts what an intervention does is said by the badge.")),
          tag("h3", {}, "Channels"),
          tag("table", {}, tag("tbody", {}, tag("tr", {}, ["shown as", "channel", "formula", "unit"].map((name) => tag("th", {}, name))), rows)),
          tag("p", {}, `The past is played at ${SLOWEST}× to ${FASTEST}×. Drag turns the model, Shift-drag moves it, the wheel comes nearer, a click keeps a node's card, a double click flies to it.`)),
        tag("div", {}, keys)),
    ];
  }
}
