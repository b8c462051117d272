// Loads the page's scripts once it has been painted: the form is there in HTML, and people read before they write.

const load = () => import("./main.js");

if (document.hidden) load();
else requestAnimationFrame(() => setTimeout(load));
