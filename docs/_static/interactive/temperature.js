/* Softmax at the reader's temperature: probabilities, and the rounding error of each algorithm. */
"use strict";

(() => {
  const { axes, drawing, element, figure, minus, reading, shape, slider } = refnormFigures;
  const FARTHEST = 88;  // e^-88 is where float32 ends
  const MARKS = [
    (x, y) => `M${x - 3} ${y - 3}h6v6h-6z`,
    (x, y) => `M${x} ${y - 4}l3.6 6.4h-7.2z`,
    (x, y) => `M${x - 4.5} ${y}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z`,
    (x, y) => `M${x} ${y - 4}l4 4l-4 4l-4 -4z`,
  ];

  function build(place, data) {
    place.classList.add("temperature");
    let at = data.temperatures.findIndex(temperature => temperature >= 0.14);
    const picture = drawing(place, {
      label: "Probabilities of eight scores, and errors of four softmax algorithms, at the temperature chosen below",
      ratio: width => (width < 560 ? 1.35 : 0.5), draw,
    });
    const key = element(place, "ul", { class: "interactive-key" });
    data.algorithms.forEach((algorithm, index) => {
      const item = element(key, "li");
      const icon = shape(item, "svg", { width: 12, height: 12, "aria-hidden": "true" });
      shape(icon, "path", { class: `series-${index + 1}`, d: MARKS[index](6, 6) });
      algorithm.worst = element(item, "span");
    });
    const controls = element(place, "div", { class: "interactive-controls" });
    slider(controls, {
      label: "Temperature", min: 0, max: data.temperatures.length - 1, step: 1, value: at,
      show: index => data.temperatures[index].toPrecision(3), act: index => { at = index; update(); },
    });
    const say = reading(place);
    update();

    function draw(svg, width, height) {
      const narrow = width < 560;
      const left = { left: 32, right: narrow ? width - 6 : 0.36 * width, top: 24, bottom: narrow ? 0.36 * height : height - 40 };
      const right = { left: narrow ? 32 : 0.36 * width + 46, right: width - 6, top: narrow ? 0.36 * height + 68 : 24, bottom: height - 40 };
      const names = data.scores.map(score => minus(String(score)));
      const bars = axes(svg, left, {
        x: [-0.6, data.scores.length - 0.4], y: [0, 1], xTicks: data.scores.keys(), yTicks: [0, 0.5, 1],
        xShow: index => names[index], xTitle: "score", yTitle: "probability",
      });
      data.probabilities[at].forEach((value, index) => {
        const top = bars.toY(value);
        shape(svg, "rect", {
          class: "bar", x: bars.toX(index - 0.36), width: bars.toX(0.72) - bars.toX(0), y: top, height: left.bottom - top,
        });
      });
      const ticks = { 0.125: "≤ ⅛", 1: "1", 8: "8", 64: "64" };
      const plot = axes(svg, right, {
        x: [0, FARTHEST], y: [Math.log2(data.least), 7], xTicks: [0, 20, 40, 60, 80],
        yTicks: Object.keys(ticks).map(tick => Math.log2(tick)), yShow: tick => ticks[2 ** tick],
        xTitle: "max − x", yTitle: "error, units in the last place",
      });
      data.algorithms.forEach(({ errors }, index) => {
        if (!errors[at]) return;
        const marks = errors[at].map((error, entry) => error === null ? "" : MARKS[index](
          Math.round(plot.toX(data.below[at][entry])), Math.round(plot.toY(Math.log2(Math.max(error, data.least))))));
        shape(svg, "path", { class: `series-${index + 1}`, d: marks.join("") });
      });
    }

    function update() {
      picture.again();
      for (const { name, errors, worst } of data.algorithms) {
        const found = errors[at] && Math.max(...errors[at].filter(error => error !== null));
        worst.textContent = `${name}: ${found === null ? "overflows" : `at most ${found.toFixed(1)} ULP`}`;
      }
      const entropy = -data.probabilities[at].reduce((sum, p) => sum + (p > 0 ? p * Math.log(p) : 0), 0);
      say(`The eight probabilities are as spread as ${Math.exp(entropy).toFixed(1)} equal ones (the exponential of their ` +
        `entropy). Right: ${data.below[at].length} float32 logits, each with the error of its probability.`);
    }
  }

  figure("temperature", build);
})();
