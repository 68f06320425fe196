// Sort a table by a column: numbers as numbers (− and , as they are printed), the rest as text.
const number = text => { const found = text.replace(/−/g, "-").replace(/,/g, "").match(/^[<>\s]*([+-]?\d+(\.\d+)?)/); return found ? +found[1] : NaN; };
for (const button of document.querySelectorAll("table.sort th button")) button.addEventListener("click", () => {
  const head = button.closest("th"), place = head.cellIndex, body = head.closest("table").tBodies[0];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const text = row => row.cells[place].textContent.trim();
  const order = (a, b) => { const x = number(text(a)), y = number(text(b)); return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) || text(a).localeCompare(text(b)) : x - y; };
  body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * order(a, b)));
});
// Paper has no folds.
addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("details")) fold.open = true; });
