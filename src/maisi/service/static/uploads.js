// Files that people bring: label maps and CTs.

import { call, get, remove } from "./api.js";
import { signal } from "./dom.js";
import { zipped } from "./zip.js";

export const ACCEPTED = ".nii, .nii.gz, .nrrd, .mha, .dcm, .zip, or a DICOM folder";
const ENDINGS = /\.(nii|nii\.gz|nrrd|mha|dcm|zip)$/i;

export const uploads = signal([]);

/** Send dropped or chosen files; several, or a folder, go as one zip. Gives back the facts of the upload. */
export async function send(files, told) {
  const { name, body } = await packed(files, told);
  told(`Sending ${name}`);
  const headers = { "Content-Type": "application/octet-stream" };
  const response = await call(`uploads?name=${encodeURIComponent(name)}`, { method: "POST", body, headers });
  const upload = await response.json();
  uploads.set([upload, ...uploads.get().filter((each) => each.id !== upload.id)]);
  return upload;
}

async function packed(files, told) {
  if (files.length === 1 && ENDINGS.test(files[0].name)) return { name: files[0].name, body: files[0].file };
  if (files.length === 1) throw new Error(`${files[0].name} is none of the files that are read: ${ACCEPTED}`);
  if (!files.length) throw new Error(`Nothing was dropped that can be read: ${ACCEPTED}`);
  told(`Packing ${files.length} files`);
  const folder = files[0].name.split("/")[0] || "dicom";
  return { name: `${folder.replace(/\.[^.]*$/, "")}.zip`, body: await zipped(files) };
}

export async function drop(upload) {
  await remove(`uploads/${upload.id}`);
  uploads.set(uploads.get().filter((each) => each.id !== upload.id));
}

/** The facts of an upload of an earlier visit, or null where it is gone. */
export async function known(id) {
  const here = uploads.get().find((each) => each.id === id);
  if (here) return here;
  const found = await get(`uploads/${id}`);
  uploads.set([...uploads.get(), found]);
  return found;
}

export const volumeOf = (upload) => `uploads/${upload.id}/volume.nii.gz`;

/** The files of a drop, folders walked through, as `[{ name, file }]`. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ name: file.name, file }));
  return (await Promise.all(entries.map((entry) => walk(entry, "")))).flat();
}

async function walk(entry, above) {
  const name = above + entry.name;
  if (entry.isFile) return [{ name, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at a time
    if (!batch.length) break;
    found.push(...batch);
  }
  return (await Promise.all(found.map((each) => walk(each, `${name}/`)))).flat();
}
