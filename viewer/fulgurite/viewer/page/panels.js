// The panels beside the picture: exact comparison, where depth and glow are poor at it. All show the same token and the
// same selection; a pick in one selects in all.
import { card, cardBody, isMeasured, looks, textAt } from "./card.js";
import { hueOf } from "./lights.js";
import { bytes, duration, figure, named, percent, printed, tag } from "./words.js";

const FONT = '11px "Fulgurite Inter", sans-serif';

/** A canvas as sharp as the screen; `paint(pen, width, height)` draws it in pixels of the screen. */
class Sheet {
  constructor(height, { onpick = null, label = "" } = {}) {
    this.height = height;
    this.width = 318;
    this.canvas = tag("canvas", { class: onpick ? "paint pickable" : "paint", "aria-label": label, role: "img" });
    new ResizeObserver(([{ contentRect }]) => { this.width = contentRect.width || this.width; }).observe(this.canvas);  // to ask for it at each picture costs a layout
    if (onpick) this.canvas.addEventListener("click", (event) => { const box = this.canvas.getBoundingClientRect(); onpick(event.clientX - box.left, event.clientY - box.top, box.width, box.height); });
  }

  paint(draw, height = this.height) {
    const ratio = Math.min(2, window.devicePixelRatio || 1), { width } = this;
    const w = Math.round(width * ratio), h = Math.round(height * ratio);
    if (this.canvas.width !== w || this.canvas.height !== h) { this.canvas.width = w; this.canvas.height = h; this.canvas.style.height = `${height}px`; }
    const pen = this.canvas.getContext("2d", { willReadFrequently: true });
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = FONT;
    draw(pen, width, height);
  }
}

function hatch(pen, x, y, w, h) {
  pen.save();
  pen.beginPath();
  pen.rect(x, y, w, h);
  pen.clip();
  pen.fillStyle = "#0e0f12";
  pen.fillRect(x, y, w, h);
  pen.strokeStyle = "#55585f";
  pen.beginPath();
  for (let at = x - h; at < x + w; at += 5) { pen.moveTo(at, y + h); pen.lineTo(at + h, y); }
  pen.stroke();
  pen.restore();
}

const UNSEEN_EVERY = 8;
const SOFT = "#a8b8e2", DIM = "#7686b0", TRACK = "#12172a", ACCENT = "#8fb4ff", WARM = "#ffb454";

class Panel {
  constructor(app, name, title) {
    this.app = app;
    this.note = tag("small");
    this.body = tag("div");
    this.node = tag("section", { class: `panel ${name}`, "data-panel": name }, tag("header", {}, tag("h2", {}, title), this.note), this.body);
    this.isSeen = true;
    this.turns = 0;
    new IntersectionObserver((entries) => { this.isSeen = entries.at(-1).isIntersecting; if (this.isSeen) { this.turns = 0; app.stale = true; } }).observe(this.node);
  }

  /** Whether it is to be drawn this time: one that is scrolled out of sight only now and then. */
  isDue() { return this.turns++ % (this.isSeen ? 1 : UNSEEN_EVERY) === 0; }

  /** The focused replica, its token, and the newest token at or before it that carries a channel. */
  get replica() { return this.app.focused; }
  get token() { return this.replica ? this.app.current(this.replica.key) : null; }
  deep(channel) { return this.replica ? this.app.newest(this.replica.key, channel) : null; }
}

/** Every replica with its figures, side by side; a click makes the panels be about it. */
class ReplicasPanel extends Panel {
  constructor(app) {
    super(app, "fleet", "Replicas");
    const head = ["", "tok/s", "first token", "per token", "p99"].map((title) => tag("th", { scope: "col" }, title));
    this.rows = tag("tbody");
    this.body.append(tag("table", {}, tag("thead", {}, tag("tr", {}, head)), this.rows));
    this.rows.addEventListener("click", (event) => { const row = event.target.closest("[data-row]"); if (row) app.chooseReplica(row.dataset.row); });
  }

