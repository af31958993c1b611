/* The viewer of a page: controls, keys and pointer, and the values at the crosshair. */
"use strict";

(() => {
  const { Scan } = chisepData;
  const { PLANES, COLOURS } = chisepDraw;
  const TALLEST = 460;

  /** Make an element with properties and children; texts are never read as markup. */
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element && name !== "list") element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  const labelled = (text, control) => make("label", {}, make("span", { textContent: text }), control);

  class Viewer {
    constructor(root, scans) {
      this.root = root;
      this.scans = scans.map((scan) => new Scan(scan));
      this.scan = this.scans[0];
      this.overlay = "";
      this.opacity = 0.5;
      this.zoom = 1;
      this.smooth = true;
      this.crosshair = true;
      this.windows = new Map();
      this.colours = new Map();
      this.active = 2;
      this.cross = this.scan.shape.map((n) => n >> 1);
      this.map = this.scan.maps[0];
      this.build();
      this.listen();
    }

    /* ---- state ---- */

    window(map = this.map) {
      return this.windows.get(map.name) || map.windows[0];
    }

    colour(map = this.map) {
      return this.colours.get(map.name) || map.colours;
    }

    /** Show a map, here or in another scan; the crosshair stays at the same part of the brain box. */
    async show(map, scan = this.scan) {
      if (scan !== this.scan) {
        this.cross = this.cross.map((at, axis) =>
          Math.min(scan.shape[axis] - 1, Math.round((at / this.scan.shape[axis]) * scan.shape[axis])));
      }
      [this.scan, this.map] = [scan, map];
      this.fillControls();
      await Promise.all([scan.load("masks"), scan.load(map.key)]);
      this.draw();
      for (const key of ["regions", ...scan.byKey.keys()]) {
        await scan.load(key);
        if (scan !== this.scan) return;
        this.readOut();
        if (this.overlay === key || this.overlay === `map:${key}`) this.draw();
        if (key === "regions" && this.overlay.startsWith("outlines:")) this.draw();
      }
      if (!this.root.dataset.allMaps) this.root.dataset.allMaps = performance.now().toFixed(0);
      this.root.dataset.loaded = scan.name;
    }

    /** Choose a map for its own sake: what it is compared with becomes the usual one. */
    choose(map, scan = this.scan) {
      const before = scan.byKey.get(map.before) || scan.maps.find((one) => one !== map);
      this.other = before ? { map: before, scan } : null;
      this.isBefore = false;
      return this.show(map, scan);
    }

    toggle() {
      if (!this.other) return;
      const now = { map: this.map, scan: this.scan };
      const then = this.other;
      this.other = now;
      this.isBefore = !this.isBefore;
      this.show(then.map, then.scan);
    }

    overlaid() {
      const [kind, ...rest] = this.overlay.split(":");
      const key = rest.join(":");
      if (kind === "regions") return { kind, opacity: this.opacity };
      if (kind === "outlines") {
        const numbers = key === "nuclei" ? new Set(this.scan.regions.nuclei) : null;
        return { kind, numbers, opacity: this.opacity };
      }
      if (kind === "mask") return { kind, number: Number(key), opacity: this.opacity };
      const map = this.scan.byKey.get(key);
      if (!map) return null;
      const colours = chisepDraw.table(this.colour(map) === "gray" ? "inferno" : this.colour(map));
      return { kind: "map", map, window: this.window(map), colours, opacity: this.opacity };
    }

    /* ---- elements ---- */

    build() {
      const select = (changed) => make("select", { onchange: changed });
      this.scanList = select(() => {
        const scan = this.scans[Number(this.scanList.value)];
        this.choose(scan.byKey.get(this.map.key) || scan.maps[0], scan);
      });
      this.mapList = select(() => this.choose(this.scan.byKey.get(this.mapList.value)));
      this.windowList = select(() => this.windowList.value && this.setWindow(JSON.parse(this.windowList.value)));
      const number = () => make("input", { type: "number", step: "any", onchange: () => this.readWindow() });
      [this.low, this.high] = [number(), number()];
      this.colourList = select(() => {
        this.colours.set(this.map.name, this.colourList.value);
        this.draw();
      });
      this.colourList.append(...Object.keys(COLOURS).map((name) => make("option", { textContent: name })));
      this.otherList = select(() => {
        const [scan, ...key] = this.otherList.value.split(":");
        const of = this.scans[Number(scan)];
        this.other = { map: of.byKey.get(key.join(":")), scan: of };
      });
      this.toggleButton = make("button", { type: "button", onclick: () => this.toggle(), "data-control": "toggle" });
      this.overlayList = select(() => {
        this.overlay = this.overlayList.value;
        this.draw();
      });
      this.opacityRange = make("input", {
        type: "range", min: 0, max: 1, step: 0.05, value: 0.5,
        oninput: () => {
          this.opacity = Number(this.opacityRange.value);
          this.draw();
        },
      });
      const check = (name) => make("input", {
        type: "checkbox", checked: true,
        onchange: (event) => {
          this[name] = event.target.checked;
          this.draw();
        },
      });
      const button = (text, title, action) => make("button", { type: "button", textContent: text, title, onclick: action });
      const lists = { scan: this.scanList, map: this.mapList, window: this.windowList, colours: this.colourList,
        other: this.otherList, overlay: this.overlayList, opacity: this.opacityRange, low: this.low, high: this.high };
      for (const [name, control] of Object.entries(lists)) control.dataset.control = name;
      const bar = (...children) => make("div", { className: "viewer-bar" }, ...children);
      const scanChoice = this.scans.length > 1 ? [labelled("Scan", this.scanList)] : [];
      this.legend = make("canvas", { className: "viewer-legend", width: 256, height: 1 });
      this.canvases = PLANES.map((plane) => make("canvas", { role: "img" }));
      this.note = make("p", { className: "viewer-note" });
      this.look = make("p", { className: "viewer-look" });
      this.place = make("p", { className: "viewer-place" });
      this.values = make("table", { className: "viewer-values" });
      this.planes = make("div", { className: "viewer-planes" }, ...this.canvases);
      const shade = make("div", { className: "viewer-shade" });
      [this.shadeLow, this.shadeHigh] = [make("span"), make("span")];
      shade.append(this.shadeLow, this.legend, this.shadeHigh);
      this.root.replaceChildren(
        bar(...scanChoice, labelled("Map", this.mapList), labelled("Compare with", this.otherList), this.toggleButton),
        bar(labelled("Window", this.windowList), labelled("from", this.low), labelled("to", this.high),
          labelled("Colours", this.colourList), labelled("Overlay", this.overlayList), labelled("opacity", this.opacityRange)),
        make("div", { className: "viewer-stage", tabIndex: 0, "aria-label": "Slices; keys are listed below" }, this.planes),
        shade, this.place,
        make("div", { className: "scroll" }, this.values),
        this.look,
        bar(labelled("Crosshair", check("crosshair")), labelled("Smooth", check("smooth")),
          button("−", "Zoom out (−)", () => this.setZoom(this.zoom / 1.5)),
          button("+", "Zoom in (+)", () => this.setZoom(this.zoom * 1.5)),
          button("Reset", "Reset window, zoom and crosshair (r)", () => this.reset()),
          make("button", { type: "button", textContent: "Show the static figures", "data-control": "figures",
            onclick: (event) => {
              const shown = document.documentElement.classList.toggle("show-figures");
              event.target.textContent = shown ? "Hide the static figures" : "Show the static figures";
            } })),
        this.note,
      );
      this.stage = this.root.querySelector(".viewer-stage");
      this.scanList.append(...this.scans.map((scan, i) => make("option", { value: i, textContent: scan.name })));
    }

    fillControls() {
      const grouped = (maps, prefix) => {
        const groups = new Map();
        for (const map of maps) {
          if (!groups.has(map.group)) groups.set(map.group, make("optgroup", { label: map.group }));
          groups.get(map.group).append(make("option", { value: prefix + map.key, textContent: map.name }));
        }
        return [...groups.values()];
      };
      const option = (value, text) => make("option", { value, textContent: text });
      this.scanList.value = this.scans.indexOf(this.scan);
      this.mapList.replaceChildren(...grouped(this.scan.maps, ""));
      this.mapList.value = this.map.key;
      const others = this.scans.length === 1 ? grouped(this.scan.maps, "0:") : this.scans.map((scan, i) => {
        const group = make("optgroup", { label: scan.name });
        group.append(...scan.maps.map((map) => option(`${i}:${map.key}`, map.name)));
        return group;
      });
      this.otherList.replaceChildren(...others);
      if (this.other) this.otherList.value = `${this.scans.indexOf(this.other.scan)}:${this.other.map.key}`;
      this.toggleButton.textContent = this.isBefore ? "After (b)" : "Before (b)";
      this.toggleButton.title = "Switch between both maps";
      const masks = this.scan.masks ? this.scan.masks.names.map((name, i) => option(`mask:${i}`, name)) : [];
      const nuclei = this.scan.regions && this.scan.regions.nuclei.length
        ? [option("outlines:nuclei", "outlines of nuclei")] : [];
      const regions = this.scan.regions
        ? [...nuclei, option("outlines:regions", "outlines of regions"), option("regions", "regions")] : [];
      this.overlayList.replaceChildren(option("", "none"), ...regions, ...masks, ...grouped(this.scan.maps, "map:"));
      this.overlayList.value = this.overlay;
      if (this.overlayList.value !== this.overlay) this.overlayList.value = this.overlay = "";
      this.windowList.replaceChildren(
        ...this.map.windows.map(([low, high]) => option(JSON.stringify([low, high]), `${low} to ${high} ${this.map.unit}`)),
        option("", "own"));
      this.colourList.value = this.colour();
      this.look.textContent = this.map.look ? `What to look for. ${this.map.look}` : "";
      this.fillNote();
      this.values.replaceChildren(
        make("caption", { textContent: "Values at the crosshair. Click on a name to show the map." }),
        ...this.scan.maps.filter((map) => !this.scan.maps.some((one) => one.sigma === map.key)).map((map) => {
          const name = make("button", { type: "button", textContent: map.name, onclick: () => this.choose(map) });
          return make("tr", map === this.map ? { className: "shown" } : {},
            make("th", { scope: "row" }, name), make("td", { "data-value": map.key }));
        }));
    }

    fillNote() {
      const steps = [...new Set(this.scan.maps.map((map) => `${map.step} ${map.unit.replace(/\.$/, "")}`))].join(", ");
      const thinned = this.scan.thinned > 1
        ? ` The viewer shows means of up to ${this.scan.thinned} voxels along an axis; the files have all voxels.` : "";
      this.note.textContent = "Radiological convention: the patient's right (R) is at the left. Mouse: click or drag moves "
        + "the crosshair, the wheel changes the slice, drag with the right button (or with shift) sets window (sideways) "
        + "and level (up and down). Keys: arrows move the crosshair, page up and page down change the slice, "
        + "b switches before and after, o the overlay, x the crosshair, + and − zoom, r resets, 1 to 9 choose a map. "
        + `Values are rounded to multiples of ${steps}.${thinned} Oblique volumes are shown along their own voxel axes.`;
    }

    /* ---- drawing ---- */

    draw() {
      if (this.waiting) return;
      this.waiting = true;
      requestAnimationFrame(() => {
        this.waiting = false;
        this.drawNow();
      });
    }

    drawNow() {
      if (!this.map.values) return;
      const { scan, cross, zoom, smooth, crosshair } = this;
      this.resize();
      const base = { map: this.map, window: this.window(), colours: chisepDraw.table(this.colour()) };
      const view = { scan, cross, zoom, smooth, crosshair, base, overlay: this.overlaid() };
      this.canvases.forEach((canvas, number) => {
        chisepDraw.plane(canvas, number, view);
        const slice = `${cross[PLANES[number].across] + 1} of ${scan.shape[PLANES[number].across]}`;
        canvas.dataset.slice = cross[PLANES[number].across];
        canvas.setAttribute("aria-label", `${PLANES[number].name} slice ${slice} of ${this.map.name}`);
      });
      this.drawLegend(base);
      this.readOut();
      if (!this.root.dataset.firstSlice) this.root.dataset.firstSlice = performance.now().toFixed(0);
      this.root.dataset.shown = this.map.key;
    }

    /** One scale for all planes, so that a millimetre is as long in each of them. */
    resize() {
      const size = this.scan.shape.map((n, axis) => n * this.scan.voxel_mm[axis]);
      const widths = PLANES.map((plane) => size[plane.h]);
      const free = this.stage.clientWidth - 2 * 6;
      const columns = free < 620 ? 1 : 3;
      const total = columns === 1 ? Math.max(...widths) : widths.reduce((a, b) => a + b, 0);
      const tallest = Math.max(...PLANES.map((plane) => size[plane.v]));
      const scale = Math.min(free / total, TALLEST / tallest);
      this.canvases.forEach((canvas, number) => {
        canvas.style.width = `${Math.floor(widths[number] * scale)}px`;
        canvas.style.height = `${Math.floor(tallest * scale)}px`;
      });
    }

    drawLegend(base) {
      const pen = this.legend.getContext("2d");
      const image = new ImageData(256, 1);
      for (let i = 0; i < 256; i++) {
        image.data.set([...base.colours.subarray(3 * i, 3 * i + 3), 255], 4 * i);
      }
      pen.putImageData(image, 0, 0);
      const [low, high] = base.window;
      const text = (value) => `${Number(value.toPrecision(4))}`.replace("-", "−");
      this.shadeLow.textContent = text(low);
      this.shadeHigh.textContent = `${text(high)} ${base.map.unit}`;
      [this.low.value, this.high.value] = [Number(low.toPrecision(4)), Number(high.toPrecision(4))];
      const preset = JSON.stringify(this.window());
      this.windowList.value = [...this.windowList.options].some((one) => one.value === preset) ? preset : "";
    }

    readOut() {
      const { scan, cross } = this;
      const text = (map, value) => {
        const digits = Math.max(0, Math.ceil(-Math.log10(map.step)));
        return value.toFixed(digits).replace("-", "−");
      };
      for (const cell of this.values.querySelectorAll("td")) {
        const map = scan.byKey.get(cell.dataset.value);
        const value = scan.value(map, cross);
        const sigma = scan.value(scan.byKey.get(map.sigma), cross);
        const outside = map.masked && !scan.isInside(cross);
        if (value === null) cell.textContent = "…";
        else if (outside) cell.textContent = "outside";
        else cell.textContent = `${text(map, value)}${sigma === null ? "" : ` ± ${text(map, sigma)}`} ${map.unit}`;
      }
      const sides = ["RL", "AP", "SI"];
      const mm = scan.millimetres(cross).map((x, i) => `${sides[i][x >= 0 ? 0 : 1]} ${Math.abs(x).toFixed(1)}`);
      const region = scan.region(cross);
      this.place.textContent = `${this.map.name} · ${region ? `region: ${region}` : "no region"} · ${mm.join(", ")} mm`;
      this.place.dataset.region = region;
      this.place.dataset.voxel = cross.join(",");
    }

    /* ---- actions ---- */

    setWindow(window) {
      if (!window) return;
      this.windows.set(this.map.name, window);
      this.draw();
    }

    readWindow() {
      const [low, high] = [Number(this.low.value), Number(this.high.value)];
      if (high > low) this.setWindow([low, high]);
    }

    setZoom(zoom) {
      this.zoom = Math.max(1, Math.min(12, zoom));
      this.draw();
    }

    reset() {
      this.windows.delete(this.map.name);
      this.colours.delete(this.map.name);
      this.zoom = 1;
      this.cross = this.scan.shape.map((n) => n >> 1);
      this.fillControls();
      this.draw();
    }

    move(axis, by) {
      this.cross[axis] = Math.max(0, Math.min(this.scan.shape[axis] - 1, this.cross[axis] + by));
      this.draw();
    }

    listen() {
      this.canvases.forEach((canvas, number) => {
        canvas.addEventListener("wheel", (event) => {
          event.preventDefault();
          this.active = number;
          if (event.ctrlKey) this.setZoom(this.zoom * (event.deltaY < 0 ? 1.2 : 1 / 1.2));
          else if (event.deltaY) this.move(PLANES[number].across, event.deltaY < 0 ? 1 : -1);
        }, { passive: false });
        canvas.addEventListener("contextmenu", (event) => event.preventDefault());
        canvas.addEventListener("pointerdown", (event) => this.press(event, canvas, number));
      });
      this.stage.addEventListener("keydown", (event) => this.key(event));
      new ResizeObserver(() => this.draw()).observe(this.stage);
    }

    press(event, canvas, number) {
      this.active = number;
      this.stage.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      const windowing = event.button === 2 || event.shiftKey;
      const start = { x: event.clientX, y: event.clientY, window: [...this.window()] };
      const moved = (now) => {
        if (windowing) this.dragWindow(start, now);
        else {
          const box = canvas.getBoundingClientRect();
          /* With zoom the picture follows the crosshair: a drag would run away. */
          if (this.zoom > 1 && now.type === "pointermove") return;
          this.cross = chisepDraw.voxelAt(canvas, number, this, now.clientX - box.left, now.clientY - box.top);
          this.draw();
        }
      };
      if (!windowing) moved(event);
      canvas.onpointermove = moved;
      canvas.onpointerup = canvas.onpointercancel = () => {
        canvas.onpointermove = null;
      };
      event.preventDefault();
    }

    /** Sideways changes the width, up and down the level: 200 pixels are the width at the start. */
    dragWindow(start, now) {
      const width = start.window[1] - start.window[0];
      const wide = width * Math.max(0.02, 1 + (now.clientX - start.x) / 200);
      const level = (start.window[0] + start.window[1]) / 2 + (width * (now.clientY - start.y)) / 200;
      this.setWindow([level - wide / 2, level + wide / 2]);
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const plane = PLANES[this.active];
      const actions = {
        ArrowLeft: () => this.move(plane.h, 1),
        ArrowRight: () => this.move(plane.h, -1),
        ArrowUp: () => this.move(plane.v, 1),
        ArrowDown: () => this.move(plane.v, -1),
        PageUp: () => this.move(plane.across, 1),
        PageDown: () => this.move(plane.across, -1),
        b: () => this.toggle(),
        o: () => this.nextOverlay(),
        x: () => this.root.querySelector("input[type=checkbox]").click(),
        "+": () => this.setZoom(this.zoom * 1.5),
        "-": () => this.setZoom(this.zoom / 1.5),
        r: () => this.reset(),
      };
      const number = Number(event.key);
      if (number >= 1 && number <= this.scan.maps.length) actions[event.key] = () => this.choose(this.scan.maps[number - 1]);
      if (!actions[event.key]) return;
      event.preventDefault();
      actions[event.key]();
    }

    /** No overlay, or the first of the list. */
    nextOverlay() {
      const options = [...this.overlayList.options].map((one) => one.value);
      this.overlay = this.overlay ? "" : options[1] || "";
      this.overlayList.value = this.overlay;
      this.draw();
    }
  }

  function start() {
    const root = document.getElementById("viewer-root");
    const description = document.getElementById("viewer-description");
    if (!root || !description) return;
    if (typeof DecompressionStream === "undefined") {
      root.textContent = "This browser is too old for the viewer (it lacks DecompressionStream: Chromium 80, Firefox 113 "
        + "or Safari 16.4 have it). The figures below show the same maps.";
      return;
    }
    document.documentElement.classList.add("has-viewer");
    const viewer = new Viewer(root, JSON.parse(description.textContent).scans);
    viewer.choose(viewer.map).catch((error) => {
      document.documentElement.classList.remove("has-viewer");
      root.textContent = `The viewer stopped (${error.message}). The figures below show the same maps.`;
    });
  }

  start();
})();
