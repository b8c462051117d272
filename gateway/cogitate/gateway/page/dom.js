// Makes elements. Text is always text: nothing a model wrote is ever read as HTML.

/** h("p", {class: "x", onclick: f, "aria-label": "…"}, "text", child, …); children that are null or false are left out. */
export function h(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) made.style.setProperty(key, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const $ = (id) => document.getElementById(id);

/** Writes text where it differs: an element that stays as it is costs no layout. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const show = (element, is) => element.toggleAttribute("hidden", !is);

/** Tells people who listen to the page. Sparingly: beginnings and endings. */
export const say = (text) => write($("said"), text);