  draw() {
    const { app } = this, all = [...app.replicas.values()], slowest = this.slowest(all);
    const said = all.map(({ key, header, state }) => [key, header.name, state, key === app.focused?.key, key === slowest]);
    const text = JSON.stringify(said), spans = new Set(all.map(({ state }) => Math.round(state.window_s ?? 0)).filter(Boolean));
    this.note.textContent = spans.size === 1 ? `over the last ${[...spans][0]} s` : "";
    if (text === this.text) return;
    this.text = text;
    this.rows.replaceChildren(...said.flatMap((one) => this.row(...one)));
  }

  /** The one whose median time between tokens is the largest, where there is another to compare with. */
  slowest(all) {
    const times = all.filter(({ state }) => state.state === "live" && state.inter_token_p50_s).map(({ key, state }) => [state.inter_token_p50_s, key]).sort(([a], [b]) => b - a);
    return times.length > 1 && times[0][0] > times[1][0] ? times[0][1] : null;
  }

  row(key, name, state, isFocused, isSlowest) {
    const value = (text) => tag("td", {}, text ?? tag("span", { class: "none", title: "not measured in this time" }, "–"));
    const dropped = Object.entries(state.dropped ?? {}), of = { "data-row": key, class: isFocused ? "focused" : "" };
    const lost = dropped.length ? `dropped ${dropped.map(([reason, count]) => `${count.toLocaleString("en")} ${reason.replaceAll("_", " ")}`).join(", ")}` : "0 dropped";
    const cache = state.kv_bytes && state.kv_capacity_bytes ? `KV ${percent(state.kv_bytes / state.kv_capacity_bytes)} full` : state.kv_tokens === undefined ? "" : `KV ${state.kv_tokens.toLocaleString("en")} tokens, ${bytes(state.kv_bytes ?? 0)}`;
    return [
      tag("tr", of, tag("th", { scope: "row" }, tag("button", { title: `${key}: be about it`, "aria-pressed": String(isFocused) }, tag("i", { class: `dot ${state.state ?? ""}` }), name)),
        value(state.tokens_per_s === null || state.tokens_per_s === undefined ? null : figure(state.tokens_per_s, 2)), value(duration(state.first_token_p50_s || null)), value(duration(state.inter_token_p50_s ?? null)), value(duration(state.inter_token_p99_s ?? null))),
      tag("tr", { ...of, class: `${of.class} more` }, tag("td", { colspan: "5" }, isSlowest ? tag("b", {}, "slowest") : null, [state.level, cache, lost].filter(Boolean).join(" · "))),
    ];
  }
}

/** What people look for first, one click each. */
const FINDS = [["most_active", "most active head"], ["least_probable", "least probable token"], ["next_slow", "slow"], ["next_surprising", "surprising"], ["next_uncertain", "uncertain"]];

class CardPanel extends Panel {
  constructor(app) {
    super(app, "card", "Chosen");
    const finds = FINDS.map(([name, label]) => tag("button", { class: "button", "data-command": name, title: app.commands.title(name) }, label));
    this.node.insertBefore(tag("div", { class: "finds", "aria-label": "find" }, finds), this.body);
  }

  draw() {
    const { app } = this, node = app.node;
    const replica = node && app.replicas.get(node.key);
    this.note.textContent = replica && app.shown.length > 1 ? replica.header.name : "";
    if (!replica) {
      this.body.replaceChildren(tag("p", {}, "Nothing yet. Click a node, a cell of the matrix or a token; ", tag("b", {}, "?"), " says the rest."));
      return;
    }
    const said = card(replica, node, app.current(node.key), app.newestDeep(node.key), app.clock.playhead, app);
    this.body.replaceChildren(tag("h3", {}, said.title), ...cardBody(said).filter(Boolean));
  }
}

class MatrixPanel extends Panel {
  constructor(app) {
    super(app, "matrix", "Layers × heads");
    this.sheet = new Sheet(150, { onpick: (x, y) => this.pick(x, y), label: "layers by heads" });
    this.body.append(this.sheet.canvas);
  }

