// What is said of the chosen node: one sentence, then its measured values with formula, unit, percentile, when, and
// whether they are sampled. The page's `inspection.py`: the same words.
import { bytes, duration, figure, named, percent, printed, rate, signed, tag } from "./words.js";

const COMPARED = 600;  // kept tokens that a percentile compares with
const NOT_CAPTURED = "not captured";

/** {title, sentence, rows: [label, value, what], listTitle, list} of a node at its replica's present token. */
export function card(replica, node, token, deep, now, app) {
  const of = new Teller(replica, node, token, deep, now, app);
  if (node.kind === "cell") return of.cell();
  return node.kind === "head" ? of.head() : of.ffn();
}

class Teller {
  constructor(replica, node, token, deep, now, app) {
    Object.assign(this, { replica, node, token, deep, now, app, layer: node.layer });
  }

  head() {
    const { layer, node: { index } } = this, write = this.token?.value("head_write", layer, index) ?? null;
    const list = this.attended();
    return {
      title: `layer ${layer} · head ${index}`,
      sentence: write === null ? `What head ${index} of layer ${layer} added at this token was not captured.`
        : `At ${named(this.token)}, head ${index} of layer ${layer} added a vector ${figure(write)} times as long as the residual stream it joined.`,
      rows: [
        this.write("head_write", "head", write, [layer, index]),
        this.contribution("head_contribution", [layer, index]),
        this.row("attention entropy", this.seen("attention_entropy", layer, index), "attention_entropy"),
        this.row("sink mass", this.seen("sink_mass", layer, index), "sink_mass"),
        ...this.when(),
      ],
      ...list,
    };
  }

  ffn() {
    const { layer } = this, experts = this.replica.look.topology.experts, write = this.token?.value("ffn_write", layer) ?? null;
    const name = experts ? `expert ${this.node.index}` : "FFN";
    const gate = experts ? this.gate() : undefined;
    return {
      title: `layer ${layer} · ${name}`,
      sentence: experts ? (gate === null ? "Which experts the router chose was not captured." : `At ${named(this.token)}, the router of layer ${layer} gave expert ${this.node.index} the weight ${figure(gate)}${gate ? "" : ": it was not chosen"}.`)
        : write === null ? `What the feed-forward block of layer ${layer} added at this token was not captured.`
          : `At ${named(this.token)}, the feed-forward block of layer ${layer} added a vector ${figure(write)} times as long as the residual stream it joined.`,
      rows: [
        ...(experts ? [this.row("gate weight", gate, "expert_weights")] : []),
        this.write("ffn_write", "ffn", write, [layer]),
        this.row("cosine to the stream", this.token?.value("ffn_cosine", layer) ?? null, "ffn_cosine"),
        this.contribution("ffn_contribution", [layer]),
        ...this.when(),
      ],
      ...this.neurons(),
    };
  }

  cell() {
    const { carpet } = this.replica.lights, { layer, node: { index } } = this, first = index * carpet.perCell, i = layer * carpet.cells + index;
    const fill = carpet.isMeasured ? carpet.fill(layer, index) : null;
    const range = carpet.perCell === 1 ? `position ${first}` : `positions ${first} to ${first + carpet.perCell - 1}`;
    const ago = (stamp) => stamp === -Infinity ? "not in what is kept" : `${figure(Math.max(0, this.now - stamp), 2)} s ago`;
    const tokens = this.token?.value("kv_tokens", layer) ?? null, size = this.token?.fact("kv_bytes") ?? null;
    return {
      title: `layer ${layer} · cache ${range}`,
      sentence: fill === null ? "How full the cache is was not captured." : `${percent(fill)} of the sequences under way have keys and values cached here in layer ${layer}.`,
      rows: [
        ["filled", fill === null ? NOT_CAPTURED : percent(fill), "share of the sequences under way that reach this cell"],
        ["written", ago(carpet.written[i]), "when a token's keys and values went here"],
        ["read", ago(carpet.read[i]), "when a drawn head looked here; heads that are not drawn may have, too"],
        this.row("cached by this token", tokens, "kv_tokens"),
        ["cache of its sequence", size === null ? NOT_CAPTURED : bytes(size), "all layers"],
        ...this.when(),
      ],
      listTitle: "", list: [],
    };
  }

  gate() {
    const ids = this.token?.column("expert_ids"), weights = this.token?.column("expert_weights");
    if (!ids || !weights) return null;
    const each = ids.length / this.replica.look.layers;
    for (let e = 0; e < each; e++) if (ids[this.layer * each + e] === this.node.index) return weights[this.layer * each + e];
    return 0;
  }

  /** A value that only a deep frame carries, in a layer that was looked at. */
  seen(channel, ...at) { return this.deep && isMeasured(this.deep, this.layer) ? this.deep.value(channel, ...at) : null; }

  row(label, value, channel) {
    const { unit, formula } = this.app.channels[channel];
    return [label, value === null ? NOT_CAPTURED : figure(value) + (unit === "1" ? "" : ` ${unit}`), formula];
  }

  write(channel, kind, value, at) {
    const row = this.row("write norm", value, channel), display = this.replica.lights.display[kind];
    if (value === null) return row;
    if (display) row[2] += ` · light ${Math.round(100 * display(value))} % between ${figure(display.low, 2)} and ${figure(display.high, 2)}${display.isLog ? ", logarithmic" : ""}`;
    const rank = this.percentile(channel, value, at);
    if (rank) row[2] += ` · ${rank}`;
    return row;
  }

