// A canvas with a picture, and what is drawn on it. Coordinates of everything else are pixels of the picture.

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.picture = null;
    this.cross = null;
    this.box = null;
    this.preview = null;
  }

  show(image, width, height) {
    this.picture = { image, width, height };
    this.preview = this.box = this.cross = null;
    this.fit();
  }

  /** As large as there is room for; what is drawn on the picture stays, since a line of text is enough to move the room. */
  fit() {
    const { width, height } = this.picture;
    const wide = Math.max(this.canvas.parentElement.clientWidth, 240), high = Math.max(0.68 * window.innerHeight, 240);
    const scale = Math.min(wide / width, high / height);
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
  }

  get scale() {
    return this.canvas.width / this.picture.width;
  }

  /** [x, y] in pixels of the picture, inside it. */
  at(event) {
    const box = this.canvas.getBoundingClientRect(), { width, height } = this.picture;
    const x = ((event.clientX - box.left) / box.width) * width, y = ((event.clientY - box.top) / box.height) * height;
    return [Math.min(Math.max(x, 0), width - 0.01), Math.min(Math.max(y, 0), height - 0.01)];
  }

  draw(objects, current) {
    if (!this.picture) return;
    const { context, canvas, scale } = this;
    context.imageSmoothingEnabled = scale < 3;
    context.drawImage(this.picture.image, 0, 0, canvas.width, canvas.height);
    for (const object of objects) if (object.canvas) context.drawImage(object.canvas, 0, 0, canvas.width, canvas.height);
    if (this.preview) {
      context.globalAlpha = 0.6;
      context.drawImage(this.preview, 0, 0, canvas.width, canvas.height);
      context.globalAlpha = 1;
    }
    for (const [x, y, label] of current?.points ?? []) this.dot(x * scale, y * scale, label ? "#3cb44b" : "#e6323c");
    for (const box of [current?.box, this.box]) {
      if (!box) continue;
      context.strokeStyle = "#ffe119"; context.lineWidth = 2;
      context.strokeRect(box[0] * scale, box[1] * scale, (box[2] - box[0]) * scale, (box[3] - box[1]) * scale);
    }
    if (this.cross) {
      const [x, y] = this.cross.map((value) => value * scale);
      for (const [colour, wide] of [["#000", 4], ["#fff", 2]]) {
        context.strokeStyle = colour; context.lineWidth = wide;
        context.beginPath();
        context.moveTo(x - 9, y); context.lineTo(x + 9, y); context.moveTo(x, y - 9); context.lineTo(x, y + 9);
        context.stroke();
      }
    }
  }

  dot(x, y, colour) {
    const { context } = this;
    context.beginPath();
    context.arc(x, y, 5, 0, 7);
    context.fillStyle = colour; context.strokeStyle = "#fff"; context.lineWidth = 2;
    context.fill(); context.stroke();
  }
}
