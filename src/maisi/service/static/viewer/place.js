// A place for a tumour, clicked in the picture: what, how large, where; then a job.

import { button, h } from "../dom.js";
import { capital } from "../units.js";
import { hosts, structure, tumours } from "../vocabulary.js";

/** The panel below the picture while a place is chosen. `marked` hears the ball, `put` the request, `left` the end. */
export function placePanel({ marked, put, left }) {
  const tumour = h("select", { id: "place-tumour" }, tumours().map(({ name }) => h("option", { value: name }, capital(name))));
  const slider = h("input", { id: "place-diameter", type: "range", min: 5, max: 80, step: 1, value: 20 });
  const size = h("output", { htmlFor: slider.id }, "20 mm");
  const where = h("p.where", { role: "status" }, "Click where the tumour is to be.");
  const go = button("target", "Put it there", () => put(request()), { kind: "primary", disabled: true });
  const state = { place: null, chosen: false };
  const request = () => ({ tumor: tumour.value, at: state.place.mm.map((value) => Math.round(value * 10) / 10), diameter: Number(slider.value) });
  const show = () => {
    size.textContent = `${slider.value} mm`;
    if (!state.place) return;
    marked({ mm: state.place.mm, diameter: Number(slider.value) });
    where.replaceChildren(...told(state.place, tumour.value));
    go.disabled = false;
  };
  tumour.addEventListener("input", () => ((state.chosen = true), show()));
  slider.addEventListener("input", show);
  const element = h("div.place", { role: "group", "aria-label": "Place a tumour" },
    h("div.field", {}, h("label", { htmlFor: tumour.id }, "Tumour"), tumour),
    h("div.field", {}, h("label", { htmlFor: slider.id }, "Diameter"), h("div.with-output", {}, slider, size)),
    where, h("div.buttons", {}, go, button(null, "Leave", left, { kind: "quiet" })));
  return {
    element,
    /** The crosshair is somewhere else; until someone chose, the tumour is one that grows there. */
    moved(place) {
      state.place = place;
      const fits = tumours().find(({ name }) => hosts(name, place.id));
      if (fits && !state.chosen) tumour.value = fits.name;
      show();
    },
  };
}

function told({ mm, id }, tumour) {
  const at = `${mm.map((value) => value.toFixed(0)).join(", ")} mm`;
  if (!id) return [`${at}, in nothing that is labelled.`];
  const name = structure(id).name;
  if (hosts(tumour, id)) return [`${at}, in ${name}.`];
  return [`${at}, in ${name}. `, h("span.bad", {}, `${capital(tumour)} does not grow there.`)];
}
