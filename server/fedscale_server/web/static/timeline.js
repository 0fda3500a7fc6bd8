// One lane a site, drawn by what it does: each stage has a colour and a height of its own; lost connections are hatched, failures crossed.

import { colours, sized } from "/static/chart.js";

const LANE = 24, FOOT = 22, PHASES = 40, LETTER = 7.2, TOTAL = 95;
// The rules of lanes are those of fedscale/lanes.py; a test compares the two.
const MOST_MARKS = 64;
// In the order in which a site meets them: words for the legend, then for what is told of a part.
export const STAGES = {
  wait: ["waits", "waited"], download: ["downloads", "downloaded"], train: ["trains", "trained"], evaluate: ["evaluates", "evaluated"], mask: ["masks", "masked"],
  upload: ["uploads", "uploaded"], unmask: ["unmasks", "unmasked"], away: ["connection lost", "connection lost"], failed: ["failed", "failed"],
};
const AFTER = { answered: "wait", failed: "failed", lost: "away" };
const COLOUR = { wait: "soft", download: "c3", train: "c0", evaluate: "c2", mask: "c5", upload: "c1", unmask: "c4" };
// Top and bottom of a part within its lane.
const HEIGHT = { wait: [11, 13], download: [12, 21], train: [3, 21], evaluate: [3, 21], mask: [8, 16], upload: [3, 12], unmask: [6, 18], away: [3, 21], failed: [3, 21] };

