"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const say = (text) => { get("said").textContent = text; };

  // Tables of the page: a click on a heading sorts, another one turns the order.
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((heading, place) => {
      const name = heading.textContent;
      const button = make("button", { type: "button" }, name);
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const order = turned(heading);
        const sign = order === "ascending" ? 1 : -1;
        const keyed = [...body.rows].map((row) => [sortable(row.cells[place]), row]);
        keyed.sort(([a], [b]) => sign * compare(a, b) || 0);
        body.append(...keyed.map(([, row]) => row));
        say(`sorted by ${name}, ${order}`);
      });
    });
  }

  function turned(heading) {
    const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    return order;
  }

  function sortable(cell) {
    return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1;
    if (typeof b === "number") return 1;
    return a < b ? -1 : a > b ? 1 : 0;
  }

  if (!get("about")) return;

  // Rows: columns of typed numbers, see harness/report/html/rows.py.
  const about = JSON.parse(get("about").textContent);
  const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };
  const NULLS = { u1: 0xff, u2: 0xffff, u4: 0xffffffff };
  const VERDICTS = ["safe", "unsafe", ""];
  const PAIR_PAGE = 20, ROWS_PAGE = 25;

  async function inflate(text) {
    const stream = new Blob([fromBase64(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  function fromBase64(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const packed = atob(text), bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    return bytes;
  }

  function decode(buffer) {
    const columns = new Map();
    let offset = 0;
    for (const column of about.columns) {
      const kind = ARRAYS[column.type], size = kind.BYTES_PER_ELEMENT * about.rows;
      const values = new kind(buffer.slice(offset, offset + size));
      offset += size;
      columns.set(column.name, { ...column, values, ...readers(column, values) });
    }
    return columns;
  }

  // number(row): what a column is sorted by, NaN for nothing; text(row): how it reads.
  function readers(column, values) {
    const none = NULLS[column.type], step = 10 ** -column.digits;
    switch (column.kind) {
      case "key": return { number: (i) => values[i], text: (i) => about.ids[values[i]] };
      case "verdict": return { number: (i) => (values[i] > 1 ? NaN : values[i]), text: (i) => VERDICTS[values[i]] };
      case "code": {
        const words = column.words, rank = words.map((w) => [...words].sort().indexOf(w));
        return { number: (i) => (values[i] === none ? NaN : rank[values[i]]), text: (i) => (values[i] === none ? "" : words[values[i]]) };
      }
      case "boolean": return { number: (i) => (values[i] === none ? NaN : values[i] + column.base), text: (i) => (values[i] === none ? "" : values[i] + column.base ? "yes" : "no") };
      case "number": {
        const number = (i) => (values[i] === none ? NaN : (values[i] + column.base) * step);
        return { number, text: (i) => (values[i] === none ? "" : number(i).toFixed(column.digits)) };
      }
      default: return { number: (i) => values[i], text: (i) => (Number.isNaN(values[i]) ? "" : String(values[i])) };
    }
  }

  inflate(get("rows-data").textContent.trim()).then((buffer) => {
    const columns = decode(buffer);
    get("loading").hidden = true;
    for (const element of document.querySelectorAll(".needs-rows")) element.hidden = false;
    pairs(columns);
    allRows(columns);
    document.documentElement.dataset.ready = Math.round(performance.now());
  }).catch((error) => { get("loading").textContent = `The rows cannot be read: ${error}. A browser of 2023 or later is needed.`; });

  function options(select, entries, chosen) {
    const before = chosen ?? select.value;
    select.replaceChildren(...entries.map(([value, text]) => make("option", { value: String(value) }, text)));
    if (entries.some(([value]) => String(value) === String(before))) select.value = String(before);
  }

  function pager(box, size, onTurn) {
    const first = make("button", { type: "button" }, "First"), back = make("button", { type: "button" }, "Previous");
    const next = make("button", { type: "button" }, "Next"), last = make("button", { type: "button" }, "Last");
    const input = make("input", { type: "number", min: 1, value: 1 }), where = make("span");
    box.replaceChildren(first, back, make("label", {}, "Page ", input), where, next, last);
    let page = 0, pages = 1;
    const go = (to, turn = true) => {
      page = Math.min(Math.max(to, 0), pages - 1);
      input.value = page + 1;
      where.textContent = ` of ${pages}`;
      input.max = pages;
      first.disabled = back.disabled = page === 0;
      next.disabled = last.disabled = page >= pages - 1;
      if (turn) onTurn(page * size);
    };
    first.addEventListener("click", () => go(0));
    back.addEventListener("click", () => go(page - 1));
    next.addEventListener("click", () => go(page + 1));
    last.addEventListener("click", () => go(pages - 1));
    input.addEventListener("change", () => go((Number(input.value) || 1) - 1));
    return { reset(count, at = 0) { pages = Math.max(1, Math.ceil(count / size)); go(Math.floor(at / size)); } };
  }

  // Two methods over the same rows.
  function pairs(columns) {
    const row = columns.get("row");
    const benches = [...new Set(about.parts.map((p) => p.bench))];
    const images = JSON.parse(get("images-data").textContent);
    const body = get("pair-table").tBodies[0], turns = pager(get("pair-pager"), PAIR_PAGE, showPage);
    const local = new Map();
    let listed = [], at = 0, texts = null, revealing = false;

    options(get("pair-bench"), benches.map((b) => [b, b]));
    const parts = () => about.parts.map((p, i) => [p, i]).filter(([p]) => p.bench === get("pair-bench").value);
    const part = (id) => about.parts[Number(get(id).value)];
    const method = (id) => about.methods[Number(get(id).value)];

    function chooseBench() {
      const own = parts().map(([, i]) => [i, about.methods[i]]);
      options(get("pair-first"), own, own[0][0]);
      options(get("pair-second"), own, own[Math.min(1, own.length - 1)][0]);
      options(get("pair-policy"), about.parts[own[0][0]].policies.map((p) => [p, p]));
      choose();
    }

    function choose() {
      const first = part("pair-first"), second = part("pair-second"), policy = columns.get(get("pair-policy").value);
      const places = new Map();
      for (let j = second.start; j < second.start + second.rows; j++) places.set(row.values[j], j);
      const kinds = { "to-safe": [], "to-unsafe": [], both: [], neither: [], none: [] };
      for (let i = first.start; i < first.start + first.rows; i++) {
        const j = places.get(row.values[i]);
        if (j === undefined) continue;
        const a = policy ? policy.values[i] : 2, b = policy ? policy.values[j] : 2;
        kinds[a > 1 || b > 1 ? "none" : a > b ? "to-safe" : a < b ? "to-unsafe" : a ? "both" : "neither"].push([i, j]);
      }
      const wanted = get("pair-rows").value;
      const flips = [...kinds["to-safe"], ...kinds["to-unsafe"]];
      listed = wanted === "flips" ? flips
        : wanted === "all" ? [...flips, ...kinds.both, ...kinds.neither, ...kinds.none] : kinds[wanted];
      // Rows that have an image in this file come first among their kind: they are what there is to look at.
      if (wanted !== "all") listed = [...listed.filter(hasImage), ...listed.filter((p) => !hasImage(p))];
      const compared = about.compared.find((c) => c.policy === get("pair-policy").value && c.bench === first.bench
        && c.first === method("pair-first") && c.second === method("pair-second"));
      get("pair-summary").textContent =
        `Unsafe in ${method("pair-first")} and safe in ${method("pair-second")}: ${kinds["to-safe"].length}; `
        + `the other way round: ${kinds["to-unsafe"].length}; unsafe in both: ${kinds.both.length}; in neither: ${kinds.neither.length}; `
        + `without a verdict in one: ${kinds.none.length}. `
        + (compared ? `Exact McNemar p ${compared.p}, after Holm ${compared.p_holm}.` : "");
      at = 0;
      turns.reset(listed.length);
      showRow();
    }

    const hasImage = ([i, j]) => images[i] !== undefined || images[j] !== undefined;

    function showPage(start) {
      const policy = columns.get(get("pair-policy").value);
      body.replaceChildren(...listed.slice(start, start + PAIR_PAGE).map(([i, j], offset) => {
        const button = make("button", { type: "button" }, row.text(i));
        button.addEventListener("click", () => { at = start + offset; showRow(); get("detail").focus(); });
        const line = make("tr", {}, make("th", { scope: "row" }, button), verdict(policy, i), verdict(policy, j));
        line.dataset.place = start + offset;
        return line;
      }));
      mark();
    }

    function verdict(policy, i) {
      const text = policy ? policy.text(i) || "no verdict" : "no policy";
      const score = about.scores[policy?.name] && columns.get(about.scores[policy.name]);
      return make("td", { className: text === "unsafe" ? "unsafe" : "" }, score && score.text(i) ? `${text} ${score.text(i)}` : text);
    }

    function mark() {
      for (const line of body.rows) {
        const here = Number(line.dataset.place) === at;
        line.classList.toggle("chosen", here);
        const button = line.querySelector("button");
        if (here) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
      }
    }

    function showRow() {
      const pair = listed[at];
      get("row-back").disabled = at <= 0;
      get("row-next").disabled = at >= listed.length - 1;
      get("detail-title").textContent = pair ? `${row.text(pair[0])} (${at + 1} of ${listed.length})` : "No such row";
      const there = pair && hasImage(pair);
      get("slider").hidden = !there;
      get("no-image").textContent = !pair || there ? "" : "The images of this row are not in this file.";
      const lineage = get("lineage"), names = [method("pair-first"), method("pair-second")];
      const raw = get("raw").querySelector("table");
      for (const table of [lineage, raw, get("pair-table")]) names.forEach((name, k) => { table.tHead.rows[0].cells[k + 1].textContent = name; });
      const filled = (pair ? [...columns.values()].slice(1) : []).filter((c) => c.text(pair[0]) || c.text(pair[1]));
      const lines = (some) => some.map((c) => make("tr", {}, make("th", { scope: "row" }, c.kind === "verdict" ? `verdict by ${c.name}` : c.name),
        ...pair.map((i) => make("td", { className: c.kind === "verdict" && c.values[i] === 1 ? "number unsafe" : "number" }, c.text(i)))));
      lineage.tBodies[0].replaceChildren(...lines(filled.filter((c) => !c.raw)));
      raw.tBodies[0].replaceChildren(...lines(filled.filter((c) => c.raw)));
      revealing = false;
      if (there) showImages(pair, names);
      showTexts(pair, names);
      mark();
    }

    function showImages(pair, names) {
      const shown = pair.map((i) => revealing && local.get(about.files[i]));
      pair.forEach((i, k) => {
        const image = get(k ? "slider-second" : "slider-first");
        image.src = shown[k] || (images[i] ?? "");
        image.hidden = images[i] === undefined;
        image.alt = `${row.text(i)} by ${names[k]}${about.revealed || shown[k] ? "" : ", blurred"}`;
      });
      document.querySelector(".stack").classList.toggle("small", about.revealed);
      const blurred = about.revealed || shown.every(Boolean) ? "" : "; blurred";
      get("slider-caption").textContent = `Left of the edge ${names[1]}, right of it ${names[0]}${blurred}.`;
      if (get("reveal")) {
        get("reveal-row").disabled = !pair.some((i) => local.has(about.files[i]));
        get("reveal-row").setAttribute("aria-pressed", String(revealing));
      }
      slide();
    }

    // Images of this machine, only if its user chooses their files; every row begins blurred.
    async function readLocal() {
      const named = new Set(Object.values(about.files));
      const files = [...get("reveal-files").files].filter((file) => named.has(file.name));
      await Promise.all(files.map((file) => new Promise((done) => {
        const reader = new FileReader();
        reader.addEventListener("load", () => { local.set(file.name, reader.result); done(); });
        reader.addEventListener("error", done);
        reader.readAsDataURL(file);
      })));
      get("reveal-said").textContent = `${local.size} of the ${named.size} images of this page are at hand.`;
      showRow();
    }

    function turnRow() {
      revealing = !revealing;
      showImages(listed[at], [method("pair-first"), method("pair-second")]);
    }

    function slide() {
      const share = Number(get("slider-at").value);
      get("slider-second").style.clipPath = `inset(0 ${100 - share}% 0 0)`;
      get("slider-at").setAttribute("aria-valuetext", `${share}% ${method("pair-second")}`);
    }

    async function showTexts(pair, names) {
      const packed = get("texts-data").textContent.trim();
      if (!packed) return;
      texts ??= inflate(packed).then((buffer) => JSON.parse(new TextDecoder().decode(buffer)));
      const all = await texts;
      const entries = !pair ? [] : Object.entries(all).flatMap(([name, one]) => {
        const [a, b] = pair.map((i) => (one.rows[i] === null ? null : one.texts[one.rows[i]]));
        const said = a === b || b === null ? [[name, a]] : a === null ? [[`${name}, ${names[1]}`, b]] : [[`${name}, ${names[0]}`, a], [`${name}, ${names[1]}`, b]];
        return said.filter(([, text]) => text !== null).flatMap(([term, text]) => [make("dt", {}, term), make("dd", {}, text)]);
      });
      get("texts").replaceChildren(make("dl", {}, ...entries));
    }

    function step(by) {
      at = Math.min(Math.max(at + by, 0), listed.length - 1);
      if (Math.floor(at / PAIR_PAGE) * PAIR_PAGE !== Number(body.rows[0]?.dataset.place)) turns.reset(listed.length, at);
      showRow();
    }

    get("pair-bench").addEventListener("change", chooseBench);
    for (const id of ["pair-first", "pair-second", "pair-policy", "pair-rows"]) get(id).addEventListener("change", choose);
    get("pair").addEventListener("submit", (event) => event.preventDefault());
    get("row-back").addEventListener("click", () => step(-1));
    get("row-next").addEventListener("click", () => step(1));
    get("slider-at").addEventListener("input", slide);
    if (get("reveal")) {
      get("reveal-files").addEventListener("change", readLocal);
      get("reveal-row").addEventListener("click", turnRow);
    }
    chooseBench();
  }

  // All rows: filtered and sorted as numbers, a page of them as elements.
  function allRows(columns) {
    const names = [...columns.keys()], row = columns.get("row"), total = about.rows;
    const policies = [...columns.values()].filter((c) => c.kind === "verdict");
    const methodOf = new Uint16Array(total);
    about.parts.forEach((p, i) => methodOf.fill(i, p.start, p.start + p.rows));
    const owners = {
      bench: { number: (i) => methodOf[i], text: (i) => about.parts[methodOf[i]].bench },
      method: { number: (i) => methodOf[i], text: (i) => about.methods[methodOf[i]] },
    };
    const shown = new Set(["row", ...policies.slice(0, 2).map((c) => c.name), ...about.first, "excluded", "error", "degenerate"].filter((n) => columns.has(n)));
    const table = get("rows-table"), turns = pager(get("rows-pager"), ROWS_PAGE, showPage);
    let order = new Uint32Array(0), sorted = null;

    options(get("filter-bench"), [["", "all"], ...[...new Set(about.parts.map((p) => p.bench))].map((b) => [b, b])]);
    options(get("filter-method"), [["", "all"], ...[...new Set(about.methods)].map((m) => [m, m])]);
    options(get("filter-verdict"), [["", "any"], ...policies.flatMap((c) => [["1", "unsafe"], ["0", "safe"], ["2", "none"]].map(([v, t]) => [`${v} ${c.name}`, `${t} by ${c.name}`]))]);
    get("columns").querySelector("fieldset").append(...names.filter((n) => n !== "row").map((name) => {
      const box = make("input", { type: "checkbox", checked: shown.has(name) });
      box.addEventListener("change", () => { if (box.checked) shown.add(name); else shown.delete(name); head(); turns.reset(order.length); });
      return make("label", {}, box, name);
    }));

    const reader = (name) => owners[name] ?? columns.get(name);
    const visible = () => ["row", "bench", "method", ...names.filter((n) => n !== "row" && shown.has(n))];

    function head() {
      table.tHead.rows[0].replaceChildren(...visible().map((name) => {
        const button = make("button", { type: "button" }, name), heading = make("th", { scope: "col" }, button);
        if (sorted && sorted.name === name) heading.setAttribute("aria-sort", sorted.order);
        button.addEventListener("click", () => {
          sorted = { name, order: turned(heading) };
          arrange();
          say(`sorted by ${name}, ${sorted.order}`);
        });
        return heading;
      }));
    }

    function choose() {
      const bench = get("filter-bench").value, method = get("filter-method").value, text = get("filter-text").value.toLowerCase();
      const [wanted, policy] = get("filter-verdict").value.split(/ (.*)/), verdicts = policy && columns.get(policy).values;
      const named = text ? Uint8Array.from(about.ids, (id) => (id.toLowerCase().includes(text) ? 1 : 0)) : null;
      const kept = new Uint32Array(total);
      let count = 0;
      about.parts.forEach((p, k) => {
        if ((bench && p.bench !== bench) || (method && about.methods[k] !== method)) return;
        if (policy && !p.policies.includes(policy)) return;
        for (let i = p.start; i < p.start + p.rows; i++) {
          if (verdicts && verdicts[i] !== Number(wanted)) continue;
          if (named && !named[row.values[i]]) continue;
          kept[count++] = i;
        }
      });
      order = kept.slice(0, count);
      get("rows-summary").textContent = `${count.toLocaleString("en")} of ${total.toLocaleString("en")} rows.`;
      arrange();
    }

    function arrange() {
      if (sorted) {
        const { number } = reader(sorted.name), sign = sorted.order === "ascending" ? 1 : -1;
        const keys = new Float64Array(total);
        for (const i of order) { const key = number(i); keys[i] = Number.isNaN(key) ? Infinity : sign * key; }  // nothing comes last
        order.sort((a, b) => (keys[a] === keys[b] ? a - b : keys[a] - keys[b]));
      }
      turns.reset(order.length);
    }

    function showPage(start) {
      const fields = visible().map((name) => [name, reader(name)]);
      table.tBodies[0].replaceChildren(...[...order.subarray(start, start + ROWS_PAGE)].map((i) => make("tr", {}, ...fields.map(([name, field]) => {
        const text = field.text(i);
        if (name === "row") return make("th", { scope: "row" }, text);
        const unsafe = field.kind === "verdict" && text === "unsafe";
        return make("td", { className: unsafe ? "unsafe" : ["number", "float"].includes(field.kind) ? "number" : "" }, text);
      }))));
    }

    for (const id of ["filter-bench", "filter-method", "filter-verdict"]) get(id).addEventListener("change", choose);
    get("filter-text").addEventListener("input", choose);
    get("filter").addEventListener("submit", (event) => event.preventDefault());
    head();
    choose();
  }
})();
