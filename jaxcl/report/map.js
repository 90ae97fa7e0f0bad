"use strict";
// The map of the embeddings: thumbnails on a canvas. All texts are set as text, never as HTML.
(() => {
  const PALETTE = ["#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499", "#777777", "#e08214", "#1f78b4"];
  const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
  const colour = (label, count) =>
    label < 0 ? "#9a9a9a" : count <= PALETTE.length ? PALETTE[label] : `hsl(${(label * 137.508) % 360} 65% ${40 + 15 * (label % 3)}%)`;

  for (const root of document.querySelectorAll(".map")) start(root);

  function start(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const find = (selector) => root.querySelector(selector);
    const canvas = find("canvas"), context = canvas.getContext("2d");
    const detail = find(".detail"), chips = find(".chips"), select = find("select"), search = find("input"), hint = find(".hint");
    const count = data.captions.length, [cellHeight, cellWidth] = data.cell;
    const aspect = cellHeight / cellWidth, neighbours = data.layouts[0].near.length / count;
    const calm = matchMedia("(prefers-reduced-motion: reduce)");
    const words = data.captions.map((caption, i) =>
      [caption, ...data.levels.map((level) => (level.ids[i] < 0 ? "" : level.names[level.ids[i]]))].join(" ").toLowerCase());

    let layout = data.layouts[0], points = Float64Array.from(layout.xy, (v) => v / data.units);
    let level = select ? +select.value : -1, picked = null, query = "";
    let width = 0, height = 0, scale = 1, left = 0, top = 0;
    let hovered = -1, pinned = -1, queued = false, animation = 0;

    // The sprite is in the page once, as the background of a class.
    const probe = document.createElement("span");
    probe.className = data.sprite;
    probe.hidden = true;
    root.append(probe);
    const sprite = new Image();
    sprite.onload = draw;
    sprite.src = getComputedStyle(probe).backgroundImage.slice(5, -2);

    const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
    // Layouts are wide rather than high; a little stretching lets them fill the map.
    const across = Math.max(...data.layouts.map(({ xy }) => extent(xy, 0))), down = Math.max(...data.layouts.map(({ xy }) => extent(xy, 1)));
    const stretch = () => clamp(((width / height) * down) / across, 0.75, 1.4);
    const x = (i) => left + points[2 * i] * scale * stretch();
    const y = (i) => top + points[2 * i + 1] * scale;
    const fitted = () => 0.92 * Math.min(width / stretch() / across, height / down);
    const size = () => clamp(0.62 * Math.sqrt((width * height) / count), 14, 40) * clamp((scale / fitted()) ** 0.65, 0.5, 4);

    function extent(xy, axis) {
      const values = xy.filter((_, k) => k % 2 === axis);
      return Math.max((Math.max(...values) - Math.min(...values)) / data.units, 1e-3);
    }

    function agreement(i, j) {
      let levels = 0;
      for (const { ids } of data.levels) {
        if (ids[i] !== ids[j] || ids[i] < 0) break;
        levels += 1;
      }
      const all = data.levels.length;
      if (!all) return "";
      return levels === all ? "all" : !levels ? "none" : levels === all - 1 && all > 2 ? "most" : "some";
    }

    function near(i) {
      return layout.near.slice(i * neighbours, (i + 1) * neighbours);
    }

    function wanted(i) {
      return (picked === null || data.levels[level].ids[i] === picked) && (!query || words[i].includes(query));
    }

    function tile(i, side, frame, border) {
      const w = side, h = side * aspect, px = x(i) - w / 2, py = y(i) - h / 2;
      if (px > width || py > height || px + w < 0 || py + h < 0) return;
      context.fillStyle = frame;
      context.beginPath();
      context.roundRect(px - border, py - border, w + 2 * border, h + 2 * border, border + 2);
      context.fill();
      context.fillStyle = "#fff";
      context.fillRect(px, py, w, h);
      const column = i % data.columns, row = Math.floor(i / data.columns);
      context.drawImage(sprite, column * cellWidth, row * cellHeight, cellWidth, cellHeight, px, py, w, h);
    }

    function paint() {
      queued = false;
      const ratio = window.devicePixelRatio || 1;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      if (!sprite.complete) return;
      const side = size(), focus = hovered >= 0 ? hovered : pinned;
      const names = level >= 0 ? data.levels[level].names.length : 0;
      const plain = style("--line");
      const frame = (i) => (level >= 0 ? colour(data.levels[level].ids[i], names) : plain);
      const filtering = picked !== null || query;
      context.imageSmoothingEnabled = side < 2 * cellWidth;
      for (const match of filtering ? [false, true] : [true]) {
        context.globalAlpha = match ? 1 : 0.12;
        for (let i = 0; i < count; i++) if (wanted(i) === match) tile(i, side, frame(i), side < 24 ? 2 : 3);
      }
      context.globalAlpha = 1;
      if (focus < 0) return;
      const others = near(focus), colours = others.map((j) => style("--" + (agreement(focus, j) || "accent")));
      context.lineWidth = 1.6;
      others.forEach((j, k) => {
        context.strokeStyle = colours[k];
        context.beginPath();
        context.moveTo(x(focus), y(focus));
        context.lineTo(x(j), y(j));
        context.stroke();
      });
      others.forEach((j, k) => tile(j, Math.max(side, 26), colours[k], 3));
      tile(focus, Math.max(2.2 * side, 56), style("--ink"), 3);
    }

    function draw() {
      if (!queued) requestAnimationFrame(paint);
      queued = true;
    }

    function background(element, i) {
      element.classList.add("thumb", data.sprite);
      const column = i % data.columns, row = Math.floor(i / data.columns);
      const across = (100 * column) / Math.max(data.columns - 1, 1), down = (100 * row) / Math.max(data.rows - 1, 1);
      element.style.backgroundPosition = `${across}% ${down}%`;
      element.title = data.captions[i];
      element.setAttribute("aria-label", data.captions[i]);
    }

    function element(tag, text, parent, name) {
      const made = document.createElement(tag);
      if (text) made.textContent = text;
      if (name) made.className = name;
      parent.append(made);
      return made;
    }

    function describe() {
      const focus = hovered >= 0 ? hovered : pinned;
      detail.replaceChildren();
      if (focus < 0) {
        element("p", "Point at an image, or click one to keep it.", detail, "note");
        return;
      }
      background(element("span", "", detail, "big"), focus);
      const text = element("p", "", detail);
      element("b", data.captions[focus], text);
      for (const { name, names, ids } of data.levels)
        if (ids[focus] >= 0) element("div", `${name}: ${names[ids[focus]]}`, text);
      element("small", `nearest for: ${layout.name}`, detail);
      const list = element("div", "", detail, "near");
      for (const j of near(focus)) {
        const button = element("button", "", list, agreement(focus, j));
        button.type = "button";
        background(button, j);
        button.onclick = () => { hovered = -1; pinned = j; show(); };
      }
    }

    function show() {
      describe();
      draw();
    }

    function legend() {
      chips.replaceChildren();
      if (level < 0) return;
      const { names, ids } = data.levels[level], totals = new Array(names.length).fill(0);
      for (const id of ids) if (id >= 0) totals[id] += 1;
      names.forEach((name, id) => {
        if (!totals[id]) return;
        const chip = element("button", "", chips);
        chip.type = "button";
        chip.setAttribute("aria-pressed", String(picked === id));
        element("i", "", chip).style.background = colour(id, names.length);
        element("span", `${name} ${totals[id]}`, chip);
        chip.onclick = () => { picked = picked === id ? null : id; legend(); draw(); };
      });
    }

    function move(next) {
      const from = points.slice(), to = Float64Array.from(next.xy, (v) => v / data.units), began = performance.now();
      layout = next;
      const run = ++animation, time = calm.matches ? 1 : 700;
      const frame = (now) => {
        if (run !== animation) return;
        const t = clamp((now - began) / time, 0, 1), s = t * t * (3 - 2 * t);
        points = from.map((v, i) => v + (to[i] - v) * s);
        draw();
        if (t < 1) requestAnimationFrame(frame);
      };
      requestAnimationFrame(frame);
      describe();
    }

    function zoom(factor, cx = width / 2, cy = height / 2) {
      const next = clamp(scale * factor, fitted() / 3, fitted() * 40), real = next / scale;
      left = cx - (cx - left) * real;
      top = cy - (cy - top) * real;
      scale = next;
      draw();
    }

    function all() {
      scale = fitted();
      left = (width - scale * stretch()) / 2;
      top = (height - scale) / 2;
      draw();
    }

    function resize() {
      const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1, first = !width;
      const cx = (width / 2 - left) / scale, cy = (height / 2 - top) / scale, relative = first ? 1 : scale / fitted();
      width = box.width;
      height = box.height;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      if (first) return all();
      scale = fitted() * relative;
      left = width / 2 - cx * scale;
      top = height / 2 - cy * scale;
      draw();
    }

    function at(event) {
      const box = canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
      const reach = size() / 2 + 3;
      let best = -1, least = Infinity;
      for (let i = 0; i < count; i++) {
        const dx = Math.abs(x(i) - px), dy = Math.abs(y(i) - py) / aspect, distance = dx * dx + dy * dy;
        if (dx <= reach && dy <= reach && distance <= least && wanted(i)) [best, least] = [i, distance];
      }
      return best;
    }

    // Moving: one pointer drags, two pinch. A press that does not travel is a click.
    const held = new Map();
    let travelled = 0, spread = 0;
    canvas.onpointerdown = (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, [event.clientX, event.clientY]);
      travelled = 0;
      spread = 0;
    };
    canvas.onpointermove = (event) => {
      const before = held.get(event.pointerId);
      if (!before) {
        const found = at(event);
        if (found !== hovered) { hovered = found; show(); }
        return;
      }
      held.set(event.pointerId, [event.clientX, event.clientY]);
      const dx = event.clientX - before[0], dy = event.clientY - before[1], box = canvas.getBoundingClientRect();
      travelled += Math.abs(dx) + Math.abs(dy);
      if (held.size === 2) {
        const [[ax, ay], [bx, by]] = held.values(), now = Math.hypot(ax - bx, ay - by);
        if (spread) zoom(now / spread, (ax + bx) / 2 - box.left, (ay + by) / 2 - box.top);
        spread = now;
      }
      if (travelled > 4) canvas.classList.add("drag");
      left += dx / held.size;
      top += dy / held.size;
      draw();
    };
    canvas.onpointerup = canvas.onpointercancel = (event) => {
      if (held.delete(event.pointerId) && travelled <= 4 && event.type === "pointerup") {
        const found = at(event);
        pinned = found === pinned ? -1 : found;
        hovered = -1;
        show();
      }
      canvas.classList.remove("drag");
      spread = 0;
    };
    canvas.onpointerleave = () => { if (!held.size && hovered >= 0) { hovered = -1; show(); } };

    // The wheel scrolls the page until the map has been clicked.
    let fading = 0;
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) {
        hint.textContent = "click the map first, then the wheel zooms";
        hint.hidden = false;
        clearTimeout(fading);
        fading = setTimeout(() => { hint.hidden = true; }, 1500);
        return;
      }
      event.preventDefault();
      hint.hidden = true;
      const box = canvas.getBoundingClientRect(), lines = event.deltaMode === 1 ? 24 : 1;
      zoom(Math.exp(clamp(-event.deltaY * lines, -120, 120) * 0.004), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    canvas.onkeydown = (event) => {
      const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
      if (step) { left += step[0]; top += step[1]; draw(); }
      else if (event.key === "+" || event.key === "=") zoom(1.3);
      else if (event.key === "-") zoom(1 / 1.3);
      else if (event.key === "0") all();
      else if (event.key === "Escape") { hovered = pinned = -1; show(); }
      else return;
      event.preventDefault();
    };

    for (const button of root.querySelectorAll("[data-layout]"))
      button.onclick = () => {
        for (const other of root.querySelectorAll("[data-layout]")) other.setAttribute("aria-pressed", String(other === button));
        move(data.layouts[+button.dataset.layout]);
      };
    for (const button of root.querySelectorAll("[data-zoom]"))
      button.onclick = () => (+button.dataset.zoom ? zoom(+button.dataset.zoom) : all());
    if (select) select.onchange = () => { level = +select.value; picked = null; legend(); draw(); };
    search.oninput = () => { query = search.value.trim().toLowerCase(); draw(); };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    new ResizeObserver(resize).observe(canvas);
    resize();
    legend();
    describe();
  }
})();
