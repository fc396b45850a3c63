// The ranking board: cards move between columns by pointer (mouse, pen, finger), by keys, or by their own lists.
// Only the lists are saved; everything else sets them.

const board = document.querySelector("#board");
const switchBox = document.querySelector("#single-keys");

if (board) {
  const cards = [...board.querySelectorAll(".card")];
  const columns = [...board.querySelectorAll(".column")];
  const count = Number(board.dataset.columns);
  const rankOf = (card) => card.querySelector("select").value;
  let chosen = null;
  let dragged = false; // whether the last press became a drag

  function settle(card) {
    const column = columns.find((each) => each.dataset.rank === rankOf(card));
    const slot = column.querySelector(".slot");
    const after = [...slot.children].find((other) => Number(other.dataset.place) > Number(card.dataset.place));
    if (card.parentElement !== slot) slot.insertBefore(card, after ?? null);
    card.ariaLabel = `Output ${card.dataset.letter}, ${rankOf(card) ? `rank ${rankOf(card)}` : "not ranked"}`;
  }

  function place(card, rank) {
    const select = card.querySelector("select");
    if (select.value === String(rank)) return;
    select.value = rank;
    settle(card);
    select.dispatchEvent(new Event("change", { bubbles: true }));
  }

  function choose(card) {
    for (const each of cards) {
      each.classList.toggle("chosen", each === card);
      each.tabIndex = each === card ? 0 : -1;
    }
    chosen = card;
  }

  function focusOn(card) {
    choose(card);
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  for (const card of cards) {
    settle(card);
    card.querySelector("select").addEventListener("change", () => settle(card));
    card.addEventListener("focusin", () => choose(card));
    card.addEventListener("pointerdown", (event) => startDrag(card, event));
    card.querySelector(".letter").addEventListener("click", (event) => {
      if (dragged && event.detail) event.preventDefault(); // dropped where it was taken up; a key's click has no detail
    });
  }
  choose(cards.find((card) => !rankOf(card)) ?? cards[0]);
  chosen.classList.remove("chosen");

  /* ---- dragging ---- */

  const THRESHOLD = 6; // pixels before a press becomes a drag

  function startDrag(card, down) {
    if (down.button !== 0 || down.target.closest("select")) return;
    if (down.pointerType !== "mouse" && !down.target.closest("header")) return; // fingers scroll elsewhere
    let ghost = null;
    let target = null;
    dragged = false;

    function move(event) {
      if (!ghost) {
        if (Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) < THRESHOLD) return;
        dragged = true;
        ghost = card.cloneNode(true);
        ghost.classList.add("ghost");
        ghost.setAttribute("aria-hidden", "true");
        for (const select of ghost.querySelectorAll("select")) select.remove();
        document.body.append(ghost);
        card.classList.add("dragged");
      }
      event.preventDefault();
      ghost.style.transform = `translate(${event.clientX - 20}px, ${event.clientY - 16}px)`;
      const under = document.elementFromPoint(event.clientX, event.clientY)?.closest(".column");
      target = columns.includes(under) ? under : null;
      for (const column of columns) column.classList.toggle("target", column === target);
      const edge = 60;
      if (event.clientY < edge) scrollBy(0, -12);
      else if (event.clientY > innerHeight - edge) scrollBy(0, 12);
    }

    function end(event) {
      removeEventListener("pointermove", move);
      removeEventListener("pointerup", end);
      removeEventListener("pointercancel", end);
      ghost?.remove();
      card.classList.remove("dragged");
      for (const column of columns) column.classList.remove("target");
      if (ghost && target && event.type === "pointerup") place(card, target.dataset.rank);
      focusOn(card);
    }

    addEventListener("pointermove", move, { passive: false });
    addEventListener("pointerup", end);
    addEventListener("pointercancel", end);
  }

  /* ---- keys ---- */

  function byKey(key) {
    const at = cards.indexOf(chosen);
    const rank = Number(rankOf(chosen)) || 0;
    if (key === "ArrowDown") focusOn(cards[(at + 1) % cards.length]);
    else if (key === "ArrowUp") focusOn(cards[(at + cards.length - 1) % cards.length]);
    else if (key === "ArrowRight" && rank < count) place(chosen, rank + 1);
    else if (key === "ArrowLeft" && rank > 0) place(chosen, rank > 1 ? rank - 1 : "");
    else if (/^[0-9]$/.test(key) && Number(key) <= count && switchBox.checked) {
      const card = chosen;
      place(card, key === "0" ? "" : key);
      focusOn(cards.find((each) => !rankOf(each)) ?? card);
      return true;
    } else return false;
    if (key.startsWith("Arrow") && rankOf(chosen) !== String(rank || "")) focusOn(chosen);
    return true;
  }

  addEventListener("keydown", (event) => {
    const busy = event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, select, input");
    const onBoard = board.contains(event.target); // elsewhere the arrows scroll the page
    if (!busy && (onBoard || !event.key.startsWith("Arrow")) && byKey(event.key)) event.preventDefault();
  });
}
