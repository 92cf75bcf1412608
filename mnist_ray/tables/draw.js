// A square in which a reader draws a digit, and what a network takes it for. The network computes
// here, in plain JavaScript, from the layers that draw.py puts into the page.
{
const SIDE = 280; // the square's own pixels, however large a screen shows it
// The width of a line. With 14 to 26 pixels, a network that was right on 98.8 % of the test images
// was right on 96 to 98 % of 400 of them when they were drawn along their lines.
const PEN = 20;
// A guess of lower probability is called unsure: of such guesses, this network got a third wrong.
const UNSURE = 0.8;
const element = name => document.getElementById(`draw-${name}`);

// A layer has the shape of each of its arrays; the numbers of all arrays follow one another.
const { layers, numbers } = JSON.parse(element('network').textContent);
const all = new Float32Array(Uint8Array.from(atob(numbers), each => each.charCodeAt(0)).buffer);
let next = 0;
for (const layer of layers) for (const [name, shape] of Object.entries(layer)) {
  if (!Array.isArray(shape)) continue;
  const count = shape.reduce((product, length) => product * length);
  layer[name] = Object.assign(all.subarray(next, next + count), { shape });
  next += count;
}

// Images are square. Their values lie channel by channel, and row by row within a channel.
const image = (channels, size) =>
  ({ channels, size, values: new Float32Array(channels * size * size) });

function padded(x, padding) {
  const out = image(x.channels, x.size + 2 * padding);
  for (let row = 0; row < x.channels * x.size; row++) {
    const channel = Math.floor(row / x.size), y = row % x.size + padding;
    const values = x.values.subarray(row * x.size, (row + 1) * x.size);
    out.values.set(values, (channel * out.size + y) * out.size + padding);
  }
  return out;
}

function pooled(x, size, join) {
  const out = image(x.channels, Math.floor(x.size / size));
  for (let row = 0, at = 0; row < out.channels * out.size; row++) {
    const channel = Math.floor(row / out.size), top = channel * x.size + row % out.size * size;
    for (let left = 0; left < out.size * size; left += size) {
      const window = [];
      for (let y = top; y < top + size; y++)
        for (let i = 0; i < size; i++) window.push(x.values[y * x.size + left + i]);
      out.values[at++] = join(window);
    }
  }
  return out;
}

const sum = values => values.reduce((a, b) => a + b);
const compute = {
  conv(x, { weight, padding }) {
    const [outputs, inputs, height, width] = weight.shape, from = padded(x, padding);
    const out = image(outputs, from.size - height + 1);
    let at = 0;
    for (let o = 0; o < outputs; o++) for (let i = 0; i < inputs; i++)
      for (let dy = 0; dy < height; dy++) for (let dx = 0; dx < width; dx++) {
        const factor = weight[at++];
        for (let y = 0; y < out.size; y++) {
          const to = (o * out.size + y) * out.size, of = (i * from.size + y + dy) * from.size + dx;
          for (let j = 0; j < out.size; j++) out.values[to + j] += factor * from.values[of + j];
        }
      }
    return out;
  },
  relu: x => ({ ...x, values: x.values.map(value => Math.max(value, 0)) }),
  scale(x, { factor, shift }) {
    const channel = at => Math.floor(at / x.size ** 2);
    const scaled = (value, at) => value * factor[channel(at)] + shift[channel(at)];
    return { ...x, values: x.values.map(scaled) };
  },
  max: (x, { size }) => pooled(x, size, window => Math.max(...window)),
  mean: (x, { size }) => pooled(x, size, window => sum(window) / size ** 2),
};

// Returns the probability of each digit for the 784 pixels of an image, 0 (paper) to 255 (ink).
function predict(pixels) {
  let x = { channels: 1, size: 28, values: Float32Array.from(pixels) };
  for (const layer of layers) x = compute[layer.kind](x, layer);
  const most = Math.max(...x.values), powers = Array.from(x.values, each => Math.exp(each - most));
  return powers.map(each => each / sum(powers));
}

// Says for each of `from` pixels which of the `to` larger ones it lies in, and with what share; the
// rest of it lies in the next one.
const shrink = (from, to) => Array.from({ length: from }, (_, i) => {
  const first = Math.floor(i * to / from);
  return [first, Math.min(1, (first + 1) * from / to - i)];
});

// Returns the drawing as 784 pixels, made as MNIST's were: its longer side is scaled to 20 pixels,
// its centre of mass lies in the middle of 28 x 28 pixels. Returns null if nothing is drawn.
function centre(canvas) {
  const { data } = canvas.getContext('2d').getImageData(0, 0, SIDE, SIDE);
  const inked = Array.from({ length: SIDE ** 2 }, (_, at) => at).filter(at => data[4 * at + 3]);
  if (!inked.length) return null;
  const rows = inked.map(at => Math.floor(at / SIDE)), columns = inked.map(at => at % SIDE);
  const low = values => values.reduce((a, b) => Math.min(a, b));
  const top = low(rows), left = low(columns);
  const height = 1 - top - low(rows.map(y => -y)), width = 1 - left - low(columns.map(x => -x));
  const ratio = Math.min(1, 20 / Math.max(height, width)); // a speck at the edge stays a speck
  const [h, w] = [height, width].map(length => Math.max(1, Math.round(length * ratio)));
  const down = shrink(height, h), across = shrink(width, w);
  const small = new Float64Array(21 * 21);
  inked.forEach((at, i) => {
    const ink = data[4 * at + 3] * h / height * w / width;
    const [y, inY] = down[rows[i] - top], [x, inX] = across[columns[i] - left];
    small[21 * y + x] += ink * inY * inX;
    small[21 * y + x + 1] += ink * inY * (1 - inX);
    small[21 * (y + 1) + x] += ink * (1 - inY) * inX;
    small[21 * (y + 1) + x + 1] += ink * (1 - inY) * (1 - inX);
  });
  const mass = sum(small);
  const place = (of, length) => {
    const middle = sum(small.map((ink, at) => ink * of(at))) / mass;
    return Math.min(Math.max(Math.round(14 - middle), 0), 28 - length);
  };
  const y0 = place(at => Math.floor(at / 21), h), x0 = place(at => at % 21, w);
  const pixels = new Uint8Array(784);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++)
    pixels[28 * (y0 + y) + x0 + x] = Math.round(small[21 * y + x]);
  return pixels;
}

