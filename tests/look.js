// What test_book.py measures on a page of the book. Colours and contrast by WCAG 2.
const look = (() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const channels = (colour) => colour.match(/[\d.]+(?:e-?\d+)?/g).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const over = ([r, g, b, a = 1], ground) => [r, g, b].map((c, i) => a * c + (1 - a) * ground[i]);
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const brief = (element) => element.textContent.trim().replace(/\s+/g, " ").slice(0, 60);
  const show = (mode) => (document.documentElement.dataset.theme = document.documentElement.dataset.mode = mode);

  // The colour behind an element: all that lies below it, from the page upwards.
  function ground(element, known) {
    if (!element) return [255, 255, 255];
    if (!known.has(element)) known.set(element, over(channels(getComputedStyle(element).backgroundColor), ground(element.parentElement, known)));
    return known.get(element);
  }

  function opacity(element) {
    return element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
  }

  function words(root) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    const found = new Set();
    while (walker.nextNode()) if (walker.currentNode.data.trim()) found.add(walker.currentNode.parentElement);
    return [...found].filter((one) => !one.closest("script, style, mjx-container, .headerlink") && one.checkVisibility({ visibilityProperty: true }));
  }

  return {
    contents: () => ({
      "broken mathematics": all("mjx-merror").length,
      "mathematics not set": all("article .math").length - all("mjx-container").length,
      "broken pictures": all("img").filter((one) => !one.naturalWidth).map((one) => one.src),
    }),

    // Pictures of the article that are not figures count as well: they lack everything.
    figures: () => all("article .drawing, article .cell_output img").map((one) => ({
      svg: one.querySelector("svg[role=img]") !== null,
      alt: one.querySelector("svg")?.getAttribute("aria-label") ?? one.alt ?? "",
      caption: one.closest("figure")?.querySelector("figcaption")?.innerText.replace(/\s+/g, " ") ?? "",
    })),

    tall: () => all("article .cell_input, article .cell_output > *").filter((one) => one.checkVisibility() && one.offsetHeight > innerHeight).map(brief),

    // Words whose contrast is below AA: 4.5, or 3 for large letters.
    pale(mode) {
      show(mode);
      const known = new Map();
      return words(document.body).flatMap((one) => {
        const style = getComputedStyle(one);
        const [behind, size] = [ground(one, known), parseFloat(style.fontSize)];
        const [r, g, b, a = 1] = channels(one.closest("svg") ? style.fill : style.color);
        const contrast = ratio(over([r, g, b, a * opacity(one)], behind), behind);
        const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        return contrast < (large ? 3 : 4.5) ? [`${contrast.toFixed(2)}: ${brief(one)}`] : [];
      });
    },

    // Every rule of axe but the contrast, which `pale` measures for every word. Comes last: the tens of thousands of elements
    // within code, formulas and drawings, which no rule looks at, are taken out first, for axe would spend its time on them.
    faults() {
      all("pre").forEach((one) => (one.textContent = one.textContent));
      all("article .drawing svg, mjx-container").forEach((one) => one.replaceChildren("drawn"));
      return axe.run(document, { preload: false, resultTypes: ["violations"], rules: { "color-contrast": { enabled: false } } }).then(({ violations }) =>
        violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).slice(0, 3).join(" ")}`));
    },

    // Code is measured by `pale`, and the rows of a table are alike: axe would take a minute for them.
    contrast(mode) {
      show(mode);
      const where = { include: [["html"]], exclude: [["pre"], ["svg"], ["mjx-container"], ["tbody tr:nth-child(n+4)"]] };
      return axe.run(where, { preload: false, resultTypes: ["violations"], runOnly: ["color-contrast"] }).then(({ violations }) =>
        violations.flatMap(({ nodes }) => nodes.map(({ html, failureSummary }) => `${html}: ${failureSummary}`)));
    },

    narrow: () => ({
      width: document.documentElement.scrollWidth,
      // Whatever is cut off must lie in a box that scrolls and says so.
      unmarked: all("article pre, article table, article .drawing svg, article mjx-container[display]")
        .filter((one) => one.checkVisibility() && one.getBoundingClientRect().right > innerWidth && !one.closest(".scrolls[tabindex='0']")).map(brief),
      "hidden verdicts": all("article th").filter((one) => one.textContent === "verdict" && one.getBoundingClientRect().right > innerWidth).length,
    }),
  };
})();
