// The page's script. All that comes from the server is put in as text, never as markup.
const $ = id => document.getElementById(id);
const most = 160; // rows and columns that are drawn at once
const manyEnds = 60; // from then on namespaces are shown first

let data = null;   // what /api/matrix said
let shown = null;  // rows and columns that are drawn: { rows, cols, cell(row, col) }
let changes = new Map(); // of the last try: "from\nto" -> change

function make(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) {
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (v !== false && v !== undefined) e.setAttribute(k, v === true ? "" : v);
  }
  e.append(...children.filter(c => c !== undefined && c !== null));
  return e;
}

async function ask(path, body) {
  const answer = await fetch(path, body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

// Runs what a user asked for; what goes wrong is told on top of the page.
async function run(work, button) {
  if (button) button.disabled = true;
  try {
    await work();
    $("error").hidden = true;
  } catch (e) {
    $("error").textContent = e instanceof TypeError ? "The server is gone: start `strake policy ui` again, and open the address that it prints." : e.message;
    $("error").hidden = false;
  } finally {
    if (button) button.disabled = false;
  }
}

function plural(n, one, many) { return n + " " + (n === 1 ? one : many || one + "s"); }

// ---- the matrix

function take(said) {
  data = said;
  changes = new Map();
  const c = data.counts;
  $("source").textContent = `${data.source}, read at ${new Date(data.read).toLocaleTimeString()}: ${plural(c.workloads, "workload")}, ${plural(c.pods, "pod")}, ${plural(c.policies, "policy", "policies")}` + (c.shadow ? ` and ${c.shadow} in shadow` : "");
  $("detail").replaceChildren(make("p", { class: "hint" }, "Rows ask, columns are asked. Choose a cell to see what is allowed between the two, and by which rule."));
  $("which").replaceChildren(make("option", { value: "" }, "a new one"), ...data.policies.map((p, i) => make("option", { value: i }, nameOf(p) + (p.shadow ? " (in shadow)" : ""))));
  $("outcome").replaceChildren(make("p", { class: "hint" }, "Edit policies, or write new ones, and see who could reach whom then."));
  draw();
}

const nameOf = ref => (ref.namespace ? ref.namespace + "/" : "") + ref.name;
const placeOf = end => end.namespace || end.name;

function chosen(id) {
  const word = $(id).value.trim().toLowerCase();
  const out = [];
  data.ends.forEach((e, i) => { if (!word || e.name.toLowerCase().includes(word)) out.push(i); });
  return out;
}

// What there is to draw: ends, or the namespaces that they are in.
function layout() {
  const from = chosen("from"), to = chosen("to");
  if (!$("group").checked) {
    return {
      rows: from.map(i => ({ name: data.ends[i].name, ends: [i] })), cols: to.map(j => ({ name: data.ends[j].name, ends: [j] })),
      cell: (row, col) => data.rows[row.ends[0]][col.ends[0]],
    };
  }
  const gather = list => {
    const by = new Map();
    for (const i of list) {
      const place = placeOf(data.ends[i]);
      if (!by.has(place)) by.set(place, { name: place, ends: [], group: true });
      by.get(place).ends.push(i);
    }
    return [...by.values()];
  };
  return { rows: gather(from), cols: gather(to), cell: null };
}

// The verdict of a cell: all, some or none; void where there is nothing to tell.
function verdict(row, col) {
  const seen = new Set();
  for (const i of row.ends) {
    for (const j of col.ends) {
      const id = data.rows[i][j];
      if (id >= 0) seen.add(data.answers[id].verdict);
    }
  }
  if (seen.size === 0) return "void";
  return seen.size === 1 ? [...seen][0] : "some";
}

function draw() {
  shown = layout();
  const tooMany = shown.rows.length > most || shown.cols.length > most;
  shown.rows = shown.rows.slice(0, most);
  shown.cols = shown.cols.slice(0, most);
  const head = make("tr", {}, make("th", { scope: "col" }), ...shown.cols.map(c => make("th", { scope: "col", title: c.name }, make("span", {}, c.name))));
  const body = shown.rows.map((row, y) => make("tr", {}, make("th", { scope: "row", title: row.name }, row.name), ...shown.cols.map((col, x) => {
    const v = verdict(row, col);
    if (v === "void") return make("td", { class: "void" });
    const id = shown.cell ? shown.cell(row, col) : -1;
    const words = `${row.name} to ${col.name}: ${id >= 0 ? data.answers[id].allowed : { all: "everything", some: "some of it", none: "nothing" }[v]}`;
    const changed = row.ends.some(i => col.ends.some(j => changes.has(data.ends[i].name + "\n" + data.ends[j].name)));
    return make("td", { class: v + (changed ? " changed" : ""), "data-x": x, "data-y": y, tabindex: -1, role: "gridcell", title: words, "aria-label": words });
  })));
  $("map").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  const first = $("map").querySelector("td[data-x]");
  if (first) first.tabIndex = 0;
  const c = data.counts;
  $("summary").textContent = (tooMany ? `The first ${most} of each are drawn: choose by a part of the name. ` : "") +
    `Of ${plural(c.pairs, "pair")}, ${c.all} may do everything, ${c.some} some of it, ${c.none} nothing.`;
}

function choose(td) {
  const row = shown.rows[td.dataset.y], col = shown.cols[td.dataset.x];
  for (const old of $("map").querySelectorAll("td[tabindex='0']")) { old.removeAttribute("aria-selected"); old.tabIndex = -1; }
  td.setAttribute("aria-selected", "true");
  td.tabIndex = 0;
  td.focus();
  if (shown.cell) {
    explain(row.ends[0], col.ends[0]);
    return;
  }
  const pairs = [];
  for (const i of row.ends) for (const j of col.ends) if (data.rows[i][j] >= 0) pairs.push([i, j]);
  $("detail").replaceChildren(
    make("h2", {}, `${row.name} → ${col.name}`),
    make("p", { class: "hint" }, plural(pairs.length, "pair")),
    make("button", { onclick: () => { $("from").value = row.name; $("to").value = col.name; $("group").checked = false; draw(); } }, "Show them one by one"),
    pairList(pairs.slice(0, 200)));
}

function pairList(pairs) {
  return make("table", { class: "ranges" }, make("tbody", {}, ...pairs.map(([i, j]) => make("tr", {},
    make("td", {}, make("button", { class: "link", onclick: () => explain(i, j) }, `${data.ends[i].name} → ${data.ends[j].name}`)),
    make("td", {}, data.answers[data.rows[i][j]].allowed)))));
}

function portsOf(r) {
  if (r.protocol === "*") return "other protocols";
  if (r.ports.from === 0 && r.ports.to === 65535) return r.protocol;
  return (r.ports.from === r.ports.to ? r.ports.from : r.ports.from + "–" + r.ports.to) + "/" + r.protocol;
}

// Ranges that the same rules decide, together.
function together(ranges) {
  const by = new Map();
  for (const r of ranges) {
    const key = JSON.stringify([r.allowed, r.egress, r.ingress]);
    if (!by.has(key)) by.set(key, { ...r, parts: [] });
    by.get(key).parts.push(portsOf(r));
  }
  return [...by.values()].sort((a, b) => b.allowed - a.allowed);
}

function reasons(direction, words, rule, show) {
  if (!rule) return make("td", { class: "hint" }, "no policy");
  return make("td", {}, make("button", { class: "link", onclick: () => show(rule.policy, direction, rule.rule) }, words));
}

function rangeTable(ranges, show) {
  return make("table", { class: "ranges" },
    make("thead", {}, make("tr", {}, ...["What", "", "On leaving", "On arriving"].map(t => make("th", { scope: "col" }, t)))),
    make("tbody", {}, ...together(ranges).map(r => make("tr", {},
      make("td", {}, r.parts.length > 6 ? r.parts.slice(0, 5).join(", ") + ` and ${r.parts.length - 5} more` : r.parts.join(", ")),
      make("td", { class: "short " + (r.allowed ? "yes" : "no") }, r.allowed ? "allowed" : "denied"),
      reasons("egress", r.egress, r.egressRule, show), reasons("ingress", r.ingress, r.ingressRule, show)))));
}

function explain(i, j) {
  history.replaceState(null, "", "#" + new URLSearchParams({ from: data.ends[i].name, to: data.ends[j].name }));
  const from = data.ends[i], to = data.ends[j], answer = data.answers[data.rows[i][j]];
  const rule = make("div");
  const show = (policy, direction, n, asked = true) => run(async () => {
    const q = new URLSearchParams({ kind: policy.kind, namespace: policy.namespace || "", name: policy.name, direction, rule: n });
    const said = await ask("/api/policy?" + q);
    rule.replaceChildren(
      make("h3", {}, `${policy.kind} ${nameOf(policy)}` + (said.file ? ` (${said.file}:${said.line})` : "")),
      yamlOf(said),
      make("p", {}, make("button", { onclick: () => edit(policy, said.yaml) }, "Try a change of it")));
    if (asked) rule.scrollIntoView({ block: "nearest" });
  });
  const parts = [make("h2", {}, `${from.name} → ${to.name}`), make("p", { class: "verdict" }, answer.allowed)];
  if (to.ports && to.ports.length) parts.push(make("p", { class: "hint" }, "It listens on " + to.ports.map(p => `${p.port}/${p.protocol}` + (p.name ? ` (${p.name})` : "")).join(", ") + "."));
  parts.push(make("h3", {}, answer.ipv6 ? "IPv4" : "Who decides"), rangeTable(answer.ranges || [], show));
  if (answer.ipv6) parts.push(make("h3", {}, "IPv6"), rangeTable(answer.ipv6, show));
  parts.push(rule);
  $("detail").replaceChildren(...parts);
  const first = together(answer.ranges || []).find(r => r.ingressRule || r.egressRule);
  if (first?.ingressRule) show(first.ingressRule.policy, "ingress", first.ingressRule.rule, false);
  else if (first) show(first.egressRule.policy, "egress", first.egressRule.rule, false);
}

function yamlOf(said) {
  const lines = said.yaml.replace(/\n$/, "").split("\n");
  return make("pre", { tabindex: 0 }, ...lines.map((l, n) => make("span", { class: said.first >= 0 && n >= said.first && n <= said.last ? "on" : "" }, l)));
}

$("map").addEventListener("click", e => { const td = e.target.closest("td[data-x]"); if (td) choose(td); });
$("map").addEventListener("keydown", e => {
  const td = e.target.closest("td[data-x]"), step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
  if (!td) return;
  if (e.key === "Enter" || e.key === " ") { e.preventDefault(); choose(td); }
  if (!step) return;
  e.preventDefault();
  let x = +td.dataset.x + step[0], y = +td.dataset.y + step[1];
  while (x >= 0 && y >= 0 && x < shown.cols.length && y < shown.rows.length) {
    const next = $("map").querySelector(`td[data-x="${x}"][data-y="${y}"]`);
    if (next) { td.tabIndex = -1; next.tabIndex = 0; next.focus(); return; }
    x += step[0];
    y += step[1];
  }
});
let waiting = 0;
for (const id of ["from", "to"]) $(id).addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(draw, 120); });
$("group").addEventListener("change", draw);
$("filter").addEventListener("submit", e => e.preventDefault());

