"use strict";
const SHOWN_ROWS = Number(document.body.dataset.shownRows);

function read(name) {
  const { rows, columns } = JSON.parse(document.getElementById(`data-${name}`).textContent);
  columns.forEach((column) => {
    const { values } = column;
    column.at = Array.isArray(values) ? (row) => values[row] : () => values; // one value, where it is always the same
  });
  return { columns, order: [...Array(rows).keys()] };
}

function shown(text, decimals) {
  if (decimals === null || text === "" || !Number.isFinite(Number(text))) return text;
  return Number(text).toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

function compare(a, b, numeric, direction) {
  if (a === "" || b === "") return (a === "") - (b === ""); // what is missing comes last, both ways
  return direction * (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
}

function fill(table, { columns, order }) {
  const body = document.createElement("tbody");
  order.slice(0, SHOWN_ROWS).forEach((row) => {
    const line = body.insertRow();
    columns.forEach(({ at, decimals }) => {
      const cell = line.insertCell();
      cell.textContent = shown(at(row), decimals);
      if (decimals !== null) cell.className = "n";
    });
  });
  table.tBodies[0].replaceWith(body);
}

function sortBy(table, content, column) {
  const heads = [...table.tHead.rows[0].cells];
  const descending = heads[column].getAttribute("aria-sort") === "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  const { at, decimals } = content.columns[column];
  content.order.sort((a, b) => compare(at(a), at(b), decimals !== null, descending ? -1 : 1));
  fill(table, content);
}

function toCsv({ columns, order }) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = order.map((row) => columns.map(({ at }) => quoted(at(row))).join(","));
  return [columns.map(({ name }) => quoted(name)).join(","), ...lines, ""].join("\n");
}

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `${name}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

document.querySelectorAll("table.tidy").forEach((table) => {
  let content = null;
  const contents = () => (content ??= read(table.id));
  const folded = table.closest("details");
  folded?.addEventListener("toggle", () => folded.open && !content && fill(table, contents()));
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => sortBy(table, contents(), column));
  });
  document.querySelector(`button.download[data-table="${table.id}"]`).addEventListener("click", () => {
    save(table.id, toCsv(contents()));
  });
});
