// One person's time: what moves their playhead. Live it is a little behind the present; paused it stands; playing it
// runs behind the present at its own speed, perhaps around a loop. Pure: who calls brings the present.

export const DELAY_S = 0.15;
export const SLOWEST = 0.1, FASTEST = 10;
const BREAK_S = 1.5;  // the present moved by more at once: the clocks were set

export class Clock {
  constructor() {
    Object.assign(this, { mode: "live", speed: 1, playhead: null, ticked: null, loop: null, jump: false });
  }

  /** Move to where the playhead should be; {from, to, jumped}. */
  tick(present) {
    const before = this.playhead, live = present - DELAY_S;
    const since = this.ticked === null ? 0 : Math.max(0, present - this.ticked);
    this.ticked = present;
    if (before === null || this.mode === "live") this.playhead = live;
    else if (this.mode === "playing" && !this.jump) this.playhead = Math.min(before + since * this.speed, live);
    if (this.loop && this.playhead > this.loop[1]) { this.playhead = this.loop[0]; this.jump = true; }
    const jumped = this.jump || before === null || this.playhead < before - 0.05 || (this.mode === "live" && this.playhead - before > BREAK_S);
    this.jump = false;
    return { from: before ?? live, to: this.playhead, jumped };
  }

  pause() { this.mode = "paused"; }
  toggle() { this.mode = this.mode === "paused" ? "playing" : "paused"; }
  goLive() { Object.assign(this, { mode: "live", speed: 1, loop: null, jump: true }); }

  /** Play the past at a speed; the present has its own. */
  setSpeed(speed) {
    this.speed = Math.min(FASTEST, Math.max(SLOWEST, speed));
    if (this.mode === "live" && this.speed !== 1) this.mode = "playing";
  }

  seek(to, span) {
    if (this.playhead === null) return;
    this.playhead = span ? Math.min(Math.max(to, span[0]), Math.max(span[0], this.ticked - DELAY_S)) : to;
    this.jump = true;
    if (this.mode === "live") this.mode = "playing";
  }

  around(from, to) { this.loop = [from, to]; this.mode = "playing"; this.playhead = from; this.jump = true; }
}
