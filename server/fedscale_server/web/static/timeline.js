// One lane a site, coloured by what it does; gaps and ends of those that dropped out are hatched and crossed.

import { colours, sized } from "/static/chart.js";

const LANE = 22, LABEL = 120, FOOT = 22, PHASES = 40;
export const KEYS = [["train", "trains"], ["evaluate", "evaluates"], ["wait", "done, waits for others"], ["mask", "message of secure aggregation"], ["away", "connection lost"], ["failed", "failed"]];

export class Timeline {
  constructor(canvas, readout, legend) {
    Object.assign(this, { canvas, readout, lanes: new Map(), open: new Map(), progress: new Map(), marks: [], now: 0, lane: 0, skew: 0 });
    for (const [name, text] of KEYS) {
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
  /** Note an event of the run; events that were taken before are recognised by the order of their numbers. */
  take(event) {
    const { kind, node, phase, number, at, detail } = event;
    this.now = Math.max(this.now, at);
    if (kind === "opened") { this.marks.push({ at, text: `${number}`, phase }); for (const site of detail.cohort) this.start(site, phase, number, at); }
    else if (kind === "answered") { this.end(node, at); this.start(node, "wait", number, at); }
    else if (kind === "failed") this.end(node, at, `${detail.cause}: ${detail.what}`);
    else if (kind === "lost") { const doing = this.open.get(node); if (doing) { this.end(node, at); this.start(node, "away", number, at); this.open.get(node).before = doing.phase; } }
    else if (kind === "returned") { const away = this.open.get(node); this.end(node, at); this.start(node, away?.before ?? phase, number, at); }
    else if (kind === "spoke" && this.lanes.has(node)) this.lanes.get(node).push({ phase: "mask", number, from: at, to: at, failed: "" });
    else if (kind === "progress") this.progress.set(node, detail.fraction);
    else if (kind === "closed") this.close(at, detail.failures ?? {});
    else if (kind === "finished") this.close(at, {});
    this.redraw();
  }
  start(site, phase, number, at) {
    this.progress.delete(site);
    if (!this.lanes.has(site)) this.lanes.set(site, []);
    const part = { phase, number, from: at, to: null, failed: "" };
    this.lanes.get(site).push(part);
    this.open.set(site, part);
  }
  end(site, at, failed = "") {
    const part = this.open.get(site);
    if (part) Object.assign(part, { to: at, failed });
    this.open.delete(site);
  }
  close(at, failures) {
    for (const site of [...this.open.keys()]) this.end(site, at, failures[site] ? `${failures[site].cause}: ${failures[site].what}` : "");
    for (const [site, parts] of this.lanes) if (parts.length > 600) this.lanes.set(site, parts.slice(-400));
  }
  redraw() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(); });
  }
  /** What time the axis ends at: the coordinator's now while something is open, so that lanes grow between events. */
  get ends() {
    return this.open.size ? Math.max(this.now, Date.now() / 1000 + this.skew) : this.now;
  }
  /** Where the axis begins: a few dozen phases back, for more of them would be too thin to be seen. */
  get begins() {
    return this.marks.at(-PHASES)?.at ?? this.marks[0]?.at ?? this.now;
  }
  draw() {
    const sites = [...this.lanes.keys()];
    this.canvas.style.height = `${Math.max(sites.length, 1) * LANE + FOOT}px`;
    const { pen, width, height } = sized(this.canvas), c = colours(), ends = this.ends, begins = this.begins;
    if (!sites.length) return;
    const x = (this.x = (at) => LABEL + (Math.max(at - begins, 0) / Math.max(ends - begins, 1e-3)) * (width - LABEL - 10));
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif"; pen.textBaseline = "middle";
    this.rounds(pen, x, height, c);
    sites.forEach((site, row) => this.draw_lane(pen, site, row * LANE, x, ends, c));
    this.canvas.dataset.lanes = sites.length;
    this.canvas.dataset.parts = sites.reduce((sum, site) => sum + this.lanes.get(site).length, 0);
    this.canvas.dataset.failed = sites.reduce((sum, site) => sum + this.lanes.get(site).filter((part) => part.failed || part.phase === "away").length, 0);
  }
  rounds(pen, x, height, c) {
    let free = -Infinity;
    pen.textAlign = "center";
    for (const mark of this.marks) {
      const left = x(mark.at);
      if (mark.at < this.begins) continue;
      pen.fillStyle = c.line; pen.fillRect(left, 0, 1, height - FOOT);
      if (mark.phase === "train" && left > free) { pen.fillStyle = c.soft; pen.fillText(mark.text, left, height - FOOT / 2); free = left + 34; }
    }
    pen.textAlign = "right"; pen.fillStyle = c.soft; pen.fillText("round", LABEL - 12, height - FOOT / 2);
  }
  draw_lane(pen, site, top, x, ends, c) {
    pen.fillStyle = site === [...this.lanes.keys()][this.lane] && document.activeElement === this.canvas ? c.accent : c.ink;
    pen.textAlign = "right";
    pen.fillText(site.length > 16 ? `${site.slice(0, 15)}…` : site, LABEL - 10, top + LANE / 2);
    for (const part of this.lanes.get(site)) {
      if (part.to !== null && part.to < this.begins) continue;
      const left = x(part.from), wide = Math.max(x(part.to ?? ends) - left, 1.5);
      if (part.phase === "away") this.hatch(pen, left, top + 3, wide, c);
      else { const inset = { wait: 8, mask: 6 }[part.phase] ?? 3; pen.fillStyle = paint(part.phase, c); pen.fillRect(left, top + inset, part.phase === "mask" ? 2 : wide, LANE - 2 * inset); }
      if (part.to === null && this.progress.has(site)) { pen.fillStyle = c.ink; pen.fillRect(left, top + LANE - 5, wide * this.progress.get(site), 2); }
      if (part.failed) this.cross(pen, left + wide, top + LANE / 2, c);
    }
  }
  hatch(pen, left, top, wide, c) {
    pen.save();
    pen.beginPath(); pen.rect(left, top, Math.max(wide, 6), LANE - 6); pen.clip();
    pen.strokeStyle = c.bad; pen.lineWidth = 1.5; pen.beginPath();
    for (let at = left - LANE; at < left + Math.max(wide, 6); at += 5) { pen.moveTo(at, top + LANE - 6); pen.lineTo(at + LANE - 6, top); }
    pen.stroke(); pen.restore();
  }
  cross(pen, x, y, c) {
    pen.strokeStyle = c.card; pen.lineWidth = 5; pen.lineCap = "round";
    for (const colour of [c.card, c.bad]) {
      pen.strokeStyle = colour; pen.lineWidth = colour === c.bad ? 2.2 : 5;
      pen.beginPath(); pen.moveTo(x - 4, y - 4); pen.lineTo(x + 4, y + 4); pen.moveTo(x + 4, y - 4); pen.lineTo(x - 4, y + 4); pen.stroke();
    }
  }
  tell(left, row) {
    const site = [...this.lanes.keys()][row];
    if (!site || !this.x) return;
    const ends = this.ends, part = this.lanes.get(site).find((p) => this.x(p.from) <= left && left <= Math.max(this.x(p.to ?? ends), this.x(p.from) + 5));
    this.readout.textContent = part ? `${site}: ${words(part, ends)}` : site;
  }
  /** Up and down choose a lane, whose last part is told. */
  step(event) {
    const move = { ArrowUp: -1, ArrowDown: 1 }[event.key], sites = [...this.lanes.keys()];
    if (!move || !sites.length) return;
    event.preventDefault();
    this.lane = Math.min(Math.max(this.lane + move, 0), sites.length - 1);
    this.readout.textContent = `${sites[this.lane]}: ${words(this.lanes.get(sites[this.lane]).at(-1), this.ends)}`;
    this.redraw();
  }
}

const paint = (phase, c) => (phase === "wait" ? c.line : c[{ train: "c0", evaluate: "c2", mask: "c1" }[phase] ?? "c5"]);

function words(part, ends) {
  const doing = { wait: "waited for others", away: "connection lost" }[part.phase] ?? part.phase;
  const seconds = ((part.to ?? ends) - part.from).toFixed(1);
  return `${doing}, round ${part.number}, ${seconds} s${part.to === null ? " so far" : ""}${part.failed ? `; failed: ${part.failed}` : ""}`;
}
