// Marks the element that has the focus, and returns whether it had not been marked yet.
() => {
  const now = document.activeElement;
  if (!now || now === document.body || now.hasAttribute("data-reached")) return false;
  now.setAttribute("data-reached", "");
  return true;
}
