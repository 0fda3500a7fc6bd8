// Every page: forms that are sent with the page's proof, regions that are kept fresh, and one stream of events.

const $ = (selector, root = document) => root.querySelector(selector);
const main = $("main");
const live = $("#live");

/** Ask the API; throws an Error whose message is for people. */
export async function ask(path, method = "GET", body = undefined) {
  const headers = { "x-fedscale-proof": $("meta[name=proof]").content };
  if (body !== undefined && !(body instanceof FormData)) {
    headers["content-type"] = "application/json";
    body = JSON.stringify(body);
  }
  const answer = await fetch(path, { method, headers, body });
  if (answer.status === 401 && !path.startsWith("/api/session")) location.reload();
  if (answer.status === 204) return null;
  const value = await answer.json().catch(() => null);
  if (answer.ok) return value;
  const fault = value?.error ?? { what: `the server answered with ${answer.status}` };
  throw new Error([fault.what, fault.why, fault.hint].filter(Boolean).join("; "));
}

/** Fetch this page again and put its regions in the place of the old ones. */
export async function refresh() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (answer.redirected) return location.reload();
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const region of document.querySelectorAll("[data-region]")) {
    const next = fresh.getElementById(region.id);
    if (!next || next.innerHTML === (region.dataset.shown ?? region.innerHTML)) continue;
    const ticked = [...region.querySelectorAll("input:checked")].map((box) => box.id);
    const focused = region.contains(document.activeElement) ? document.activeElement.id : "";
    region.dataset.shown = next.innerHTML;
    region.replaceChildren(...next.childNodes);
    for (const id of ticked) if (document.getElementById(id)) document.getElementById(id).checked = true;
    if (focused) document.getElementById(focused)?.focus();
  }
}

let due = 0;
/** Refresh soon, once for many events that come together. */
export function refreshSoon(milliseconds = 200) {
  if (!due) due = setTimeout(() => { due = 0; refresh().catch(() => {}); }, milliseconds);
}

/** One stream of server-sent events that comes back by itself; `address(last)` is where to go on behind event `last`. */
export function follow(address, take, last = 0) {
  let source, pause = 500, closed = false;
  const show = (word, lost) => { live.hidden = false; live.textContent = word; live.classList.toggle("lost", lost); };
  const open = () => {
    source = new EventSource(address(last));
    source.onopen = () => { pause = 500; show("live", false); };
    source.onmessage = (message) => {
      if (message.lastEventId) last = Math.max(last, Number(message.lastEventId) || 0);
      take(JSON.parse(message.data));
    };
    source.addEventListener("over", () => { closed = true; source.close(); live.hidden = true; take(null); });
    source.onerror = () => {
      if (closed) return;
      show("connection lost, trying again", true);
      // The browser tries again by itself unless the answer was no stream, as while the coordinator starts.
      if (source.readyState === EventSource.CLOSED) setTimeout(open, pause = Math.min(2 * pause, 5000));
    };
  };
  open();
  addEventListener("pagehide", () => { closed = true; source.close(); });
  addEventListener("pageshow", (event) => { if (event.persisted) { closed = false; open(); } });
}

async function send(form) {
  const alert = $("[role=alert]", form), button = $("button", form);
  const given = new FormData(form), facts = Object.fromEntries(given);
  const path = form.dataset.send.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(facts[name]));
  if (form.dataset.confirm && !confirm(form.dataset.confirm)) return;
  button.disabled = true;
  if (alert) alert.textContent = "";
  try {
    const method = form.dataset.method ?? "POST";
    const body = method === "DELETE" ? undefined : "multipart" in form.dataset ? given : facts;
    done(form, await ask(path, method, body));
  } catch (error) {
    if (alert) alert.textContent = error.message;
    else window.alert(error.message);
  } finally {
    button.disabled = false;
  }
}

function done(form, value) {
  const { then, goto, show } = form.dataset;
  // Whoever leaves needs nothing fresh: a refresh that is refused meanwhile would be a second way out.
  if (then) return location.assign(then);
  if (goto) return location.assign(goto.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(value[name])));
  if (show) {
    const output = $("output", form);
    output.textContent = value[show];
    for (const part of [output, $("[data-with-output]", form)]) part.hidden = false;
  }
  refreshSoon(0);
}

document.addEventListener("submit", (event) => {
  if (!event.target.dataset.send) return;
  event.preventDefault();
  send(event.target);
});

async function enter(token) {
  history.replaceState(null, "", location.pathname);
  try {
    await ask("/api/session/link", "POST", { token });
    location.replace(main.dataset.next);
  } catch (error) {
    $("[role=alert]").textContent = error.message;
  }
}

if (main.dataset.page === "login" && location.hash.length > 1) enter(location.hash.slice(1));
// The first event comes when the stream is open: whatever happened between the page and that is fetched.
if (main.dataset.stream) follow(() => main.dataset.stream, () => refreshSoon());
if (main.dataset.page === "run") import("/static/run.js").then((run) => run.show(main.dataset));
