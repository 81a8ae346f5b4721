"use strict";

// Tables: a click on a title, or Enter on it, sorts by that column; empty cells stay last.
const value = (cell) => cell.dataset.value === undefined ? null : Number(cell.dataset.value);

function compare(a, b) {
  const [x, y] = [value(a), value(b)];
  if (x !== null && y !== null) return x - y;
  return a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
}

function sort(title) {
  const table = title.closest("table"), column = title.cellIndex;
  const sign = title.ariaSort === "ascending" ? -1 : 1;
  for (const other of title.parentNode.children) other.ariaSort = "none";
  title.ariaSort = sign > 0 ? "ascending" : "descending";
  const isEmpty = (row) => ["", "-"].includes(row.cells[column].textContent);
  const rows = [...table.tBodies[0].rows].sort((a, b) =>
    isEmpty(a) - isEmpty(b) || sign * compare(a.cells[column], b.cells[column]));
  table.tBodies[0].append(...rows);
}

for (const title of document.querySelectorAll("th[aria-sort]"))
  title.firstElementChild.addEventListener("click", () => sort(title));

// Legends: a button shows or hides its group, or all of them, in every figure of the gallery.
function show(button, isShown) {
  button.ariaPressed = String(isShown);
  const mark = `.plot [data-group="${button.dataset.group}"]`;
  for (const part of button.closest(".gallery").querySelectorAll(mark))
    part.classList.toggle("hidden", !isShown);
}

for (const button of document.querySelectorAll(".legend [data-group]"))
  button.addEventListener("click", () => show(button, button.ariaPressed !== "true"));

for (const button of document.querySelectorAll(".legend [data-all]"))
  button.addEventListener("click", () => {
    for (const each of button.parentNode.querySelectorAll("[data-group]"))
      show(each, button.dataset.all === "true");
  });

// Figures: the values at the pointer, or at the cursor that the arrow keys move.
const MOST_ROWS = 12;
const short = (number) => Number(number.toPrecision(4)).toLocaleString("en");

class Cursor {
  constructor(figure, points) {
    Object.assign(this, { figure, points, svg: figure.querySelector(".plot svg") });
    this.box = figure.querySelector(".values");
    this.line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    this.line.classList.add("cursor");
    const [first, last] = points.limits, isDrawn = (x) => first <= x && x <= last;
    const positions = new Set(points.series.flatMap((series) => series.x.filter(isDrawn)));
    this.positions = [...positions].sort((a, b) => a - b);
    figure.addEventListener("pointermove", (event) => this.follow(event));
    figure.addEventListener("pointerleave", () => this.hide());
    figure.addEventListener("blur", () => this.hide());
    figure.addEventListener("keydown", (event) => this.step(event));
  }

  follow(event) {
    const place = this.svg.getBoundingClientRect();
    const [left, right] = this.points.span, [first, last] = this.points.limits;
    const share = (event.clientX - place.left) / place.width;
    if (share < left || share > right) return this.hide();
    this.show(first + (share - left) / (right - left) * (last - first));
  }

  step(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") this.hide();
    if (!move || !this.positions.length) return;
    event.preventDefault();
    const last = this.positions.length - 1;
    const index = this.x === undefined ? (move > 0 ? -1 : last + 1) : this.positions.indexOf(this.x);
    this.show(this.positions[Math.min(Math.max(index + move, 0), last)]);
  }

  show(x) {
    const distance = (position) => Math.abs(position - x);
    this.x = this.positions.reduce((best, p) => distance(p) < distance(best) ? p : best);
    const rows = this.points.series.map((series) => this.row(series)).filter(Boolean);
    rows.sort((a, b) => b.y - a.y);
    this.box.replaceChildren(this.heading(), this.table(rows));
    this.place();
  }

  row(series) {
    const index = series.x.indexOf(this.x), y = series.y[index];
    const button = this.figure.closest(".gallery").querySelector(`.legend [data-group="${series.group}"]`);
    if (index < 0 || y === null || button?.ariaPressed === "false") return null;
    const range = series.low.length && series.low[index] !== null
      ? `${short(series.low[index])} to ${short(series.high[index])}` : "";
    const note = series.is_whole[index] === false ? "fewer seeds" : range;
    return { y, colour: series.colour, cells: [series.label, short(y), note] };
  }

  heading() {
    const name = this.points.ticks.length ? this.points.ticks[this.x] : Number(this.x.toPrecision(6)).toLocaleString("en");
    return Object.assign(document.createElement("div"), { textContent: `${this.points.x_label}: ${name}` });
  }

  table(rows) {
    const table = document.createElement("table");
    for (const { colour, cells } of rows.slice(0, MOST_ROWS)) {
      const line = table.insertRow();
      line.insertCell().style.backgroundColor = colour;
      for (const text of cells) line.insertCell().textContent = text;
    }
    if (rows.length > MOST_ROWS)
      table.createCaption().textContent = `the highest ${MOST_ROWS} of ${rows.length}`;
    return table;
  }

  place() {
    const [left, right] = this.points.span, [first, last] = this.points.limits;
    const share = left + (this.x - first) / (last - first) * (right - left);
    const { width, height } = this.svg.viewBox.baseVal;
    const [top, bottom] = this.points.height;
    const ends = { x1: share * width, x2: share * width, y1: top * height, y2: bottom * height };
    for (const [name, value] of Object.entries(ends)) this.line.setAttribute(name, value);
    this.svg.append(this.line);
    this.box.classList.add("shown");
    const x = share * this.svg.clientWidth, room = this.figure.clientWidth - this.box.offsetWidth;
    const beside = share < 0.5 ? x + 10 : x - 10 - this.box.offsetWidth;
    this.box.style.left = `${Math.max(0, Math.min(beside, room))}px`;
    this.box.style.top = `${this.svg.clientHeight + 4}px`;
  }

  hide() {
    this.x = undefined;
    this.line.remove();
    this.box.classList.remove("shown");
  }
}

for (const data of document.querySelectorAll('figure > script[type="application/json"]'))
  new Cursor(data.parentNode, JSON.parse(data.textContent));
