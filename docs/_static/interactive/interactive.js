/* What the figures share: finding their data, drawing in SVG, controls that a keyboard and a screen reader can use. */
"use strict";

window.refnormFigures = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  let count = 0;

  function set(node, attributes) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  /* An SVG element inside `parent`. */
  function shape(parent, kind, attributes = {}, text = "") {
    const node = set(document.createElementNS(SVG, kind), attributes);
    if (text !== "") node.textContent = text;
    return parent.appendChild(node);
  }

  /* An HTML element inside `parent`. */
  function element(parent, kind, attributes = {}, text = "") {
    const node = set(document.createElement(kind), attributes);
    if (text !== "") node.textContent = text;
    return parent.appendChild(node);
  }

  /* A labelled slider whose value can be read; `show(value)` says what the value means, `act` runs when it moves. */
  function slider(parent, { label, min, max, step, value, show = String, act }) {
    const row = element(parent, "div", { class: "interactive-control" });
    const id = `interactive-${++count}`;
    element(row, "label", { for: id }, label);
    const input = element(row, "input", { type: "range", id, min, max, step });
    const output = element(row, "output", { for: id });
    const control = {
      input,
      get value() { return Number(input.value); },
      set value(wanted) { input.value = wanted; tell(); },
    };
    function tell() {
      const text = show(Number(input.value));
      output.textContent = text;
      input.setAttribute("aria-valuetext", text);
    }
    input.addEventListener("input", () => { tell(); act(control.value); });
    control.value = value;
    return control;
  }

  /* A row of exclusive choices; arrow keys go from one to the next. */
  function choice(parent, { label, names, value = 0, act }) {
    const row = element(parent, "fieldset", { class: "interactive-choice" });
    element(row, "legend", {}, label);
    const group = `interactive-${++count}`;
    const inputs = names.map((name, index) => {
      const box = element(row, "label");
      const input = element(box, "input", { type: "radio", name: group, value: index });
      element(box, "span", {}, name);
      input.checked = index === value;
      input.addEventListener("change", () => act(index));
      return input;
    });
    return { inputs, get value() { return inputs.findIndex(input => input.checked); } };
  }

  /* A line below the figure that says in numbers what it shows. */
  function reading(parent) {
    const node = element(parent, "p", { class: "interactive-reading", "aria-live": "polite" });
    return text => { node.textContent = text; };
  }

  /* A drawing that fills the width: `draw(svg, width, height)` runs whenever the width changes, and on `again()`. */
  function drawing(parent, { label, ratio, widest = 720, draw }) {
    const svg = shape(parent, "svg", { role: "img", "aria-label": label });
    let width = 0;
    function again() {
      if (!width) return;
      const height = Math.round(width * ratio(width));
      set(svg, { width, height, viewBox: `0 0 ${width} ${height}` });
      svg.replaceChildren();
      draw(svg, width, height);
    }
    new ResizeObserver(() => {
      const found = Math.floor(Math.min(parent.clientWidth, widest));
      if (found !== width) { width = found; again(); }
    }).observe(parent);
    return { svg, again };
  }

  /* Axes of a plot: scales from data to pixels, with ticks and titles. `box` is {left, right, top, bottom} in pixels. */
  function axes(svg, box, { x, y, xTicks, yTicks, xTitle, yTitle, xShow = String, yShow = String }) {
    const toX = value => box.left + (value - x[0]) / (x[1] - x[0]) * (box.right - box.left);
    const toY = value => box.bottom - (value - y[0]) / (y[1] - y[0]) * (box.bottom - box.top);
    const frame = shape(svg, "g", { class: "axes" });
    for (const tick of xTicks) {
      shape(frame, "line", { x1: toX(tick), x2: toX(tick), y1: box.top, y2: box.bottom });
      shape(frame, "text", { x: toX(tick), y: box.bottom + 15, "text-anchor": "middle" }, xShow(tick));
    }
    for (const tick of yTicks) {
      shape(frame, "line", { x1: box.left, x2: box.right, y1: toY(tick), y2: toY(tick) });
      shape(frame, "text", { x: box.left - 6, y: toY(tick) + 4, "text-anchor": "end" }, yShow(tick));
    }
    shape(frame, "text", { x: (box.left + box.right) / 2, y: box.bottom + 32, "text-anchor": "middle" }, xTitle);
    if (yTitle) shape(frame, "text", { x: box.left - 6, y: box.top - 9, "text-anchor": "start", class: "title" }, yTitle);
    return { toX, toY };
  }

  const minus = text => text.replace("-", "\u2212");
  const fixed = (value, digits) => minus(value.toFixed(digits));

  /* A whole number in groups of three. */
  const grouped = value => value.toLocaleString("en").replaceAll(",", "\u202f");

  /* Every figure named `name` on the page gets its controls: `build(place, data)`. */
  function figure(name, build) {
    for (const place of document.querySelectorAll(`.interactive[data-figure="${name}"]`)) {
      const data = JSON.parse(place.querySelector('script[type="application/json"]').textContent);
      build(place, data);
      place.dataset.ready = "true";
    }
  }

  return { axes, choice, drawing, element, figure, fixed, grouped, minus, reading, set, shape, slider };
})();
