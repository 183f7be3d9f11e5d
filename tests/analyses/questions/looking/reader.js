const console_ = [];
for (const kind of ["error", "warn"]) { const was = console[kind]; console[kind] = (...said) => { console_.push(said.join(" ")); was(...said); }; }
addEventListener("securitypolicyviolation", (event) => console_.push(event.violatedDirective));
// What a reader does, done from inside the page, since nothing may come in from outside; read back from the DOM.
const told = () => document.querySelector("main").innerHTML + document.getElementById("layer-now").textContent;
const wait = setInterval(() => {
  if (document.documentElement.dataset.ready !== "yes") return;
  clearInterval(wait);
  const log = {}, canvas = document.querySelector("canvas"), seen = () => canvas.toDataURL() + told();
  const change = (name, act) => { const before = seen(); act(); log[name] = seen() !== before; };
  const set = (id, value) => { const box = document.getElementById(id); box.value = value; box.dispatchEvent(new Event(box.type === "range" ? "input" : "change")); };
  change("layer", () => set("layer", 1));
  for (const option of [...document.getElementById("shown").options].slice(1)) change("shown " + option.value, () => set("shown", option.value));
  if (document.getElementById("cls")) { set("shown", "class"); change("class", () => set("cls", "1")); }
  set("shown", "attention");
  change("head", () => set("head", "1"));
  for (const option of [...document.getElementById("effect").options].slice(1).filter((o) => !o.value.startsWith("patch "))) change("effect " + option.value, () => set("effect", option.value));
  change("click", () => { const box = canvas.getBoundingClientRect(); canvas.dispatchEvent(new MouseEvent("click", { clientX: box.left + box.width * 0.6, clientY: box.top + box.height * 0.4 })); });
  for (const option of [...document.getElementById("effect").options].filter((o) => o.value.startsWith("patch "))) {
    set("effect", document.getElementById("effect").options[0].value);
    change("of the clicked patch, " + option.value, () => set("effect", option.value));
  }
  change("arrow", () => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" })));
  change("escape", () => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" })));
  log.prefix = [...document.querySelectorAll("section:first-of-type .prefix button")].map((button) => button.textContent);
  document.querySelectorAll("section:first-of-type .prefix button").forEach((button, i) => { if (i) change("query " + button.textContent, () => button.click()); });
  log.console = console_;
  document.getElementById("theme").click();
  log.theme = document.documentElement.dataset.theme;
  log.overflow = document.documentElement.scrollWidth > innerWidth + 1;
  const out = document.createElement("pre"); out.id = "log"; out.textContent = JSON.stringify(log); document.body.append(out);
}, 20);
addEventListener("error", (event) => { document.title = "ERROR " + event.message; });