  /** Layers run down, heads across, the FFN at the right. */
  grid(width) {
    const { layers, heads } = this.replica.look, left = 24, ffn = 16, gap = 6;
    const cell = Math.max(1.5, Math.min(24, 300 / layers));
    return { left, cell, wide: (width - left - ffn - gap) / Math.max(1, heads), ffn, ffnAt: width - ffn, height: layers * cell + 16 };
  }

  pick(x, y) {
    if (!this.replica) return;
    const { left, cell, wide, ffnAt } = this.grid(this.sheet.width), layer = Math.floor(y / cell), { layers, heads, topology } = this.replica.look;
    if (layer < 0 || layer >= layers || x < left) return;
    const index = Math.floor((x - left) / wide);
    if (x >= ffnAt) this.app.choose({ key: this.replica.key, kind: "ffn", layer, index: 0 });
    else if (index < Math.min(heads, topology.layer_heads[layer])) this.app.choose({ key: this.replica.key, kind: "head", layer, index });
  }

  draw() {
    const { app, replica } = this, push = app.picture.shows.contribution;
    const token = push ? this.deep("head_contribution") : this.token;
    this.note.textContent = token ? `${push ? "contribution [logits]" : "head_write, light"} at ${named(token)}` : "";
    if (!replica) return;
    const { layers, heads, topology } = replica.look, at = this.grid(this.sheet.width);
    const values = token?.column(push ? "head_contribution" : "head_write"), ffn = token?.column(push ? "ffn_contribution" : "ffn_write");
    this.sheet.paint((pen, width) => {
      const inset = at.cell > 4 ? 1 : 0;
      if (!inset) this.dots(pen, at, values, push);
      for (let layer = 0; layer < layers; layer++) {
        for (let head = 0; inset && head < topology.layer_heads[layer]; head++) {
          this.cell(pen, at.left + head * at.wide, layer * at.cell, at.wide - inset, at.cell - inset, values?.[layer * heads + head], "head", push);
        }
        this.cell(pen, at.ffnAt, layer * at.cell, at.ffn, at.cell - inset, ffn?.[layer], "ffn", push);
      }
      pen.fillStyle = DIM;
      pen.textAlign = "right";
      const every = Math.ceil(layers / 12);
      for (let layer = 0; layer < layers; layer += every) pen.fillText(String(layer), at.left - 6, layer * at.cell + at.cell / 2 + 4);
      pen.textAlign = "center";
      const step = Math.ceil(heads / 12);
      for (let head = 0; head < heads; head += step) pen.fillText(String(head), at.left + (head + 0.5) * at.wide, at.height - 3);
      pen.fillText("FFN", width - at.ffn / 2 - 3, at.height - 3);
      this.mark(pen, at);
    }, at.height);
  }

  /** Where cells are a few pixels each, all heads at once: as a small picture that is drawn larger. */
  dots(pen, at, values, push) {
    const { app, replica: { look: { layers, heads, topology }, lights: { display } } } = this, show = push ? null : display.head;
    const isShown = Boolean(values && (push || show)), image = new ImageData(heads, layers), { data } = image;
    const table = push ? app.colors.pushBytes : app.colors.nodeBytes, last = table.length / 3 - 1;
    let missing = false;
    for (let n = 0; n < layers * heads; n++) {
      if (n % heads >= topology.layer_heads[Math.floor(n / heads)]) continue;
      const value = isShown ? values[n] : NaN;
      if (Number.isNaN(value)) { missing = true; continue; }
      const from = 3 * Math.round(last * (push ? 0.5 + 0.5 * hueOf(value, app.constants) : show(value)));
      for (let k = 0; k < 3; k++) data[4 * n + k] = table[from + k];
      data[4 * n + 3] = 255;
    }
    if (missing) for (let layer = 0; layer < layers; layer++) if (topology.layer_heads[layer]) hatch(pen, at.left, layer * at.cell, topology.layer_heads[layer] * at.wide, at.cell);
    this.small ??= document.createElement("canvas");
    Object.assign(this.small, { width: heads, height: layers });
    this.small.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(this.small, at.left, 0, heads * at.wide, layers * at.cell);
  }

