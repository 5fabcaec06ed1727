// The players of tracked sequences: frames with the skeletons of their hands, in step with the timeline.
"use strict";

const clips = new Map(); // by number; each is a script, like the meshes
window.amvurClip = (number, clip) => clips.get(number)(clip);

class Player {
  constructor(figure) {
    this.figure = figure;
    this.number = Number(figure.dataset.clip);
    this.line = data.clips[this.number];
    this.chart = one("svg", figure);
    this.canvas = one("canvas", figure);
    this.slider = one("input", figure);
    this.button = one("[data-do=play]", figure);
    this.timer = null;
    this.now = document.createElementNS("http://www.w3.org/2000/svg", "path");
    this.now.setAttribute("class", "now");
    one("[data-do=open]", figure).addEventListener("click", () => this.open());
  }

  open() {
    clips.set(this.number, (clip) => this.show(clip));
    const script = element("script", { src: `clips/${String(this.number).padStart(3, "0")}.js` });
    script.onerror = () => { one("[data-do=open]", this.figure).textContent = `No frames: ${script.getAttribute("src")} is missing beside this page.`; };
    document.head.append(script);
  }

  show(clip) {
    this.clip = clip;
    this.pictures = clip.pictures.map((source) => source && Object.assign(new Image(), { src: source }));
    this.slider.max = clip.frames.length - 1;
    one("[data-do=open]", this.figure).hidden = true;
    one(".player", this.figure).hidden = false;
    this.chart.append(this.now);
    this.slider.addEventListener("input", () => { this.stop(); this.draw(); });
    this.button.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    this.chart.addEventListener("click", (event) => this.seek(event));
    window.addEventListener("resize", () => this.draw());
    this.draw();
    for (const picture of this.pictures) picture?.addEventListener("load", () => this.draw(), { once: true });
  }

  play() {
    this.button.textContent = "Pause";
    this.timer = setInterval(() => {
      this.slider.value = (Number(this.slider.value) + 1) % this.clip.frames.length;
      this.draw();
    }, 1000 / 15);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "Play";
  }

  /** Show the frame nearest to a click on the timeline. */
  seek(event) {
    const box = this.chart.getBoundingClientRect(), { left, right, span } = this.line;
    const x = (event.clientX - box.left) / box.width * this.chart.viewBox.baseVal.width;
    const frame = span[0] + (x - left) / (right - left) * (span[1] - span[0]);
    const off = this.clip.frames.map((each) => Math.abs(each - frame));
    this.stop();
    this.slider.value = off.indexOf(Math.min(...off));
    this.draw();
  }

  draw() {
    const index = Number(this.slider.value), { clip, line } = this, frame = clip.frames[index];
    const x = line.left + (frame - line.span[0]) / (line.span[1] - line.span[0]) * (line.right - line.left);
    this.now.setAttribute("d", `M${x} ${line.top}V${line.bottom}`);
    one("output", this.figure).textContent = `frame ${frame}`;
    const [width, height] = clip.size, ratio = Math.min(window.devicePixelRatio || 1, 2);
    const scale = this.canvas.clientWidth * ratio / width;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d"), picture = this.pictures[index];
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (picture?.complete && picture.naturalWidth) pen.drawImage(picture, 0, 0, this.canvas.width, this.canvas.height);
    for (const hand of clip.hands[index]) this.skeleton(pen, hand, scale, ratio);
  }

  skeleton(pen, hand, scale, ratio) {
    const colours = ramp(Float32Array.from(hand.std)), at = (joint) => [hand.joints[2 * joint] * scale, hand.joints[2 * joint + 1] * scale];
    const colour = (joint) => `rgb(${[0, 1, 2].map((k) => Math.round(255 * colours[3 * joint + k])).join(" ")})`;
    pen.lineCap = "round";
    pen.setLineDash(hand.filled ? [5 * ratio, 6 * ratio] : []);
    for (const [width, own] of [[6, false], [3.5, true]]) { // a dark edge, so that bones show on any photo
      for (const [parent, child] of data.bones) {
        pen.beginPath();
        pen.moveTo(...at(parent));
        pen.lineTo(...at(child));
        pen.lineWidth = width * ratio;
        pen.strokeStyle = own ? colour(child) : "rgb(20 24 28 / .75)";
        pen.stroke();
      }
    }
    const [x, y] = at(0), text = `track ${hand.track} · ${hand.right ? "right" : "left"}${hand.filled ? " · filled" : ""}`;
    pen.setLineDash([]);
    pen.font = `${13 * ratio}px system-ui, sans-serif`;
    const length = pen.measureText(text).width, left = Math.min(Math.max(x - length / 2, 4), this.canvas.width - length - 4);
    const base = Math.min(y + 22 * ratio, this.canvas.height - 6 * ratio);
    pen.fillStyle = "rgb(20 24 28 / .75)";
    pen.fillRect(left - 4 * ratio, base - 14 * ratio, length + 8 * ratio, 18 * ratio);
    pen.fillStyle = "#fff";
    pen.fillText(text, left, base);
  }
}

for (const figure of all(".clip")) new Player(figure);
