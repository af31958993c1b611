/* Tables that sort by a click on a heading and are filtered by a text. */
"use strict";

(() => {
  const number = (text) => {
    const found = text.trim().replace("−", "-").match(/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return found ? Number(found[0]) : null;
  };

  function compare(a, b) {
    const [x, y] = [number(a), number(b)];
    if (x !== null && y !== null) return x - y;
    if (x !== null || y !== null) return x !== null ? -1 : 1; /* missing values come last */
    return a.localeCompare(b, undefined, { numeric: true });
  }

  function sort(table, column, heading) {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const text = (row) => row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const missing = (number(text(a)) === null) - (number(text(b)) === null);
      return missing || (ascending ? 1 : -1) * compare(text(a), text(b));
    });
    table.tBodies[0].append(...rows);
  }

  function filter(table, words, count) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sort(table, column, heading));
      heading.append(button);
    });
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = "filter: words that a row must have";
    input.setAttribute("aria-label", "Filter the rows");
    const count = document.createElement("span");
    input.addEventListener("input", () => filter(table, input.value, count));
    const bar = document.createElement("div");
    bar.className = "table-bar";
    bar.append(input, count);
    table.parentElement.before(bar);
    filter(table, "", count);
  }
})();
