/* Weights on a quantizer's grid: how many of them each code gets, over the weights' own histogram. */
"use strict";

(() => {
  const { axes, choice, drawing, element, figure, fixed, grouped, reading, shape, slider } = refnormFigures;
  const FLOOR = 0.7;  // of the logarithmic axis: one weight is still seen

  function build(place, data) {
    place.classList.add("quantizer-grid");
    let bits = data.bits.indexOf(4), grid = 0;
    const [low, high] = data.edges, margin = 0.12 * (high - low);
    const most = Math.max(...data.grids.flatMap(({ at }) => at.flatMap(({ counts }) => counts)));
    const picture = drawing(place, {
      label: "Histogram of weights; a line for each code of the grid chosen below, as high as it has weights",
      ratio: width => (width < 560 ? 0.75 : 0.48), draw,
    });
    const controls = element(place, "div", { class: "interactive-controls" });
    slider(controls, {
      label: "Bits", min: 0, max: data.bits.length - 1, step: 1, value: bits,
      show: index => `${data.bits[index]}`, act: index => { bits = index; update(); },
    });
    choice(controls, { label: "Grid", names: data.grids.map(({ name }) => name), act: index => { grid = index; update(); } });
    const say = reading(place);
    update();

    function draw(svg, width, height) {
      const box = { left: 58, right: width - 8, top: 24, bottom: height - 40 };
      const height10 = Math.log10(most * 1.5), powers = [0, 1, 2, 3, 4, 5, 6].filter(power => power < height10);
      const step = 10 ** Math.floor(Math.log10((high - low) / 3)), ticks = [];
      const spacing = step * [1, 2, 5].find(factor => (high - low + 2 * margin) / (step * factor) <= 8);
      for (let k = Math.ceil((low - margin) / spacing); k * spacing <= high + margin; k++) ticks.push(k * spacing);
      const { toX, toY } = axes(svg, box, {
        x: [low - margin, high + margin], y: [Math.log10(FLOOR), height10], xTicks: ticks, yTicks: powers,
        xShow: tick => fixed(tick, Math.max(0, -Math.floor(Math.log10(spacing)))),
        yShow: power => grouped(10 ** power), xTitle: "weight", yTitle: "number of weights",
      });
      const top = count => toY(Math.log10(Math.max(count, FLOOR)));
      const bin = (high - low) / data.histogram.length;
      const outline = data.histogram.map((count, k) =>
        `V${top(count).toFixed(1)}H${toX(low + (k + 1) * bin).toFixed(1)}`).join("");
      shape(svg, "path", { class: "histogram", d: `M${toX(low)} ${box.bottom}${outline}V${box.bottom}Z` });
      const { first, scale, counts } = data.grids[grid].at[bits];
      const dense = counts.length > 64;
      const lines = [], dots = shape(svg, "g");
      counts.forEach((count, code) => {
        const value = first + scale * code, x = toX(value).toFixed(1);
        if (value < low - margin || value > high + margin) return;
        lines.push(`M${x} ${box.bottom + (count ? 0 : 5)}V${count ? top(count).toFixed(1) : box.bottom}`);
        if (count && !dense) shape(dots, "circle", { class: "code", cx: x, cy: top(count).toFixed(1), r: 3 });
      });
      shape(svg, "path", { class: dense ? "codes dense" : "codes", d: lines.join("") });
    }

    function update() {
      picture.again();
      const { scale, counts, error, clipped } = data.grids[grid].at[bits];
      const used = counts.filter(count => count).length, share = 100 * error / data.rms;
      say(`${data.bits[bits]} bits: ${used} of ${counts.length} codes in use, a step of ${scale.toPrecision(3)}. RMS error ` +
        `${error.toPrecision(3)}, ${share.toFixed(share < 10 ? 1 : 0)} % of the weights' RMS; ${grouped(clipped)} of ` +
        `${grouped(data.size)} weights are clipped. (Weights: ${data.name}.)`);
    }
  }

  figure("grid", build);
})();
