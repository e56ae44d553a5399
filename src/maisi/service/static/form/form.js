// The form: a kind, its fields, what it will take, and the start.

import { Problem, Unreachable, askAgain, connection, post } from "../api.js";
import { button, h, say, settled } from "../dom.js";
import { submit } from "../jobs.js";
import { bytes, duration } from "../units.js";
import { showErrors } from "./fields.js";
import { KINDS, kindsHere } from "./kinds.js";

/** Fill `root` with the form; `started(job)` hears of each job. Gives back how to write a request into it. */
export function mountForm(root, started) {
  const kind = h("select", { id: "kind" }, kindsHere().map((value) => h("option", { value }, [KINDS[value].text, KINDS[value].more].filter(Boolean).join(": "))));
  const fields = h("div.fields", {});
  const plan = h("div.plan", { role: "status", "aria-label": "Estimate" });
  const trouble = h("div.trouble", { role: "alert", hidden: true });
  const go = h("button.primary", { type: "submit" }, "Generate");
  const form = h("form.request", { noValidate: true, "aria-label": "New job" }, h("div.field", {}, h("label", { htmlFor: "kind" }, "What to make"), kind), fields, h("div.foot", {}, plan, trouble, go));
  root.replaceChildren(form);
  const state = { made: null };

  const request = () => requestOf(state.made);
  const estimate = settled(450, () => showPlan(plan, fields, kind.value, request()));
  const changed = () => {
    trouble.hidden = true;
    estimate();
  };
  const build = () => {
    state.made = KINDS[kind.value].make(changed);
    go.textContent = KINDS[kind.value].verb;
    const more = state.made.advanced.map((each) => each.element);
    fields.replaceChildren(
      ...state.made.fields.map((each) => each.element),
      ...(more.length ? [h("details.more", {}, h("summary", {}, "More settings"), h("div.fields", {}, more))] : []),
    );
    changed();
  };
  kind.addEventListener("input", build);
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    start(kind.value, request());
  });

  const start = async (what, asked) => {
    askAgain();
    go.disabled = true;
    trouble.hidden = true;
    try {
      const job = await submit(what, asked);
      say("The job is in the queue");
      started(job);
    } catch (error) {
      refuse(error, () => start(what, asked));
    } finally {
      go.disabled = false;
    }
  };
  const refuse = (error, again) => {
    const rest = showErrors(fields, error.errors || []);
    fields.querySelector('[aria-invalid="true"]')?.focus();
    if (error.errors?.length && !rest.length) return;
    trouble.replaceChildren(...told(error, rest, again));
    trouble.hidden = false;
  };
  build();
  connection.watch(({ lost }) => lost || estimate());
  return {
    /** Show a request, such as that of a job that is to be changed. */
    write(what, given) {
      kind.value = KINDS[what] ? what : "generate";
      build();
      writeRequest(state.made, given);
      changed();
    },
    start,
  };
}

function requestOf({ fields, advanced, tidy = (request) => request }) {
  const request = {};
  for (const each of [...fields, ...advanced]) {
    const value = each.read();
    if (value !== undefined) put(request, each.name, value);
    Object.assign(request, each.more?.());
  }
  return tidy(request);
}

function put(request, name, value) {
  const [first, second] = name.split(".");
  if (second) request[first] = { ...request[first], [second]: value };
  else request[first] = value;
}

function writeRequest({ fields, advanced, untidy = (request) => request }, given) {
  const request = untidy(given);
  for (const each of [...fields, ...advanced]) {
    const [first, second] = each.name.split(".");
    if (each.name === "labels" && each.more) each.fill(request);
    else each.write(second ? request[first]?.[second] : request[first]);
  }
}

/** What the service said, and what to do about it. */
function told(error, rest, again) {
  if (error instanceof Problem && error.status === 429) return queueFull(error, again);
  const more = rest.map(({ where, what }) => h("p", {}, `${where}: ${what}`));
  const accepted = error.accepted && !error.message.includes(error.accepted) ? [h("p.accepted", {}, `Accepted: ${error.accepted}`)] : [];
  const said = error instanceof Unreachable ? "The service does not answer." : error.message;
  return [h("p", {}, said), ...more, ...accepted];
}

function queueFull(error, again) {
  const wait = error.retryAfter || 10;
  const retry = button("repeat", "Try again", again, { kind: "small" });
  return [h("p", {}, h("strong", {}, "The queue is full. "), error.message), h("p", {}, `A place is likely in ${duration(wait)}. Your settings stay.`), retry];
}

let asked = 0;

async function showPlan(plan, fields, kind, request) {
  const mine = ++asked;
  plan.classList.add("waiting");
  try {
    const found = await post("plan", { kind, request });
    if (mine !== asked) return;
    const rest = showErrors(fields, (found.problems ?? []).map(faultOf));
    plan.replaceChildren(...planned(found, rest));
  } catch (error) {
    if (mine !== asked) return;
    const rest = showErrors(fields, error.errors || []);
    const list = rest.length ? rest.map(({ what }) => what) : error.errors?.length ? [] : [error.message];
    plan.replaceChildren(...list.map((each) => h("p.problem", {}, each)));
  } finally {
    if (mine === asked) plan.classList.remove("waiting");
  }
}

function planned({ seconds, bytes: memory, how }, problems) {
  const figures = h("dl.figures", {}, figure("Time", known(seconds) ? `about ${duration(seconds)}` : "–"), figure("Memory", known(memory) ? bytes(memory) : "–"));
  return [figures, how && h("p.hint", {}, how), ...problems.map(({ what }) => h("p.problem", {}, what))].filter(Boolean);
}

const known = (number) => number !== null && number !== undefined;

/** Where and what of a line such as `size: 400 is too large`. */
function faultOf(line) {
  const [, where = "", what = line] = /^(\S+): (.*)$/s.exec(line) || [];
  return { where, what };
}

const figure = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