  cell(pen, x, y, w, h, value, kind, push) {
    if (value === undefined || Number.isNaN(value)) { hatch(pen, x, y, w, h); return; }
    const display = this.replica.lights.display[kind];
    if (!push && !display) { hatch(pen, x, y, w, h); return; }
    pen.fillStyle = push ? this.app.colors.push(hueOf(value, this.app.constants)) : this.app.colors.node(display(value));
    pen.fillRect(x, y, w, h);
  }

  mark(pen, at) {
    const node = this.app.node;
    if (!node || node.key !== this.replica.key || node.kind === "cell") return;
    pen.strokeStyle = WARM;
    pen.lineWidth = 1.5;
    if (node.kind === "head") pen.strokeRect(at.left + node.index * at.wide - 0.5, node.layer * at.cell - 0.5, at.wide, at.cell);
    else pen.strokeRect(at.ffnAt - 1, node.layer * at.cell - 0.5, at.ffn + 1, at.cell);
    pen.lineWidth = 1;
  }
}

class AlternativesPanel extends Panel {
  constructor(app) { super(app, "alternatives", "Token and alternatives"); }

  draw() {
    const { token, replica } = this;
    this.note.textContent = token ? `position ${token.position} · ${token.chunk.arrays.phase ? this.app.phases[token.fact("phase")] : ""}` : "";
    if (!token) { this.body.replaceChildren(tag("span", { class: "none" }, "no token yet")); return; }
    const ids = token.column("top_ids"), logs = token.column("top_logprobs"), chosen = token.fact("token_id"), rows = [];
    for (let k = 0; logs && k < Math.min(6, logs.length); k++) {
      if (Number.isNaN(logs[k])) continue;
      const id = ids ? ids[k] : -1, text = id >= 0 ? replica.history.texts.get(id) : undefined;
      rows.push([text !== undefined ? printed(text) : id >= 0 ? `#${id}` : `rank ${k}`, Math.exp(logs[k]), id >= 0 && id === chosen]);
    }
    if (!rows.some(([, , on]) => on)) rows.unshift([named(token).replace(/[“”]/g, ""), token.probability, true]);
    const number = (name, unit) => token.fact(name) === null ? tag("span", { class: "none" }, "not captured") : tag("span", {}, `${figure(token.fact(name))}${unit}`);
    const fact = (label, value) => tag("div", {}, tag("span", {}, label), value);
    this.body.replaceChildren(
      tag("div", { class: "bars" }, rows.map(([text, share, on]) => tag("div", { class: on ? "chosen" : "" }, tag("code", {}, text), tag("i", {}, tag("u", { style: `width:${100 * (share ?? 0)}%` })), tag("span", {}, share === null ? "–" : percent(share))))),
      logs ? "" : tag("p", { class: "none" }, "alternatives: not captured"),
      tag("div", { class: "figures" }, fact("entropy", number("entropy", " nats")), fact("margin", number("margin", " nats")), fact("rank", number("rank", "")), fact("log-prob.", number("logprob", " nats"))),
    );
  }
}

class AttentionPanel extends Panel {
  constructor(app) {
    super(app, "attention", "Attention over past tokens");
    this.sheet = new Sheet(84, { label: "attention weights by position" });
    this.body.append(this.sheet.canvas);
  }

