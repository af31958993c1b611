/* Decoding of the maps in the page. A block is base64 of deflated 16-bit integers, low bytes before high bytes. */
"use strict";

const chisepData = (() => {
  function bytesOf(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  async function inflate(id) {
    const element = document.getElementById(id);
    const packed = new Blob([bytesOf(element.textContent.trim())]);
    const stream = packed.stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /** Integers of a block: `coding` has its identifier and whether it holds differences to neighbours. */
  async function integers(coding, [nx, ny, nz]) {
    const bytes = await inflate(coding.block);
    const count = nx * ny * nz;
    const values = new Int16Array(count); /* sums wrap like 16-bit integers */
    if (!coding.predicted) {
      for (let i = 0; i < count; i++) values[i] = bytes[i] | (bytes[count + i] << 8);
      return values;
    }
    let i = 0;
    for (let z = 0; z < nz; z++) {
      for (let y = 0; y < ny; y++) {
        for (let x = 0; x < nx; x++, i++) {
          const before = (x ? values[i - 1] : 0) + (y ? values[i - nx] : 0) + (z ? values[i - nx * ny] : 0);
          values[i] = Math.floor(before / 3) + (bytes[i] | (bytes[count + i] << 8));
        }
      }
    }
    return values;
  }

  /** One scan with maps that are decoded when they are first asked for. */
  class Scan {
    constructor(description) {
      Object.assign(this, description);
      this.byKey = new Map(this.maps.map((map) => [map.key, map]));
      this.places = {};
      this.pending = new Map();
    }

    /** Decode a map, or "masks", or "regions"; resolves to true once it is there. */
    load(key) {
      const coding = this.byKey.get(key) || this[key];
      if (!coding) return Promise.resolve(false);
      if (!this.pending.has(key)) {
        const read = coding.difference ? this.subtract(coding) : integers(coding, this.shape);
        const done = read.then((values) => {
          if (this.byKey.has(key)) coding.values = values;
          else this.places[key] = values;
          return true;
        });
        this.pending.set(key, done);
      }
      return this.pending.get(key);
    }

    /** A map that is the difference of two others and a constant, within the mask. */
    async subtract(coding) {
      const [first, second] = coding.difference.map((key) => this.byKey.get(key));
      await Promise.all([this.load(first.key), this.load(second.key), this.load("masks")]);
      const [a, b] = [first.step / coding.step, second.step / coding.step];
      const offset = coding.offset / coding.step;
      const values = new Int16Array(first.values.length);
      for (let i = 0; i < values.length; i++) {
        if (this.places.masks[i] & 1) values[i] = Math.round(a * first.values[i] - b * second.values[i] + offset);
      }
      return values;
    }

    index([x, y, z]) {
      return x + this.shape[0] * (y + this.shape[1] * z);
    }

    /** Value of a map at a voxel in its unit; null before it is decoded. */
    value(map, voxel) {
      return map && map.values ? map.values[this.index(voxel)] * map.step : null;
    }

    isInside(voxel) {
      return !this.places.masks || (this.places.masks[this.index(voxel)] & 1) === 1;
    }

    region(voxel) {
      return this.places.regions ? this.regions.names[this.places.regions[this.index(voxel)]] : "";
    }

    /** Scanner coordinates of a voxel in mm (RAS+). */
    millimetres(voxel) {
      return this.affine.slice(0, 3).map((row) => row[3] + voxel.reduce((sum, v, i) => sum + row[i] * v, 0));
    }
  }

  return { Scan };
})();
