// Before anything is drawn: the chosen theme, else that of the system.
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("maisi-theme");
  } catch {
    chosen = null; // storage is switched off
  }
  if (chosen) document.documentElement.dataset.theme = chosen;
}