// ---- trying a change

const empty = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: new\n  namespace: default\nspec:\n  podSelector: {}\n  policyTypes: [Ingress]\n  ingress: []\n";
$("yaml").value = empty;

function edit(policy, yaml) {
  const at = data.policies.findIndex(p => p.kind === policy.kind && p.name === policy.name && (p.namespace || "") === (policy.namespace || ""));
  $("which").value = at < 0 ? "" : String(at);
  $("yaml").value = yaml;
  open("try");
  $("yaml").focus();
}

$("which").addEventListener("change", () => run(async () => {
  const p = data.policies[$("which").value];
  if (!p) { $("yaml").value = empty; return; }
  $("yaml").value = (await ask("/api/policy?" + new URLSearchParams({ kind: p.kind, namespace: p.namespace || "", name: p.name }))).yaml;
}));

const attempt = what => run(async () => {
  const said = await ask("/api/try", what);
  changes = new Map();
  if (said.problems.length) {
    $("outcome").replaceChildren(make("h2", {}, "This can't be tried"), make("ul", {}, ...said.problems.map(p => make("li", {}, p))));
    draw();
    return;
  }
  const d = said.diff;
  for (const c of d.changes) changes.set(c.from + "\n" + c.to, c);
  draw();
  const edits = d.policies.length ? d.policies.map(e => `${nameOf(e.policy)} ${e.what}`).join(", ") : "no policy differs";
  $("outcome").replaceChildren(
    make("h2", {}, d.changes.length ? `${plural(d.counts.opened, "pair")} opened, ${d.counts.closed} closed` : "Nothing would change"),
    make("p", { class: "hint" }, `${edits}; ${plural(d.counts.pairs, "pair")} compared. Pairs that change have a frame in the matrix.`),
    make("table", { class: "ranges" }, make("tbody", {}, ...d.changes.slice(0, 500).map(c => make("tr", {},
      make("td", {}, `${c.from} → ${c.to}` + (c.family ? ` (${c.family})` : "")),
      make("td", {}, c.opened ? make("div", { class: "opened" }, "opens " + c.opened) : null, c.closed ? make("div", { class: "closed" }, "closes " + c.closed) : null))))),
    d.changes.length > 500 ? make("p", { class: "hint" }, `and ${d.changes.length - 500} more`) : null);
}, $("go"));
$("go").addEventListener("click", () => attempt({ yaml: $("yaml").value, without: [] }));
$("forget").addEventListener("click", () => {
  const p = data.policies[$("which").value];
  if (p) attempt({ yaml: "", without: [{ kind: p.kind, namespace: p.namespace, name: p.name }] });
});

