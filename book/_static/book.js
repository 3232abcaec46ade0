// A box that is larger than its place scrolls: the keyboard reaches it too, and it fades where there is more to see.
const BOXES = ["pre", ".drawing", ".output", ".pst-scrollable-table-container", "mjx-container"].map((box) => `.bd-article ${box}`).join();

function mark(box) {
  const [across, down] = [box.scrollWidth - box.clientWidth, box.scrollHeight - box.clientHeight];
  const scrolls = (across > 1 || down > 1) && getComputedStyle(box).overflowX === "auto";
  const fade = (side, more) => box.style.setProperty(`--${side}`, more ? 0 : 1);
  box.classList.toggle("scrolls", scrolls);
  fade("left", box.scrollLeft > 1);
  fade("right", box.scrollLeft < across - 1);
  fade("below", box.scrollTop < down - 1);
  if (!scrolls) return;
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "scrolls");
}

function markAll() {
  for (const box of document.querySelectorAll(BOXES)) {
    mark(box);
    box.addEventListener("scroll", () => mark(box), { passive: true });
  }
}

// Excerpts of what a search finds are fetched, which a browser forbids to a book that is opened as files.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(markAll));
addEventListener("resize", () => document.querySelectorAll(BOXES).forEach(mark));
