"use strict";
// The form for a key: recognises the service, removes what is pasted around a key, and keeps the value until it is stored.
// The server decides about all of it again, and does the same without this file, except for keeping the value.
(() => {
  const dialog = document.getElementById("dialog");
  const formOf = (target) => (target.form?.dataset.exclusive ? target.form : null);
  const json = (text, otherwise) => JSON.parse(text || otherwise);

  // A live region: what stays the same is not said again.
  function say(element, words) {
    if (element && element.textContent !== words) element.textContent = words;
  }

  // --- the value stays until the answer is a success, or the dialog closes

  let kept = "";
  const formField = () => dialog?.querySelector("#key-form #api_key");

  document.addEventListener("htmx:before:swap", ({ detail: { ctx } }) => {
    const field = ctx.sourceElement.matches("#key-form") && ctx.sourceElement.elements.api_key;
    kept = "";
    if (!field) return;
    if (ctx.response?.status === 401) lose(field); // somebody else may sit down there until the session is back
    else if (ctx.select === "#panel") kept = field.value;
  });

  // At once, and not when htmx is done with the new form a moment later: in between, Esc would throw the value away.
  document.addEventListener("htmx:before:settle", () => {
    const field = formField();
    if (kept && field) field.value = kept;
  });

  document.addEventListener("htmx:after:swap", () => {
    const field = formField();
    if (kept && field) {
      field.form.dataset.chosen = "before";
      found(field);
      look(field.form);
      (dialog.querySelector("[aria-invalid=true]") || field).focus();
    }
    kept = "";
  });

  function lose(field) {
    if (!field.value) return;
    field.value = "";
    field.setAttribute("aria-invalid", "true");
    ask(field, true);
    look(field.form);
  }

  function found(field) {
    ask(field, false);
    if (!document.getElementById("api_key-fault")) field.removeAttribute("aria-invalid");
  }

  function ask(field, again) {
    const words = document.getElementById("api_key-lost");
    const others = field.getAttribute("aria-describedby").split(" ").filter((each) => each !== words.id);
    words.hidden = !again;
    field.setAttribute("aria-describedby", [...others, ...(again ? [words.id] : [])].join(" "));
  }

  // After the sign-in, on the form that was below it.
  document.addEventListener("keyman:signed-in", () => dialog?.querySelector("[aria-invalid=true]")?.focus());

  // --- what is pasted

  const NAME = /^(?:(?:export|setx?|declare|const|let|var|env)\s+|\$env:|-e\s+|#\s*)?["'`]?([a-z_][\w.-]*)["'`]?\s*(?::=|=|:\s)\s*(?=[^\s=])/i;
  const BEARER = /^["'`]?bearer\s+/i;
  const QUOTES = /^["'`\u2018-\u201f\u00ab\u00bb]+|["'`\u2018-\u201f\u00ab\u00bb]+$/g;

  // What looks like a name may be a key with something behind it, such as `sk-…: note`.
  const isRandom = (name) =>
    /(?=[a-z]*\d)(?=\d*[a-z])[a-z0-9]{16,}/i.test(name) || (name.length >= 16 && name.match(/\d+/g)?.length >= 4);

  // The key in a text of one line, and the name in front of it.
  function bare(text) {
    let rest = text.trim();
    let name = "";
    for (let layer = 0; layer < 6; layer += 1) {
      const found = rest.match(NAME)?.[1] || "";
      const named = isRandom(found) ? "" : found;
      name ||= named;
      rest = rest.replace(BEARER, "").replace(named ? NAME : "", "").replace(/[,;\s]+$/, "").replace(QUOTES, "").trim();
    }
    return rest.length < 8 || /^[a-z][a-z0-9+.-]*:\/\/|["'`]/i.test(rest) ? { key: text.trim(), name: "" } : { key: rest, name };
  }

  document.addEventListener("paste", (event) => {
    const { target, clipboardData } = event;
    const form = formOf(target);
    const text = clipboardData?.getData("text").trim() ?? "";
    if (!form || target.id !== "api_key" || !text) return;
    event.preventDefault();
    renew(form);
    const isLine = !/[\r\n]/.test(text) && !text.startsWith("{");
    const { key, name } = isLine ? bare(text) : { key: text, name: "" };
    // A field of one line drops line breaks, which would join two keys into one. As spaces, the server sees them.
    target.setRangeText(key.replace(/[\r\n]+/g, " "), target.selectionStart, target.selectionEnd, "end");
    const peeled = form.querySelector("[data-peeled]");
    say(peeled, key === text || !isLine ? "" : peeled.dataset.peeled);
    target.dispatchEvent(new Event("input", { bubbles: true }));
    if (name) suggest(form, name);
  });

  // --- the service of a value

  for (const name of ["input", "change"]) {
    document.addEventListener(name, ({ target }) => {
      const form = formOf(target);
      if (!form) return;
      if (target.name === "service") form.dataset.chosen = "by hand";
      if (target.id === "api_key" && !target.value) renew(form);
      if (target.id === "api_key") found(target);
      look(form);
      if (target.name === "service") pardon(form);
    });
  }

  // Before somebody has tried to send the form, a browser would say that an empty list is invalid.
  document.addEventListener("invalid", ({ target }) => {
    if (target.getAttribute("aria-invalid") === "false") target.removeAttribute("aria-invalid");
  }, true);

  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button[data-service], button[data-day]");
    if (!button?.form) return;
    const { service, api_key: key, expires_at: day } = button.form.elements;
    if (button.dataset.service) {
      service.value = button.dataset.service;
      look(button.form);
      pardon(button.form);
      key.focus();
    } else if ("day" in button.dataset) {
      day.value = button.dataset.day;
      // The field changes, but the focus is on the button.
      const note = button.closest(".field").querySelector("[data-until]");
      const words = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "long", timeZone: "UTC" });
      say(note, day.value ? note.dataset.until.replace("{day}", words.format(day.valueAsDate)) : note.dataset.endless);
    }
  });

  // What keyman said of a value may have been about another service than the one that it certainly belongs to.
  function pardon(form) {
    const { service, api_key: key } = form.elements;
    if (owner(form, key.value.trim()) === service.value) unsay(key, "api_key-fault");
  }

  // What keyman said of a value does not hold for another one in its place, nor does the answer to what it asked.
  function renew(form) {
    const { api_key: key, anyway } = form.elements;
    unsay(key, "api_key-fault");
    unsay(key, "api_key-question");
    if (!anyway) return;
    anyway.textContent = anyway.dataset.save;
    anyway.removeAttribute("name");
  }

  function unsay(key, id) {
    const words = document.getElementById(id);
    if (!words) return;
    const others = key.getAttribute("aria-describedby").split(" ").filter((each) => each !== id);
    key.setAttribute("aria-describedby", others.join(" "));
    key.removeAttribute("aria-invalid");
    words.remove();
  }

  const longest = (value, prefixes) =>
    prefixes.filter((prefix) => value.startsWith(prefix)).reduce((best, one) => (one.length > best.length ? one : best), "");

  // The service to which a value certainly belongs, or an empty text.
  function owner(form, value) {
    if (value.startsWith("{")) {
      const takers = [...form.elements.service.options].filter(({ dataset }) => dataset.members);
      return takers.find(({ dataset }) => json(dataset.members).every((one) => value.includes(`"${one}"`)))?.value || "";
    }
    const exclusive = json(form.dataset.exclusive);
    return exclusive[longest(value, Object.keys(exclusive))] || "";
  }

  const choose = (service, slug) => {
    const isOffered = [...service.options].some((option) => option.value === slug);
    if (isOffered) service.value = slug; // not everywhere is every service offered
    return isOffered;
  };

  // `MISTRAL_API_KEY=…` says what the value is for, where the value does not.
  function suggest(form, name) {
    const { service } = form.elements;
    if (service.disabled || form.dataset.chosen) return;
    const words = `_${name.toUpperCase().replace(/\W/g, "_")}_`;
    const named = [...service.options].map(({ value }) => value).filter((slug) => slug && words.includes(`_${slug}_`));
    if (named.length && choose(service, named.sort((one, other) => other.length - one.length)[0])) look(form);
  }

  // Chooses the service unless it was chosen by hand, and says what is known of the value.
  function look(form) {
    const { service, api_key: key } = form.elements;
    const value = key.value.trim();
    const its = owner(form, value);
    const isFree = !service.disabled && !form.dataset.chosen;
    if (isFree && its) choose(service, its);
    hint(form, service, value);
    for (const part of form.querySelectorAll("[data-settings]")) {
      part.toggleAttribute("data-chosen", part.dataset.settings === service.value);
    }
    const chosen = service.selectedOptions[0];
    const recognised = form.querySelector("[data-recognised]");
    const isIts = its && its === chosen?.value && !service.disabled;
    say(recognised, isIts ? recognised.dataset.recognised.replace("{service}", chosen.text) : "");
    const where = form.querySelector("[data-where]");
    where.hidden = !chosen?.dataset.console;
    if (!where.hidden) where.href = chosen.dataset.console;
  }

  // Warns about a key of another service before it is sent. Afterwards keyman says it, and only the button is offered.
  function hint(form, service, value) {
    const exclusive = json(form.dataset.exclusive);
    const names = json(form.dataset.names);
    const chosen = service.selectedOptions[0];
    const own = longest(value, json(chosen?.dataset.prefixes, "[]"));
    const claim = longest(value, Object.keys(exclusive));
    const other = claim.length > own.length && exclusive[claim] !== chosen?.value ? exclusive[claim] : null;
    const isSaid = other && form.querySelector("#api_key-fault")?.textContent.includes(names[other]);
    for (const part of form.querySelectorAll("[data-other] [data-words]")) {
      say(part, other && !(isSaid && part.matches("span")) ? part.dataset.words.replace("{service}", names[other]) : "");
      if (part.matches("button")) {
        part.hidden = !other || !service.querySelector(`[value="${other}"]`);
        part.dataset.service = other || "";
      }
    }
    const note = form.querySelector("[data-admin-words]");
    say(note, !other && longest(value, json(chosen?.dataset.admin, "[]")) ? note.dataset.adminWords : "");
  }
})();