// ---- findings

const loadFindings = () => run(async () => {
  const list = await ask("/api/findings");
  $("found").textContent = list.length ? `(${list.length})` : "";
  $("list").replaceChildren(...(list.length ? list : [null]).map(f => f === null ? make("p", { class: "hint" }, "Nothing to tell.") : make("div", { class: "finding" },
    make("p", {}, make("span", { class: "tag " + f.severity }, f.severity), make("strong", {}, `${f.object.kind} ${nameOf(f.object)}`), f.field ? ` ${f.field}` : "", f.file ? make("span", { class: "hint" }, ` ${f.file}:${f.line}`) : null),
    make("p", {}, f.message), make("p", { class: "hint" }, f.hint))));
});

// ---- flows, while their view is open

const mostFlows = 200; // that are drawn; the newest
let stream = null;

function portOf(f) { return f.port ? f.port + "/" + f.protocol : f.protocol; }

function listen() {
  hush();
  $("stream").tBodies[0].replaceChildren();
  $("live").textContent = "";
  stream = new EventSource("/api/flows?verdict=" + encodeURIComponent($("verdict").value));
  stream.onopen = () => { $("live").textContent = "live, and the newest of the last ten minutes"; };
  stream.onmessage = e => {
    const f = JSON.parse(e.data), rows = $("stream").tBodies[0];
    const end = x => x.pod ? x.namespace + "/" + x.pod : x.node ? "node " + x.node : x.addr;
    rows.prepend(f.kind === "flow"
      ? make("tr", {}, make("td", {}, new Date(f.time).toLocaleTimeString()), make("td", {}, `${end(f.from)} → ${end(f.to)} ${portOf(f)}`), make("td", {}, f.why))
      : make("tr", {}, make("td", { colspan: 3, class: "hint" }, f.text)));
    while (rows.rows.length > mostFlows) rows.deleteRow(-1);
  };
  stream.addEventListener("failed", e => { $("live").textContent = JSON.parse(e.data); hush(); });
  stream.onerror = () => { if (stream && stream.readyState === EventSource.CLOSED) $("live").textContent = "no record of flows, or too many pages that show it"; };
}