  contribution(channel, at) {
    const value = this.deep?.value(channel, ...at) ?? null, row = this.row("contribution", value, channel);
    if (value === null) return row;
    row[1] = `${signed(value)} logits`;
    const residue = this.deep.fact("residue"), bound = this.replica.look.header.residue_bound;
    if (residue === null || Math.abs(residue) > bound) row[2] = `unverified: the residue is over ${bound} σ, or unknown`;
    else row[2] += ` · ${value > 0 ? "towards" : "against"} ${named(this.deep)}`;
    return row;
  }

  /** Where a value lies among those of the same node at the tokens that are kept. */
  percentile(channel, value, at) {
    let below = 0, count = 0;
    for (const other of this.replica.history.back(Infinity)) {
      const found = other.value(channel, ...at);
      if (found !== null) { count++; if (found < value) below++; }
      if (count >= COMPARED) break;
    }
    return count > 9 ? `larger than at ${Math.round(100 * below / count)} % of ${count} kept tokens` : "";
  }

  attended() {
    const { deep, layer, node: { index } } = this, positions = deep?.column("attended_positions");
    if (!positions) return { listTitle: "attended positions: not captured", list: [] };
    if (!isMeasured(deep, layer)) return { listTitle: "attended positions: this layer was not looked at for this token", list: [] };
    const list = looks(deep, layer, index).slice(0, 5).map(({ position, weight }) => [percent(weight), `position ${position}`, textAt(this.replica, deep, position)]);
    return { listTitle: "attends most to (routing, not importance)", list };
  }

  neurons() {
    if (this.replica.look.topology.experts) {
      const ids = this.token?.column("expert_ids"), weights = this.token?.column("expert_weights");
      if (!ids || !weights) return { listTitle: "experts: not captured", list: [] };
      const each = ids.length / this.replica.look.layers, list = [];
      for (let e = 0; e < each; e++) if (ids[this.layer * each + e] >= 0) list.push([figure(weights[this.layer * each + e]), `expert ${ids[this.layer * each + e]}`, ""]);
      return { listTitle: "experts and their gate weights", list };
    }
    const ids = this.deep?.column("neuron_ids"), values = this.deep?.column("neuron_values");
    if (!ids || !values) return { listTitle: "largest neurons: not captured", list: [] };
    const each = ids.length / this.replica.look.layers, list = [];
    for (let n = 0; n < Math.min(5, each); n++) if (ids[this.layer * each + n] >= 0) list.push([figure(values[this.layer * each + n]), `neuron ${ids[this.layer * each + n]}`, ""]);
    return { listTitle: `largest neurons, ${this.app.channels.neuron_values.formula} [residual units]`, list };
  }

  when() {
    const { token, deep, now, replica } = this;
    if (!token) return [["token", "none yet", ""]];
    const rows = [["token", `${named(token)}, position ${token.position}`, `request ${token.requestId}, sequence ${token.sequence}`]];
    if (deep && !token.is(deep)) rows.push(["deep values of", `${named(deep)}, position ${deep.position}`, `${duration(Number(Math.max(0, now - deep.at).toPrecision(2)))} before the playhead`]);
    const step = token.fact("step"), rates = replica.lights.rates;
    rows.push(["when", `${duration(Number(Math.max(0, now - token.at).toPrecision(2)))} ago`, `${step === null ? "" : `step ${step}, `}before the playhead`]);
    rows.push(["level", this.app.levels[token.fact("level") ?? 0], rates.tokens ? `sampled: deep values of ${rate(Math.max(rates.read, rates.push), rates.tokens)}` : ""]);
    return rows;
  }
}

/** Whether attention was captured in this layer: where layers take turns, only one is. */
export function isMeasured(token, layer) {
  const measured = token.column("measured_layers");
  return !measured || measured[layer] > 0;
}

/** Where a head looked: [{position, weight}], the most first. */
export function looks(token, layer, head) {
  const positions = token.column("attended_positions"), weights = token.column("attended_weights");
  if (!positions || !weights) return [];
  const [, heads, k] = token.chunk.shape("attended_positions"), at = (layer * heads + head) * k;
  return Array.from({ length: k }, (_, i) => ({ position: positions[at + i], weight: weights[at + i] })).filter(({ position, weight }) => position >= 0 && weight > 0);
}

/** The token at a position of a sequence, as far as it is known. */
export function textAt(replica, token, position) {
  const text = replica.history.textAt(token, position);
  if (text !== null) return `“${printed(text)}”`;
  const prompt = replica.history.promptTokens(token);
  return prompt !== null && position < prompt ? "of the prompt" : "";
}

/** A card as a piece of the page. */
export function cardBody({ sentence, rows, listTitle, list }) {
  const value = (text) => text === NOT_CAPTURED ? tag("span", { class: "none" }, text) : text;
  return [
    tag("p", {}, sentence),
    tag("dl", {}, rows.flatMap(([label, shown, what]) => [tag("dt", {}, label), tag("dd", {}, value(shown)), what ? tag("dd", { class: "what" }, what) : null])),
    listTitle ? tag("h4", {}, listTitle) : null,
    list.length ? tag("ol", {}, list.map((entry) => tag("li", {}, entry.map((part) => tag("span", {}, part))))) : null,
  ];
}
