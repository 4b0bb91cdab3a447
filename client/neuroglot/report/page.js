"use strict";
const valueOf = (cell) => cell.dataset.value ?? cell.textContent;

function compare(a, b, numeric, direction) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what is missing comes last, both ways
  return direction * (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
}

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const descending = heads[column].getAttribute("aria-sort") === "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  const numeric = rows.some((row) => row.cells[column].classList.contains("n"));
  const direction = descending ? -1 : 1;
  rows.sort((a, b) => compare(valueOf(a.cells[column]), valueOf(b.cells[column]), numeric, direction));
  table.tBodies[0].append(...rows);
}

function toCsv(table) {
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = [...table.rows].map((row) => [...row.cells].map((cell) => quoted(valueOf(cell))).join(","));
  return lines.join("\n") + "\n";
}

document.querySelectorAll("table.tidy").forEach((table) => {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => sortBy(table, column));
  });
});

document.querySelectorAll("button.download").forEach((button) => {
  button.addEventListener("click", () => {
    const table = document.getElementById(button.dataset.table);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([toCsv(table)], { type: "text/csv" }));
    link.download = `${button.dataset.table}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
});
