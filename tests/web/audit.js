// What axe looks at first: names of controls and images, one h1, headings without gaps, contrast of texts against what lies behind them.
() => {
  const found = [];
  const rgb = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => { for (let n = node; n; n = n.parentElement) { const c = rgb(getComputedStyle(n).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !node.getClientRects().length || node.closest("svg") || node.matches("option, .skip")) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)}: ${node.tagName} ${node.className} ${node.textContent.trim().slice(0, 40)}`);
  }
  for (const node of document.querySelectorAll("button, a[href], input:not([type=hidden]), select, canvas, progress, nav"))
    if (!(node.labels?.length || node.getAttribute("aria-label") || node.textContent.trim() || node.title)) found.push(`no name: ${node.outerHTML.slice(0, 90)}`);
  if (document.querySelectorAll("h1").length !== 1) found.push("not exactly one h1");
  const levels = [...document.querySelectorAll("h1, h2, h3")].map((h) => Number(h.tagName[1]));
  levels.forEach((level, at) => { if (at && level > levels[at - 1] + 1) found.push(`a heading of level ${level} behind one of ${levels[at - 1]}`); });
  const ids = [...document.querySelectorAll("[id]")].map((n) => n.id);
  if (new Set(ids).size !== ids.length) found.push("an id stands twice");
  if (document.documentElement.scrollWidth > innerWidth) found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  return found;
}
