// Boxes that are wider than their column can be scrolled by the keyboard too, and fade where there is more to see.
const BOXES = ".bd-article pre, .bd-article .drawing, .bd-article .output, .bd-article .pst-scrollable-table-container, .bd-article mjx-container";

function mark(box) {
  const room = box.scrollWidth - box.clientWidth;
  const wide = room > 1 && getComputedStyle(box).overflowX !== "visible";
  box.classList.toggle("more-left", wide && box.scrollLeft > 1);
  box.classList.toggle("more-right", wide && box.scrollLeft < room - 1);
  if (wide) {
    box.tabIndex = 0;
    if (!box.hasAttribute("role")) box.setAttribute("role", "group");
    if (!box.hasAttribute("aria-label")) box.setAttribute("aria-label", "scrolls sideways");
  } else if (box.tabIndex === 0) box.removeAttribute("tabindex");
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
