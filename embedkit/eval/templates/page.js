"use strict";
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const sorting = new Intl.Collator(undefined, { numeric: true });

for (const table of all("table.sortable")) {
  for (const head of all("thead th", table)) {
    if (!head.textContent.trim() || head.dataset.sort === "no") continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, head));
  }
}

function sortBy(table, head) {
  const column = [...head.parentNode.children].indexOf(head);
  const first = head.classList.contains("n") ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  for (const one of all("th[aria-sort]", table.tHead)) one.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
  const rows = [...table.tBodies[0].rows];
  const sign = order === "ascending" ? 1 : -1;
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // empty cells last
    return sign * (isNaN(x) || isNaN(y) ? sorting.compare(x, y) : x - y);
  });
  table.tBodies[0].append(...rows);
}

const box = document.getElementById("filter");
const said = document.getElementById("said");
function filter() {
  const wanted = box.value.trim().toLowerCase();
  const has = (element, text = element.textContent) => text.toLowerCase().includes(wanted);
  let shown = 0;
  for (const row of all("tr.item")) row.hidden = !has(row, row.dataset.name) && !has(row);
  for (const task of all("section.task")) {
    const named = has(task, task.dataset.name);
    const parts = all(".failure", task);
    for (const part of parts) part.hidden = !named && !has(part);
    task.hidden = !named && parts.every((part) => part.hidden);
    shown += !task.hidden;
  }
  for (const group of all("details.group")) group.open = wanted !== "" || group.dataset.open === "yes";
  const nothing = document.getElementById("nothing");
  if (nothing) nothing.hidden = shown > 0;
  said.textContent = wanted === "" ? "" : `${shown} of ${all("section.task").length} tasks`;
}
if (box) {
  for (const group of all("details.group")) group.dataset.open = group.open ? "yes" : "no";
  box.addEventListener("input", filter);
  box.closest(".tools").hidden = false;
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.matches("input")) { event.preventDefault(); box.focus(); }
    if (event.key === "Escape" && event.target === box) { box.value = ""; filter(); }
  });
}

const opener = document.getElementById("open-all");
if (opener) {
  opener.addEventListener("click", () => {
    const open = opener.getAttribute("aria-pressed") !== "true";
    for (const one of all("details")) one.open = open;
    opener.setAttribute("aria-pressed", open);
    opener.textContent = open ? "Close all" : "Open all";
  });
}
