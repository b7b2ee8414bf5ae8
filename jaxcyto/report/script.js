"use strict";
// Without this script, and in print, the panes of a section are shown side by side.
document.documentElement.classList.add("js");
for (const figure of document.querySelectorAll(".overlay")) {
  const slider = figure.querySelector("input");
  const stops = slider.dataset.stops.split(" ");
  const buttons = figure.querySelectorAll("button");
  const show = () => {
    const at = Number(slider.value), low = Math.floor(at), part = Math.round(100 * (at - low));
    figure.style.setProperty("--at", at);
    slider.setAttribute("aria-valuetext",
      part ? `${stops[low]} ${100 - part} %, ${stops[low + 1]} ${part} %` : stops[low]);
    buttons.forEach((button, k) => button.classList.toggle("on", k === Math.round(at)));
  };
  slider.addEventListener("input", show);
  for (const button of buttons) {
    button.addEventListener("click", () => { slider.value = button.value; show(); });
  }
  show();  // the browser may restore the position of the slider from an earlier visit
}
const reach = () => {  // make overflowing content scrollable by keyboard
  for (const part of document.querySelectorAll(".scroll")) {
    part.toggleAttribute("tabindex", part.scrollWidth > part.clientWidth);
    if (part.hasAttribute("tabindex")) part.tabIndex = 0;
  }
};
reach();
addEventListener("resize", reach);
addEventListener("toggle", reach, true);