  draw() {
    const { app, replica } = this, node = app.node?.key === replica?.key && app.node?.kind === "head" ? app.node : null;
    const deep = this.deep("attended_positions");
    this.note.textContent = node ? `layer ${node.layer} · head ${node.index}, routing, not importance` : "mean over heads";
    this.sheet.paint((pen, width, height) => {
      if (!deep || (node && !isMeasured(deep, node.layer))) {
        hatch(pen, 0, 0, width, height - 16);
        pen.fillStyle = SOFT;
        pen.fillText(deep ? "this layer was not looked at for this token" : "not captured", 8, height - 4);
        return;
      }
      const weights = node ? new Map(looks(deep, node.layer, node.index).map(({ position, weight }) => [position, weight])) : this.mean(deep);
      const last = Math.max(deep.position ?? 1, ...weights.keys()), step = width / (last + 1), base = height - 18;
      pen.fillStyle = TRACK;
      pen.fillRect(0, base, width, 1);
      for (const [position, weight] of weights) {
        pen.fillStyle = app.colors.node(Math.min(1, 0.25 + weight));
        const tall = Math.max(1.5, weight * (base - 12));
        pen.fillRect(position * step, base - tall, Math.max(2, step - 1), tall);
      }
      const prompt = replica.history.promptTokens(deep);
      if (prompt) { pen.fillStyle = DIM; pen.fillRect(prompt * step, 6, 1, base - 6); }
      pen.textAlign = "center";
      const placed = [];
      for (const [position, weight] of [...weights].sort((a, b) => b[1] - a[1]).slice(0, 6)) {
        const text = (textAt(replica, deep, position).replace(/[“”]/g, "") || String(position)), x = Math.min(width - 24, Math.max(24, position * step + step / 2));
        if (placed.some((other) => Math.abs(other - x) < 50)) continue;
        placed.push(x);
        pen.fillStyle = SOFT;
        pen.fillText(text === "of the prompt" ? `${position}` : text.slice(0, 9), x, height - 5);
        pen.fillText(percent(weight), x, Math.max(9, base - weight * (base - 12) - 4));
      }
      pen.textAlign = "left";
    });
  }

  mean(token) {
    const { layers, heads } = this.replica.look, sum = new Map();
    let count = 0;
    for (let layer = 0; layer < layers; layer++) {
      if (!isMeasured(token, layer)) continue;
      for (let head = 0; head < heads; head++) {
        const found = looks(token, layer, head);
        if (found.length) count++;
        for (const { position, weight } of found) sum.set(position, (sum.get(position) ?? 0) + weight);
      }
    }
    return new Map([...sum].map(([position, weight]) => [position, weight / Math.max(1, count)]));
  }
}

class LensPanel extends Panel {
  constructor(app) {
    super(app, "lens", "Logit lens");
    this.sheet = new Sheet(120, { onpick: (x, y) => this.pick(y), label: "probability of the final candidates after each layer" });
    this.body.append(this.sheet.canvas);
  }

  pick(y) {
    const cell = this.cell, layer = Math.floor((y - 14) / cell);
    if (this.replica && layer >= 0 && layer < this.replica.look.layers) this.app.choose({ key: this.replica.key, kind: "ffn", layer, index: 0 });
  }

  get cell() { return Math.max(2, Math.min(15, 210 / this.replica.look.layers)); }

  draw() {
    const { replica } = this, token = this.deep("lens_prob");
    this.note.textContent = token ? `among the final candidates, at ${named(token)}` : "";
    if (!replica) return;
    const { layers } = replica.look, cell = this.cell;
    this.sheet.paint((pen, width, height) => {
      if (!token) { hatch(pen, 0, 0, width, 40); pen.fillStyle = SOFT; pen.fillText("not captured", 8, 55); return; }
      const values = token.column("lens_prob"), ids = token.column("top_ids"), count = values.length / layers, wide = (width - 26) / count;
      pen.textAlign = "center";
      for (let k = 0; k < count; k++) {
        const id = ids ? ids[k] : -1, text = id >= 0 ? replica.history.texts.get(id) : undefined;
        pen.fillStyle = id >= 0 && id === token.fact("token_id") ? WARM : SOFT;
        pen.fillText((text !== undefined ? printed(text) : id >= 0 ? `#${id}` : String(k)).slice(0, Math.max(2, Math.floor(wide / 6.5))), 26 + (k + 0.5) * wide, 10);
      }
      for (let layer = 0; layer < layers; layer++) {
        for (let k = 0; k < count; k++) {
          const value = values[layer * count + k];
          if (Number.isNaN(value)) hatch(pen, 26 + k * wide, 14 + layer * cell, wide - 1, cell - 1);
          else { pen.fillStyle = this.app.colors.node(value); pen.fillRect(26 + k * wide, 14 + layer * cell, wide - 1, cell - (cell > 4 ? 1 : 0)); }
        }
      }
      pen.textAlign = "right";
      pen.fillStyle = DIM;
      for (let layer = 0; layer < layers; layer += Math.ceil(layers / 12)) pen.fillText(String(layer), 20, 14 + layer * cell + cell / 2 + 4);
      pen.textAlign = "left";
      const node = this.app.node;
      if (node?.key === replica.key) { pen.strokeStyle = WARM; pen.strokeRect(25.5, 14 + node.layer * cell - 0.5, width - 26, cell); }
      void height;
    }, token ? 16 + layers * cell : 62);
  }
}

