// The page: its parts, and what one of them tells the others.

import { askAgain, connection, onTokenWanted } from "./api.js";
import { button, h, say, tabs } from "./dom.js";
import { mountForm } from "./form/form.js";
import { isActive, jobs, keepFresh, submit } from "./jobs.js";
import { showJobs } from "./jobs-list.js";
import { Picture } from "./picture.js";
import { askToken } from "./token.js";
import { ACCEPTED, dropped, send } from "./uploads.js";
import { loadVocabulary } from "./vocabulary.js";

const $ = (id) => document.getElementById(id);
const PARTS = { new: ["plus", "New"], jobs: ["repeat", "Jobs"], picture: ["cube", "Picture"], facts: ["file", "About"] };

const page = { picture: null, form: null };
const selectPanel = tabs(document.querySelector("#panel .tabs"));
let ticking = 0;

async function start() {
  const picture = new Picture($("stage"), $("inspector"), { repeat, change, choose, example, fail, place });
  try {
    await loadVocabulary();
  } catch (error) {
    return picture.showFailure("The page cannot start", error.message, () => (askAgain(), start()));
  }
  const form = mountForm($("new"), opened);
  Object.assign(page, { picture, form });
  jobs.watch(listJobs);
  keepFresh();
  window.addEventListener("hashchange", follow);
  mountDrop();
  follow();
}

/** Show what the address names: a job, an upload, or nothing. */
function follow() {
  const [, what, id] = /^#(job|upload)=([\w-]+)$/.exec(location.hash) || [];
  if (what === "job") page.picture.openJob(id);
  else if (what === "upload") page.picture.openUpload(id);
  else page.picture.showEmpty();
  if (what) show("picture");
  listJobs(jobs.get());
}

function opened(job) {
  if (location.hash === `#job=${job.id}`) follow(); // it is named already, and something else may be shown
  else location.hash = `job=${job.id}`;
}

function listJobs(list) {
  const current = /^#job=(.*)$/.exec(location.hash)?.[1];
  const active = list.filter(isActive).length;
  $("job-count").textContent = active || "";
  showJobs($("jobs"), list, current, { open: opened, repeat, change, failed: fail });
  page.picture?.jobsChanged();
}

async function repeat(job) {
  try {
    opened(await submit(job.kind, job.request));
    say("The job is in the queue again");
  } catch (error) {
    fail(error);
  }
}

function change(job) {
  page.form.write(job.kind, job.request);
  selectPanel("tab-new");
  show("new");
  $("kind").focus();
}

async function place(request) {
  page.form.write("inpaint", request);
  selectPanel("tab-new");
  try {
    opened(await submit("inpaint", request));
  } catch (error) {
    fail(error);
  }
}

function example() {
  const request = { region: "abdomen", anatomy: ["liver=0.6", "hepatic tumor=30mm"], seed: 1 };
  page.form.write("generate", request);
  page.form.start("generate", request);
}

/** A message that goes when it is read, or by itself. */
function fail(error) {
  const notice = h("div.notice", { role: "alert" }, h("p", {}, error.message), button("close", "Close", () => notice.remove(), { bare: true, kind: "quiet" }));
  document.body.append(notice);
  setTimeout(() => notice.remove(), 15_000);
}

/** Choose files by the system's dialog. */
function choose() {
  const input = h("input", { type: "file", multiple: true });
  input.addEventListener("change", () => bring([...input.files].map((file) => ({ name: file.name, file }))));
  input.click();
}

async function bring(files) {
  show("picture");
  page.picture.showWait("Reading what you brought");
  try {
    const upload = await send(files, (text) => page.picture.showWait(text));
    const reference = `upload:${upload.id}`;
    page.form.write(...(upload.kind === "labels" ? ["generate", { labels: reference }] : ["inpaint", { source: reference }]));
    selectPanel("tab-new");
    location.hash = `upload=${upload.id}`;
  } catch (error) {
    page.picture.showFailure("This cannot be read", error.message, choose, `Accepted: ${ACCEPTED}`);
  }
}

function mountDrop() {
  let depth = 0;
  const over = (is) => ($("drop").hidden = !is);
  const hasFiles = (event) => [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragenter", (event) => hasFiles(event) && over(++depth > 0));
  document.addEventListener("dragleave", (event) => hasFiles(event) && over(--depth > 0));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    depth = 0;
    over(false);
    if (hasFiles(event)) bring(await dropped(event.dataTransfer));
  });
}

function mountBar() {
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const swap = () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("maisi-theme", root.dataset.theme);
    } catch {
      say("The choice is not kept: storage is switched off");
    }
  };
  $("bar-tools").append(
    button("up", "Open a file", choose, { kind: "quiet" }),
    button("sun", "Light or dark", swap, { bare: true, kind: "quiet" }),
  );
}

/** On a phone one part of the page is seen at a time. */
function mountPhone() {
  const nav = document.querySelector("nav.phone");
  nav.append(...Object.entries(PARTS).map(([part, [picture, text]]) => {
    const each = button(picture, text, () => show(part));
    each.dataset.part = part;
    return each;
  }));
  show("new");
}

function show(part) {
  document.body.dataset.show = part;
  if (part === "new" || part === "jobs") selectPanel(`tab-${part}`);
  for (const each of document.querySelectorAll("nav.phone button")) each.setAttribute("aria-current", String(each.dataset.part === part));
}

function tellConnection({ lost, nextTry }) {
  clearInterval(ticking);
  const banner = $("banner");
  if (!lost && !banner.hidden) say("Connected again");
  banner.hidden = !lost;
  if (!lost) return;
  const text = h("span", {});
  const tell = () => {
    const seconds = Math.max(0, Math.ceil((nextTry - Date.now()) / 1000));
    text.textContent = `The connection to the service is lost. ${seconds ? `Trying again in ${seconds} s.` : "Trying again …"} Jobs go on meanwhile.`;
  };
  tell();
  banner.replaceChildren(text);
  ticking = setInterval(tell, 1000);
}

onTokenWanted(askToken);
tabs(document.querySelector("#inspector .tabs"));
mountBar();
mountPhone();
connection.watch(tellConnection);
start();
