"use strict";
// Tables sort by a click on their head; episodes sort and filter by the controls; a video drives its timeline.

function valueOf(cell) {
  const key = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(key);
  return key !== "" && !Number.isNaN(number) ? number : key;
}

function before(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");  // what is missing goes last
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, {numeric: true});
}

for (const head of document.querySelectorAll("th[data-sort]")) {
  head.tabIndex = 0;
  const sort = () => {
    const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((x, y) => {
      const a = valueOf(x.cells[column]), b = valueOf(y.cells[column]);
      return a === "" || b === "" || !down ? before(a, b) : -before(a, b);
    });
    body.append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
}

const list = document.getElementById("episodes");
if (list) {
  const episodes = [...list.children];
  const outcome = document.getElementById("outcome"), task = document.getElementById("task");
  const words = document.getElementById("words"), order = document.getElementById("order");
  const count = document.getElementById("count");
  const orders = {
    failures: (e) => [e.dataset.success, e.dataset.task, Number(e.dataset.init)],
    task: (e) => [e.dataset.task, Number(e.dataset.init), Number(e.dataset.repeat)],
    longest: (e) => [-Number(e.dataset.steps)],
    progress: (e) => [e.dataset.progress === "" ? "" : Number(e.dataset.progress)],
    imagination: (e) => [e.dataset.psnr === "" ? "" : Number(e.dataset.psnr)],
  };
  const update = () => {
    const wanted = words.value.toLowerCase();
    let visible = 0;
    for (const episode of episodes) {
      const shown = (outcome.value === "" || episode.dataset.success === outcome.value)
        && (task.value === "" || episode.dataset.task === task.value)
        && episode.dataset.words.toLowerCase().includes(wanted);
      episode.hidden = !shown;
      visible += shown;
    }
    count.textContent = `${visible} of ${episodes.length} episodes`;
  };
  const arrange = () => {
    const key = orders[order.value];
    const sorted = [...episodes].sort((x, y) => {
      const a = key(x), b = key(y);
      for (let i = 0; i < a.length; i++) {
        const way = before(a[i], b[i]);
        if (way) return way;
      }
      return 0;
    });
    list.append(...sorted);
  };
  outcome.addEventListener("change", update);
  task.addEventListener("change", update);
  words.addEventListener("input", update);
  order.addEventListener("change", arrange);
  update();
}

for (const episode of document.querySelectorAll(".episode")) {
  const video = episode.querySelector("video");
  if (!video) continue;
  const chart = episode.querySelector("svg[id^='psnr-']"), now = episode.querySelector(".now");
  const rate = Number(video.dataset.rate);
  const steps = JSON.parse(video.dataset.steps), psnr = JSON.parse(video.dataset.psnr);
  let cursor = null;
  if (chart) {
    cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y1", chart.dataset.top);
    cursor.setAttribute("y2", chart.dataset.bottom);
    chart.append(cursor);
  }
  const scale = chart && {
    x0: Number(chart.dataset.x0), x1: Number(chart.dataset.x1),
    left: Number(chart.dataset.left), right: Number(chart.dataset.right),
  };
  const show = () => {
    const frame = Math.min(Math.floor(video.currentTime * rate + 1e-3), steps.length - 1);
    const db = psnr[frame];
    now.textContent = `control step ${steps[frame]}` + (db === null || db === undefined ? "" : ` · ${db.toFixed(2)} dB`);
    if (cursor) {
      const x = scale.left + (steps[frame] - scale.x0) / (scale.x1 - scale.x0) * (scale.right - scale.left);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
    }
  };
  const follow = () => {
    show();
    if (!video.paused && !video.ended) requestAnimationFrame(follow);
  };
  video.addEventListener("play", follow);
  video.addEventListener("seeked", show);
  video.addEventListener("loadedmetadata", show);
  if (chart) {
    chart.style.cursor = "crosshair";
    chart.addEventListener("click", (event) => {
      const box = chart.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
      const step = scale.x0 + (x - scale.left) / (scale.right - scale.left) * (scale.x1 - scale.x0);
      let nearest = 0;
      steps.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(steps[nearest] - step)) nearest = i; });
      video.pause();
      video.currentTime = (nearest + 0.5) / rate;
    });
  }
  episode.addEventListener("toggle", () => { if (!episode.open) video.pause(); });
  show();
}
