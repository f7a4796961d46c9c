"use strict";
// What the pages do beyond plain forms; htmx sends and takes in, this opens and closes. Without it all still works.
(() => {
  const dialog = document.getElementById("dialog");
  const session = document.getElementById("session");
  const status = document.getElementById("status");
  if (!dialog) return;

  // --- what htmx has brought

  document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
    for (const each of [dialog, session]) {
      if (each.firstElementChild && !each.open) each.showModal();
    }
    if (ctx.select === "#panel") {
      const top = session.open ? session : dialog;
      const first = top.querySelector("[aria-invalid]") || top.querySelector("[autofocus]");
      if (first) first.focus();
    } else {
      const region = document.querySelector(ctx.select);
      if (dialog.open) {
        dialog.close();
        const next = region.querySelector(".fresh button") || region.querySelector("button");
        if (next) next.focus();
      }
      status.textContent = region.dataset.status || "";
    }
    localTimes();
  });

  // The value leaves the page with the request: whatever comes back, the field is empty.
  document.addEventListener("htmx:before:request", ({ target }) => {
    for (const button of target.querySelectorAll("[data-reveal]")) reveal(button, false);
    for (const field of target.querySelectorAll("#api_key, [type=password]")) field.value = "";
    for (const banner of target.querySelectorAll(".banner")) banner.remove();
  });

  document.addEventListener("htmx:error", ({ target, detail: { ctx } }) => {
    const words = document.getElementById("unreachable");
    if (ctx?.request?.method === "GET") status.textContent = words.dataset.reading;
    else target.prepend(words.content.cloneNode(true));
  });

  // --- dialogs

  for (const each of [dialog, session]) {
    each.addEventListener("close", () => {
      const refresh = each.querySelector("[data-refreshes]");
      each.replaceChildren(); // with whatever was typed
      if (refresh) location.assign(location.pathname + location.search);
    });
  }

  document.addEventListener("keyman:signed-in", ({ detail: { account } }) => {
    session.close();
    if (document.body.dataset.account !== String(account)) location.reload();
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const around = button.closest("dialog");
    if ("close" in button.dataset && around) {
      event.preventDefault();
      around.close();
    }
    if (button.dataset.reveal) reveal(button, button.getAttribute("aria-pressed") !== "true");
    if (button.dataset.copy) copy(button);
    if (button.dataset.service) {
      const select = button.form.elements.service;
      select.value = button.dataset.service;
      hint(button.form);
      button.form.elements.api_key.focus();
    }
  });

  function reveal(button, shown) {
    const field = document.getElementById(button.dataset.reveal);
    if (field) field.type = shown ? "text" : "password";
    press(button, shown);
  }

  function press(button, pressed) {
    if (button.hasAttribute("aria-pressed")) button.setAttribute("aria-pressed", pressed);
    for (const words of button.querySelectorAll("[data-when]")) words.hidden = words.dataset.when !== String(pressed);
  }

  async function copy(button) {
    const field = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(field.value);
      press(button, true);
    } catch {
      field.select(); // no permission: the person copies it by hand
    }
  }

  // --- another service's key, noticed before it is sent; the server decides

  for (const name of ["input", "change"]) {
    document.addEventListener(name, ({ target }) => {
      if (target.form?.dataset.exclusive) hint(target.form);
    });
  }

  function hint(form) {
    const { service, api_key: key } = form.elements;
    const exclusive = JSON.parse(form.dataset.exclusive);
    const value = key.value.trim();
    const chosen = service.selectedOptions[0];
    const own = chosen?.dataset.prefix && value.startsWith(chosen.dataset.prefix) ? chosen.dataset.prefix : "";
    const claims = Object.keys(exclusive).filter((prefix) => value.startsWith(prefix));
    const claim = claims.reduce((best, prefix) => (prefix.length > best.length ? prefix : best), "");
    const note = form.querySelector("[data-other]");
    const other = exclusive[claim];
    note.hidden = !(claim.length > own.length && other !== chosen?.value);
    if (note.hidden) return;
    const names = JSON.parse(form.dataset.names);
    for (const part of note.querySelectorAll("[data-words]")) {
      part.textContent = part.dataset.words.replace("{service}", names[other]);
    }
    const choose = note.querySelector("button");
    if (choose) choose.dataset.service = other;
  }

  // --- exact times in the reader's own zone

  function localTimes() {
    const format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "long", timeStyle: "long" });
    for (const time of document.querySelectorAll("time[datetime]")) time.title = format.format(new Date(time.dateTime));
  }
  localTimes();
})();
