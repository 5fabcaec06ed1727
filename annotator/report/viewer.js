// A mesh to rotate and zoom: WebGL if available, otherwise triangles painted from back to front on a 2D canvas.
"use strict";

const AMBIENT = 0.25, HEADLIGHT = 0.2, LAMP = 0.55; // the same lights as in the pictures
const LAMP_AT = [-0.4256, -0.5958, -0.6810]; // camera axes: x right, y down, z forward

/** Draw one mesh on a canvas; faces is a Uint32Array of triangles. */
class Viewer {
  constructor(canvas, faces) {
    this.canvas = canvas;
    this.faces = faces;
    this.mesh = null;
    this.painter = webGlPainter(canvas) || flatPainter(canvas);
    this.waiting = false;
    listen(this);
  }

  /** Show vertices (3 V, millimetres, camera axes) in colours (3 V, 0 to 1). */
  show(vertices, colours, left) {
    const order = left ? Uint32Array.from(this.faces, (_, i) => this.faces[3 * Math.floor(i / 3) + 2 - (i % 3)]) : this.faces;
    const mesh = { vertices: centred(vertices), faces: order, colours };
    mesh.normals = normalsOf(mesh.vertices, order);
    mesh.radius = radiusOf(mesh.vertices);
    this.mesh = mesh;
    this.painter.load(mesh);
    this.reset();
  }

  recolour(colours) {
    this.mesh.colours = colours;
    this.painter.load(this.mesh);
    this.draw();
  }

  /** Return to the camera's view. */
  reset() {
    this.rotation = [1, 0, 0, 0, 1, 0, 0, 0, 1];
    this.zoom = 1;
    this.draw();
  }

  /** Rotate about the axes of the screen, radians. */
  rotate(right, down) {
    const [c, s, d, t] = [Math.cos(right), Math.sin(right), Math.cos(down), Math.sin(down)];
    this.rotation = product(product([1, 0, 0, 0, d, -t, 0, t, d], [c, 0, -s, 0, 1, 0, s, 0, c]), this.rotation);
    this.draw();
  }

  scale(factor) {
    this.zoom = Math.min(Math.max(this.zoom * factor, 0.5), 12);
    this.draw();
  }

  /** Draw at most once per frame. */
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (!this.mesh || !this.canvas.clientWidth) return;
      const ratio = Math.min(window.devicePixelRatio || 1, 2);
      this.canvas.width = this.canvas.clientWidth * ratio;
      this.canvas.height = this.canvas.clientHeight * ratio;
      this.painter.draw(this.rotation, 0.92 * this.zoom / this.mesh.radius);
    });
  }
}

function product(a, b) { // 3 x 3, row-major
  return a.map((_, i) => [0, 1, 2].reduce((sum, k) => sum + a[3 * Math.floor(i / 3) + k] * b[3 * k + (i % 3)], 0));
}

function centred(vertices) {
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  vertices.forEach((v, i) => { low[i % 3] = Math.min(low[i % 3], v); high[i % 3] = Math.max(high[i % 3], v); });
  return Float32Array.from(vertices, (v, i) => v - (low[i % 3] + high[i % 3]) / 2);
}

function radiusOf(vertices) {
  let most = 1;
  for (let i = 0; i < vertices.length; i += 3) most = Math.max(most, Math.hypot(vertices[i], vertices[i + 1], vertices[i + 2]));
  return most;
}

function normalsOf(vertices, faces) {
  const normals = new Float32Array(vertices.length);
  for (let f = 0; f < faces.length; f += 3) {
    const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
    const u = [0, 1, 2].map((k) => vertices[b + k] - vertices[a + k]), v = [0, 1, 2].map((k) => vertices[c + k] - vertices[a + k]);
    const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) normals[corner + k] += n[k];
  }
  for (let i = 0; i < normals.length; i += 3) {
    const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
    for (let k = 0; k < 3; k++) normals[i + k] /= length;
  }
  return normals;
}

const VERTEX = `
attribute vec3 position, normal, colour;
uniform mat3 rotation;
uniform vec2 scale;
varying vec3 facing, paint;
void main() {
  vec3 seen = rotation * position;
  facing = rotation * normal;
  paint = colour;
  float far = 1.0 + 0.18 * seen.z * max(scale.x, scale.y); // weak perspective: nearer parts are larger
  gl_Position = vec4(seen.x * scale.x, -seen.y * scale.y, seen.z * 0.001, max(far, 0.2));
}`;

const FRAGMENT = `
precision mediump float;
varying vec3 facing, paint;
uniform vec3 lamp;
uniform vec3 shares;
void main() {
  vec3 n = normalize(facing);
  if (!gl_FrontFacing) n = -n; // an open wrist shows its inside
  float wrapped = pow(max(dot(n, lamp) * 0.5 + 0.5, 0.0), 1.5);
  gl_FragColor = vec4(paint * (shares.x + shares.y * max(-n.z, 0.0) + shares.z * wrapped), 1.0);
}`;

