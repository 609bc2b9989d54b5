/* A feature map in isometric view: which entries share the statistics of the one that the reader chooses. */
"use strict";

(() => {
  const { choice, drawing, element, figure, reading, shape, slider } = refnormFigures;
  const ALONG = [0.866, 0.5], DOWN = [0, 1], BACK = [0.866, -0.5];
  const AXES = ["Example", "Channel", "Place"];
  const plus = (...points) => points.reduce(([x, y], [a, b]) => [x + a, y + b], [0, 0]);
  const times = (factor, [x, y]) => [factor * x, factor * y];

  function build(place, data) {
    place.classList.add("shared-entries");
    const [examples, channels, places] = data.shape;
    const at = [Math.floor(examples / 2), 2, 1];
    let norm = 0;
    const number = ([n, c, p]) => (n * channels + c) * places + p;
    const slab = (channels + 2) * ALONG[0];
    const span = [(examples - 1) * slab + channels * ALONG[0] + BACK[0], places + channels * ALONG[1] - BACK[1] + 1.2];
    const picture = drawing(place, {
      label: "Three slabs of cubes, one for each example; the cubes that share statistics are coloured",
      ratio: () => span[1] / (span[0] + 0.4), widest: 640, draw,
    });
    const controls = element(place, "div", { class: "interactive-controls" });
    choice(controls, { label: "Norm", names: data.norms.map(({ name }) => name), act: index => { norm = index; update(); } });
    const sliders = AXES.map((label, axis) => slider(controls, {
      label, min: 1, max: data.shape[axis], step: 1, value: at[axis] + 1,
      show: value => `${value} of ${data.shape[axis]}`, act: value => { at[axis] = value - 1; update(); },
    }));
    const say = reading(place);
    update();

    function draw(svg, width) {
      const unit = width / (span[0] + 0.4), { sets } = data.norms[norm];
      const origin = [0.2, -BACK[1] + 0.1];
      const polygon = corners => corners.map(point => times(unit, plus(origin, point)).map(v => v.toFixed(1)).join()).join(" ");
      for (let n = 0; n < examples; n++) {
        for (let c = 0; c < channels; c++) {
          for (let p = 0; p < places; p++) {
            const corner = plus([n * slab, 0], times(c, ALONG), times(p, DOWN)), right = plus(corner, ALONG);
            const faces = { front: [corner, right, plus(right, DOWN), plus(corner, DOWN)] };
            if (p === 0) faces.top = [corner, plus(corner, BACK), plus(right, BACK), right];
            if (c === channels - 1) faces.side = [right, plus(right, BACK), plus(right, BACK, DOWN), plus(right, DOWN)];
            const chosen = number(at) === number([n, c, p]), shared = sets[number(at)] === sets[number([n, c, p])];
            for (const [face, corners] of Object.entries(faces)) {
              const kind = chosen ? "chosen" : shared ? "shared" : "other";
              const made = shape(svg, "polygon", { class: `${face} ${kind}`, points: polygon(corners) });
              made.addEventListener("click", () => choose([n, c, p]));
            }
          }
        }
        const [x, y] = times(unit, plus(origin, [n * slab + 0.3 * channels * ALONG[0], places + 0.75 * channels * ALONG[1] + 0.6]));
        shape(svg, "text", { x, y, "text-anchor": "middle" }, unit < 20 ? `${n + 1}` : `example ${n + 1}`);
      }
    }

    function choose(entry) {
      entry.forEach((value, axis) => { at[axis] = value; sliders[axis].value = value + 1; });
      update();
    }

    /* How far the set of entries reaches along each axis. */
    function extent(sets) {
      const seen = [new Set(), new Set(), new Set()];
      for (let n = 0; n < examples; n++) for (let c = 0; c < channels; c++) for (let p = 0; p < places; p++) {
        if (sets[number([n, c, p])] === sets[number(at)]) [n, c, p].forEach((value, axis) => seen[axis].add(value));
      }
      return seen.map((values, axis) => [values.size, AXES[axis].toLowerCase() + (values.size > 1 ? "s" : "")].join(" "));
    }

    function update() {
      picture.again();
      const { name, sets, removesMean } = data.norms[norm];
      const count = sets.filter(set => set === sets[number(at)]).length;
      say(`${name}: ${extent(sets).join(" × ")}, so ${count} entries share ` +
        (removesMean ? "a mean and a variance." : "a mean square; no mean is removed."));
    }
  }

  figure("shared_entries", build);
})();