function hush() {
  if (stream) stream.close();
  stream = null;
}

async function loadShadow() {
  try {
    const { since, list } = await ask("/api/shadow");
    const window = make("p", { class: "hint" }, since ? `In what is recorded since ${new Date(since).toLocaleString()}.` : "Nothing is recorded of the last 24 hours.");
    $("shadow").replaceChildren(window, list.length === 0 ? make("p", { class: "hint" }, "Nothing else than what is done.")
      : make("table", { class: "ranges" }, make("tbody", {}, ...list.slice(0, 500).map(s => make("tr", {},
        make("td", {}, make("strong", {}, s.policy), ` ${s.direction}, ${s.rule < 0 ? "isolation" : "rule " + s.rule}`),
        make("td", {}, `${s.would} ${s.count}`), make("td", {}, `${s.from} → ${s.to} ${portOf(s)}`))))));
  } catch (e) {
    $("shadow").replaceChildren(make("p", { class: "hint" }, e.message));
  }
}
$("verdict").addEventListener("change", listen);

// ---- views

const views = ["matrix", "try", "flows", "findings"];

function open(name) {
  if (!views.includes(name)) return;
  for (const view of views) {
    $("view-" + view).hidden = view !== name;
    $("tab-" + view).setAttribute("aria-selected", String(view === name));
  }
  hush();
  if (name === "flows") {
    listen();
    loadShadow();
  }
}
for (const view of views) $("tab-" + view).addEventListener("click", () => open(view));
$("reload").addEventListener("click", () => run(async () => { take(await ask("/api/reload", {})); await loadFindings(); }, $("reload")));

// The address can name a view, or a pair.
function follow() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (asked.has("view")) open(asked.get("view"));
  const i = data.ends.findIndex(e => e.name === asked.get("from")), j = data.ends.findIndex(e => e.name === asked.get("to"));
  if (i < 0 || j < 0 || data.rows[i][j] < 0) return;
  const x = shown.cols.findIndex(c => c.ends[0] === j), y = shown.rows.findIndex(r => r.ends[0] === i);
  const td = shown.cell && $("map").querySelector(`td[data-x="${x}"][data-y="${y}"]`);
  if (td) choose(td);
  else explain(i, j);
}

run(async () => {
  const said = await ask("/api/matrix");
  $("group").checked = said.ends.length > manyEnds;
  take(said);
  follow();
  await loadFindings();
});