class CachePanel extends Panel {
  constructor(app) {
    super(app, "cache", "Key-value cache");
    this.bars = tag("div", { class: "bars" });
    this.sheet = new Sheet(46, { label: "attention mass by distance" });
    this.figures = tag("div", { class: "figures" });
    this.body.append(this.bars, this.sheet.canvas, this.figures);
  }

  draw() {
    const { replica, app } = this;
    if (!replica) return;
    const { state = {}, look } = replica, limit = look.topology.context_length || null;
    const lanes = [...replica.lights.carpet.sequences].slice(-5);
    this.note.textContent = lanes.length ? `tokens${limit ? ` of ${limit}` : ""}, per sequence under way` : "";
    const most = limit ?? Math.max(1, ...lanes.map(([, { tokens }]) => Math.max(...tokens)));
    this.bars.replaceChildren(...lanes.map(([lane, { tokens }]) => { const count = Math.max(...tokens); return tag("div", {}, tag("code", {}, lane.split("/")[0].slice(-9)), tag("i", {}, tag("u", { style: `width:${Math.min(100, 100 * count / most)}%` })), tag("span", {}, String(count))); }));
    this.heat();
    const fact = (label, value) => tag("div", {}, tag("span", {}, label), value === null || value === undefined ? tag("span", { class: "none" }, "not reported") : tag("span", {}, String(value)));
    const fill = state.kv_bytes && state.kv_capacity_bytes ? percent(state.kv_bytes / state.kv_capacity_bytes) : null;
    this.figures.replaceChildren(fact("tokens", state.kv_tokens), fact("bytes", state.kv_bytes ? bytes(state.kv_bytes) : null), fact("capacity", state.kv_capacity_bytes ? bytes(state.kv_capacity_bytes) : null), fact("fill", fill));
    void app;
  }

  /** Attention mass by distance from the query, mean over the layers that were looked at. */
  heat() {
    const token = this.deep("kv_heat"), { heat_buckets: count, heat_recent: recent } = this.app.constants;
    this.sheet.paint((pen, width, height) => {
      pen.fillStyle = DIM;
      if (!token) { hatch(pen, 0, 6, width, 18); pen.fillText("heat by distance: not captured", 4, height - 6); return; }
      const values = token.column("kv_heat"), layers = values.length / count, wide = width / count;
      for (let b = 0; b < count; b++) {
        let sum = 0, n = 0;
        for (let layer = 0; layer < layers; layer++) { const value = values[layer * count + b]; if (!Number.isNaN(value)) { sum += value; n++; } }
        if (!n) { pen.fillStyle = TRACK; pen.fillRect(b * wide, 6, wide - 1, 22); continue; }
        pen.fillStyle = this.app.colors.node(Math.min(1, Math.sqrt(sum / n)));
        pen.fillRect(b * wide, 6, wide - 1, 22);
      }
      pen.fillStyle = DIM;
      pen.fillText("first token", 0, height - 5);
      pen.textAlign = "center";
      pen.fillText("heat: attention mass, far to near", width * 0.48, height - 5);
      pen.textAlign = "right";
      pen.fillText(`last ${recent}`, width, height - 5);
      pen.textAlign = "left";
    });
  }
}

const MOST_STEPS = 3000;

