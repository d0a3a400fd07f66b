"use strict";
// Draws the page from the JSON in it. All text is put in place as text, by make and draw, and never as markup.

const CONTENT = JSON.parse(document.getElementById("content").textContent);
const COLOURS = 8; // classes c0 to c7

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function section(id, title, ...children) {
  return make("section", { id }, make("h2", {}, title), ...children);
}

function table(heads, rows, numbers = []) {
  const side = (i) => (numbers.includes(i) ? { class: "number" } : {});
  const head = make("tr", {}, heads.map((text, i) => make("th", side(i), text)));
  const body = rows.map((row) => make("tr", {}, row.map((cell, i) => make("td", side(i), cell))));
  return make("div", { class: "wide" }, make("table", {}, heads.length ? make("thead", {}, head) : null, make("tbody", {}, body)));
}

// Calls `redraw` with the width of `place`, now and whenever that changes.
function atWidth(place, redraw) {
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.floor(place.clientWidth);
    if (width && width !== last) redraw((last = width));
  }).observe(place);
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  return size < 1e-4 ? value.toExponential(1).replace("e-", "e−") : String(Number(value.toPrecision(4)));
}

// ---------------------------------------------------------------- What was run

function facts(run) {
  const tile = ([name, value, more]) => make("div", { class: "fact" }, make("span", {}, name), make("b", {}, value), make("span", {}, more));
  return make("div", { class: "facts" }, run.facts.map(tile));
}

function differences(found) {
  const title = make("h3", {}, `Against ${found.from}, ${found.about}`);
  if (!found.rows.length) return [title, make("p", {}, "No knob differs.")];
  return [title, table(["knob", found.from, "this run"], found.rows)];
}

function whatWasRun(run) {
  const parts = run.parts.map((part, i) => [make("h3", {}, run.parts.length > 1 ? `How it was made, part ${i + 1}` : "How it was made"), table([], part)]);
  return section(
    "run", "What was run", make("p", {}, `Reports ${run.reports}.`), ...parts, ...run.differences.map(differences),
    make("h3", {}, "Training data"), table([], run.data),
    make("details", {}, make("summary", {}, `The whole experiment: ${run.knobs.length} knobs`), table(["knob", "value", "meaning"], run.knobs)),
  );
}

// ---------------------------------------------------------------- Curves

function ticks(low, high, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
    const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
    return inside.length > 8 ? inside.filter((value) => value.toExponential().startsWith("1")) : inside;
  }
  const rough = (high - low) / 6 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

// Maps [low, high] to [from, to].
function scale(low, high, from, to, log) {
  const f = log ? Math.log : (x) => x;
  const span = f(high) - f(low) || 1;
  return (value) => from + ((f(value) - f(low)) / span) * (to - from);
}

