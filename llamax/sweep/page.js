// The pictures of a comparison's page, its sorting, its highlights; no library, no request.
'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const rows = [...document.querySelectorAll('#runs tbody tr')];
  const told = document.getElementById('told');
  const state = {curve: 0, x: 'step', log: false};
  const X = {step: [0, 'step'], tokens: [1, 'tokens'], time: [2, 'time in training steps']};
  const marks = data.runs.map(() => []); // what is drawn of each run

  const make = (parent, tag, attributes = {}, text) => {
    const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };
  const mix = (level, a = 'good', b = 'bad') =>
    level === null ? 'var(--unknown)' : `color-mix(in oklab, var(--${b}) ${(level * 100).toFixed(1)}%, var(--${a}))`;
  const color = (i) => (data.runs[i].color === null ? mix(data.runs[i].level) : `var(--c${data.runs[i].color})`);
  const many = data.runs.length > 8;
  const worstFirst = data.runs.map((_, i) => i).sort((a, b) => (data.runs[b].level ?? 2) - (data.runs[a].level ?? 2));
  const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + '…' : text);

  const human = (value) => {
    for (const [size, suffix] of [[1e12, 'T'], [1e9, 'B'], [1e6, 'M'], [1e3, 'k']])
      if (Math.abs(value) >= size) return +(value / size).toPrecision(3) + suffix;
    return String(+value.toPrecision(3));
  };
  const clock = (seconds) => {
    for (const [size, unit] of [[86400, 'd'], [3600, 'h'], [60, 'min']])
      if (seconds >= size) return +(seconds / size).toPrecision(3) + ' ' + unit;
    return +seconds.toPrecision(3) + ' s';
  };
  const nice = (low, high, count) => {
    const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((n) => n * size >= raw) * size, found = [];
    for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) found.push(+(k * step).toPrecision(12));
    return found;
  };
  const niceLog = (low, high) => {
    const found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      for (const n of [1, 2, 5]) if (n * 10 ** e >= low && n * 10 ** e <= high) found.push(n * 10 ** e);
    return found.length > 8 ? found.filter((v) => Math.log10(v) % 1 === 0) : found;
  };

  // An empty drawing as wide as its place, so that its letters keep their size.
  const canvas = (id, ratio, label) => {
    const place = document.getElementById(id);
    place.replaceChildren();
    const width = Math.max(280, place.clientWidth), height = Math.round(Math.min(420, Math.max(240, width * ratio)));
    const svg = make(place, 'svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label});
    return {svg, width, height};
  };
  const mark = (i, node) => {
    marks[i].push(node);
    node.dataset.run = i;
    if (data.runs[i].best) node.classList.add('best');
    if (many && node.tagName === 'path') node.classList.add('many');
    return node;
  };

  function drawCurves() {
    if (!data.curves.length) return;
    const found = data.curves[state.curve], [field, label] = X[state.x];
    const {svg, width, height} = canvas('curves', 0.6, `${found.metric} by ${label} of every run`);
    const box = {left: 52, right: width - 10, top: 12, bottom: height - 38};
    let low = Infinity, high = -Infinity;
    for (const run of found.runs) for (const v of run[field]) {
      if (state.log && v <= 0) continue;
      low = Math.min(low, v); high = Math.max(high, v);
    }
    if (low > high) [low, high] = [1, 2]; // nothing that can be drawn
    if (!(high > low)) { low = state.log ? low / 2 || 1 : 0; high = high > low ? high : low + 1; }
    if (!state.log) low = Math.min(low, 0);
    const scale = state.log ? Math.log : (v) => v;
    const px = (v) => box.left + ((scale(v) - scale(low)) / (scale(high) - scale(low))) * (box.right - box.left - 6);
    const [least, most] = found.limits;
    const py = (v) => box.bottom - ((v - least) / (most - least)) * (box.bottom - box.top);
    const say = state.x === 'time' ? clock : human;
    for (const v of state.log ? niceLog(low, high) : nice(low, high, width / 110)) {
      make(svg, 'line', {class: 'grid', x1: px(v), x2: px(v), y1: box.top, y2: box.bottom});
      make(svg, 'text', {x: px(v), y: box.bottom + 16, 'text-anchor': 'middle'}, say(v));
    }
    for (const v of nice(least, most, 6)) {
      make(svg, 'line', {class: 'grid', x1: box.left, x2: box.right, y1: py(v), y2: py(v)});
      make(svg, 'text', {x: box.left - 6, y: py(v) + 4, 'text-anchor': 'end'}, +v.toPrecision(6));
    }
    make(svg, 'text', {class: 'title', x: (box.left + box.right) / 2, y: height - 5, 'text-anchor': 'middle'}, label);
    const clip = make(make(svg, 'clipPath', {id: 'inside'}), 'rect',
      {x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top});
    const inside = make(svg, 'g', {'clip-path': `url(#${clip.parentNode.id})`});
    const points = [];
    for (const i of worstFirst) {
      const run = found.runs[i], xs = run[field], ys = run[3], line = [];
      xs.forEach((x, k) => {
        if (state.log && x <= 0) return;
        line.push(`${px(x).toFixed(1)} ${py(ys[k]).toFixed(1)}`);
        points.push([px(x), py(ys[k]), i, x, ys[k]]);
      });
      if (!line.length) continue;
      mark(i, make(inside, 'path', {class: 'run', d: 'M' + line.join('L'), style: `stroke: ${color(i)}`}));
      if (line.length < 12) for (const p of line) {
        const [cx, cy] = p.split(' ');
        mark(i, make(inside, 'circle', {cx, cy, r: many ? 2 : 3, style: `fill: ${color(i)}`}));
      }
    }
    svg.addEventListener('pointermove', (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let nearest = null, away = 30 ** 2;
      for (const p of points) {
        const distance = (p[0] - at.x) ** 2 + (p[1] - at.y) ** 2;
        if (distance < away) [nearest, away] = [p, distance];
      }
      if (nearest) heat(nearest[2], `${found.metric} ${+nearest[4].toPrecision(5)} at ${state.x} ${say(nearest[3])}`);
      else heat(null);
    });
    svg.addEventListener('pointerleave', () => heat(null));
  }

  const hover = (node, i, text) => {
    node.addEventListener('pointerenter', () => heat(i, text));
    node.addEventListener('pointerleave', () => heat(null));
  };

  function drawLine(found) {
    const {svg, width, height} = canvas('picture', 0.6, `${found.axes[1].label} by ${found.axes[0].key}`);
    const box = {left: 58, right: width - 16, top: 14, bottom: height - 40}, [across, up] = found.axes;
    const px = (v) => box.left + 12 + v * (box.right - box.left - 24);
    const py = (v) => box.bottom - 8 - v * (box.bottom - box.top - 16);
    for (const [at, label] of spaced(across.ticks, (box.right - box.left) / 58)) {
      make(svg, 'line', {class: 'grid', x1: px(at), x2: px(at), y1: box.top, y2: box.bottom});
      make(svg, 'text', {x: px(at), y: box.bottom + 16, 'text-anchor': 'middle'}, short(label, 12));
    }
    for (const [at, label] of up.ticks) {
      make(svg, 'line', {class: 'grid', x1: box.left, x2: box.right, y1: py(at), y2: py(at)});
      make(svg, 'text', {x: box.left - 6, y: py(at) + 4, 'text-anchor': 'end'}, label);
    }
    make(svg, 'text', {class: 'title', x: (box.left + box.right) / 2, y: height - 5, 'text-anchor': 'middle'}, across.key);
    const order = data.runs.map((_, i) => i).filter((i) => across.at[i] !== null && up.at[i] !== null);
    order.sort((a, b) => across.at[a] - across.at[b]);
    const line = order.map((i) => `${px(across.at[i]).toFixed(1)} ${py(up.at[i]).toFixed(1)}`).join('L');
    if (line) make(svg, 'path', {class: 'run', d: 'M' + line, style: 'stroke: var(--unknown)'});
    for (const i of order) {
      const dot = make(svg, 'circle', {cx: px(across.at[i]), cy: py(up.at[i]), r: 5.5, style: `fill: ${color(i)}`});
      hover(mark(i, dot), i, `${up.label} ${found.values[i]}`);
    }
  }

  function drawHeat(found) {
    const [down, across, metric] = found.axes, letters = Math.max(...down.ticks.map(([, label]) => label.length));
    const {svg, width, height} = canvas('picture', 0.6, `${metric.label} by ${down.key} and ${across.key}`);
    const left = Math.min(150, 20 + 7.5 * Math.min(16, letters)) + 14;
    const box = {left, right: width - 6, top: 8, bottom: height - 40};
    const columns = across.ticks.length, lines = down.ticks.length;
    const wide = (box.right - box.left) / columns, tall = (box.bottom - box.top) / lines;
    const px = (at) => box.left + at * (columns - 1) * wide, py = (at) => box.bottom - (at * (lines - 1) + 1) * tall;
    const every = Math.ceil(52 / wide);
    across.ticks.forEach(([at, label], k) => {
      if (k % every === 0) make(svg, 'text', {x: px(at) + wide / 2, y: box.bottom + 16, 'text-anchor': 'middle'}, short(label, 12));
    });
    for (const [at, label] of down.ticks)
      if (tall > 11) make(svg, 'text', {x: box.left - 6, y: py(at) + tall / 2 + 4, 'text-anchor': 'end'}, short(label, 16));
    make(svg, 'text', {class: 'title', x: (box.left + box.right) / 2, y: height - 5, 'text-anchor': 'middle'}, across.key);
    const middle = (box.top + box.bottom) / 2;
    make(svg, 'text', {class: 'title', x: 12, y: middle, 'text-anchor': 'middle', transform: `rotate(-90 12 ${middle})`}, down.key);
    for (const i of worstFirst) {
      if (across.at[i] === null || down.at[i] === null) continue;
      const x = px(across.at[i]), y = py(down.at[i]), level = found.levels[i];
      const cell = make(svg, 'rect', {x: x + 1.5, y: y + 1.5, width: Math.max(1, wide - 3), height: Math.max(1, tall - 3), rx: 3,
        style: `fill: ${mix(level)}; stroke: ${data.runs[i].best ? 'var(--ink)' : 'none'}`});
      hover(mark(i, cell), i, `${metric.label} ${found.values[i] || 'unknown'}`);
      if (wide < 44 || tall < 14) continue;
      const ink = level === null ? 'var(--ink)' : level < 0.45 ? 'var(--on-good)' : 'var(--on-bad)';
      make(svg, 'text', {x: x + wide / 2, y: y + tall / 2 + 4, 'text-anchor': 'middle', style: `fill: ${ink}; pointer-events: none`}, found.values[i] || '–');
    }
  }

  function drawParallel(found) {
    const {svg, width, height} = canvas('picture', 0.6, `how ${found.axes.map((axis) => axis.label).join(', ')} go together`);
    const stagger = Math.max(...found.axes.map((axis) => axis.label.length)) * 7 > (width - 76) / (found.axes.length - 1);
    const box = {left: 14, right: width - 62, top: 30, bottom: height - 10}, count = found.axes.length;
    const px = (k) => box.left + (k / (count - 1)) * (box.right - box.left);
    const py = (at) => box.bottom - at * (box.bottom - box.top), room = (box.right - box.left) / (count - 1);
    for (const i of worstFirst) {
      const line = [];
      found.axes.forEach((axis, k) => { if (axis.at[i] !== null) line.push(`${px(k).toFixed(1)} ${py(axis.at[i]).toFixed(1)}`); });
      if (line.length < 2) continue;
      const path = make(svg, 'path', {class: 'run', d: 'M' + line.join('L'), style: `stroke: ${mix(found.levels[i])}`});
      hover(mark(i, path), i, `${found.axes[count - 1].label} ${found.values[i] || 'unknown'}`);
    }
    found.axes.forEach((axis, k) => {
      make(svg, 'line', {class: 'grid', x1: px(k), x2: px(k), y1: box.top, y2: box.bottom, style: 'stroke: var(--faint)'});
      const anchor = k === 0 ? 'start' : k === count - 1 ? 'end' : 'middle', letters = Math.max(5, Math.floor(room / 7));
      make(svg, 'text', {class: 'title halo', x: k === count - 1 ? width - 4 : px(k), y: k % 2 && stagger ? 24 : 12, 'text-anchor': anchor},
        short(axis.label, stagger ? 2 * letters : letters));
      for (const [at, label] of spaced(axis.ticks, (box.bottom - box.top) / 16))
        make(svg, 'text', {class: 'halo', x: px(k) + 4, y: py(at) + (at > 0.97 ? 11 : at < 0.03 ? -2 : 4)}, short(label, Math.max(4, Math.floor((k === count - 1 ? 58 : room) / 7))));
    });
  }

  // No more ticks than there is room for.
  const spaced = (ticks, most) => {
    const every = Math.ceil(ticks.length / Math.max(2, Math.floor(most)));
    return ticks.filter((_, k) => k % every === 0);
  };

  let hot = null;
  function heat(i, text = '') {
    if (hot !== null && hot !== i) for (const node of [rows[hot], ...marks[hot]]) node.classList.remove('hot');
    hot = i;
    if (i !== null) for (const node of [rows[i], ...marks[i]]) node.classList.add('hot');
    if (told) told.textContent = i === null ? '' : `${data.runs[i].name}: ${text}`.replace(/: $/, '');
  }

  function draw() {
    hot = null;
    for (const list of marks) list.length = 0;
    drawCurves();
    if (data.picture) ({line: drawLine, heat: drawHeat, parallel: drawParallel})[data.picture.kind](data.picture);
  }

  function choose(node, change) {
    node.addEventListener('click', () => {
      change();
      for (const other of node.parentNode.querySelectorAll('button')) other.setAttribute('aria-pressed', other === node);
      draw();
    });
  }
  for (const node of document.querySelectorAll('[data-x]')) choose(node, () => (state.x = node.dataset.x));
  for (const node of document.querySelectorAll('[data-curve]')) choose(node, () => (state.curve = +node.dataset.curve));
  for (const node of document.querySelectorAll('[data-log]')) choose(node, () => (state.log = node.dataset.log === 'true'));

  const body = document.querySelector('#runs tbody');
  document.querySelectorAll('#runs th').forEach((head, column) => {
    head.querySelector('button').addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      for (const other of document.querySelectorAll('#runs th')) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const value = (row) => row.cells[column].dataset.v;
      const compare = head.classList.contains('number') ? (a, b) => a - b : (a, b) => a.localeCompare(b, 'en', {numeric: true});
      const known = rows.filter((row) => value(row) !== ''), rest = rows.filter((row) => value(row) === '');
      known.sort((a, b) => (down ? -1 : 1) * compare(value(a), value(b)));
      body.append(...known, ...rest);
    });
  });
  rows.forEach((row, i) => hover(row, i, ''));
  for (const node of document.querySelectorAll('.command button')) node.addEventListener('click', () => {
    const text = node.parentNode.querySelector('pre');
    const done = () => { node.textContent = 'copied'; setTimeout(() => (node.textContent = 'copy'), 1500); };
    const byHand = () => { getSelection().selectAllChildren(text); };
    if (navigator.clipboard) navigator.clipboard.writeText(text.textContent).then(done, byHand); else byHand();
  });

  draw();
  let width = innerWidth;
  addEventListener('resize', () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
})();