class LatencyPanel extends Panel {
  constructor(app) {
    super(app, "latency", "Latency");
    this.sheet = new Sheet(60, { onpick: (x, y, width) => this.pick(x, width), label: "step time of each kept token" });
    this.figures = tag("div", { class: "figures" });
    this.body.append(this.sheet.canvas, this.figures);
  }

  pick(x, width) {
    const { app, replica } = this;
    if (!replica?.history.span) return;
    const [from, to] = app.window;
    const at = from + x / width * (to - from), token = replica.history.last(at) ?? null;
    if (token) app.chooseToken(token);
  }

  draw() {
    const { app, replica } = this;
    if (!replica) return;
    const [from, to] = app.window, steps = [];
    for (const [chunk, i0, i1] of replica.history.between(from, to).reverse()) {
      for (let i = i1 - 1; i >= i0 && steps.length <= MOST_STEPS; i--) { const step = chunk.fact("step_s", i); if (step !== null) steps.push([chunk.at[i], step]); }
      if (steps.length > MOST_STEPS) break;
    }
    const sorted = steps.map(([, step]) => step).sort((a, b) => a - b), at = (q) => sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : null;
    const top = Math.max(1e-6, (at(0.995) ?? 1e-3) * 1.15);
    this.note.textContent = sorted.length ? `step time of ${sorted.length} kept tokens` : "";
    this.sheet.paint((pen, width, height) => {
      if (!sorted.length) { hatch(pen, 0, 0, width, height); return; }
      for (const [, q, color] of [["p50", 0.5, "#26304f"], ["p99", 0.99, "#4d3a26"]]) { pen.fillStyle = color; pen.fillRect(0, height - at(q) / top * height, width, 1); }
      pen.fillStyle = ACCENT;
      for (const [time, step] of steps) pen.fillRect((time - from) / (to - from) * width - 0.7, height - Math.min(1, step / top) * (height - 2), 1.6, 2);
      pen.fillStyle = WARM;
      pen.fillRect((app.clock.playhead - from) / (to - from) * width - 1, 0, 1.5, height);
    });
    const { state = {} } = replica, fact = (label, value) => tag("div", {}, tag("span", {}, label), value === null || value === undefined ? tag("span", { class: "none" }, "not measured") : tag("span", {}, value));
    this.figures.replaceChildren(fact("step p50", duration(at(0.5))), fact("step p99", duration(at(0.99))), fact("between tokens", duration(state.inter_token_p50_s ?? null)), fact("to first token", duration(state.first_token_p50_s || null)), fact("token → screen", duration(replica.latency)), fact("pictures", app.pace.fps ? `${Math.round(app.pace.fps)}/s` : null));
  }
}

const TRACE_AGAIN_MS = 4000, TRACE_ROWS = 14;

/** What others did for the chosen token's request: their spans of its trace, over its tokens, on one axis. */
class TracePanel extends Panel {
  constructor(app) {
    super(app, "trace", "Trace");
    this.sheet = new Sheet(60, { label: "spans of the trace over time" });
    this.said = tag("p", { class: "dim" });
    this.body.append(this.sheet.canvas, this.said);
    this.found = new Map();  // trace id -> { spans, error }
  }

  isDue() { return true; }  // it hides itself where there is nothing to tell

  async ask(id) {
    if (this.asking === id && performance.now() - this.askedAt < TRACE_AGAIN_MS) return;
    this.asking = id;
    this.askedAt = performance.now();
    try {
      const answer = await fetch(new URL(`trace/${id}${location.search}`, location.href));
      const said = await answer.json();
      this.found.set(id, answer.ok ? { spans: said.spans, error: "" } : { spans: this.found.get(id)?.spans ?? [], error: said.error });
    } catch { this.found.set(id, { spans: this.found.get(id)?.spans ?? [], error: "the viewer does not answer" }); }
    if (this.found.size > 16) this.found.delete(this.found.keys().next().value);
    this.app.stale = true;
  }

