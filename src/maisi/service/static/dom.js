// Elements, icons, signals: what every part of the page is made of.

const PATHS = {
  alert: "M12 4 2.8 20h18.4ZM12 10v4.5M12 17.3v.2",
  axes: "M12 3v18M3 12h18",
  check: "m5 12.5 4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6 6 18",
  columns: "M4 5h16v14H4ZM12 5v14",
  cube: "M12 3 4 7.5v9L12 21l8-4.5v-9ZM4 7.5 12 12l8-4.5M12 12v9",
  dice: "M5 5h14v14H5ZM9 9v.1M15 9v.1M12 12v.1M9 15v.1M15 15v.1",
  down: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
  edit: "M5 19h3.5L19 8.5 15.5 5 5 15.5Z",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12ZM12 9.2a2.8 2.8 0 1 1 0 5.6 2.8 2.8 0 0 1 0-5.6",
  file: "M6 3h8l4 4v14H6ZM14 3v4h4",
  key: "M14 4a6 6 0 1 1-3.2 11L8 18H5.5v-2.5l3.6-3.6A6 6 0 0 1 14 4ZM15.5 8.4v.1",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10Z",
  plus: "M12 5v14M5 12h14",
  repeat: "M4 12a8 8 0 0 1 13.7-5.6L20 8.6M20 4v4.6h-4.6M20 12a8 8 0 0 1-13.7 5.6L4 15.4M4 20v-4.6h4.6",
  search: "M11 4a7 7 0 1 1 0 14 7 7 0 0 1 0-14ZM16 16l4.5 4.5",
  stop: "M6 6h12v12H6Z",
  sun: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8ZM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  target: "M12 5a7 7 0 1 1 0 14 7 7 0 0 1 0-14ZM12 2v5M12 17v5M2 12h5M17 12h5",
  trash: "M5 7h14M10 4h4M7 7l1 13h8l1-13",
  up: "M12 20V9M7 13.5l5-5 5 5M5 4h14",
};

/** An element: `h("button.quiet", { onclick, "aria-label": "Close" }, "×")`; properties, attributes and children. */
export function h(what, options = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(options)) set(element, name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function set(element, name, value) {
  if (value === undefined || value === null) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
  else if (name in element && !name.startsWith("aria-")) element[name] = value;
  else if (value !== false || name.startsWith("aria-")) element.setAttribute(name, value === true ? "true" : value);
}

/** An element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A line drawing, silent for screen readers. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: PATHS[name] }));
}

/** A button with a picture and a word; with `hidden` the word is for screen readers and the tooltip. */
export function button(picture, text, onclick, options = {}) {
  const { bare, kind = "", ...rest } = options;
  const label = bare ? h("span.unseen", {}, text) : text;
  return h(`button${kind ? `.${kind}` : ""}`, { type: "button", onclick, title: bare ? text : undefined, ...rest }, picture && icon(picture), label);
}

/** Say a sentence to screen readers. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

/** A value that tells who listens when it changes. */
export function signal(value) {
  const listeners = new Set();
  return {
    get: () => value,
    set(next) {
      value = next;
      for (const listener of [...listeners]) listener(value);
    },
    /** Call now and at every change; gives back how to stop. */
    watch(listener) {
      listeners.add(listener);
      listener(value);
      return () => listeners.delete(listener);
    },
  };
}

/** The same function, called once after calls have ceased for a while. */
export function settled(milliseconds, call) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), milliseconds);
  };
}

/** Tabs by the pattern of WAI-ARIA: arrows move, one stop for the tab key. */
export function tabs(list, onchange = () => {}) {
  const all = [...list.querySelectorAll('[role="tab"]')];
  const select = (tab, focus = false) => {
    for (const each of all) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
      document.getElementById(each.getAttribute("aria-controls")).hidden = each !== tab;
    }
    if (focus) tab.focus();
    onchange(tab.id);
  };
  for (const tab of all) tab.addEventListener("click", () => select(tab));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -all.length, End: all.length }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const at = all.indexOf(document.activeElement) + step;
    const wrapped = Math.abs(step) === 1 ? (at + all.length) % all.length : Math.min(Math.max(at, 0), all.length - 1);
    select(all[wrapped], true);
  });
  return (id) => select(document.getElementById(id));
}
