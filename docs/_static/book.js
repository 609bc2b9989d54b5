// The theme's toggles in the list of chapters have a picture and no name for those who hear the page.
document.addEventListener("DOMContentLoaded", () => {
  for (const toggle of document.querySelectorAll("nav li > details > summary")) {
    const part = toggle.closest("li").querySelector("a");
    if (part) toggle.setAttribute("aria-label", "Chapters: " + part.textContent.trim());
  }
});

// Paper shows solutions; the reader's folds come back afterwards.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details.solution:not([open])")];
  for (const solution of unfolded) solution.open = true;
});
addEventListener("afterprint", () => {
  for (const solution of unfolded) solution.open = false;
});
