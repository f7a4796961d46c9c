"use strict";
// What the pages do beyond plain forms; htmx sends and takes in, this opens and closes. Without it all still works.
(() => {
  const dialog = document.getElementById("dialog");
  const session = document.getElementById("session");
  const status = document.getElementById("status");

  // --- what htmx brings (pages of the settings alone have the dialogs)

  // Only what was asked for is taken in. An answer without it, such as a proxy's own error page, or one that says why a
  // form could not be heard at all, must not take the place of what somebody has filled in.
  document.addEventListener("htmx:before:swap", (event) => {
    const { ctx, tasks } = event.detail;
    const form = ctx.sourceElement;
    const taken = tasks.find(({ type }) => type === "main")?.fragment;
    if (!taken?.childElementCount) {
      event.preventDefault();
      unreachable(form, ctx);
      return;
    }
    const problem = taken.querySelector("[data-problem]");
    if (problem && form.matches("form[method=post]") && problem.dataset.problem !== "not-found") {
      event.preventDefault();
      const title = problem.dataset.problem === "internal" ? `${problem.querySelector("h1").textContent}. ` : "";
      warn(form, title + problem.querySelector("h1 + p").textContent);
    }
  });

  document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
    for (const each of [dialog, session]) {
      if (each.firstElementChild && !each.open) each.showModal();
    }
    if (ctx.select === "#panel") {
      const top = session.open ? session : dialog;
      (top.querySelector("[aria-invalid]") || top.querySelector("[autofocus]"))?.focus();
    } else {
      const region = document.querySelector(ctx.select);
      // Not for an answer that comes late from elsewhere, such as a search: somebody may be typing in the dialog.
      if (dialog.contains(ctx.sourceElement)) {
        dialog.close();
        // On the button that asked, or what it has become; on the first one that acts where the row is new.
        const asked = `.fresh form[action="${ctx.sourceElement.getAttribute("action")}"] button`;
        const found = [asked, ".fresh .actions button", "button"].map((each) => region.querySelector(each));
        found.find((each) => each)?.focus();
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
    if (target.dataset.exclusive) hint(target);
  });

  document.addEventListener("htmx:error", ({ target, detail: { ctx } }) => unreachable(target, ctx));

  function unreachable(source, ctx) {
    const { dataset, content } = document.getElementById("unreachable");
    if (ctx?.request?.method === "GET") status.textContent = dataset.reading;
    else warn(source, content.textContent);
  }

  function warn(form, words) {
    const banner = document.createElement("p");
    banner.className = "banner";
    banner.setAttribute("role", "alert");
    banner.textContent = words;
    form.querySelector(".banner")?.remove();
    form.prepend(banner);
  }

  // --- dialogs

  for (const each of [dialog, session]) {
    each?.addEventListener("close", () => {
      const refresh = each === dialog && each.querySelector("[data-refreshes]");
      each.replaceChildren(); // with whatever was typed
      if (refresh) location.assign(location.pathname + location.search);
    });
  }

  document.addEventListener("keyman:signed-in", ({ detail: { account } }) => {
    session.close();
    // Somebody else's page, or one on which nothing waits to be gone on with.
    if (document.body.dataset.account !== String(account) || !dialog.open) location.reload();
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const around = button.closest("dialog");
    if ("close" in button.dataset && around) {
      event.preventDefault();
      around.close();
    }
    if (button.dataset.reveal) {
      reveal(button, document.getElementById(button.dataset.reveal).type === "password");
    }
    if (button.dataset.copy) copy(button);
    if (button.dataset.service) {
      button.form.elements.service.value = button.dataset.service;
      button.form.elements.api_key.focus();
      hint(button.form);
    }
  });

  function reveal(button, shown) {
    document.getElementById(button.dataset.reveal).type = shown ? "text" : "password";
    say(button, shown);
  }

  function say(button, isDone) {
    for (const words of button.querySelectorAll("[data-when]")) words.hidden = words.dataset.when !== String(isDone);
  }

  async function copy(button) {
    const field = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(field.value);
      say(button, true);
      setTimeout(say, 3000, button, false);
    } catch {
      field.select(); // no permission: the person copies it by hand
    }
  }

  // --- a plain form is sent once, however often its button is pressed

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post" || form.hasAttribute("hx-post")) return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });

  addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  // --- another service's key, noticed before it is sent; the server decides

  for (const name of ["input", "change"]) {
    document.addEventListener(name, ({ target }) => {
      if (target.form?.dataset.exclusive) hint(target.form);
    });
  }

  function hint(form) {
    const { service, api_key: key } = form.elements;
    const exclusive = JSON.parse(form.dataset.exclusive);
    const names = JSON.parse(form.dataset.names);
    const value = key.value.trim();
    const chosen = service.selectedOptions[0];
    const own = chosen?.dataset.prefix && value.startsWith(chosen.dataset.prefix) ? chosen.dataset.prefix : "";
    const claims = Object.keys(exclusive).filter((prefix) => value.startsWith(prefix));
    const claim = claims.reduce((best, prefix) => (prefix.length > best.length ? prefix : best), "");
    const other = claim.length > own.length && exclusive[claim] !== chosen?.value ? exclusive[claim] : null;
    for (const part of form.querySelectorAll("[data-other] [data-words]")) {
      const words = other ? part.dataset.words.replace("{service}", names[other]) : "";
      if (part.textContent !== words) part.textContent = words; // a live region: what stays the same is not said again
      if (part.matches("button")) {
        part.hidden = !other;
        part.dataset.service = other || "";
      }
    }
  }

  // --- what was done is said once, and exact times are in the reader's own zone

  const address = new URL(location.href);
  for (const name of ["done", "saved"]) address.searchParams.delete(name);
  if (address.search !== location.search) history.replaceState(history.state, "", address);

  function localTimes() {
    const format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "long", timeStyle: "long" });
    for (const time of document.querySelectorAll("time[datetime]")) time.title = format.format(new Date(time.dateTime));
  }
  localTimes();
})();
