// The page's own Vue components: keys, the token strip, the time bar. Everything shown comes from the server's state.
(function () {
  "use strict";

  const EDITABLE = new Set(["INPUT", "TEXTAREA", "SELECT"]);

  // A key as the table of commands writes it: Space, Shift+ArrowLeft, Control+ArrowRight, ?, 1.
  function named(event) {
    const key = event.key === " " ? "Space" : event.key;
    const printable = key.length === 1;
    let parts = "";
    if (event.ctrlKey) parts += "Control+";
    if (event.altKey) parts += "Alt+";
    if (event.shiftKey && !printable) parts += "Shift+";
    return parts + (printable ? key.toLowerCase() : key);
  }

  function number(value, digits) {
    return value === null || value === undefined ? "not captured" : value.toFixed(digits);
  }

  const Keys = {
    name: "fg-keys",
    props: { keys: { type: Array, default: () => [] } },
    inject: ["trame"],
    template: "<span hidden></span>",
    mounted() {
      this.trame.refs.fg_keys = this;
      window.addEventListener("keydown", this.pressed, true);
    },
    unmounted() {
      window.removeEventListener("keydown", this.pressed, true);
    },
    methods: {
      pressed(event) {
        const name = named(event);
        if (event.metaKey || !this.keys.includes(name)) return;
        if (EDITABLE.has(event.target.tagName) && name !== "Escape") return;
        if (event.target.closest && event.target.closest(".v-overlay__content") && name !== "Escape" && name !== "?") return;
        event.preventDefault();
        event.stopPropagation();
        if (document.activeElement && document.activeElement.tagName === "BUTTON") document.activeElement.blur();
        this.trame.trigger("fg_key", [name]);
      },
      fullscreen() {
        if (document.fullscreenElement) document.exitFullscreen();
        else document.documentElement.requestFullscreen().catch(() => {});
      },
      save(name, base64) {
        const link = document.createElement("a");
        link.href = "data:image/png;base64," + base64;
        link.download = name;
        link.click();
      },
    },
  };

  // A chip travels as an array: serial, text, probability, position, logprob, entropy, rank, phase, step in ms, token id.
  const Strip = {
    name: "fg-strip",
    props: { replicas: { type: Array, default: () => [] }, text: { type: Boolean, default: true } },
    data: () => ({ hovered: null, at: { x: 0, y: 0 } }),
    template: `
      <div class="fg-strip" :class="{ 'fg-strip-many': replicas.length > 1 }">
        <section v-for="replica in replicas" :key="replica.key" class="fg-strip-replica">
          <header>
            <span class="fg-dot" :class="'fg-' + replica.state" :title="replica.state"></span>
            <b>{{ replica.name }}</b>
            <span class="fg-dim">{{ replica.figures }}</span>
            <span v-if="replica.unseen" class="fg-more">+{{ replica.unseen }} more sequences</span>
            <span v-if="replica.gap" class="fg-gap" :title="replica.gap">{{ replica.gap }}</span>
          </header>
          <div v-for="lane in replica.lanes" :key="lane.id" class="fg-lane" :style="{ '--tint': lane.tint }">
            <span class="fg-request" :title="'request ' + lane.request + ', sequence ' + lane.sequence">{{ lane.label }}</span>
            <div class="fg-chips">
              <TransitionGroup name="fg-chip">
              <span v-for="chip in newest(lane)" :key="chip[0]" class="fg-token"
                    :class="{ 'fg-first': chip[7] === 'prefill', 'fg-unknown': chip[2] === null, 'fg-word': begins(chip[1]) }"
                    @mouseenter="hover(chip, lane, $event)" @mouseleave="hovered = null">
                <i>{{ shown(chip[1], true) }}</i>
                <u :style="{ width: chip[2] === null ? '100%' : Math.max(2, chip[2] * 100) + '%' }"></u>
              </span>
              </TransitionGroup>
            </div>
          </div>
          <div v-if="!replica.lanes.length" class="fg-empty">{{ replica.empty }}</div>
        </section>
        <Teleport to="body">
          <dl v-if="hovered" class="fg-tip" :style="{ left: at.x + 'px', bottom: at.y + 'px', '--tint': hovered.lane.tint }">
            <dt class="fg-tip-text">{{ tokenName(hovered.chip) }}</dt>
            <dt>position</dt><dd>{{ hovered.chip[3] }}</dd>
            <dt>probability</dt><dd>{{ percent(hovered.chip[2]) }}</dd>
            <dt>log-probability</dt><dd>{{ number(hovered.chip[4], 3) }}<s> nats</s></dd>
            <dt>entropy</dt><dd>{{ number(hovered.chip[5], 3) }}<s> nats</s></dd>
            <dt>rank</dt><dd>{{ hovered.chip[6] === null ? "not captured" : hovered.chip[6] }}</dd>
            <dt>step</dt><dd>{{ number(hovered.chip[8], 1) }}<s> ms</s></dd>
            <dt>phase</dt><dd>{{ hovered.chip[7] }}</dd>
            <dt>request</dt><dd class="fg-tip-request">{{ hovered.lane.request }} · {{ hovered.lane.sequence }}</dd>
          </dl>
        </Teleport>
      </div>`,
    methods: {
      number,
      newest(lane) {
        return lane.chips.slice().reverse(); // the row runs from right to left, so that the newest stays in sight
      },
      begins(text) {
        return text !== null && text.length > 1 && text[0] === " ";
      },
      shown(text, inRow) {
        if (text === null) return "·";
        if (text === "") return "∅";
        const marked = text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
        if (marked.trim() === "") return "␣".repeat(marked.length);
        return inRow ? marked.trim() : marked.replace(/ /g, "␣");
      },
      percent(value) {
        return value === null ? "not captured" : (value * 100).toFixed(value < 0.1 ? 2 : 1) + " %";
      },
      tokenName(chip) {
        if (chip[1] !== null) return "“" + this.shown(chip[1]) + "”";
        return chip[9] === null ? "token (text is off)" : "token " + chip[9];
      },
      hover(chip, lane, event) {
        const box = event.currentTarget.getBoundingClientRect();
        this.at = {
          x: Math.min(Math.max(8, box.left - 20), window.innerWidth - 252),
          y: window.innerHeight - box.top + 8,
        };
        this.hovered = { chip, lane };
      },
    },
  };

  // The kept past: tokens per slice of time, gaps, and the playhead. Drag to scrub.
  const Time = {
    name: "fg-time",
    props: { time: { type: Object, default: () => ({ bins: [], gaps: [], at: 1 }) }, mode: { type: String, default: "live" } },
    inject: ["trame"],
    data: () => ({ dragged: null }),
    template: `
      <div class="fg-time" :class="'fg-time-' + mode" @pointerdown="down" @pointermove="move" @pointerup="up"
           :title="'the last ' + time.span + ' s; tallest bar ' + time.peak + ' tokens/s'">
        <svg preserveAspectRatio="none" :viewBox="'0 0 ' + Math.max(1, time.bins.length) + ' 1'">
          <rect v-for="(value, index) in time.bins" :key="index" :x="index + 0.1" width="0.8"
                :y="1 - value" :height="value"></rect>
        </svg>
        <span v-for="(gap, index) in time.gaps" :key="'g' + index" class="fg-time-gap" :style="{ left: gap * 100 + '%' }"></span>
        <span class="fg-playhead" :style="{ left: 100 * (dragged === null ? time.at : dragged) + '%' }"></span>
      </div>`,
    methods: {
      fraction(event) {
        const box = this.$el.getBoundingClientRect();
        return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      },
      down(event) {
        this.$el.setPointerCapture(event.pointerId);
        this.move(event, true);
      },
      move(event, begins) {
        if (this.dragged === null && begins !== true) return;
        const to = this.fraction(event);
        if (this.dragged !== to) this.trame.trigger("fg_scrub", [to]);
        this.dragged = to;
      },
      up() {
        this.dragged = null;
      },
    },
  };

  // The node under the pointer: says where the pointer is, shows what the server knows of that node. A click pins.
  const Probe = {
    name: "fg-probe",
    props: { card: { type: Object, default: null } },
    inject: ["trame"],
    data: () => ({ at: { x: 0, y: 0 }, room: { w: 1, h: 1 } }),
    template: `
      <div class="fg-probe">
        <div v-if="card && card.mark" class="fg-ring" :class="{ 'fg-pinned': card.pinned }" :style="ring"></div>
        <div v-if="card" class="fg-card" :class="{ 'fg-pinned': card.pinned }" :style="place" role="status">
          <header><b>{{ card.title }}</b><span>{{ card.replica }}</span></header>
          <dl>
            <template v-for="row in card.rows" :key="row[0]">
              <dt>{{ row[0] }}</dt><dd :class="{ 'fg-missing': row[1] === 'not captured' }">{{ row[1] }}</dd>
              <dd v-if="row[2]" class="fg-what">{{ row[2] }}</dd>
            </template>
          </dl>
          <h4 v-if="card.list_title">{{ card.list_title }}</h4>
          <ol v-if="card.list.length">
            <li v-for="(entry, index) in card.list" :key="index">
              <span>{{ entry[0] }}</span><span>{{ entry[1] }}</span><span>{{ entry[2] }}</span>
            </li>
          </ol>
          <footer>{{ card.pinned ? "pinned · Esc closes" : "click to keep" }}</footer>
        </div>
      </div>`,
    computed: {
      ring() {
        const [x, y, reach] = this.card.mark;
        return { left: 100 * x + "%", top: 100 * y + "%", height: 200 * reach + "%" };
      },
      place() {
        if (!this.card || this.card.pinned) return {};
        const right = this.at.x > this.room.w - 330, low = this.at.y > 0.55 * this.room.h;
        return {
          left: right ? "auto" : this.at.x + 18 + "px",
          right: right ? this.room.w - this.at.x + 18 + "px" : "auto",
          top: low ? "auto" : Math.max(8, this.at.y - 10) + "px",
          bottom: low ? Math.max(8, this.room.h - this.at.y - 10) + "px" : "auto",
        };
      },
    },
    mounted() {
      this.scene = this.$el.parentElement;
      this.sent = 0;
      for (const [name, listener] of Object.entries(this.listeners())) this.scene.addEventListener(name, listener, true);
    },
    methods: {
      listeners() {
        return { pointermove: this.move, pointerleave: this.leave, pointerdown: this.down, pointerup: this.up };
      },
      shares(event) {
        const box = this.scene.getBoundingClientRect();
        this.room = { w: box.width, h: box.height };
        this.at = { x: event.clientX - box.left, y: event.clientY - box.top };
        return [this.at.x / box.width, this.at.y / box.height];
      },
      move(event) {
        if (event.buttons) return;
        this.pending = this.shares(event);
        if (this.timer) return;
        this.timer = setTimeout(() => {
          this.timer = null;
          if (this.pending) this.trame.trigger("fg_point", this.pending);
          this.pending = null;
        }, Math.max(0, this.sent + 60 - performance.now()));
        this.sent = performance.now();
      },
      leave(event) {
        if (event.target !== this.scene) return;
        this.pending = null;
        this.trame.trigger("fg_point", []);
      },
      down(event) {
        this.pressed = event.button === 0 ? { x: event.clientX, y: event.clientY } : null;
      },
      up(event) {
        const from = this.pressed;
        this.pressed = null;
        if (from && Math.hypot(event.clientX - from.x, event.clientY - from.y) < 5) {
          this.trame.trigger("fg_click", this.shares(event));
        }
      },
    },
  };

  window.fulgurite = {
    install(app) {
      for (const component of [Keys, Strip, Time, Probe]) app.component(component.name, component);
    },
  };
})();