  draw() {
    const { app } = this, token = app.token, id = token?.traceId;
    this.node.hidden = !id;
    if (!id) return;
    this.ask(id);
    const { spans = [], error = "asking the collector" } = this.found.get(id) ?? {};
    this.note.textContent = id;
    this.note.title = id;
    const tokens = this.tokens(token.key, id), shown = spans.slice(0, TRACE_ROWS);
    this.said.textContent = [error, !error && !spans.length ? "no spans of others came for this trace" : "", spans.length > shown.length ? `${spans.length - shown.length} more spans: fulgurite trace ${id}` : "", shown.length ? "times are those of each host's own clock" : ""].filter(Boolean).join(" · ");
    this.sheet.canvas.setAttribute("aria-label", shown.map((span) => `${span.name}, ${span.service}, ${duration(span.end_s - span.start_s)}`).join("; "));
    this.sheet.paint((pen, width) => this.axis(pen, width, shown, tokens), 17 * (shown.length + 1) + 18);
  }

  /** When the kept tokens of the trace ended, [first to last]. */
  tokens(key, id) {
    const ends = [];
    for (const token of this.app.replicas.get(key).history.back(Infinity, (one) => one.traceId === id)) { const end = token.fact("ended_s"); if (end !== null) ends.push([end, token]); }
    return ends.reverse();
  }

  axis(pen, width, spans, tokens) {
    const times = [...spans.flatMap((span) => [span.start_s, span.end_s]), ...tokens.map(([end]) => end)], from = Math.min(...times), to = Math.max(...times, from + 1e-6);
    const left = 108, x = (time) => left + (time - from) / (to - from) * (width - left - 52), row = (text, at, color) => { pen.fillStyle = color; pen.fillText(fitted(pen, text, left - 8), 0, at + 11); };
    spans.forEach((span, i) => {
      const at = 17 * i;
      row(span.name, at, SOFT);
      pen.fillStyle = span.is_error ? "#ff6b57" : ACCENT;
      pen.fillRect(x(span.start_s), at + 3, Math.max(1.5, x(span.end_s) - x(span.start_s)), 9);
      pen.fillStyle = SOFT;
      pen.fillText(duration(span.end_s - span.start_s), x(span.end_s) + 5, at + 11);
    });
    const at = 17 * spans.length;
    row(`${tokens.length} tokens`, at, WARM);
    for (const [end, token] of tokens) { const isOn = token.is(this.app.token); pen.fillStyle = isOn ? "#ffffff" : WARM; pen.fillRect(x(end) - 0.7, at + (isOn ? 0 : 3), 1.6, isOn ? 15 : 9); }
    pen.fillStyle = DIM;
    pen.fillText("0", left, at + 29);
    pen.textAlign = "right";
    pen.fillText(duration(to - from), width - 52, at + 29);
    pen.textAlign = "left";
  }
}

/** As much of a text as is so wide. */
function fitted(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let shown = text;
  while (shown && pen.measureText(`${shown}…`).width > width) shown = shown.slice(0, -1);
  return `${shown}…`;
}

class ShowsPanel extends Panel {
  constructor(app) {
    super(app, "shows", "Shown");
    this.body.className = "shows";
    this.buttons = Object.entries({ heads: "heads", ffn: "FFN", cells: "cache", bolts: "lightning", words: "words" }).map(([part, label]) =>
      tag("button", { class: "button", "data-part": part, onclick: () => { app.picture.parts[part] = !app.picture.parts[part]; app.touch(); } }, label));
    this.body.append(...this.buttons);
  }

  draw() {
    const { app } = this;
    for (const button of this.buttons) button.setAttribute("aria-pressed", app.picture.parts[button.dataset.part]);
    this.note.textContent = [app.only.request ? `only ${app.only.request}` : "", app.only.layer !== null ? `${app.only.isHidden ? "without" : "only"} layer ${app.only.layer}` : ""].filter(Boolean).join(", ");
  }
}

/** All panels, in the order in which they stand. */
export function panels(app, side) {
  const made = [ReplicasPanel, CardPanel, TracePanel, MatrixPanel, AlternativesPanel, CachePanel, AttentionPanel, LensPanel, LatencyPanel, ShowsPanel].map((kind) => new kind(app));
  side.append(...made.map((panel) => panel.node));
  return made;
}