/** Return a painter with WebGL, or null without it. */
function webGlPainter(canvas) {
  const gl = canvas.getContext("webgl", { antialias: true, alpha: true });
  if (!gl || !gl.getExtension("OES_element_index_uint")) return null;
  let program, buffers, count = 0;

  function prepare() {
    program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    buffers = ["position", "normal", "colour", "faces"].map(() => gl.createBuffer());
  }
  prepare();

  let last = null;
  const painter = {
    load(mesh) {
      last = mesh;
      [mesh.vertices, mesh.normals, mesh.colours].forEach((values, k) => {
        gl.bindBuffer(gl.ARRAY_BUFFER, buffers[k]);
        gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      });
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffers[3]);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.faces, gl.STATIC_DRAW);
      count = mesh.faces.length;
    },
    draw(rotation, scale) {
      const { width, height } = canvas, short = Math.min(width, height);
      gl.viewport(0, 0, width, height);
      gl.clearColor(0, 0, 0, 0);
      gl.enable(gl.DEPTH_TEST);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.useProgram(program);
      ["position", "normal", "colour"].forEach((name, k) => {
        const at = gl.getAttribLocation(program, name);
        gl.bindBuffer(gl.ARRAY_BUFFER, buffers[k]);
        gl.enableVertexAttribArray(at);
        gl.vertexAttribPointer(at, 3, gl.FLOAT, false, 0, 0);
      });
      // WebGL expects column-major matrices.
      const columns = [0, 3, 6, 1, 4, 7, 2, 5, 8].map((i) => rotation[i]);
      gl.uniformMatrix3fv(gl.getUniformLocation(program, "rotation"), false, columns);
      gl.uniform2f(gl.getUniformLocation(program, "scale"), scale * short / width, scale * short / height);
      gl.uniform3fv(gl.getUniformLocation(program, "lamp"), LAMP_AT);
      gl.uniform3f(gl.getUniformLocation(program, "shares"), AMBIENT, HEADLIGHT, LAMP);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffers[3]);
      gl.drawElements(gl.TRIANGLES, count, gl.UNSIGNED_INT, 0);
    },
  };
  // Phones may drop the context of a page in the background.
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => { prepare(); if (last) painter.load(last); });
  return painter;
}

function flatPainter(canvas) {
  const pen = canvas.getContext("2d");
  let mesh = null;
  return {
    load(given) { mesh = given; },
    draw(rotation, scale) {
      const { vertices, normals, colours, faces } = mesh, size = Math.min(canvas.width, canvas.height) / 2;
      const seen = new Float32Array(vertices.length);
      for (let i = 0; i < vertices.length; i += 3) {
        for (let k = 0; k < 3; k++) seen[i + k] = rotation[3 * k] * vertices[i] + rotation[3 * k + 1] * vertices[i + 1] + rotation[3 * k + 2] * vertices[i + 2];
      }
      const depth = (f) => seen[3 * faces[f] + 2] + seen[3 * faces[f + 1] + 2] + seen[3 * faces[f + 2] + 2];
      const order = Array.from({ length: faces.length / 3 }, (_, f) => 3 * f).sort((a, b) => depth(b) - depth(a));
      pen.clearRect(0, 0, canvas.width, canvas.height);
      for (const f of order) {
        const corners = [0, 1, 2].map((k) => 3 * faces[f + k]);
        const mean = (values, k) => (values[corners[0] + k] + values[corners[1] + k] + values[corners[2] + k]) / 3;
        let normal = [0, 1, 2].map((k) => [0, 1, 2].reduce((sum, j) => sum + rotation[3 * k + j] * mean(normals, j), 0));
        if (normal[2] > 0) normal = normal.map((n) => -n);
        const lamp = Math.max(normal.reduce((sum, n, k) => sum + n * LAMP_AT[k], 0) * 0.5 + 0.5, 0) ** 1.5;
        const light = 255 * (AMBIENT - HEADLIGHT * normal[2] + LAMP * lamp);
        pen.fillStyle = pen.strokeStyle = `rgb(${[0, 1, 2].map((k) => Math.round(light * mean(colours, k))).join(" ")})`;
        pen.beginPath();
        for (const corner of corners) pen.lineTo(canvas.width / 2 + seen[corner] * scale * size, canvas.height / 2 + seen[corner + 1] * scale * size);
        pen.closePath();
        pen.fill();
        pen.stroke(); // closes the hairlines between neighbours
      }
    },
  };
}

/** React to mouse, touch and keys. */
function listen(viewer) {
  const { canvas } = viewer, down = new Map();
  const gap = () => { const [a, b] = [...down.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const was = down.get(event.pointerId);
    if (!was) return;
    const before = down.size === 2 ? gap() : 0;
    down.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (down.size === 1) viewer.rotate((event.clientX - was.x) * 0.01, (event.clientY - was.y) * 0.01);
    if (down.size === 2 && before) viewer.scale(gap() / before);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => down.delete(event.pointerId));
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); viewer.scale(Math.exp(-event.deltaY * 0.0015)); }, { passive: false });
  const keys = {
    ArrowLeft: () => viewer.rotate(-0.15, 0), ArrowRight: () => viewer.rotate(0.15, 0), ArrowUp: () => viewer.rotate(0, -0.15),
    ArrowDown: () => viewer.rotate(0, 0.15), "+": () => viewer.scale(1.2), "=": () => viewer.scale(1.2), "-": () => viewer.scale(1 / 1.2), 0: () => viewer.reset(),
  };
  canvas.addEventListener("keydown", (event) => { if (keys[event.key]) { event.preventDefault(); keys[event.key](); } });
  window.addEventListener("resize", () => viewer.draw());
}
