// Before the page's own scripts: remembers each element that listens to the mouse, however it is called.
window.listening = new Set();
const add = EventTarget.prototype.addEventListener;
EventTarget.prototype.addEventListener = function (name, ...rest) {
  const isElement = this instanceof Element && this !== document.documentElement && this !== document.body;
  if (isElement && /^(click|mousedown|pointerdown|input|change)$/.test(name)) window.listening.add(this);
  return add.call(this, name, ...rest);
};