export class Timeline {
  constructor(canvas, readout, legend) {
    Object.assign(this, { canvas, readout, rounds: [], past: null, progress: new Map(), now: 0, lane: 0, part: -1, skew: 0 });
    for (const [name, text] of [...Object.entries(STAGES).map(([stage, [words]]) => [stage, words]), ["again", "tried again"]]) {
      const item = document.createElement("li"), box = document.createElement("span");
      box.className = `key-box phase-${name}`;
      item.append(box, text);
      legend.append(item);
    }
    canvas.addEventListener("pointermove", (event) => this.tell(event.offsetX, Math.floor(event.offsetY / LANE)));
    canvas.addEventListener("pointerleave", () => { this.readout.textContent = ""; });
    canvas.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.redraw()).observe(canvas);
  }
  /** The round that is open. */
  get open() {
    const last = this.rounds.at(-1);
    return last?.end === null ? last : undefined;
  }
  /** What is drawn: the newest rounds, or those of long ago that somebody looks at. */
  get shown() { return this.past ?? this.rounds; }
  /** Show rounds of long ago; with `null` follow the newest ones again. */
  look(past) {
    Object.assign(this, { past: past?.map((round) => ({ ...round, lanes: new Map(Object.entries(round.lanes)) })) ?? null, part: -1 });
    this.readout.textContent = "";
    this.redraw();
  }
  /** Note an event of the run, in the order in which they come. */
  take({ kind, node, phase, number, at, detail }) {
    this.now = Math.max(this.now, at);
    if (kind === "opened") this.begin({ phase, number, opened: at, end: null, lanes: new Map(detail.cohort.map((site) => [site, [["wait", 0]]])) });
    else if (kind === "lanes" && this.open) this.open.lanes = new Map(Object.entries(detail.lanes));
    else if (kind === "stage") this.mark(node, detail.stage, at, detail.again);
    else if (kind === "returned") this.mark(node, this.open?.lanes.get(node)?.findLast(([stage]) => stage !== "away")?.[0] ?? "wait", at);
    else if (kind === "spoke") { if (this.doing(node) === "unmask") this.mark(node, "wait", at); }
    else if (kind === "progress") this.progress.set(node, detail.fraction);
    else if (kind in AFTER) this.mark(node, AFTER[kind], at);
    else if (kind === "closed" || kind === "finished") this.close(at, detail);
    this.redraw();
  }
  begin(round) {
    this.close(round.opened, {});
    this.rounds = [...this.rounds.slice(1 - PHASES), round];
  }
  close(at, { lanes }) {
    if (!this.open) return;
    if (lanes) this.open.lanes = new Map(Object.entries(lanes));
    this.open.end = at;
    this.progress.clear();
  }
  doing(site) { return this.open?.lanes.get(site)?.at(-1)[0]; }
  mark(site, stage, at, again = false) {
    const lane = this.open?.lanes.get(site), doing = this.doing(site);
    if (!lane || doing === "failed" || (doing === stage && !again) || (lane.length >= MOST_MARKS && stage !== "failed")) return;
    this.progress.delete(site);
    lane.push([stage, Math.max(at - this.open.opened, lane.at(-1)[1])]);
  }
  redraw() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(); });
  }
  /** What time the axis ends at: the coordinator's now while a round is open, so that lanes grow between events. */
  get ends() {
    if (this.past) return this.past.at(-1)?.end ?? 0;
    return this.open ? Math.max(this.now, Date.now() / 1000 + this.skew) : this.now;
  }
  get sites() {
    return [...new Set(this.shown.flatMap((round) => [...round.lanes.keys()]))];
  }
  /** The parts of a site's lane through all rounds. */
  parts(site) {
    return this.shown.flatMap((round) => (round.lanes.get(site) ?? []).map(([stage, at], place, lane) => {
      const end = stage === "failed" ? at : lane[place + 1]?.[1] ?? (round.end ?? this.ends) - round.opened;
      const going = round.end === null && place === lane.length - 1;
      return { stage, round, from: round.opened + at, to: round.opened + Math.max(end, at), again: lane[place - 1]?.[0] === stage, going };
    }));
  }
  draw() {
    const sites = this.sites, lanes = sites.map((site) => this.parts(site));
    this.canvas.style.height = `${Math.max(sites.length, 1) * LANE + FOOT}px`;
    const { pen, width, height } = sized(this.canvas), c = colours(), ends = this.ends, begins = this.shown[0]?.opened ?? 0, label = this.label = Math.min(120, width / 4);
    if (!sites.length) return this.empty(pen, c);
    const x = (this.x = (at) => label + ((at - begins) / Math.max(ends - begins, 1e-3)) * (width - label - 10));
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif"; pen.textBaseline = "middle";
    this.numbers(pen, x, width, height, c);
    lanes.forEach((parts, row) => this.draw_lane(pen, sites[row], parts, row, x, c));
    const all = lanes.flat(), count = (wanted) => all.filter(wanted).length;
    Object.assign(this.canvas.dataset, {
      lanes: sites.length, parts: all.length, again: count((part) => part.again),
      failed: count(({ stage }) => stage === "failed" || stage === "away"), stages: [...new Set(all.map(({ stage }) => stage))].join(" "),
    });
  }
  empty(pen, c) {
    pen.font = "13px system-ui, 'DejaVu Sans', sans-serif"; pen.textBaseline = "top"; pen.fillStyle = c.soft;
    pen.fillText("Nothing to draw: no round was followed yet.", 0, 4);
  }
  /** The numbers of the rounds, and at the right how long all of it took. */
  numbers(pen, x, width, height, c) {
    let free = -Infinity;
    pen.textAlign = "center";
    for (const { phase, number, opened } of this.shown) {
      const left = x(opened);
      pen.fillStyle = c.line; pen.fillRect(left, 0, 1, height - FOOT);
      if (phase === "train" && left > free && left < width - TOTAL) { pen.fillStyle = c.soft; pen.fillText(String(number), left, height - FOOT / 2); free = left + 34; }
    }
    pen.textAlign = "right"; pen.fillStyle = c.soft; pen.fillText("round", this.label - 12, height - FOOT / 2);
    pen.fillText(`${lasts(this.ends - this.shown[0].opened)} in all`, width - 10, height - FOOT / 2);
  }
  draw_lane(pen, site, parts, row, x, c) {
    const top = row * LANE, chosen = row === this.lane && document.activeElement === this.canvas;
    pen.fillStyle = chosen ? c.accent : c.ink;
    pen.textAlign = "right";
    const letters = Math.floor((this.label - 10) / LETTER);
    pen.fillText(shortened(site, letters), this.label - 10, top + LANE / 2);
    for (const part of parts) {
      const left = x(part.from), wide = Math.max(x(part.to) - left, 1.5), [high, low] = HEIGHT[part.stage];
      if (part.stage === "failed") this.cross(pen, left, top + LANE / 2, c);
      else if (part.stage === "away") this.hatch(pen, left, top + high, wide, low - high, c);
      else { pen.fillStyle = c[COLOUR[part.stage]]; pen.fillRect(left, top + high, wide, low - high); }
      if (part.again) this.notch(pen, left, top, c);
      if (part.going && this.progress.has(site)) { pen.fillStyle = c.ink; pen.fillRect(left, top + LANE - 4, wide * this.progress.get(site), 2); }
    }
    const marked = chosen ? parts.at(this.part) : undefined;
    if (marked) { pen.strokeStyle = c.accent; pen.lineWidth = 2; pen.strokeRect(x(marked.from) - 1, top + 1, Math.max(x(marked.to) - x(marked.from), 3) + 2, LANE - 2); }
  }
  hatch(pen, left, top, wide, tall, c) {
    const right = left + Math.max(wide, 6);
    pen.save();
    pen.beginPath(); pen.rect(left, top, right - left, tall); pen.clip();
    pen.strokeStyle = c.bad; pen.lineWidth = 1.5; pen.beginPath();
    for (let at = left - tall; at < right; at += 5) { pen.moveTo(at, top + tall); pen.lineTo(at + tall, top); }
    pen.stroke(); pen.restore();
  }
  /** A further attempt: a wedge from above and a gap below it. */
  notch(pen, x, top, c) {
    pen.fillStyle = c.card; pen.fillRect(x - 1.5, top + 2, 3, LANE - 4);
    pen.fillStyle = c.ink; pen.beginPath(); pen.moveTo(x - 4, top); pen.lineTo(x + 4, top); pen.lineTo(x, top + 7); pen.fill();
  }
  cross(pen, x, y, c) {
    pen.lineCap = "round";
    for (const colour of [c.card, c.bad]) {
      pen.strokeStyle = colour; pen.lineWidth = colour === c.bad ? 2.2 : 5;
      pen.beginPath(); pen.moveTo(x - 4, y - 4); pen.lineTo(x + 4, y + 4); pen.moveTo(x + 4, y - 4); pen.lineTo(x - 4, y + 4); pen.stroke();
    }
  }
  tell(left, row) {
    const site = this.sites[row];
    if (!site || !this.x) return;
    const part = this.parts(site).findLast((each) => this.x(each.from) - 3 <= left && left <= Math.max(this.x(each.to), this.x(each.from) + 4));
    this.readout.textContent = part ? `${site}: ${words(part)}` : site;
  }
  /** Up and down choose a lane, left and right a part of it, which is told. */
  step(event) {
    const lane = { ArrowUp: -1, ArrowDown: 1 }[event.key], move = { ArrowLeft: -1, ArrowRight: 1 }[event.key], sites = this.sites;
    if (!(lane || move) || !sites.length) return;
    event.preventDefault();
    this.lane = Math.min(Math.max(this.lane + (lane ?? 0), 0), sites.length - 1);
    const parts = this.parts(sites[this.lane]);
    this.part = lane ? -1 : Math.min(Math.max(this.part + move, -parts.length), -1);
    this.readout.textContent = `${sites[this.lane]}: ${words(parts.at(this.part))}`;
    this.redraw();
  }
}

const lasts = (seconds) => (seconds < 100 ? `${Number(seconds.toPrecision(2))} s` : `${Number((seconds / 60).toPrecision(2))} min`);

/** A name in at most so many letters, its middle left out: what tells one from another often stands at the end. */
function shortened(name, most) {
  const tail = Math.floor((most - 1) / 2);
  return name.length <= most ? name : `${name.slice(0, most - 1 - tail)}…${name.slice(name.length - tail)}`;
}

function words({ stage, round, from, to, again, going }) {
  const lasted = stage === "failed" ? "" : `, ${(to - from).toFixed(1)} s${going ? " so far" : ""}`;
  return `${STAGES[stage][1]}${again ? " again" : ""}, ${round.phase} ${round.number}${lasted}`;
}
