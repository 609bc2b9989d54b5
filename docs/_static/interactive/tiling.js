/* The tiling of the Poincaré disk, translated by a point that the reader drags. */
"use strict";

(() => {
  const { drawing, element, figure, fixed, reading, shape, slider } = refnormFigures;
  const FARTHEST = 4;  // hyperbolic distance of the point from the centre; the tiling in the data reaches farther

  const turn = ([x, y], angle) => {
    const c = Math.cos(angle), s = Math.sin(angle);
    return [c * x - s * y, s * x + c * y];
  };

  /* Möbius addition for curvature -1, in the form whose sums are positive (see the chapter). */
  function mobiusAdd([ax, ay], [bx, by]) {
    const wx = ax + bx, wy = ay + by, spread = wx * wx + wy * wy;
    const gapA = 1 - ax * ax - ay * ay, gapB = 1 - bx * bx - by * by;
    const denominator = gapA * gapB + spread;
    return [(gapA * wx + spread * ax) / denominator, (gapA * wy + spread * ay) / denominator];
  }

  /* The geodesic from p to q as SVG path data that goes on from p: the circle through both that meets the rim at right
     angles has its centre m where <m, p> = (1 + |p|^2) / 2, and the same for q. */
  function arc(p, q, pixel) {
    const [x, y] = pixel(q), cross = p[0] * q[1] - p[1] * q[0];
    if (Math.abs(cross) < 1e-6) return `L${x.toFixed(2)} ${y.toFixed(2)}`;
    const a = (1 + p[0] * p[0] + p[1] * p[1]) / 2, b = (1 + q[0] * q[0] + q[1] * q[1]) / 2;
    const mx = (a * q[1] - b * p[1]) / cross, my = (b * p[0] - a * q[0]) / cross;
    const radius = Math.sqrt(Math.max(mx * mx + my * my - 1, 0)) * pixel.scale;
    return `A${radius.toFixed(2)} ${radius.toFixed(2)} 0 0 ${cross > 0 ? 1 : 0} ${x.toFixed(2)} ${y.toFixed(2)}`;
  }

  function path(points, pixel, closed = false) {
    const [x, y] = pixel(points[0]);
    let text = `M${x.toFixed(2)} ${y.toFixed(2)}`;
    for (let k = 1; k < points.length; k++) text += arc(points[k - 1], points[k], pixel);
    return closed ? text + arc(points[points.length - 1], points[0], pixel) + "Z" : text;
  }

  /* Behind the translation by `point`, put first the motion of the tiling onto itself that brings the middle tile where
     the translation brings it nearest to the centre: the picture is the same, and is drawn as fully as at rest. */
  function translated(data, point) {
    let best = 0, nearest = Infinity;
    data.centres.forEach((centre, k) => {
      const [x, y] = mobiusAdd(point, centre), far = x * x + y * y;
      if (far < nearest) [best, nearest] = [k, far];
    });
    const centre = data.centres[best], angle = data.angles[best];
    return data.corners.map(corner => mobiusAdd(point, mobiusAdd(centre, turn(corner, angle))));
  }

  function build(place, data) {
    place.classList.add("tiling");
    let point = [0, 0];
    let pixel;
    const picture = drawing(place, {
      label: "Tiling of the Poincaré disk by heptagons; drag the point or use the sliders below",
      ratio: () => 1, widest: 480, draw,
    });
    const controls = element(place, "div", { class: "interactive-controls" });
    const fromSliders = () => {
      const radius = Math.tanh(distance.value / 2), angle = direction.value * Math.PI / 180;
      point = [radius * Math.cos(angle), radius * Math.sin(angle)];
      update();
    };
    const distance = slider(controls, {
      label: "Hyperbolic distance", min: 0, max: FARTHEST, step: 0.05, value: 1, show: v => v.toFixed(2), act: fromSliders,
    });
    const direction = slider(controls, {
      label: "Direction", min: 0, max: 360, step: 1, value: 35, show: v => `${v}°`, act: fromSliders,
    });
    const say = reading(place);
    fromSliders();

    function draw(svg, width) {
      const radius = width / 2 - 2;
      pixel = ([x, y]) => [width / 2 + radius * x, width / 2 - radius * y];
      pixel.scale = radius;
      const at = translated(data, point);
      const near = data.sides.filter(([a, b]) => Math.hypot(at[a][0] + at[b][0], at[a][1] + at[b][1]) < 1.97);
      shape(svg, "path", { class: "home", d: path(data.home.map(k => mobiusAdd(point, data.corners[k])), pixel, true) });
      shape(svg, "path", { class: "sides", d: near.map(([a, b]) => path([at[a], at[b]], pixel)).join("") });
      const lines = [0, 1, 2].map(k => [-1, 1].map(end => mobiusAdd(point, turn([0.99999 * end, 0], k * Math.PI / 3))));
      shape(svg, "path", { class: "lines", d: lines.map(ends => path(ends, pixel)).join("") });
      shape(svg, "circle", { class: "rim", cx: width / 2, cy: width / 2, r: radius });
      const [cx, cy] = pixel(point);
      shape(svg, "circle", { class: "handle", cx, cy, r: 6 });
      shape(svg, "circle", { class: "grip", cx, cy, r: 22 });
    }

    function update() {
      picture.again();
      const square = point[0] * point[0] + point[1] * point[1];
      say(`Euclidean distance from the centre ${Math.sqrt(square).toFixed(3)}, hyperbolic ` +
        `${(2 * Math.atanh(Math.sqrt(square))).toFixed(2)}. Lengths at the point are stretched by ` +
        `λ = ${fixed(2 / (1 - square), 1)}; every side of every tile is ${data.side.toFixed(3)} long.`);
    }

    function drag(event) {
      const box = picture.svg.getBoundingClientRect(), half = box.width / 2;
      const x = (event.clientX - box.left - half) / (half - 2), y = (half - (event.clientY - box.top)) / (half - 2);
      const length = Math.hypot(x, y);
      distance.value = length < 1 ? Math.min(2 * Math.atanh(length), FARTHEST) : FARTHEST;
      direction.value = (Math.atan2(y, x) * 180 / Math.PI + 360) % 360;
      const radius = Math.min(length, Math.tanh(FARTHEST / 2));
      point = length ? [radius * x / length, radius * y / length] : [0, 0];
      update();
    }
    // The drawing is made anew at each move, so the drag is followed on what stays: the SVG element.
    let dragging = false;
    picture.svg.addEventListener("pointerdown", event => {
      if (!event.target.classList.contains("grip")) return;
      dragging = true;
      picture.svg.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    picture.svg.addEventListener("pointermove", event => { if (dragging) drag(event); });
    for (const end of ["pointerup", "pointercancel"]) {
      picture.svg.addEventListener(end, () => { dragging = false; });
    }
  }

  figure("tiling", build);
  refnormFigures.mobiusAdd = mobiusAdd;
})();
