/* Drawing of planes: radiological convention, patient's right at the left, face at the left of sagittal planes. */
"use strict";

const chisepDraw = (() => {
  const PLANES = [
    { name: "Sagittal", across: 0, h: 1, v: 2, marks: ["A", "P", "S", "I"] },
    { name: "Coronal", across: 1, h: 0, v: 2, marks: ["R", "L", "S", "I"] },
    { name: "Axial", across: 2, h: 0, v: 1, marks: ["R", "L", "A", "P"] },
  ];

  const COLOURS = {
    gray: ["#000000", "#ffffff"],
    "gray, inverted": ["#ffffff", "#000000"],
    inferno: ["#000004", "#320a5e", "#781c6d", "#bc3754", "#ed6925", "#fbb61a", "#fcffa4"],
    blue: ["#000004", "#0c2a5e", "#1c6db0", "#4fb8d0", "#f3fdff"],
    difference: ["#b9e3ff", "#2f7fd6", "#000000", "#d6452f", "#ffd0b0"],
  };
  const MASK_COLOURS = [[255, 176, 0], [64, 200, 120], [90, 160, 255], [240, 90, 160]];

  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  /** 256 colours by linear interpolation between anchors. */
  function table(name) {
    const anchors = COLOURS[name].map(rgb);
    const colours = new Uint8Array(256 * 3);
    for (let i = 0; i < 256; i++) {
      const place = (i / 255) * (anchors.length - 1);
      const low = Math.min(Math.floor(place), anchors.length - 2);
      for (let c = 0; c < 3; c++) {
        colours[3 * i + c] = anchors[low][c] + (place - low) * (anchors[low + 1][c] - anchors[low][c]);
      }
    }
    return colours;
  }

  /** Colour of a region: neighbours in number get hues that lie far apart. */
  function regionColour(number) {
    const hue = (number * 137.508) % 360;
    const channel = (shift) => {
      const k = (shift + hue / 30) % 12;
      return 255 * (0.58 - 0.4 * Math.max(-1, Math.min(k - 3, 9 - k, 1)));
    };
    return [channel(0), channel(8), channel(4)];
  }

  /** Pixels of a plane, colours of the base with those of the overlay over it. */
  function pixels(scan, plane, slice, base, overlay) {
    const [width, height] = [scan.shape[plane.h], scan.shape[plane.v]];
    const image = new ImageData(width, height);
    const out = image.data;
    const strides = [1, scan.shape[0], scan.shape[0] * scan.shape[1]];
    const masks = scan.places.masks;
    const span = 255 / (base.window[1] - base.window[0] || 1);
    const paint = overlayPainter(scan, overlay, strides, plane);
    let at = 0;
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++, at += 4) {
        const i = slice * strides[plane.across] + (width - 1 - column) * strides[plane.h]
          + (height - 1 - row) * strides[plane.v];
        out[at + 3] = 255;
        if (!(base.map.masked && masks && !(masks[i] & 1))) {
          const shade = (base.map.values[i] * base.map.step - base.window[0]) * span;
          const k = 3 * (shade <= 0 ? 0 : shade >= 255 ? 255 : shade | 0);
          out[at] = base.colours[k];
          out[at + 1] = base.colours[k + 1];
          out[at + 2] = base.colours[k + 2];
        }
        if (paint) paint(i, out, at);
      }
    }
    return image;
  }

  /** Function that paints the overlay on one pixel; null without overlay. */
  function overlayPainter(scan, overlay, strides, plane) {
    if (!overlay || overlay.opacity === 0) return null;
    const blend = (out, at, colour, opacity) => {
      for (let c = 0; c < 3; c++) out[at + c] += opacity * (colour[c] - out[at + c]);
    };
    if (overlay.kind === "regions" && scan.places.regions) {
      const labels = scan.places.regions;
      const colours = scan.regions.names.map((_, number) => regionColour(number));
      return (i, out, at) => labels[i] && blend(out, at, colours[labels[i]], overlay.opacity);
    }
    if (overlay.kind === "mask" && scan.places.masks) {
      const [masks, bit] = [scan.places.masks, 1 << overlay.number];
      const colour = MASK_COLOURS[overlay.number % MASK_COLOURS.length];
      const steps = [strides[plane.h], -strides[plane.h], strides[plane.v], -strides[plane.v]];
      return (i, out, at) => {
        if (!(masks[i] & bit)) return;
        const edge = steps.some((step) => !(masks[i + step] & bit));
        blend(out, at, colour, edge ? Math.max(overlay.opacity, 0.8) : 0.35 * overlay.opacity);
      };
    }
    if (overlay.kind === "map" && overlay.map.values) {
      const { map, window, colours } = overlay;
      const span = 255 / (window[1] - window[0] || 1);
      return (i, out, at) => {
        if (!map.values[i]) return;
        const shade = (map.values[i] * map.step - window[0]) * span;
        if (shade <= 0) return;
        const k = 3 * (shade >= 255 ? 255 : shade | 0);
        blend(out, at, [colours[k], colours[k + 1], colours[k + 2]], overlay.opacity);
      };
    }
    return null;
  }

  /** Screen rectangle of a whole plane on its canvas, in CSS pixels. */
  function frame(scan, plane, canvas, cross, zoom) {
    const size = [scan.shape[plane.h] * scan.voxel_mm[plane.h], scan.shape[plane.v] * scan.voxel_mm[plane.v]];
    const [wide, tall] = [canvas.clientWidth, canvas.clientHeight];
    const scale = Math.min(wide / size[0], tall / size[1]) * zoom;
    const [width, height] = [size[0] * scale, size[1] * scale];
    let [left, top] = [(wide - width) / 2, (tall - height) / 2];
    if (zoom > 1) { /* the crosshair is in the middle */
      left = wide / 2 - ((scan.shape[plane.h] - 0.5 - cross[plane.h]) * width) / scan.shape[plane.h];
      top = tall / 2 - ((scan.shape[plane.v] - 0.5 - cross[plane.v]) * height) / scan.shape[plane.v];
    }
    return { left, top, width, height, scale };
  }

  /** Draw one plane with marks, a scale bar, and the crosshair. */
  function plane(canvas, number, view) {
    const { scan, cross, zoom, smooth, crosshair } = view;
    const of = PLANES[number];
    const ratio = window.devicePixelRatio || 1;
    const [wide, tall] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(tall * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, wide, tall);
    const place = frame(scan, of, canvas, cross, zoom);
    const image = pixels(scan, of, cross[of.across], view.base, view.overlay);
    const source = document.createElement("canvas");
    source.width = image.width;
    source.height = image.height;
    source.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = smooth;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(source, place.left, place.top, place.width, place.height);
    if (view.overlay && view.overlay.kind === "outlines") drawOutlines(pen, scan, of, cross, place, view.overlay);
    if (crosshair) drawCrosshair(pen, scan, of, cross, place, wide, tall);
    drawMarks(pen, of, scan, cross, place, wide, tall);
  }

  /** Outlines of regions, drawn between voxels, so that they cover none. */
  function drawOutlines(pen, scan, of, cross, place, overlay) {
    const labels = scan.places.regions;
    if (!labels) return;
    const [nh, nv] = [scan.shape[of.h], scan.shape[of.v]];
    const [dx, dy] = [place.width / nh, place.height / nv];
    const voxel = [...cross];
    const label = (h, v) => {
      if (h < 0 || v < 0 || h >= nh || v >= nv) return 0;
      [voxel[of.h], voxel[of.v]] = [h, v];
      const number = labels[scan.index(voxel)];
      return overlay.numbers && !overlay.numbers.has(number) ? 0 : number;
    };
    const paths = new Map();
    const line = (number, x0, y0, x1, y1) => {
      if (!paths.has(number)) paths.set(number, new Path2D());
      paths.get(number).moveTo(x0, y0);
      paths.get(number).lineTo(x1, y1);
    };
    for (let v = -1; v < nv; v++) {
      const [above, below] = [place.top + (nv - 1 - v) * dy, place.top + (nv - v) * dy];
      for (let h = -1; h < nh; h++) {
        const [left, right] = [place.left + (nh - 1 - h) * dx, place.left + (nh - h) * dx];
        const here = label(h, v);
        const [beside, over] = [label(h + 1, v), label(h, v + 1)];
        if (beside !== here) line(here || beside, left, above, left, below);
        if (over !== here) line(here || over, left, above, right, above);
      }
    }
    pen.lineWidth = 1.5;
    pen.globalAlpha = Math.min(1, 2 * overlay.opacity);
    for (const [number, path] of paths) {
      pen.strokeStyle = `rgb(${regionColour(number).map(Math.round).join(",")})`;
      pen.stroke(path);
    }
    pen.globalAlpha = 1;
  }

  function drawCrosshair(pen, scan, of, cross, place, wide, tall) {
    const x = place.left + ((scan.shape[of.h] - 0.5 - cross[of.h]) * place.width) / scan.shape[of.h];
    const y = place.top + ((scan.shape[of.v] - 0.5 - cross[of.v]) * place.height) / scan.shape[of.v];
    const gap = 8;
    pen.strokeStyle = "rgba(255, 176, 0, 0.85)";
    pen.lineWidth = 1;
    pen.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, wide, y], [x, 0, x, y - gap], [x, y + gap, x, tall]]) {
      pen.moveTo(x0, y0);
      pen.lineTo(x1, y1);
    }
    pen.stroke();
  }

  function drawMarks(pen, of, scan, cross, place, wide, tall) {
    pen.font = "600 13px system-ui, sans-serif";
    pen.fillStyle = "#ffffff";
    pen.shadowColor = "#000";
    pen.shadowBlur = 3;
    const write = (text, x, y, align) => {
      pen.textAlign = align;
      pen.fillText(text, x, y);
    };
    write(of.marks[0], 5, tall / 2 + 4, "left");
    write(of.marks[1], wide - 5, tall / 2 + 4, "right");
    write(of.marks[2], wide / 2, 15, "center");
    write(of.marks[3], wide / 2, tall - 6, "center");
    pen.font = "12px system-ui, sans-serif";
    write(`${of.name} ${cross[of.across] + 1}/${scan.shape[of.across]}`, 5, 15, "left");
    const centimetres = place.scale * 20 > wide / 2 ? 1 : 2;
    pen.fillRect(wide - 6 - 10 * centimetres * place.scale, tall - 8, 10 * centimetres * place.scale, 2);
    write(`${centimetres} cm`, wide - 6, tall - 12, "right");
    pen.shadowBlur = 0;
  }

  /** Voxel of a plane below a point of its canvas. */
  function voxelAt(canvas, number, view, x, y) {
    const of = PLANES[number];
    const place = frame(view.scan, of, canvas, view.cross, view.zoom);
    const voxel = [...view.cross];
    const within = (value, axis) => Math.max(0, Math.min(view.scan.shape[axis] - 1, value));
    const [nh, nv] = [view.scan.shape[of.h], view.scan.shape[of.v]];
    voxel[of.h] = within(nh - 1 - Math.floor(((x - place.left) / place.width) * nh), of.h);
    voxel[of.v] = within(nv - 1 - Math.floor(((y - place.top) / place.height) * nv), of.v);
    return voxel;
  }

  return { PLANES, COLOURS, table, plane, voxelAt, regionColour };
})();