function axes(x, y, xs, ys, width, height, left) {
  const parts = [];
  for (const value of ys) {
    parts.push(draw("line", { class: "axis", x1: left, x2: width, y1: y(value), y2: y(value) }));
    parts.push(draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (const value of xs)
    parts.push(draw("text", { x: x(value), y: height - 3, "text-anchor": x(value) > width - 14 ? "end" : "middle" }, short(value)));
  return parts;
}

// Lines over steps; series: {name, colour, x, y}. Below the title the values at the step pointed at, or the last ones.
function chart(title, series, { log = false, zero = false } = {}) {
  const readout = make("div", { class: "readout" });
  const place = make("div", {});
  const all = series.flatMap((one) => one.y);
  const last = Math.max(...series.map((one) => one.x[one.x.length - 1]));
  const first = Math.min(...series.map((one) => one.x[0]));
  let low = zero ? 0 : Math.min(...all), high = Math.max(...all);
  if (!log && low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  if (log && low === high) [low, high] = [low / 2, high * 2];

  function read(step) {
    const keys = series.map((one) => {
      let nearest = 0;
      one.x.forEach((x, i) => { if (Math.abs(x - step) < Math.abs(one.x[nearest] - step)) nearest = i; });
      return make("span", { class: `key c${one.colour}`, "data-series": one.name }, `${one.name} `, make("b", { "data-value": one.y[nearest] }, short(one.y[nearest])),
        one.x[nearest] === step ? "" : ` at ${one.x[nearest].toLocaleString("en")}`);
    });
    readout.replaceChildren(...keys, make("span", {}, `step ${step.toLocaleString("en")}`));
  }

  atWidth(place, (width) => {
    const height = 170, left = 12 + 6.6 * Math.max(...ticks(low, high, log).map((value) => short(value).length));
    const x = scale(first, last, left + 4, width - 6), y = scale(low, high, height - 24, 8, log);
    const cursor = draw("line", { class: "cursor", y1: 6, y2: height - 24, visibility: "hidden" });
    const lines = series.map((one) => one.x.length === 1
      ? draw("circle", { class: `dot c${one.colour}`, cx: x(one.x[0]), cy: y(one.y[0]), r: 3 })
      : draw("polyline", { class: `curve c${one.colour}`, points: one.x.map((step, i) => `${x(step).toFixed(1)},${y(one.y[i]).toFixed(1)}`).join(" ") }));
    const steps = series.reduce((a, b) => (a.x.length >= b.x.length ? a : b)).x;
    const picture = draw("svg", {
      width, height, role: "img", "aria-label": title,
      onpointermove: (event) => {
        const at = event.clientX - picture.getBoundingClientRect().left;
        const step = steps.reduce((a, b) => (Math.abs(x(a) - at) <= Math.abs(x(b) - at) ? a : b));
        filled(cursor, { x1: x(step), x2: x(step), visibility: "visible" }, []);
        read(step);
      },
      onpointerleave: () => { cursor.setAttribute("visibility", "hidden"); read(last); },
    }, axes(x, y, ticks(first, last, false), ticks(low, high, log), width, height, left), lines, cursor);
    place.replaceChildren(picture);
  });
  read(last);
  return make("div", { class: "chart", "data-chart": title }, make("div", { class: "title" }, title), readout, place);
}

function curvesOf(runs, name, splits) {
  const found = [];
  runs.forEach((run, i) => splits.forEach((split, j) => {
    if (run[split][name] && run[split][name].length)
      found.push({ name: runs.length > 1 ? run.name : split, colour: (runs.length > 1 ? i : j) % COLOURS, x: run[split].step, y: run[split][name] });
  }));
  return found;
}

function curves(runs) {
  const several = runs.length > 1;
  const charts = [
    ["loss, nats per token; train with label smoothing", "loss", several ? ["train"] : ["train", "dev"], {}],
    [several ? "perplexity, dev" : "perplexity", "perplexity", several ? ["dev"] : ["train", "dev"], { log: true }],
    ["learning rate", "learning_rate", ["train"], { zero: true }],
    ["target tokens/s", "tokens_per_second", ["train"], { zero: true }],
  ];
  const shown = charts.map(([title, name, splits, how]) => [several && name === "loss" ? "loss, train" : title, curvesOf(runs, name, splits), how])
    .filter(([, series]) => series.length).map(([title, series, how]) => chart(title, series, how));
  return section("curves", "Curves", shown.length ? make("div", { class: "charts" }, shown) : make("p", {}, "Nothing has been logged yet."));
}

// ---------------------------------------------------------------- Scores and samples

function scoreTable(evaluation) {
  const rows = evaluation.scores.map(([name, score, interval, signature]) => [
    name, make("b", {}, score), interval, make("span", { class: "mono signature" }, signature)]);
  rows.unshift(["perplexity", make("b", {}, evaluation.perplexity), "", make("span", { class: "signature" }, "per token, unsmoothed")]);
  return [make("h3", {}, `${evaluation.split} split, ${evaluation.how}`), make("div", { class: "scores" }, table(["score", "", "95 %", "signature"], rows, [1, 2])),
    make("p", { class: "soft mono" }, evaluation.folder)];
}

function scores(evaluations) {
  return section("scores", "Scores", ...(evaluations.length ? evaluations.map(scoreTable) : [make("p", {}, "Nothing has been evaluated yet.")]));
}

function marked(parts, kind) {
  return parts.flatMap(([text, differs], i) => [i ? " " : "", differs ? make("mark", { class: kind }, text) : text]);
}

function sample(one, metric, trees) {
  const line = (name, ...text) => [make("div", { class: "name" }, name), make("div", { class: "text" }, ...text)];
  return make("div", { class: "sample" },
    line("source", one.source),
    line("output", ...(trees ? [tree(one.output, one.reference, "off")] : marked(one.output, "off"))),
    line("reference", ...(trees ? [tree(one.reference, one.output, "missed")] : marked(one.reference, "missed"))),
    line("", make("span", { class: "soft" }, `line ${one.line.toLocaleString("en")}, ${metric} ${one.score.toFixed(1)}`)));
}

function samples(found) {
  if (found.missing) return [section("samples", "Outputs", make("p", {}, found.missing))];
  const list = (title, each, open) => make("details", { open: open ? "" : null }, make("summary", {}, title), ...each.map((one) => sample(one, found.metric, found.trees)));
  return [section("samples", "Outputs", make("p", { class: "soft" }, `${found.of}. `, make("mark", { class: "off" }, "what the reference has not"), " ", make("mark", { class: "missed" }, "what the output has not"), "."),
    list(`${found.even.length} of ${found.sentences.toLocaleString("en")}, evenly taken`, found.even, true),
    list(`the ${found.worst.length} worst by ${found.metric}`, found.worst, false)),
  section("lengths", "Length against score", lengths(found))];
}

function lengths(found) {
  const place = make("div", { class: "chart" });
  const { points, bins } = found.lengths;
  const longest = Math.max(...points.map(([words]) => words), ...bins.map((bin) => bin.high));
  atWidth(place, (width) => {
    const height = 230, left = 44;
    const x = scale(0, longest, left + 4, width - 8), y = scale(0, 100, height - 24, 8);
    const middle = (bin) => x((bin.low + bin.high) / 2);
    place.replaceChildren(draw("svg", { width, height, role: "img", "aria-label": "length against score" },
      axes(x, y, ticks(0, longest, false), [0, 25, 50, 75, 100], width, height, left),
      points.map(([words, score]) => draw("circle", { class: "cloud", cx: x(words), cy: y(score), r: 3.5 })),
      draw("polyline", { class: "curve c1", points: bins.map((bin) => `${middle(bin)},${y(bin.score)}`).join(" ") }),
      bins.map((bin) => draw("circle", { class: "dot c1", cx: middle(bin), cy: y(bin.score), r: 4 }))));
  });
  const rows = bins.map((bin) => [bin.low === bin.high ? String(bin.low) : `${bin.low} to ${bin.high}`, bin.sentences.toLocaleString("en"), bin.score.toFixed(2)]);
  return [make("p", { class: "soft" }, `Words of the source across, ${found.metric} up. A point is a sentence; the line is all sentences of a range of lengths together.`),
    place, make("details", {}, make("summary", {}, "in numbers"), table(["words", "sentences", found.metric], rows, [1, 2]))];
}

// ---------------------------------------------------------------- Trees

// The nodes of "(TOP (NP (NN cats)))" in order: {label, word, children, start, end, depth}; words are counted from 0.
function parsed(text) {
  const nodes = [], open = [];
  let words = 0;
  for (const token of text.match(/\(|\)|[^\s()]+/g) || []) {
    const top = open[open.length - 1];
    if (token === "(") {
      const node = { label: "", word: "", children: [], start: words, end: words, depth: open.length };
      if (top) top.children.push(node);
      nodes.push(node);
      open.push(node);
    } else if (token === ")") open.pop().end = words;
    else if (!top.label) top.label = token;
    else { top.word = token; words++; }
  }
  return nodes;
}

const named = (node) => `${node.label} ${node.start} ${node.end} ${node.word ? "leaf" : ""}`;

// A tree as a picture; what the other tree has not, by label and span, is marked.
function tree(text, other, mark) {
  const nodes = parsed(text), there = new Set(parsed(other).map(named));
  const level = 40, width = (label) => 7.4 * label.length + 14;
  let at = 0;
  for (const node of [...nodes].filter((one) => one.word)) {
    const size = Math.max(width(node.label), width(node.word));
    node.x = at + size / 2;
    at += size;
  }
  for (const node of [...nodes].reverse())
    if (!node.word) node.x = node.children.length ? (node.children[0].x + node.children[node.children.length - 1].x) / 2 : at;
  const y = (node) => 16 + level * node.depth;
  const parts = nodes.flatMap((node) => [
    ...node.children.map((child) => draw("line", { x1: node.x, y1: y(node) + 5, x2: child.x, y2: y(child) - 13 })),
    draw("text", { x: node.x, y: y(node), class: there.has(named(node)) ? null : mark }, node.label),
    node.word ? draw("text", { x: node.x, y: y(node) + 16, class: "word" }, node.word) : null,
  ]);
  const deepest = Math.max(0, ...nodes.map((node) => node.depth));
  return make("div", { class: "tree" }, draw("svg", { width: Math.max(at, 60), height: level * deepest + 40, role: "img", "aria-label": text }, parts));
}

// ---------------------------------------------------------------- Attention

const KINDS = {
  encoder: ["Encoder", "Each token of the source looks at the source."],
  decoder: ["Decoder", "Each token of the output, when it is about to be said, looks at what has been said before."],
  cross: ["Cross", "Each token of the output, when it is about to be said, looks at the source."],
};
const LEVELS = 255;

// The weights [T][S] of a layer and head, from 0; head -1: the mean of all.
function weightsOf(view, layer, head) {
  view.bytes = view.bytes || Uint8Array.from(atob(view.weights), (c) => c.charCodeAt(0));
  const T = view.queries.length, S = view.keys.length;
  const heads = head < 0 ? [...Array(view.heads).keys()] : [head];
  return view.queries.map((_, t) => view.keys.map((_, s) => {
    let sum = 0;
    for (const h of heads) sum += view.bytes[((layer * view.heads + h) * T + t) * S + s];
    return sum / heads.length / LEVELS;
  }));
}

const colourOf = (head) => (head < 0 ? 0 : (head + 1) % COLOURS);
const nameOf = (head) => (head < 0 ? "mean" : String(head + 1));

function attention(found) {
  if (found.missing) return section("attention", "Attention", make("p", {}, found.missing));
  const kinds = Object.keys(KINDS).filter((kind) => found.sentences.every((one) => kind in one.views));
  const first = found.shown.kind || (kinds.includes("cross") ? "cross" : kinds[0]);
  const state = { sentence: 0, kind: first, layer: found.shown.layer ? found.shown.layer - 1 : -1, head: found.shown.head ? found.shown.head - 1 : -1, row: -1 };
  const view = () => found.sentences[state.sentence].views[state.kind];

  const choice = make("select", { "aria-label": "sentence", onchange: () => { state.sentence = Number(choice.value); state.row = -1; update(); } },
    found.sentences.map((one, i) => make("option", { value: i }, `${one.source} → ${one.output}`)));
  const tabs = make("div", { class: "tabs", role: "group", "aria-label": "kind" }, kinds.map((kind) =>
    make("button", { "data-kind": kind, onclick: () => { state.kind = kind; state.row = -1; update(); } }, KINDS[kind][0])));
  const about = make("p", { class: "soft" });
  const heads = make("div", { class: "controls heads" });
  const lines = make("div", { class: "lines" }), map = make("div", { class: "map" });
  const bars = make("div", { class: "bars", "aria-live": "polite" });

  function choose(layer, head) { Object.assign(state, { layer, head }); update(); }
  function pick(row) { state.row = state.row === row ? -1 : row; show(); }

  function update() {
    const one = view();
    if (state.layer < 0 || state.layer >= one.layers) state.layer = one.layers - 1;
    if (state.head >= one.heads) state.head = -1;
    for (const tab of tabs.children) tab.setAttribute("aria-pressed", tab.dataset.kind === state.kind);
    about.textContent = KINDS[state.kind][1];
    heads.replaceChildren(...[...Array(one.layers).keys()].map((layer) => make("div", { class: "layer" }, make("span", {}, `layer ${layer + 1}`),
      [-1, ...Array(one.heads).keys()].map((head) => thumbnail(one, layer, head, layer === state.layer && head === state.head, choose)))));
    show();
  }

  function show() {
    const one = view(), weights = weightsOf(one, state.layer, state.head), colour = `c${colourOf(state.head)}`;
    lines.replaceChildren(lineView(one, weights, state.row, colour, lines.clientWidth || 320, pick));
    map.replaceChildren(mapView(one, weights, state.row, colour, map.clientWidth || 320, pick));
    bars.replaceChildren(...strongest(one, weights, state.row));
  }

  atWidth(lines, () => update());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  return section("attention", "Attention", make("div", { class: "controls" }, choice, tabs), about, heads,
    make("div", { class: "tokens" }, lines, map), bars,
    make("p", { class: "soft note" }, "Lines: who looks, left, at whom, right; the stronger, the more weight. Squares: the same, a row each. A token chosen is shown alone. ", found.weights ? `Weights of the model: ${found.weights}.` : ""));
}

function thumbnail(view, layer, head, pressed, choose) {
  const picture = make("canvas", { width: view.keys.length, height: view.queries.length });
  const button = make("button", { class: `head c${colourOf(head)}`, "aria-pressed": String(pressed), "data-layer": layer + 1, "data-head": nameOf(head),
    "aria-label": `layer ${layer + 1}, head ${nameOf(head)}`, onclick: () => choose(layer, head) }, picture, nameOf(head));
  const pen = picture.getContext("2d");
  pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(`--s${colourOf(head)}`).trim();
  weightsOf(view, layer, head).forEach((row, t) => row.forEach((weight, s) => { pen.globalAlpha = weight; pen.fillRect(s, t, 1, 1); }));
  return button;
}

const LETTER = 7.3; // pixels of a letter in the font of tokens
const cut = (token) => (token.length > 16 ? `${token.slice(0, 15)}…` : token);
const room = (tokens) => LETTER * Math.max(...tokens.map((token) => cut(token).length)) + 10;

function lineView(view, weights, chosen, colour, width, pick) {
  const step = 22, left = room(view.queries), right = Math.max(left + 60, Math.min(width - room(view.keys), left + 320));
  const y = (row) => 14 + step * row;
  const parts = [];
  weights.forEach((row, t) => row.forEach((weight, s) => {
    if ((chosen < 0 || chosen === t) && weight >= 0.02)
      parts.push(draw("line", { class: "weight", x1: left, y1: y(t), x2: right, y2: y(s), "stroke-opacity": weight.toFixed(3) }));
  }));
  view.queries.forEach((token, t) => parts.push(draw("text", { class: `pick${t === chosen ? " chosen" : ""}`, x: left - 6, y: y(t) + 4, "text-anchor": "end", tabindex: 0, role: "button",
    onclick: () => pick(t), onkeydown: (event) => { if (event.key === "Enter") pick(t); } }, cut(token))));
  view.keys.forEach((token, s) => parts.push(draw("text", { x: right + 6, y: y(s) + 4 }, cut(token))));
  const rows = Math.max(view.queries.length, view.keys.length);
  return draw("svg", { class: colour, width: right + room(view.keys), height: step * rows + 8, role: "img", "aria-label": "weights as lines" }, parts);
}

function mapView(view, weights, chosen, colour, width, pick) {
  const left = room(view.queries), top = room(view.keys), S = view.keys.length;
  const cell = Math.max(11, Math.min(24, Math.floor((width - left - 2) / S)));
  const parts = [draw("rect", { class: "frame", x: left, y: top, width: cell * S, height: cell * view.queries.length })];
  view.keys.forEach((token, s) => parts.push(draw("text", { transform: `translate(${left + cell * (s + 0.5) + 4} ${top - 6}) rotate(-90)` }, cut(token))));
  view.queries.forEach((token, t) => {
    parts.push(draw("text", { class: `pick${t === chosen ? " chosen" : ""}`, x: left - 6, y: top + cell * (t + 0.5) + 4, "text-anchor": "end", onclick: () => pick(t) }, cut(token)));
    weights[t].forEach((weight, s) => parts.push(draw("rect", { class: "cell", x: left + cell * s, y: top + cell * t, width: cell - 1, height: cell - 1, "fill-opacity": weight.toFixed(3), onclick: () => pick(t) },
      draw("title", {}, `${token} → ${view.keys[s]}: ${weight.toFixed(2)}`))));
  });
  if (chosen >= 0) parts.push(draw("rect", { class: "row", x: left - 1, y: top + cell * chosen - 1, width: cell * S + 1, height: cell + 1 }));
  return draw("svg", { class: colour, width: left + cell * S + 2, height: top + cell * view.queries.length + 4, role: "img", "aria-label": "weights as a heat map" }, parts);
}

// In words what the chosen token looks at most; nothing is chosen: what to do.
function strongest(view, weights, chosen) {
  if (chosen < 0) return [make("span", {}, "Choose a token on the left to see its weights in numbers.")];
  const order = [...view.keys.keys()].sort((a, b) => weights[chosen][b] - weights[chosen][a]).slice(0, 6);
  return [make("span", {}, make("span", { class: "token" }, view.queries[chosen]), " looks at"),
    ...order.map((s) => make("span", {}, make("span", { class: "token" }, view.keys[s]), " ", make("b", {}, weights[chosen][s].toFixed(2))))];
}

// ---------------------------------------------------------------- Several runs

function comparison(content) {
  const names = [...new Set(content.runs.flatMap((run) => run.evaluations.flatMap((each) => each.scores.map(([name]) => `${each.split} ${name}`))))];
  const value = (run, wanted) => {
    for (const each of run.evaluations) for (const [name, score] of each.scores) if (`${each.split} ${name}` === wanted) return score;
    return "";
  };
  const splits = [...new Set(content.runs.flatMap((run) => run.evaluations.map((each) => each.split)))];
  const perplexity = (run, split) => run.evaluations.filter((each) => each.split === split).map((each) => each.perplexity)[0] || "";
  const key = (run, i) => make("span", { class: `key c${i % COLOURS}` }, run.name);
  const heads = ["", ...content.runs.map(key)];
  const line = (name, of) => [name, ...content.runs.map(of)];
  const rows = [
    line("experiment", (run) => run.experiment), line("steps", (run) => run.steps.toLocaleString("en")),
    line("parameters", (run) => run.parameters.toLocaleString("en")),
    line("tokens/s, median", (run) => (run.tokens_per_second ? Math.round(run.tokens_per_second).toLocaleString("en") : "")),
    line("hardware", (run) => run.device),
    ...splits.map((split) => line(`${split} perplexity`, (run) => perplexity(run, split))),
    ...names.map((name) => line(name, (run) => value(run, name))),
  ];
  const signatures = new Map(content.runs.flatMap((run) => run.evaluations.flatMap((each) => each.scores.map(([name, , , signature]) => [`${name} ${signature}`, [name, signature]]))));
  return [
    make("header", {}, make("h1", {}, `${content.runs.length} runs`), make("p", { class: "soft mono" }, content.runs.map((run) => run.folder).join("  "))),
    section("table", "Side by side", table(heads, rows), make("details", {}, make("summary", {}, "signatures of the scores"), table(["score", "signature"], [...signatures.values()]))),
    section("knobs", "Knobs that differ", content.differing.length ? table(["knob", ...content.runs.map((run) => run.name)], content.differing.map(([path, values]) => [path, ...values])) : make("p", {}, "None.")),
    curves(content.curves),
  ];
}

// ---------------------------------------------------------------- The page

function page(content) {
  if (content.runs) return comparison(content);
  if (!content.run) return [attention(content.attention)];
  const parts = [whatWasRun(content.run), curves(content.curves), scores(content.evaluations), ...samples(content.samples), attention(content.attention)];
  const order = ["curves", "attention", "samples", "lengths", "scores", "run"];
  parts.sort((a, b) => order.indexOf(a.id) - order.indexOf(b.id));
  const links = parts.map((part) => make("a", { href: `#${part.id}` }, part.firstChild.textContent));
  return [make("header", {}, make("h1", {}, content.run.name), make("p", { class: "soft mono" }, content.run.folder), make("nav", {}, links)), facts(content.run), ...parts];
}

document.getElementById("page").replaceChildren(...page(CONTENT));
