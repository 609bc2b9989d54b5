/* Paths of optimizers over the contour lines of a function, up to the step that the reader chooses. */
"use strict";

(() => {
  const { axes, choice, drawing, element, figure, minus, reading, shape, slider } = refnormFigures;
  const DASHES = ["", "5 3", "", "5 3", "", "2 2"];  // an optimizer and its projected form have neighbouring colours
  let count = 0;

  function build(place, data) {
    place.classList.add("valley");
    const [[left, right], [low, high]] = data.area;
    let landscape = 0, rate = 3, step = 30;
    const clip = `valley-${++count}`;
    const at = index => data.landscapes[landscape].paths[index][rate];
    const shown = data.names.map(() => true);
    const picture = drawing(place, {
      label: "Contour lines of a function, and the paths of the optimizers that are ticked below",
      ratio: width => ((width - 40) * (high - low) / (right - left) + 36) / width, draw,
    });
    const key = element(place, "div", { class: "interactive-key", role: "group", "aria-label": "Optimizers" });
    const ends = data.names.map((name, index) => {
      const box = element(key, "label");
      const input = element(box, "input", { type: "checkbox" });
      input.checked = true;
      input.addEventListener("change", () => { shown[index] = input.checked; update(); });
      const icon = shape(box, "svg", { width: 22, height: 10, "aria-hidden": "true" });
      shape(icon, "path", { class: `path-${index + 1}`, "stroke-dasharray": DASHES[index], d: "M0 5H22" });
      return element(box, "span");
    });
    const controls = element(place, "div", { class: "interactive-controls" });
    choice(controls, {
      label: "Function", names: data.landscapes.map(({ name }) => name), act: index => { landscape = index; update(); },
    });
    slider(controls, {
      label: "Learning rate", min: 0, max: data.rates.length - 1, step: 1, value: rate,
      show: index => String(data.rates[index]), act: index => { rate = index; update(); },
    });
    slider(controls, {
      label: "Steps", min: 0, max: data.steps, step: 1, value: step, act: value => { step = value; update(); },
    });
    const say = reading(place);
    update();

    function draw(svg, width, height) {
      const box = { left: 32, right: width - 8, top: 8, bottom: height - 28 };
      const { toX, toY } = axes(svg, box, {
        x: data.area[0], y: data.area[1], xTicks: [-2, 0, 2], yTicks: [-2, 0, 2], xTitle: "",
        xShow: tick => minus(String(tick)), yShow: tick => minus(String(tick)),
      });
      const line = points => points.map(([x, y]) => `${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`).join("L");
      shape(shape(svg, "clipPath", { id: clip }), "rect", {
        x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top,
      });
      const inside = shape(svg, "g", { "clip-path": `url(#${clip})` });
      shape(inside, "path", {
        class: "contours", d: data.landscapes[landscape].contours.map(points => `M${line(points)}`).join(""),
      });
      data.names.forEach((name, index) => {
        if (!shown[index]) return;
        const points = at(index).points.slice(0, step + 1);
        shape(inside, "path", { class: `path-${index + 1}`, "stroke-dasharray": DASHES[index], d: `M${line(points)}` });
        const [x, y] = points[points.length - 1];
        shape(inside, "circle", { class: `end-${index + 1}`, cx: toX(x).toFixed(1), cy: toY(y).toFixed(1), r: 4.5 });
      });
      const [x, y] = at(0).points[0];
      shape(inside, "circle", { class: "start", cx: toX(x), cy: toY(y), r: 5 });
    }

    function update() {
      picture.again();
      ends.forEach((end, index) => {
        const { values } = at(index);
        end.textContent = `${data.names[index]}: ${step < values.length ? values[step].toPrecision(2) : "far away"}`;
      });
      say(`Behind each name: the function after ${step} step${step === 1 ? "" : "s"} with the learning rate ${data.rates[rate]}. ` +
        "The circle is the start, a dot where a path stands; a dot outside of the picture has left it.");
    }
  }

  figure("valley", build);
})();
