// Which rounds the timeline shows: the newest ones as they happen, or, chosen with a slider and buttons, those of long ago, fetched a few at a time.

export class Rounds {
  /** @param {Timeline} timeline @param {HTMLElement} box of the controls @param load what gives the phases up to a round */
  constructor(timeline, box, load) {
    Object.assign(this, { timeline, box, load, wanted: 0, busy: false });
    [this.earlier, this.slider, this.later, this.newest] = box.querySelectorAll("button, input");
    this.told = box.querySelector("output");
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.earlier.addEventListener("click", () => this.go(this.rounds[0].phase === "evaluate" ? this.first : this.first - 1));
    this.later.addEventListener("click", () => this.go(this.last + this.last - this.first + 1));
    this.newest.addEventListener("click", () => this.go(Infinity));
  }
  get rounds() { return this.timeline.shown; }
  get first() { return this.rounds[0].number; }
  get last() { return this.rounds.at(-1).number; }
  /** The number of the newest round, and whether all there are fit in. */
  get end() { return this.timeline.rounds.at(-1)?.number ?? 0; }
  get whole() { return this.timeline.rounds.every((round, at) => at || begins(round)); }
  /** Show the rounds up to one; the newest ones are not fetched but followed. What is wanted meanwhile is fetched next, the rest never. */
  async go(until) {
    this.wanted = until < this.end ? Math.max(until, 1) : 0;
    if (this.busy) return;
    this.busy = true;
    let fault = "";
    try {
      for (let got; got !== this.wanted;) {
        got = this.wanted;
        const past = got ? await this.load(got) : [];
        if (got === this.wanted) this.timeline.look(past.length ? past : null);
      }
    } catch (error) {
      fault = error.message;
    }
    this.busy = false;
    this.write();
    if (fault) this.told.textContent = fault;
  }
  /** Say which rounds are shown, of how many. */
  write() {
    this.box.hidden = this.whole;
    if (this.box.hidden) return;
    const past = this.timeline.past !== null, span = this.first === this.last ? `Round ${this.last}` : `Rounds ${this.first} to ${this.last}`;
    const text = `${span} of ${this.end}${past ? "" : ", the newest"}`;
    this.slider.max = this.end;
    // Whoever drags it has it where they want it.
    if (!this.busy) this.slider.value = this.last;
    this.slider.setAttribute("aria-valuetext", text);
    // What comes by itself is not read out.
    this.told.ariaLive = past ? "polite" : "off";
    if (this.told.textContent !== text) this.told.textContent = text;
    this.earlier.disabled = begins(this.rounds[0]);
    this.later.disabled = this.newest.disabled = !past;
  }
}

/** Whether no round is before this one. */
const begins = ({ phase, number }) => number <= 1 && phase !== "evaluate";
