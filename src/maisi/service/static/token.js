// The dialog that asks for the service's token.

import { h } from "./dom.js";

/** Ask; promises what was given, or null. `refused`: there was one, and it is not accepted any more. */
export function askToken(refused) {
  const input = h("input", { id: "token-input", type: "password", autocomplete: "off", required: true });
  const why = refused ? "The token is not accepted any more: it expired or was changed." : "This service is protected by a token.";
  const dialog = h("dialog.token", { "aria-labelledby": "token-title" },
    h("form", { method: "dialog" },
      h("h2", { id: "token-title" }, "Token needed"), h("p", {}, why),
      h("div.field", {}, h("label", { htmlFor: input.id }, "Token"), input, h("p.hint", {}, "Whoever started maisi serve knows it. It is kept until this tab is closed.")),
      h("div.buttons", {}, h("button.primary", { type: "submit", value: "given" }, "Go on"), h("button.quiet", { type: "submit", value: "", formNoValidate: true }, "Not now"))));
  document.body.append(dialog);
  dialog.showModal();
  input.focus();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "given" && input.value.trim() ? input.value.trim() : null);
    }),
  );
}
