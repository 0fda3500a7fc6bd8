// Curves over rounds on a canvas: all sites together in bold, single sites thin, the band between best and worst, the worst site dashed.

const FEW = 12, PAD = { left: 54, right: 14, top: 12, bottom: 26 };
const DASHES = [[], [7, 3], [2, 2.5], [9, 3, 2, 3]];

/** The colours of the page's theme, resolved, by the name of their variable. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  return new Proxy({}, { get: (_, name) => style.getPropertyValue(`--${name}`).trim() });
}

export const sized = (canvas) => {
  const scale = devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  const width = Math.max(1, Math.round(box.width * scale)), height = Math.max(1, Math.round(box.height * scale));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, box.width, box.height);
  return { pen, width: box.width, height: box.height };
};

/** A number as people read it: three decimals near one, four digits elsewhere. */
export function told(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "not finite";
  const size = Math.abs(value);
  if (size === 0 || (size >= 0.01 && size < 10)) return value.toFixed(3);
  return size >= 1e-4 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

export function ticks(low, high, count = 4) {
  const span = high - low > Math.abs(high) * 1e-9 ? high - low : Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 2.5, 5, 10, 20].map((unit) => unit * power).find((unit) => unit * count >= span);
  const first = Math.floor(low / step + 1e-6), last = Math.max(Math.ceil(high / step - 1e-6), first + 1);
  return Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
}

/** The curves of one metric, round by round; taking a round again changes nothing. */
export class Series {
  constructor() {
    this.rounds = []; this.pooled = []; this.low = []; this.high = []; this.at = new Map(); this.sites = new Map();
    this.bottom = Infinity; this.top = -Infinity;
  }
  take(round, pooled, sites) {
    if (this.at.has(round)) return;
    const place = this.rounds.length;
    this.at.set(round, place);
    this.rounds.push(round);
    let low = Infinity, high = -Infinity;
    for (const [site, value] of sites) {
      if (!this.sites.has(site)) this.sites.set(site, []);
      this.sites.get(site)[place] = value;
      if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
    }
    this.pooled.push(pooled); this.low.push(low); this.high.push(high);
    for (const value of [pooled, low, high]) if (Number.isFinite(value)) { this.bottom = Math.min(this.bottom, value); this.top = Math.max(this.top, value); }
  }
}

