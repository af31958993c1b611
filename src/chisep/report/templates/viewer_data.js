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

  /** Integers of a block: `coding` has its identifier and whether it holds differences. */
  async function integers(coding) {
    const bytes = await inflate(coding.block);
    const count = bytes.length / 2;
    const values = new Int16Array(count);
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const value = bytes[i] | (bytes[count + i] << 8);
      sum = coding.delta ? sum + value : value;
      values[i] = sum; /* wraps like a 16-bit integer */
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
        const done = integers(coding).then((values) => {
          if (this.byKey.has(key)) coding.values = values;
          else this.places[key] = values;
          return true;
        });
        this.pending.set(key, done);
      }
      return this.pending.get(key);
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
