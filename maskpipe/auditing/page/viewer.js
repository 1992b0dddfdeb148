"use strict";
/* The token viewer. Reads the JSON in #specimens (twin.py); text from it only ever becomes text nodes.
   A row is drawn turn by turn, and a turn's tokens only when they come near the screen. */
(() => {
  const $ = (id) => document.getElementById(id);
  const source = $("specimens");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const CHUNK = 1000;
  const LOSS = data.flags.loss, SAMPLED = data.flags.sampled, STRADDLES = data.flags.straddles,
    CUT = data.flags.cut_before;
  const roleNumber = Object.fromEntries(Object.entries(data.roles).map(([n, name]) => [name, +n]));
  const partNumber = Object.fromEntries(Object.entries(data.parts).map(([n, name]) => [name, +n]));
  const { padding: PADDING, template: TEMPLATE, context: CONTEXT } = roleNumber;
  const { scaffold: SCAFFOLD, stop: STOP } = partNumber;

  // -- reading

  function varints(text) {
    const raw = atob(text), out = [];
    let value = 0, scale = 1;
    for (let i = 0; i < raw.length; i++) {
      const byte = raw.charCodeAt(i);
      value += (byte & 127) * scale;
      if (byte & 128) scale *= 128;
      else { out.push(value); value = 0; scale = 1; }
    }
    return out;
  }

  const ids = varints(data.ids).map((id) => (id >= 2 ** 31 ? id - 2 ** 32 : id));
  const facts = data.facts.map(([role, part, flags, why]) => ({ role, part, flags, why, loss: (flags & LOSS) > 0 }));

  for (const row of data.rows) {
    const numbers = varints(row.runs);
    row.first = row.first || 0;
    const ends = row.documents.map((d) => Math.min(row.n, Math.max(0, d[0] - row.first)));
    let at = 0, message = -1, document_ = 0;
    row.runs = [];
    for (let k = 0; k < numbers.length; k += 3) {
      const stop = at + numbers[k], fact = facts[numbers[k + 1]], step = numbers[k + 2];
      message += step & 1 ? -(step + 1) / 2 : step / 2;
      while (at < stop) { // a run of foreign data may go on across the border of two documents
        while (document_ < ends.length && ends[document_] <= at) document_++;
        const end = document_ < ends.length ? Math.min(stop, ends[document_]) : stop;
        row.runs.push({ start: at, end, fact, message, document: document_ });
        at = end;
      }
    }
    row.ends = ends;
    row.marks = row.marks.map(([start, end, code, text]) => ({
      start: Math.max(0, start - row.first), end: Math.min(row.n, end - row.first), code, text,
    })).filter((mark) => mark.end > mark.start);
    row.trained = stretches(row.runs.filter((run) => run.fact.loss));
  }

  function stretches(runs) {
    const out = [];
    for (const { start, end, document } of runs) {
      const last = out[out.length - 1];
      if (last && last.end === start && last.document === document) last.end = end;
      else out.push({ start, end, document });
    }
    return out;
  }

  function symbols(row) {
    if (typeof row.symbols === "string") row.symbols = Uint32Array.from(varints(row.symbols));
    return row.symbols;
  }

  /* Turns: what belongs to one message of one document. Literal text between tool definitions goes with them. */
  function turns(row) {
    if (row.turns) return row.turns;
    const out = [];
    for (const run of row.runs) {
      const last = out[out.length - 1];
      const kind = run.fact.role === TEMPLATE ? CONTEXT : run.fact.role;
      const same = last && last.document === run.document && last.message === run.message &&
        (run.message >= 0 || last.kind === kind);
      if (same) {
        last.end = run.end;
        if (last.role === TEMPLATE) last.role = run.fact.role;
        last.runs.push(run);
      } else {
        out.push({ start: run.start, end: run.end, role: run.fact.role, kind, message: run.message,
          document: run.document, runs: [run] });
      }
    }
    return (row.turns = out);
  }

  // -- what is asked for: filters and search

  const asked = { role: "", part: "", loss: "", code: "", text: "" };
  let present = 0, chosen = -1, hits = [];

  function passes(run) {
    const { fact } = run;
    return (asked.role === "" || fact.role === +asked.role) && (asked.part === "" || fact.part === +asked.part) &&
      (asked.loss === "" || fact.loss === (asked.loss === "1"));
  }

  const filtering = () => asked.role !== "" || asked.part !== "" || asked.loss !== "" || asked.code !== "";

  /* Stretches of a row that pass the filters. */
  function passing(row) {
    if (row.passing) return row.passing;
    let found = stretches(row.runs.filter(passes));
    if (asked.code !== "") {
      const marks = row.marks.filter((mark) => mark.code === asked.code);
      found = found.flatMap((s) => marks.map((m) => ({ start: Math.max(s.start, m.start), end: Math.min(s.end, m.end),
        document: s.document })).filter((s) => s.start < s.end));
      found.sort((a, b) => a.start - b.start);
    }
    return (row.passing = found);
  }

  const size = (list) => list.reduce((sum, s) => sum + s.end - s.start, 0);

  function within(list, position) {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list[middle].end <= position) low = middle + 1;
      else high = middle;
    }
    return low < list.length && list[low].start <= position;
  }

  /* Where the text, or "#123" as an id, stands in a row: stretches of tokens. */
  function matches(row) {
    if (row.matches) return row.matches;
    const wanted = asked.text.toLowerCase().replaceAll("\\n", "\n"), out = [];
    if (wanted) {
      const sym = symbols(row), id = /^#?-?\d+$/.test(wanted) ? parseInt(wanted.replace("#", ""), 10) : null;
      if (id !== null) for (let k = 0; k < sym.length; k++) if (ids[sym[k]] === id) out.push({ start: k, end: k + 1 });
      if (!wanted.startsWith("#") || id === null) {
        const { text, starts } = plain(row);
        for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
          const start = tokenAt(starts, at), end = tokenAt(starts, at + wanted.length - 1) + 1;
          out.push({ start, end });
        }
      }
      out.sort((a, b) => a.start - b.start || a.end - b.end);
    }
    const only = filtering() ? out.filter((match) => within(passing(row), match.start)) : out;
    return (row.matches = only.filter((match, k) => k === 0 || match.start !== only[k - 1].start));
  }

  function plain(row) {
    if (row.plain) return row.plain;
    const sym = symbols(row), parts = new Array(sym.length), starts = new Uint32Array(sym.length + 1);
    let at = 0;
    for (let k = 0; k < sym.length; k++) {
      parts[k] = lower(sym[k]);
      starts[k] = at;
      at += parts[k].length;
    }
    starts[sym.length] = at;
    return (row.plain = { text: parts.join(""), starts });
  }

  const lowered = new Array(data.texts.length);
  const lower = (symbol) => lowered[symbol] ?? (lowered[symbol] = data.texts[symbol].toLowerCase());

  /* The last token that starts at or before a character: tokens without text stand before it. */
  function tokenAt(starts, character) {
    let low = 0, high = starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= character) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  // -- drawing

  const stream = $("stream"), list = $("rows"), details = $("details"), tip = $("tip");
  const node = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const number = (n) => n.toLocaleString("en");
  const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "-");
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) fill(entry.target);
  }, { root: stream, rootMargin: "1200px" });

  function draw() {
    const row = data.rows[present];
    near.disconnect();
    stream.textContent = "";
    stream.scrollTop = 0;
    hits = asked.text ? matches(row) : [];
    const pass = filtering() ? passing(row) : null;
    stream.classList.toggle("filtered", pass !== null);
    let holder = null, last = -1;
    for (const turn of turns(row)) {
      if (turn.document !== last || holder === null) {
        last = turn.document;
        holder = stream.appendChild(node("section", "doc"));
        if (turn.role !== PADDING) holder.appendChild(heading(row, turn.document));
      }
      holder.appendChild(drawTurn(row, turn, pass));
    }
    $("row-title").textContent = row.title;
    $("row-file").textContent = row.file;
    const share = `${number(row.tokens)} tokens, ${number(row.loss)} trained (${percent(row.loss, row.tokens)})`;
    const part = row.length ? `, tokens ${number(row.first)} to ${number(row.first + row.n)} of ${number(row.length)}` : "";
    $("row-facts").textContent = share + part + (row.chosen.length ? ` · chosen for: ${row.chosen.join(", ")}` : "");
    drawList();
    drawMap();
  }

  function heading(row, k) {
    const [, title, notes] = row.documents[k] || [0, "after the last document", []];
    const start = k ? row.ends[k - 1] : 0, end = k < row.ends.length ? row.ends[k] : row.n;
    const trained = size(row.trained.filter((s) => s.document === k));
    const line = node("h4");
    line.append(node("b", "", `document ${k + 1} of ${row.documents.length}`), " ", title);
    const words = [...notes, `${number(end - start)} tokens, ${number(trained)} trained`];
    line.append(node("small", "", words.join(" · ")));
    return line;
  }

  function drawTurn(row, turn, pass) {
    const block = node("div", `turn r${turn.role}`), who = node("div", "who");
    const trained = turn.runs.reduce((sum, run) => sum + (run.fact.loss ? run.end - run.start : 0), 0);
    const marked = row.marks.some((mark) => mark.start < turn.end && mark.end > turn.start);
    who.append(node("span", `swatch r${turn.role}`), node("b", "", data.roles[turn.role]));
    const about = [];
    if (turn.message >= 0) about.push(`messages[${turn.message}]`);
    const verdict = (row.documents[turn.document] || [0, "", [], {}])[3][turn.message];
    if (verdict) about.push(verdict);
    about.push(trained ? `${number(trained)} of ${number(turn.end - turn.start)} trained` :
      `${number(turn.end - turn.start)} token${turn.end - turn.start === 1 ? "" : "s"}`);
    who.append(node("small", verdict && verdict !== "exact" ? "odd" : "", about.join(" · ")));
    block.appendChild(who);
    const hidden = pass && !pass.some((s) => s.start < turn.end && s.end > turn.start);
    if (hidden || (turn.role === PADDING && !trained && !marked)) {
      block.classList.add("folded");
      return block;
    }
    const body = block.appendChild(node("div", "body"));
    for (const [start, end] of chunks(row, turn)) {
      const piece = node("div", "chunk");
      Object.assign(piece, { row, turn, start, end, pass });
      piece.style.minHeight = `${Math.ceil((end - start) / 16) * 1.6}em`;
      body.appendChild(piece);
      near.observe(piece);
    }
    return block;
  }

  /* Pieces of at most CHUNK tokens, ending with a line where one ends. */
  function chunks(row, turn) {
    const sym = symbols(row), out = [];
    let start = turn.start;
    while (start < turn.end) {
      let end = Math.min(turn.end, start + CHUNK);
      if (end < turn.end) {
        let k = end;
        while (k > start + CHUNK / 2 && !data.texts[sym[k - 1]].includes("\n")) k--;
        if (k > start + CHUNK / 2) end = k;
      }
      out.push([start, end]);
      start = end;
    }
    return out;
  }

  function fill(piece) {
    if (piece.filled) return;
    piece.filled = true;
    near.unobserve(piece);
    piece.style.minHeight = "";
    const { row, turn, start, end, pass } = piece, sym = symbols(row);
    const marks = row.marks.filter((mark) => mark.start < end && mark.end > start);
    const found = hits.filter((hit) => hit.start < end && hit.end > start);
    for (const run of turn.runs) {
      if (run.end <= start || run.start >= end) continue;
      const { fact } = run;
      let names = `r${fact.role}`;
      if (fact.loss) names += " t";
      if (fact.part === SCAFFOLD || fact.role === TEMPLATE) names += " p";
      if (fact.part === STOP) names += " stop";
      if (fact.flags & STRADDLES) names += " straddles";
      const span = piece.appendChild(node("span", names));
      for (let k = Math.max(start, run.start); k < Math.min(end, run.end); k++) {
        const token = span.appendChild(drawToken(data.texts[sym[k]]));
        token.position = k;
        if (pass && !within(pass, k)) token.classList.add("off");
        if (marks.length && marks.some((mark) => mark.start <= k && k < mark.end)) token.classList.add("mark");
        if (found.length && found.some((hit) => hit.start <= k && k < hit.end)) token.classList.add("hit");
        if (k === chosen) token.classList.add("on");
      }
    }
  }

  function drawToken(text) {
    const token = document.createElement("i");
    if (text === "") {
      token.className = "rest";
      token.textContent = "‥";
    } else if (!text.includes("\n") && !/^ +$/.test(text)) {
      token.textContent = text;
    } else {
      const blank = /^[ \n]+$/.test(text);
      for (const piece of text.split(/(\n)/)) {
        if (piece === "\n") token.append(node("s", "", "↵"), "\n");
        else if (blank && piece) token.append(node("s", "", "·".repeat(piece.length)));
        else if (piece) token.append(piece);
      }
    }
    return token;
  }

  function tokenElement(position) {
    for (const piece of stream.querySelectorAll(".chunk")) {
      if (piece.start <= position && position < piece.end) {
        fill(piece);
        for (const token of piece.querySelectorAll("i")) if (token.position === position) return token;
      }
    }
    return null;
  }

  // -- one token in words

  function runAt(row, position) {
    let low = 0, high = row.runs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (row.runs[middle].end <= position) low = middle + 1;
      else high = middle;
    }
    return row.runs[low];
  }

  /* In quotes, and kept apart from what stands beside it, whichever way it is written. */
  const quoted = (text) => (text === "" ? "the rest of the character before" :
    `“\u2068${text.replaceAll("\n", "↵")}\u2069”`);

  function describe(row, position) {
    const run = runAt(row, position), { fact } = run, sym = symbols(row);
    const [, title, notes, verdicts] = row.documents[run.document] || [0, "", [], {}];
    const begins = run.document ? row.ends[run.document - 1] : 0;
    const out = [["token", quoted(data.texts[sym[position]])], ["id", String(ids[sym[position]])],
      ["trained", fact.loss ? "yes" : "no"], ["why", data.why[fact.why]],
      ["role", data.roles[fact.role]], ["part", data.parts[fact.part]]];
    if (fact.loss && position > begins) out.push(["predicted from", `${quoted(data.texts[sym[position - 1]])}, token ${
      number(position + row.first - 1)}`]);
    if (!data.given.includes(fact.why)) out.push(["sampled", fact.flags & SAMPLED ? "yes: the model itself would write it" :
      "no"]);
    if (fact.flags & STRADDLES) out.push(["straddles", "the border of sampled text: never trained"]);
    if (fact.flags & CUT) out.push(["cut", "encoding was cut before it, as at inference"]);
    if (run.message >= 0) out.push(["message", String(run.message)]);
    if (verdicts && verdicts[run.message]) out.push(["verdict", verdicts[run.message]]);
    for (const [a, b, weight] of row.weights || []) {
      if (a <= position && position < b) out.push(["weight", String(weight)]);
    }
    out.push(["position", `${number(position + row.first)} of the row, ${number(position - begins)} of its document`]);
    if (title) out.push(["from", title]);
    for (const note of notes) out.push(["document", note]);
    for (const mark of row.marks) {
      if (mark.start <= position && position < mark.end) out.push(["finding", `${mark.code} ${mark.text}`]);
    }
    return out;
  }

  function inspect(position) {
    const row = data.rows[present], rowsOf = describe(row, position), table = node("dl");
    for (const [name, value] of rowsOf) table.append(node("dt", "", name), node("dd", `d-${name.split(" ")[0]}`, value));
    details.replaceChildren(table);
    details.classList.toggle("trained", runAt(row, position).fact.loss);
    details.parentElement.classList.add("open");
  }

  function choose(position, { scroll = true } = {}) {
    const row = data.rows[present];
    if (position < 0 || position >= row.n) return;
    stream.querySelector("i.on")?.classList.remove("on");
    chosen = position;
    const token = tokenElement(position);
    if (token) {
      token.classList.add("on");
      if (scroll) bring(token);
    }
    inspect(position);
    drawMap();
    const hash = `#row-${row.row}:${position + row.first}`;
    if (location.hash !== hash) try { history.replaceState(null, "", hash); } catch { /* not in a frame of a notebook */ }
  }

  /* Into the middle of the stream, or above what covers its lower half on a phone; and the stream onto the screen. */
  function bring(token) {
    const sheet = getComputedStyle(details.parentElement).position === "fixed";
    for (let round = 0; round < 2; round++) { // what comes near is drawn and may move it
      const view = stream.getBoundingClientRect();
      stream.scrollTop += token.getBoundingClientRect().top - view.top - (sheet ? 60 : view.height / 2);
      for (const piece of stream.querySelectorAll(".chunk")) {
        const box = piece.getBoundingClientRect();
        if (box.bottom > view.top && box.top < view.bottom) fill(piece);
      }
    }
    const box = stream.getBoundingClientRect();
    if (sheet) stream.scrollIntoView({ block: "start" });
    else if (box.top < 50 || box.bottom > innerHeight) $("viewer").scrollIntoView({ block: "start" });
  }

  function open(index, position = -1, options = {}) {
    present = (index + data.rows.length) % data.rows.length;
    chosen = -1;
    draw();
    if (position >= 0) choose(position, options);
    else details.replaceChildren(node("p", "", "Point at a token, or tap it: here stands why it is trained, or not."));
  }

  // -- the list of rows, and the row as a strip

  function drawList() {
    data.rows.forEach((row, k) => {
      const button = list.children[k].firstChild, found = asked.text ? matches(row).length :
        filtering() ? size(passing(row)) : -1;
      button.setAttribute("aria-current", k === present ? "true" : "false");
      button.classList.toggle("none", found === 0);
      button.querySelector(".found").textContent = found < 0 ? "" :
        asked.text ? `${number(found)} match${found === 1 ? "" : "es"}` : `${number(found)} token${found === 1 ? "" : "s"}`;
    });
    document.querySelector("[data-key=m]").hidden = !asked.text && !filtering();
    const total = data.rows.reduce((sum, row) => sum + (asked.text ? matches(row).length : size(passing(row))), 0);
    const rows = data.rows.filter((row) => (asked.text ? matches(row) : passing(row)).length).length;
    $("found").textContent = !asked.text && !filtering() ? "" :
      `${number(total)} ${asked.text ? (total === 1 ? "match" : "matches") : total === 1 ? "token" : "tokens"} in ${number(rows)} of ${number(data.rows.length)} rows`;
  }

  function makeList() {
    for (const [k, row] of data.rows.entries()) {
      const button = node("button"), item = node("li"), strip = node("canvas");
      button.type = "button";
      button.append(node("b", "", row.title), node("small", "share", percent(row.loss, row.tokens)), strip,
        node("small", "reasons", row.chosen.join(", ")), node("small", "found"));
      if (row.marks.length) button.querySelector("b").append(node("em", "", ` ${row.marks.length} ⚑`));
      button.onclick = () => open(k);
      list.appendChild(item).appendChild(button);
    }
  }

  function paint(canvas, row, height, borders) {
    const width = Math.max(1, Math.round(canvas.clientWidth || 200)), scale = window.devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const ink = {}, x = (position) => (position / row.n) * canvas.width;
    for (const run of row.runs) {
      const role = run.fact.role;
      ink[role] ??= style.getPropertyValue(`--r${role}`).trim();
      pen.fillStyle = ink[role];
      pen.globalAlpha = role === PADDING ? 0.15 : run.fact.loss ? 1 : 0.3;
      const top = run.fact.loss ? 0 : canvas.height * 0.3;
      pen.fillRect(x(run.start), top, Math.max(0.5, x(run.end) - x(run.start)), canvas.height - top);
    }
    pen.globalAlpha = 1;
    pen.fillStyle = style.getPropertyValue("--bg").trim();
    if (borders) for (const end of row.ends) pen.fillRect(x(end) - scale / 2, 0, scale, canvas.height);
    pen.fillStyle = style.getPropertyValue("--bad").trim();
    for (const mark of row.marks) pen.fillRect(x(mark.start), 0, Math.max(2 * scale, x(mark.end) - x(mark.start)), 3 * scale);
    if (borders && chosen >= 0) {
      pen.fillStyle = style.getPropertyValue("--ink").trim();
      pen.fillRect(x(chosen) - scale, 0, 2 * scale, canvas.height);
    }
  }

  const drawMap = () => paint($("map"), data.rows[present], 28, true);
  const drawStrips = () => data.rows.forEach((row, k) => paint(list.children[k].querySelector("canvas"), row, 10, false));

  // -- going on from where one is

  /* The next (or previous) stretch of any row, from the chosen token on. */
  function step(stretchesOf, direction) {
    const count = data.rows.length;
    for (let k = 0; k <= count; k++) {
      const index = (present + direction * k + count * (k + 1)) % count, all = stretchesOf(data.rows[index]);
      const here = k === 0, from = chosen;
      const left = !here ? all : direction > 0 ? all.filter((s) => s.start > from) : all.filter((s) => s.start < from);
      const next = direction > 0 ? left[0] : left[left.length - 1];
      if (next) {
        if (index !== present) open(index, next.start);
        else choose(next.start);
        return true;
      }
    }
    return false;
  }

  const kinds = {
    finding: (row) => (asked.code ? row.marks.filter((mark) => mark.code === asked.code) : row.marks),
    trained: (row) => row.trained,
    document: (row) => [0, ...row.ends.slice(0, -1)].filter((start) => start < row.n).map((start) => ({ start })),
    match: (row) => (asked.text ? matches(row) : filtering() ? passing(row) : []),
  };

  const filters = [["role", "f-role"], ["part", "f-part"], ["loss", "f-loss"], ["code", "f-code"]];

  function ask(text) {
    for (const [name, id] of filters) asked[name] = $(id).value;
    asked.text = text;
    for (const row of data.rows) row.passing = row.matches = null;
    chosen = -1;
    draw();
    if (asked.text || filtering()) step(kinds.match, 1);
  }

  function fillFilters() {
    const seen = { role: new Set(), part: new Set(), code: new Set() };
    for (const row of data.rows) {
      for (const { fact } of row.runs) { seen.role.add(fact.role); seen.part.add(fact.part); }
      for (const mark of row.marks) seen.code.add(mark.code);
    }
    const add = (id, values, name) => {
      for (const value of [...values].sort((a, b) => (a > b ? 1 : -1))) {
        const option = node("option", "", name(value));
        option.value = value;
        $(id).append(option);
      }
      $(id).parentElement.hidden = values.size < (id === "f-code" ? 1 : 2);
    };
    add("f-role", seen.role, (value) => data.roles[value]);
    add("f-part", seen.part, (value) => data.parts[value]);
    add("f-code", seen.code, (value) => value);
    document.querySelector("[data-key=f]").hidden = seen.code.size === 0;
    for (const item of document.querySelectorAll("#legend [data-role]")) {
      item.hidden = !seen.role.has(+item.dataset.role);
    }
    for (const [, id] of filters) $(id).onchange = () => ask($("search").value);
  }

  function readHash() {
    const found = /^#row-(\d+)(?::(\d+))?$/.exec(location.hash);
    if (!found) return false;
    const index = data.rows.findIndex((row) => row.row === +found[1]);
    if (index < 0) return false;
    const row = data.rows[index], position = found[2] === undefined ? -1 : +found[2] - row.first;
    open(index, position >= 0 && position < row.n ? position : -1);
    if (position < 0) $("tokens").scrollIntoView();
    return true;
  }

  const commands = {
    n: () => open(present + 1), p: () => open(present - 1),
    f: () => step(kinds.finding, 1), F: () => step(kinds.finding, -1),
    t: () => step(kinds.trained, 1), T: () => step(kinds.trained, -1),
    d: () => step(kinds.document, 1), D: () => step(kinds.document, -1),
    m: () => step(kinds.match, 1), M: () => step(kinds.match, -1),
    "/": () => { $("search").focus(); $("search").select(); },
    "?": () => { $("keys").open = !$("keys").open; },
    Escape: () => { details.parentElement.classList.remove("open"); tip.hidden = true; },
    ArrowRight: () => choose(chosen + 1), ArrowLeft: () => choose(chosen - 1),
  };

  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key.startsWith("Arrow") && !(stream.contains(event.target) || chosen >= 0)) return;
    const command = commands[event.key];
    if (command) { event.preventDefault(); command(); }
  });

  let pause = 0;
  $("search").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => ask($("search").value), 200);
  });
  $("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    clearTimeout(pause);
    if (asked.text !== $("search").value) ask($("search").value);
    else step(kinds.match, event.shiftKey ? -1 : 1);
  });
  for (const button of document.querySelectorAll("[data-key]")) button.onclick = () => commands[button.dataset.key]();
  $("reset").onclick = () => {
    for (const [, id] of filters) $(id).value = "";
    $("search").value = "";
    ask("");
  };

  stream.addEventListener("mouseover", (event) => {
    const token = event.target.closest("i");
    if (!token) return;
    const { fact } = runAt(data.rows[present], token.position);
    tip.textContent = `${fact.loss ? "trained" : "not trained"}: ${data.why[fact.why]}`;
    tip.className = fact.loss ? "trained" : "";
    tip.hidden = false;
    const box = token.getBoundingClientRect(), width = tip.offsetWidth;
    tip.style.left = `${Math.max(4, Math.min(box.left, document.documentElement.clientWidth - width - 4))}px`;
    tip.style.top = `${box.bottom + 6 + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 4 : box.bottom + 4}px`;
    if (chosen < 0) inspect(token.position);
  });
  stream.addEventListener("mouseleave", () => { tip.hidden = true; });
  window.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });
  stream.addEventListener("click", (event) => {
    const token = event.target.closest("i");
    if (token) choose(token.position, { scroll: false });
  });
  $("close").onclick = () => commands.Escape();
  $("map").addEventListener("click", (event) => {
    const box = event.target.getBoundingClientRect(), row = data.rows[present];
    choose(Math.min(row.n - 1, Math.floor(((event.clientX - box.left) / box.width) * row.n)));
  });

  const root = document.documentElement;
  $("theme").onclick = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    drawMap();
    drawStrips();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawMap(); drawStrips(); });
  window.addEventListener("resize", () => { drawMap(); drawStrips(); });
  window.addEventListener("hashchange", readHash);
  window.addEventListener("beforeprint", () => stream.querySelectorAll(".chunk").forEach(fill));

  if (data.rows.length) {
    root.classList.add("ready");
    fillFilters();
    makeList();
    if (!readHash()) open(0);
    drawStrips();
  }
})();
