// What is written over the picture: title and figures of each replica, the legend, the node under the pointer.
import { duration, figure, rate, short, tag } from "./words.js";

/** Whether something else is to be written into a node than the last time. */
function changed(node, said) {
  const text = JSON.stringify(said);
  if (node.said === text) return false;
  node.said = text;
  return true;
}

export class Overlay {
  constructor(scene, app) {
    Object.assign(this, { app, huds: scene.querySelector(".huds"), legend: scene.querySelector(".legend") });
  }

  /** Only what reads otherwise than before is written: the browser paints what is touched. */
  draw() {
    const { app } = this, { viewports } = app.picture, places = viewports.map(({ key, x, y, width }) => [key, x, y, width]);
    if (changed(this.huds, places)) this.huds.replaceChildren(...viewports.flatMap((viewport) => this._frame(viewport)));
    const said = this.huds.querySelectorAll(".hud");
    viewports.forEach((viewport, i) => this._say([...said[i].children], this._said(viewport, viewports.length)));
    this._legend();
  }

  /** The places of six lines over a viewport, and its borders to the others. */
  _frame({ x, y, width }) {
    return [
      tag("div", { class: "hud", style: `left:${x}px;top:${y}px;width:${width}px` }, Array.from({ length: 6 }, () => tag("div"))),
      x ? tag("i", { class: "seam", style: `left:${x}px;top:${y}px;width:1px;height:100%` }) : null,
      y ? tag("i", { class: "seam", style: `left:${x}px;top:${y}px;width:${width}px;height:1px` }) : null,
    ].filter(Boolean);
  }

  /** Title and figures of a viewport's replica: what each line says, and its class. */
  _said({ key, width }, count) {
    const replica = this.app.replicas.get(key), { header, state = {} } = replica, rates = replica.lights.rates, isNarrow = width < 560;
    const memory = [state.memory, rates.chains ? `1 chain = ${this._count(rates.tokens / rates.chains)}` : "", this.app.constants.shed[this.app.picture.shed]].filter(Boolean).join("  ·  ");
    const account = [state.account, replica.latency !== null ? `${duration(replica.latency)} to screen` : ""].filter(Boolean).join("  ·  ");
    return [
      [header.title, count > 1 || header.name !== header.title ? header.name : "", ""], [state.speed ?? "", "", `speed${state.state === "lost" ? " warn" : ""}`],
      [header.model_line, "", ""], [isNarrow ? "" : memory, "", ""],
      [state.badge ?? this.app.hello.unverified, "", ""], [isNarrow ? "" : account, "", state.missing ? "warn" : "dim"],
    ];
  }

  _say(nodes, said) {
    const [title, , , , badge] = nodes;
    said.forEach(([text, more, name], i) => {
      const node = nodes[i];
      if (!changed(node, [text, more, name])) return;
      node.className = name;
      if (node === title) node.replaceChildren(...[tag("h1", {}, text), more ? tag("span", {}, more) : null].filter(Boolean));
      else if (node === badge) node.replaceChildren(tag("span", { class: "badge" }, text));
      else node.textContent = text;
    });
  }

  _count(tokens) { const rounded = Math.max(1, Math.round(tokens)); return rounded === 1 ? "1 token" : `${rounded} tokens`; }

  _legend() {
    const { app } = this, replica = app.focused;
    if (!replica) { if (changed(this.legend, null)) this.legend.replaceChildren(); return; }
    const requests = app.requests().slice(-9), push = app.picture.shows.contribution, note = this._note(replica, push);
    const { experts } = replica.look.topology, { display } = replica.lights, ends = (of) => of && [of.low, of.high, of.isLog];
    if (!changed(this.legend, [requests, push, note, experts, app.palette, ends(display.head), ends(display.ffn), ends(display.expert), app.picture.size[0] > 820])) return;
    const names = requests.map(([id, color]) => tag("span", {}, tag("i", { style: `background:${app.colors.request(color)}` }), short(id)));
    const scales = push
      ? [this._scale("heads", "head_contribution", null, true), this._scale("FFN", "ffn_contribution", null, true)]
      : [this._scale("heads", "head_write", display.head), experts ? this._scale("experts", "expert_weights", display.expert) : this._scale("FFN", "ffn_write", display.ffn)];
    this.legend.replaceChildren(tag("div", { class: "requests" }, names), tag("div", { class: "scales" }, scales, tag("small", {}, note)));
  }

  _scale(name, channel, display, isPush = false) {
    const { app } = this, { unit, formula } = app.channels[channel], wide = app.picture.size[0] > 820;
    const bar = tag("canvas", { class: "paint", width: 110, height: 8 }), pen = bar.getContext("2d", { willReadFrequently: true });
    const words = tag("span", {}, `${name}:  ${channel}${wide ? ` = ${formula}` : ""}  [${unit}]${display?.isLog ? ", log" : ""}`);
    if (!isPush && !display) return tag("div", { class: "scale" }, words, tag("span", { class: "none" }, "no scale yet"));
    for (let x = 0; x < 110; x++) { pen.fillStyle = isPush ? app.colors.push(2 * x / 109 - 1) : app.colors.node(x / 109); pen.fillRect(x, 0, 1, 8); }
    const most = app.constants.largest_logits, ends = isPush ? [`−${most}`, `+${most}`] : [figure(display.low, 2), figure(display.high, 2)];
    return tag("div", { class: "scale" }, words, tag("span", {}, ends[0]), bar, tag("span", {}, ends[1]));
  }

  _note(replica, push) {
    const { tokens, read, push: pushed } = replica.lights.rates, { constants } = this.app;
    const said = push
      ? [`contributions: ${rate(pushed, tokens) || "no token yet"}`, `hue: push on the emitted token, logarithmic over ${constants.linear_logits}`, "brightness: head_write, ffn_write"]
      : [read ? `KV reads: ${rate(read, tokens)}` : "KV reads not captured", "strike width: attention weight", `light fades over ${constants.fades_over_s} s`, "a bolt's shape is decoration"];
    return said.join("  ·  ");
  }
}
