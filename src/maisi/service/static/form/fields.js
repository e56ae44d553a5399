// The fields that requests are made of. Each has an element, `read()` and `write(value)`; an empty one reads undefined.

import { button, h } from "../dom.js";

let count = 0;
const fresh = () => `field-${++count}`;

/** A label, what belongs to it, a hint, and a place for what the service has against it. */
export function field(name, text, control, hint = "") {
  const id = control.id || (control.id = fresh());
  const note = h("p.hint", { id: `${id}-hint` }, hint);
  const wrong = h("p.wrong", { id: `${id}-wrong`, hidden: true });
  control.setAttribute("aria-describedby", `${note.id} ${wrong.id}`);
  const element = h("div.field", {}, h("label", { htmlFor: id }, text), control, note, wrong);
  element.dataset.field = name;
  return element;
}

/** The same for several controls under one name. */
export function group(name, text, controls, hint = "") {
  const id = fresh();
  const note = h("p.hint", { id: `${id}-hint` }, hint);
  const wrong = h("p.wrong", { id: `${id}-wrong`, hidden: true });
  const element = h("fieldset.field", { "aria-describedby": `${note.id} ${wrong.id}` }, h("legend", {}, text), controls, note, wrong);
  element.dataset.field = name;
  return element;
}

/** A number; `whole` ones are integers. */
export function number(name, text, { hint, whole = false, ...attributes } = {}) {
  const input = h("input", { type: "number", inputMode: whole ? "numeric" : "decimal", step: whole ? 1 : "any", ...attributes });
  const read = () => (input.value === "" ? undefined : Number(input.value));
  return { name, element: field(name, text, input, hint), input, read, write: (value) => (input.value = value ?? "") };
}

/** A seed, and dice for another one. */
export function seed(name) {
  const one = number(name, "Seed", { whole: true, min: 0, value: 0, hint: "The same seed gives the same result." });
  const roll = () => {
    one.input.value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
    one.input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const row = h("div.with-button", {});
  one.input.replaceWith(row);
  row.append(one.input, button("dice", "Another seed", roll, { bare: true, kind: "quiet" }));
  return { ...one, write: (value) => (one.input.value = value ?? 0) };
}

export function choice(name, text, options, { hint, empty } = {}) {
  const select = h("select", {});
  const fill = (list) => {
    const chosen = select.value;
    select.replaceChildren(
      ...(empty === undefined ? [] : [h("option", { value: "" }, empty)]),
      ...list.map(({ value, text: shown, disabled }) => h("option", { value, disabled }, shown)),
    );
    if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
  };
  fill(options);
  const read = () => select.value || undefined;
  return { name, element: field(name, text, select, hint), select, fill, read, write: (value) => (select.value = value ?? select.options[0]?.value ?? "") };
}

/** One of a few, all of them seen. */
export function pills(name, text, options, { hint } = {}) {
  const id = fresh();
  const radio = ({ value, text: shown }, index) =>
    h("label.pill", {}, h("input", { type: "radio", name: id, value, checked: index === 0 }), h("span", {}, shown));
  const radios = options.map(radio);
  const inputs = radios.map((label) => label.firstChild);
  const row = h("div.pills", {}, radios);
  const read = () => inputs.find((input) => input.checked)?.value || undefined;
  const write = (value) => {
    if (value && !inputs.some((input) => input.value === value)) { // what a program asked for by another name
      const more = radio({ value, text: value });
      row.append(more);
      inputs.push(more.firstChild);
    }
    inputs.forEach((input) => (input.checked = input.value === (value ?? options[0].value)));
  };
  return { name, element: group(name, text, row, hint), read, write };
}

export function check(name, text, hint = "") {
  const input = h("input", { type: "checkbox" });
  const element = h("div.field.check", {}, h("label", {}, input, h("span", {}, text)), hint && h("p.hint", {}, hint));
  element.dataset.field = name;
  return { name, element, input, read: () => input.checked || undefined, write: (value) => (input.checked = Boolean(value)) };
}

/** Words; `write` takes anything that reads well as text. */
export function words(name, text, { hint, ...attributes } = {}) {
  const input = h("input", { type: "text", autocomplete: "off", spellcheck: false, ...attributes });
  const read = () => input.value.trim() || undefined;
  return { name, element: field(name, text, input, hint), input, read, write: (value) => (input.value = value ?? "") };
}

/** Three numbers, one an axis; all of them or none. */
export function triple(name, text, { hint, whole = false, ...attributes } = {}) {
  const inputs = ["x", "y", "z"].map((axis) =>
    h("input", { type: "number", placeholder: axis, "aria-label": `${text}, ${axis}`, step: whole ? 1 : "any", ...attributes }),
  );
  const read = () => {
    const values = inputs.map((input) => input.value);
    if (values.every((value) => value === "")) return undefined;
    return values.map((value) => (value === "" ? null : Number(value)));
  };
  const write = (values) => inputs.forEach((input, axis) => (input.value = values?.[axis] ?? ""));
  return { name, element: group(name, text, h("div.triple", {}, inputs), hint), inputs, read, write };
}

/** Set what the service says against fields; gives back what belongs to none of them. */
export function showErrors(root, errors) {
  for (const wrong of root.querySelectorAll(".wrong")) wrong.hidden = true;
  for (const input of root.querySelectorAll('[aria-invalid="true"]')) input.removeAttribute("aria-invalid");
  return errors.filter(({ where, what }) => !showError(root, String(where), what));
}

function showError(root, where, what) {
  const names = where.split(/[./[\]]+/).filter(Boolean);
  const found = [...root.querySelectorAll("[data-field]")].find(
    (each) => names.includes(each.dataset.field) || where.endsWith(each.dataset.field),
  );
  const wrong = found?.querySelector(".wrong");
  if (!wrong) return false;
  wrong.textContent = what;
  wrong.hidden = false;
  found.querySelector("input, select")?.setAttribute("aria-invalid", "true");
  return true;
}
