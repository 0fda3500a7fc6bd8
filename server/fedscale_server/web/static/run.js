// The page of a run: its curves first, then every event as it happens; each is taken once.

import { Chart, Series } from "/static/chart.js";
import { ask, follow, refreshSoon } from "/static/pages.js";
import { Rounds } from "/static/rounds.js";
import { Timeline } from "/static/timeline.js";

const FULL = { evaluate: "evaluation", train: "training" };
const CAPITALS = ["auc", "auprc", "mae", "mse", "rmse", "r2", "f1"];
const WORTH = new Set(["opened", "closed", "failed", "lost", "returned", "finished", "pause", "resume", "initialized"]);
const MOST_CHARTS = 24;

export async function show({ run, since, higher, now }) {
  const path = `/api/runs/${encodeURIComponent(run)}`, page = new Page(higher.split(" "), path);
  page.timeline.skew = Number(now) - Date.now() / 1000;
  page.begin(await ask(`${path}/curves`));
  page.draw();
  follow((last) => `${path}/events?after=${last}`, (event) => page.take(event), Number(since));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.draw());
  setInterval(() => { if (page.timeline.open) page.timeline.redraw(); }, 500);
}

class Page {
  constructor(higher, path) {
    Object.assign(this, { higher, path, held: null });
    this.box = document.getElementById("charts");
    this.charts = new Map();
    this.failing = document.getElementById("failing");
    this.part = document.getElementById("curves-part");
    this.part?.addEventListener("change", () => this.choose(this.part.value));
    this.timeline = new Timeline(...["timeline", "timeline-readout", "timeline-legend"].map((id) => document.getElementById(id)));
    this.rounds = new Rounds(this.timeline, document.getElementById("timeline-rounds"), (until) => ask(`${path}/timeline?until=${until}`));
  }
  take(event) {
    if (event === null) return refreshSoon(0);
    this.timeline.take(event);
    if (event.kind === "opened") this.rounds.write();
    if (event.kind === "closed") {
      const row = { ...event.detail, number: event.number, phase: event.phase };
      if (this.held) this.held.push(row);
      else { this.close(row); this.draw(); }
      this.failing.replaceChildren();
    }
    if (event.kind === "failed" || event.kind === "lost") this.told(event);
    if (WORTH.has(event.kind)) refreshSoon();
  }
  /** Draw every round of a part, up to that round, or, with "", the whole run again; what closes meanwhile is held until then. */
  async choose(until) {
    if (!until) this.held = [];
    const told = this.part.parentElement.querySelector("output");
    try {
      const curves = await ask(`${this.path}/curves?until=${until || 0}`);
      if (this.part.value !== until) return;
      this.charts.clear();
      this.box.replaceChildren();
      this.begin(curves);
      if (!until) this.held.forEach((row) => this.close(row));
      this.held = until ? [] : null;
      told.textContent = curves.charts.length ? "" : "nothing was measured in these rounds";
      this.draw();
    } catch (error) {
      told.textContent = error.message;
    }
  }
  /** The curves so far. */
  begin({ charts, moved, closed }) {
    for (const { phase, name, rounds, all, sites } of charts) {
      const series = this.chart(phase, name)?.series, lines = Object.entries(sites);
      rounds.forEach((round, at) => series?.take(round, all[at] ?? undefined, lines.map(([site, values]) => [site, values[at] ?? undefined])));
    }
    for (const [round, count] of moved) this.moved(round, count, 0);
    this.closed = closed;
  }
  /** A closed phase of a round: its metrics to the curves, its bytes to theirs. */
  close({ phase, number, metrics, sites, bytes_up, bytes_down }) {
    if (number <= (this.closed[phase] ?? 0)) return;
    this.closed[phase] = number;
    const names = new Set([...Object.keys(metrics), ...Object.values(sites).flatMap(Object.keys)]);
    for (const name of names) {
      const of_sites = Object.entries(sites).filter(([, values]) => name in values).map(([site, values]) => [site, values[name]]);
      this.chart(phase, name)?.series.take(number, metrics[name], of_sites);
    }
    this.moved(number, bytes_up, bytes_down);
  }
  moved(number, up, down) {
    const traffic = this.chart("", "traffic");
    const last = traffic.series.at.get(number);
    if (last === undefined) traffic.series.take(number, up + down, []);
    else { traffic.series.pooled[last] += up + down; traffic.series.top = Math.max(traffic.series.top, traffic.series.pooled[last]); }
    traffic.series.bottom = 0;
  }
  chart(phase, name) {
    const key = `${phase} ${name}`;
    if (!this.charts.has(key)) {
      if (this.charts.size >= MOST_CHARTS) return undefined;
      document.getElementById("no-charts")?.remove();
      const title = CAPITALS.includes(name) ? name.toUpperCase() : name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");
      const chart = phase ? new Chart(new Series(), `${title}, ${FULL[phase] ?? phase}`, this.higher.includes(name))
        : new Chart(new Series(), "Bytes moved in a round", true, { names: ["both directions"], unit: size });
      this.charts.set(key, chart);
      const order = (k) => (k.startsWith("evaluate") ? 0 : k.startsWith("train") ? 1 : 2);
      this.box.replaceChildren(...[...this.charts].sort(([a], [b]) => order(a) - order(b)).map(([, made]) => made.figure));
    }
    return this.charts.get(key);
  }
  /** A failure as soon as it is known; when the round closes, the table above has it. */
  told({ node, phase, number, kind, detail }) {
    const item = document.createElement("li");
    item.className = "bad";
    const what = kind === "lost" ? "the connection broke; the round goes on if it comes back in time" : `${detail.cause}: ${detail.what}`;
    item.append(Object.assign(document.createElement("span"), { textContent: `${node}, ${phase} ${number}: ${what}` }));
    if (detail.hint) item.append(Object.assign(document.createElement("span"), { className: "note", textContent: detail.hint }));
    this.failing.append(item);
  }
  draw() {
    for (const chart of this.charts.values()) chart.redraw();
  }
}

function size(count) {
  const [scale, name] = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]].find(([scale]) => count >= scale) ?? [1, "B"];
  return `${Number((count / scale).toPrecision(3))} ${name}`;
}
