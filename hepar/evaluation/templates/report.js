"use strict";

// Scrolling through the slices of a case: slider and arrow keys, wheel, and the outlines' checkboxes are style alone.
const SCROLL_PAUSE_MS = 300; // a wheel that has just scrolled the page goes on doing so over a picture
const WHEEL_STEP = 60; // of a mouse wheel some 100 a notch; a touchpad sends many small ones

let pageScrolled = -Infinity;
addEventListener("scroll", () => { pageScrolled = performance.now(); }, { passive: true });

for (const figure of document.querySelectorAll("figure.stack")) {
  const slices = Array.from(figure.querySelectorAll("g.slice"));
  const slider = figure.querySelector("input");
  const place = figure.querySelector("output");
  let wheel = 0;

  const show = (position) => {
    slices.forEach((slice, index) => slice.classList.toggle("current", index === position));
    slider.value = position;
    const text = `slice ${slices[position].dataset.z} (${position + 1} of ${slices.length})`;
    place.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  };

  slider.addEventListener("input", () => show(Number(slider.value)));
  const picture = figure.querySelector("svg");
  picture.addEventListener("click", () => slider.focus({ preventScroll: true }));
  picture.addEventListener("wheel", (event) => {
    const focused = document.activeElement === slider;
    const position = Number(slider.value);
    const towardsHead = event.deltaY < 0;
    const end = towardsHead ? slices.length - 1 : 0;
    if (event.ctrlKey || event.deltaY === 0) return; // zooms the page or moves it sideways
    if (!focused && (position === end || performance.now() - pageScrolled < SCROLL_PAUSE_MS)) return;
    event.preventDefault();
    wheel += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * WHEEL_STEP;
    if (Math.abs(wheel) < WHEEL_STEP) return;
    wheel = 0;
    show(Math.min(slices.length - 1, Math.max(0, position + (towardsHead ? 1 : -1))));
  }, { passive: false });

  figure.querySelector(".place").hidden = slices.length < 2;
  show(slices.findIndex((slice) => slice.classList.contains("current")));
}
