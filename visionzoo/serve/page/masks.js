// Masks as COCO writes them: run lengths down the columns, background first.

const GOLDEN = 0.61803398875;

/** [r, g, b] of object number index, the colours of the package's own pictures. */
export function colourOf(index) {
  const hue = ((0.58 + index * GOLDEN) % 1) * 6, c = 0.95 * 0.75, x = c * (1 - Math.abs((hue % 2) - 1)), m = 0.95 - c;
  const [r, g, b] = [[c, x, 0], [x, c, 0], [0, c, x], [0, x, c], [x, 0, c], [c, 0, x]][Math.floor(hue)];
  return [r, g, b].map((value) => Math.round(255 * (value + m)));
}

/** A canvas of the mask's size, painted in a colour where it is, with its outline stronger. */
export function painted(segmentation, colour) {
  const [height, width] = segmentation.size, inside = new Uint8Array(height * width);
  let at = 0;
  segmentation.counts.forEach((count, i) => { if (i % 2) inside.fill(1, at, at + count); at += count; });
  const canvas = document.createElement("canvas");
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const i = x * height + y;
      if (!inside[i]) continue;
      const edge = !y || y === height - 1 || !x || x === width - 1 || !inside[i - 1] || !inside[i + 1] || !inside[i - height] || !inside[i + height];
      image.data.set([...colour, edge ? 255 : 120], 4 * (y * width + x));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Whether a mask covers a point in pixels. */
export function covers(segmentation, x, y) {
  const [height] = segmentation.size, target = Math.floor(x) * height + Math.floor(y);
  let at = 0;
  for (let i = 0; i < segmentation.counts.length; i++) {
    at += segmentation.counts[i];
    if (target < at) return i % 2 === 1;
  }
  return false;
}