export class Chart {
  /** @param {Series} series @param {string} title @param {boolean} higher whether more is better, which decides who is worst */
  constructor(series, title, higher, { names = ["all sites"], unit = told } = {}) {
    Object.assign(this, { series, title, higher, names, unit, cursor: null, styles: new Map(), seen: true, dirty: true });
    this.figure = document.createElement("figure");
    this.figure.innerHTML = '<h3></h3><canvas class="plot-canvas" tabindex="0" role="img"></canvas><p class="readout" aria-live="polite"></p><ul class="legend"></ul>';
    [this.heading, this.canvas, this.readout, this.legend] = this.figure.children;
    this.heading.textContent = title;
    this.canvas.setAttribute("aria-label", `${title} by round; arrow keys read the values`);
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
    new IntersectionObserver(([entry]) => { this.seen = entry.isIntersecting; if (this.seen && this.dirty) this.redraw(); }).observe(this.canvas);
  }
  redraw() {
    this.dirty = true;
    if (this.frame || !this.seen) return;
    this.frame = requestAnimationFrame(() => { this.frame = 0; this.dirty = false; this.draw(); });
  }
  get few() { return this.series.sites.size <= FEW; }
  draw() {
    const began = performance.now(), { pen, width, height } = sized(this.canvas), s = this.series, c = colours();
    const count = s.rounds.length;
    if (!count || !Number.isFinite(s.bottom)) return;
    const marks = ticks(s.bottom, s.top), low = marks[0], high = marks.at(-1), first = s.rounds[0], last = Math.max(s.rounds.at(-1), first + 1);
    const x = this.x = (round) => PAD.left + ((round - first) / (last - first)) * (width - PAD.left - PAD.right);
    const y = (value) => height - PAD.bottom - ((value - low) / (high - low)) * (height - PAD.top - PAD.bottom);
    this.axes(pen, width, height, marks, x, y, first, last, c);
    const path = (values) => {
      pen.beginPath();
      for (let at = 0, up = true; at < count; at++) {
        const value = values[at];
        if (!Number.isFinite(value)) up = true;
        else { if (up) pen.moveTo(x(s.rounds[at]), y(value)); else pen.lineTo(x(s.rounds[at]), y(value)); up = false; }
      }
    };
    if (s.sites.size > 1) this.band(pen, x, y, c);
    let at = 0;
    for (const [, values] of s.sites) {
      path(values);
      pen.strokeStyle = this.few ? c[`c${at % 6}`] : c.soft;
      pen.setLineDash(this.few ? DASHES[at % 4] : []);
      pen.lineWidth = this.few ? 1.4 : 0.8;
      pen.globalAlpha = this.few ? 1 : 0.3;
      pen.stroke();
      at += 1;
    }
    pen.globalAlpha = 1;
    if (s.sites.size > 1) { path(this.higher ? s.low : s.high); pen.strokeStyle = c.bad; pen.lineWidth = 1.6; pen.setLineDash([4, 3]); pen.stroke(); }
    pen.setLineDash([]);
    path(s.pooled);
    pen.strokeStyle = c.ink; pen.lineWidth = 2.6; pen.stroke();
    if (count <= 25) { pen.fillStyle = c.ink; for (let at = 0; at < count; at++) if (Number.isFinite(s.pooled[at])) { pen.beginPath(); pen.arc(x(s.rounds[at]), y(s.pooled[at]), 3, 0, 7); pen.fill(); } }
    if (this.cursor !== null) { pen.strokeStyle = c.accent; pen.lineWidth = 1; pen.beginPath(); pen.moveTo(x(s.rounds[this.cursor]), PAD.top); pen.lineTo(x(s.rounds[this.cursor]), height - PAD.bottom); pen.stroke(); }
    this.canvas.dataset.redrawMs = (performance.now() - began).toFixed(2);
    this.canvas.dataset.rounds = count;
    this.write();
  }
  band(pen, x, y, c) {
    const s = this.series;
    pen.beginPath();
    let open = false;
    for (let at = 0; at < s.rounds.length; at++) if (Number.isFinite(s.high[at])) { const to = [x(s.rounds[at]), y(s.high[at])]; if (open) pen.lineTo(...to); else pen.moveTo(...to); open = true; }
    for (let at = s.rounds.length - 1; at >= 0; at--) if (Number.isFinite(s.low[at])) pen.lineTo(x(s.rounds[at]), y(s.low[at]));
    pen.closePath();
    pen.globalAlpha = 0.13; pen.fillStyle = c.c0; pen.fill(); pen.globalAlpha = 1;
  }
  axes(pen, width, height, marks, x, y, first, last, c) {
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif"; pen.fillStyle = c.soft; pen.lineWidth = 1; pen.setLineDash([]);
    pen.textAlign = "right"; pen.textBaseline = "middle"; pen.strokeStyle = c.line;
    for (const mark of marks) {
      pen.beginPath(); pen.moveTo(PAD.left, y(mark)); pen.lineTo(width - PAD.right, y(mark)); pen.stroke();
      pen.fillText(this.unit(mark), PAD.left - 7, y(mark));
    }
    pen.textBaseline = "top"; pen.fillText("round", PAD.left - 12, height - PAD.bottom + 7);
    pen.textAlign = "center";
    for (const round of ticks(first, last, 6)) if (Number.isInteger(round) && round >= first && round <= last) pen.fillText(String(round), x(round), height - PAD.bottom + 7);
  }
  /** The legend: built when sites come, its values written at each drawing. */
  write() {
    const s = this.series, key = [...s.sites.keys()].join();
    if (this.key !== key) { this.key = key; this.legend.replaceChildren(...this.entries()); }
    const place = this.cursor ?? s.rounds.length - 1, worst = this.higher ? s.low[place] : s.high[place];
    const values = { pooled: s.pooled[place], worst };
    for (const value of this.legend.querySelectorAll("b")) {
      const found = value.dataset.site === undefined ? values[value.dataset.of] : s.sites.get(value.dataset.site)[place];
      value.textContent = found === undefined ? "–" : this.unit(found);
    }
    this.heading.textContent = `${this.title}: ${this.unit(s.pooled[place])}`;
    this.readout.textContent = this.cursor === null ? "" : `round ${s.rounds[place]}: ${this.names[0]} ${this.unit(s.pooled[place])}${s.sites.size > 1 ? `, worst site ${this.unit(worst)}` : ""}`;
  }
  *entries() {
    yield entry({ c: "ink", width: 3 }, this.names[0], { of: "pooled" });
    if (this.series.sites.size > 1) yield entry({ c: "bad", dash: [4, 3] }, "worst site", { of: "worst" });
    if (this.few) { let at = 0; for (const site of this.series.sites.keys()) { yield entry({ c: `c${at % 6}`, dash: DASHES[at % 4] }, site, { site }); at += 1; } }
    else yield entry({ c: "soft" }, `${this.series.sites.size} sites; shaded from best to worst`, null);
  }
  point(left) {
    const rounds = this.series.rounds;
    this.cursor = left === null || !this.x ? null : rounds.reduce((best, round, at) => (Math.abs(this.x(round) - left) < Math.abs(this.x(rounds[best]) - left) ? at : best), 0);
    this.redraw();
  }
  step(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key], last = this.series.rounds.length - 1;
    if (event.key === "Escape") this.cursor = null;
    else if (move) this.cursor = Math.min(Math.max((this.cursor ?? last) + move, 0), last);
    else return;
    event.preventDefault();
    this.redraw();
  }
}

/** One line of a legend with a drawn sample and, with `facts`, a place for the value. */
function entry({ c, dash = [], width = 1.6 }, name, facts) {
  const item = document.createElement("li"), key = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  key.setAttribute("viewBox", "0 0 28 12"); key.setAttribute("class", "swatch"); key.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  for (const [attribute, value] of Object.entries({ d: "M1 6L27 6", fill: "none", stroke: `var(--${c})`, "stroke-width": width, "stroke-dasharray": dash.join(" ") })) line.setAttribute(attribute, value);
  key.append(line);
  item.append(key, name);
  if (facts) { const value = document.createElement("b"); Object.assign(value.dataset, facts); item.append(value); }
  return item;
}
