// Open each page in a frame of each width, one after another, search, and report what
// is found. PLAN is what the test requests.
const {pages, widths, sought} = PLAN;
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function open(page, width) {
  const frame = document.createElement("iframe");
  frame.style.width = width + "px";
  frame.style.height = "800px";
  const loaded = new Promise((resolve) => frame.addEventListener("load", resolve));
  frame.src = page;
  document.body.append(frame);
  await loaded;
  await wait(100);
  return frame;
}

function words(root) {
  const found = [];
  const walker = root.createTreeWalker(root.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!parent.closest("script, style, .highlight")) {
      found.push(walker.currentNode.data);
    }
  }
  return found.join(" ");
}

// Elements that extend beyond the page without a scrolling box.
function wide(view) {
  const edge = view.document.documentElement.clientWidth + 1;
  const found = [];
  for (const element of view.document.querySelectorAll(".md-content *")) {
    const box = element.getBoundingClientRect();
    if (box.width === 0 || box.right <= edge) continue;
    let around = element.parentElement, scrolls = false;
    for (; around && !scrolls; around = around.parentElement) {
      scrolls = view.getComputedStyle(around).overflowX !== "visible"
        && around.getBoundingClientRect().right <= edge;
    }
    if (!scrolls) found.push(element.outerHTML.slice(0, 100));
  }
  return found;
}

async function measure(page, name) {
  const frame = await open(page, widths[name]);
  const view = frame.contentWindow, root = view.document;
  for (const folded of root.querySelectorAll("details")) folded.open = true;
  await wait(20);
  const origin = location.origin;
  const found = {
    page: page,
    width: name,
    latex: words(root).match(/\\(frac|sqrt|begin|mathrm|lVert|theta)\b/g) || [],
    overflow: root.documentElement.scrollWidth > root.documentElement.clientWidth,
    wide: wide(view).slice(0, 3),
    outside: view.performance.getEntriesByType("resource")
      .map((entry) => entry.name).filter((name) => !name.startsWith(origin)),
    broken: [...root.images].filter((image) => image.complete && !image.naturalWidth)
      .map((image) => image.src),
    formulas: root.querySelectorAll("math").length,
  };
  frame.remove();
  return found;
}

async function search(text) {
  const frame = await open("/index.html", widths.desktop);
  const root = frame.contentWindow.document;
  const input = root.querySelector("[data-md-component=search-query]");
  root.querySelector("[data-md-toggle=search]").click();
  input.focus();
  input.value = text;
  for (let turn = 0; turn < 50; turn++) {
    input.dispatchEvent(new frame.contentWindow.KeyboardEvent("keyup", {key: "a"}));
    await wait(100);
    if (root.querySelector(".md-search-result__item")) break;
  }
  const first = root.querySelector(".md-search-result__list");
  const found = first ? first.textContent.replace(/\s+/g, " ") : "";
  frame.remove();
  return {text: text, found: found.slice(0, 2000)};
}

(async () => {
  const result = {pages: [], searches: []};
  try {
    for (const page of pages)
      for (const name of Object.keys(widths))
        result.pages.push(await measure(page, name));
    for (const text of sought) result.searches.push(await search(text));
  } catch (error) {
    result.error = String(error.stack);
  }
  await fetch("/done", {method: "POST", body: JSON.stringify(result)});
})();
