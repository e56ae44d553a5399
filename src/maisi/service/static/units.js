// Numbers as people read them.

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function bytes(number) {
  if (number === null || number === undefined) return "";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(number, 1)) / 3));
  const value = number / 1000 ** power;
  return `${value < 10 && power > 0 ? value.toFixed(1) : Math.round(value)} ${units[power]}`;
}

export function millilitres(ml) {
  if (ml >= 1000) return `${(ml / 1000).toFixed(2)} l`;
  return ml >= 10 ? `${Math.round(ml)} ml` : `${ml.toFixed(1)} ml`;
}

/** "2 min ago" of seconds since 1970 or an ISO time. */
export function ago(time) {
  const then = typeof time === "number" ? time * 1000 : Date.parse(time);
  if (!Number.isFinite(then)) return "";
  const seconds = (Date.now() - then) / 1000;
  if (seconds < 45) return "just now";
  if (seconds < 5400) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(then).toLocaleDateString();
}

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