const square = element('square'), pen = square.getContext('2d', { willReadFrequently: true });
const seen = element('seen').getContext('2d');
Object.assign(pen, { lineWidth: PEN, lineCap: 'round' });
let last = null, waiting = false;

function say() {
  waiting = false;
  const pixels = centre(square), found = pixels && predict(pixels);
  seen.clearRect(0, 0, 28, 28);
  if (found) {
    const shown = seen.createImageData(28, 28);
    pixels.forEach((ink, at) => { shown.data[4 * at + 3] = ink; });
    seen.putImageData(shown, 0, 0);
  }
  const guess = found ? found.indexOf(Math.max(...found)) : -1;
  const percent = digit => `${(100 * found[digit]).toFixed(1)}%`;
  element('said').textContent = !found ? 'Nothing is drawn yet.'
    : found[guess] < UNSURE ? `Unsure: perhaps a ${guess} (${percent(guess)})`
    : `A ${guess} (${percent(guess)})`;
  [...element('bars').children].forEach((row, digit) => {
    row.className = digit === guess ? 'guess' : '';
    row.querySelector('i').style.width = found ? percent(digit) : 0;
    row.lastChild.textContent = found ? percent(digit) : '';
  });
}

function line(event) {
  const box = square.getBoundingClientRect(), events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) {
    const to = [each.clientX - box.left, each.clientY - box.top].map(at => at * SIDE / box.width);
    pen.beginPath();
    pen.moveTo(...(last ?? to));
    pen.lineTo(...to);
    pen.stroke();
    last = to;
  }
  if (!waiting) requestAnimationFrame(say);
  waiting = true;
}

square.addEventListener('pointerdown', event => {
  if (!event.isPrimary || event.button) return;
  square.setPointerCapture(event.pointerId);
  last = null;
  line(event);
});
square.addEventListener('pointermove', event => { if (last && event.isPrimary) line(event); });
for (const end of ['pointerup', 'pointercancel'])
  square.addEventListener(end, event => { if (event.isPrimary) last = null; });
// A finger that draws must not scroll. The style says so too, but a browser may not know it yet: one
// scrolled by 40 pixels once.
square.addEventListener('touchstart', event => event.preventDefault(), { passive: false });
element('clear').addEventListener('click', () => { pen.clearRect(0, 0, SIDE, SIDE); say(); });
say();
globalThis.drawing = { predict, centre, say }; // the tests call these
}
