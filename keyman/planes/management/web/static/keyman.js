"use strict";
// Opens and closes dialogs, and shows messages; htmx sends requests and inserts answers. Everything works without both.
(() => {
  const dialog = document.getElementById("dialog");
  const session = document.getElementById("session");
  const discard = document.getElementById("discard");
  const status = document.getElementById("status"); // in a toast
  const undo = document.getElementById("undo");
  const toasts = document.getElementById("toasts");
  const heard = document.getElementById("heard"); // read out only: verdicts stand beside their key, and the count above the list

  // --- answers for htmx (only the pages of the settings have dialogs)

  // Only the expected part of an answer is inserted. Other answers, such as the error page of a proxy or the reason that
  // a form could not be read, must not replace what somebody has filled in.
  document.addEventListener("htmx:before:swap", (event) => {
    const { ctx, tasks } = event.detail;
    const form = ctx.sourceElement;
    const taken = tasks.find(({ type }) => type === "main")?.fragment;
    around = neighbours(form);
    const isUnasked = form.matches(".asks, #check-now") && !taken?.querySelector(`#${form.id}`); // it turned out to be unreadable
    if (!taken?.childElementCount || isUnasked) {
      event.preventDefault();
      if (!isGone(form, ctx.response)) unreachable(form, ctx);
      return;
    }
    const problem = taken.querySelector("[data-problem]");
    if (problem && form.matches("form[method=post]") && problem.dataset.problem !== "not-found") {
      event.preventDefault();
      const title = problem.dataset.problem === "internal" ? `${problem.querySelector("h1").textContent}. ` : "";
      const words = title + problem.querySelector("h1 + p").textContent;
      if (undo?.contains(form) || form.closest(".heading")) fail(words); // there is no place for it
      else warn(form, words);
    } else if (ctx.select === "#keys" && !document.getElementById("keys")) {
      event.preventDefault();
      location.assign(ctx.response.raw.url); // the page of a key that was deleted: the list says so
    }
    isStarted = form.matches("[data-started]:not(.asks)");
  });

  let isStarted; // the answer is that of a check on the page of a key, for which nobody pressed a button

  document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
    if (ctx.select === "#panel") {
      forgive(); // keyman was reached, and what failed would be read out again when the dialog closes
      for (const each of [dialog, session]) {
        if (each.firstElementChild && !each.open) each.showModal();
      }
      const top = session.open ? session : dialog;
      fillAddress();
      (top.querySelector("[aria-invalid=true]") || top.querySelector("[autofocus]"))?.focus();
    } else {
      const region = document.querySelector(ctx.select);
      // Not for a late answer to another request, such as a search: somebody may be typing in the dialog.
      const asked = ctx.sourceElement;
      const isAnswered = dialog.contains(asked) || undo?.contains(asked);
      if (isAnswered) dialog.close();
      if (isAnswered || (!asked.isConnected && !dialog.open)) {
        // Focus the button that sent the request, or its successor; in a new row, or beside one that is gone, the first button.
        const same = `.fresh [formaction="${asked.getAttribute("action")}"]`;
        const beside = around.find((id) => document.getElementById(id));
        const rows = [".fresh", ...(beside ? [`#${beside}`] : [])].flatMap((row) => [`${row} .menu button`, `${row} .menu-button`]);
        const opens = `form[action="${asked.getAttribute("action")}"]:not([method]) button`; // on the page of a key
        focusFirst(region, [same, opens, ...rows, "button"]);
      }
      const about = asked.matches(".asks") ? region.querySelector("[data-status]") : region;
      if (about !== region || isStarted || region.matches("#rows")) heard.textContent = about?.dataset.status || "";
      else tell(region.dataset.status || "", region.querySelector("[data-undo]")?.children ?? []);
      if (isAnswered) document.activeElement.scrollIntoView({ block: "nearest" }); // not under the toast
    }
    localTimes();
    start();
  });

  function focusFirst(region, wanted) {
    wanted.map((each) => region.querySelector(each)).find((each) => each?.checkVisibility())?.focus();
  }

  // The ids of the rows from the first that a form is about on, and then of those before it, nearest first.
  let around = [];

  function neighbours(form) {
    const ids = [...document.querySelectorAll("#rows tr[id]")].map((row) => row.id);
    const place = `[formaction="${form.getAttribute("action")}"]`;
    const its = document.querySelector(place) ?? (form.elements?.ids && document.querySelector(".tick :checked"));
    const at = ids.indexOf(its?.closest("tr")?.id);
    return at < 0 ? [] : [...ids.slice(at), ...ids.slice(0, at).reverse()];
  }

  // Passwords are removed from the page when the request is sent, so that the field is empty after any answer.
  document.addEventListener("htmx:before:request", ({ target }) => {
    for (const button of target.querySelectorAll("[data-reveal]")) reveal(button, false);
    for (const field of target.querySelectorAll("[type=password]:not(#api_key)")) field.value = "";
    for (const banner of (target.closest("dialog .panel") ?? target).querySelectorAll(".banner")) banner.remove();
    if (target.matches(".asks")) target.closest("[popover]")?.hidePopover(); // the verdict appears beside it
    if (target.matches(".asks") && !target.dataset.started) heard.textContent = heard.dataset.busy;
  });

  document.addEventListener("htmx:error", ({ target, detail: { ctx } }) => unreachable(target, ctx));

  function unreachable(source, ctx) {
    const { dataset, content } = document.getElementById("unreachable");
    const isReading = ctx?.request?.method === "GET" || source.matches(".asks");
    const words = isReading ? dataset.reading : content.textContent;
    if (!dialog.contains(source) && !session.contains(source)) fail(words);
    else warn(isReading ? source.closest(".panel") : source, words); // a toast would be behind the dialog
  }

  function warn(form, words) {
    const banner = document.createElement("p");
    banner.className = "banner";
    banner.setAttribute("role", "alert");
    banner.textContent = words;
    form.querySelector(".banner")?.remove();
    const title = form.querySelector("h1"); // of a panel
    if (title) title.after(banner);
    else form.prepend(banner);
    banner.scrollIntoView({ block: "nearest" }); // on a phone, the button that was pressed may be far below
  }

  // --- several keys: how many are selected

  let counting;

  document.addEventListener("change", ({ target }) => {
    if (!target.matches(".tick input")) return;
    picked();
    if (target.matches(":focus-visible")) target.scrollIntoView({ block: "nearest" }); // the bar may have moved it out of view
  });

  // A form is sent with Enter from any of its boxes. Here that would be its first button: Pause.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches(".tick input")) event.preventDefault();
  });

  // Without this, the link scrolls to where the bar would be if it did not stay in view.
  document.addEventListener("click", (event) => {
    if (!event.target.matches(".tick + a")) return;
    event.preventDefault();
    const bar = document.getElementById("selected");
    bar.focus({ preventScroll: true });
    if (getComputedStyle(bar).position !== "sticky") bar.scrollIntoView({ block: "nearest" });
  });

  function picked() {
    const words = document.getElementById("picked");
    const count = document.querySelectorAll(".tick input:checked").length;
    if (!words) return;
    const said = count ? words.dataset.picked.replace("{count}", count) : "";
    clearTimeout(counting);
    if (!said || words.textContent) words.textContent = said;
    else counting = setTimeout(() => (words.textContent = said), 100); // the bar has just appeared: see `done` below
  }

  // --- toasts: what was done, until there was time to read it; and what failed, until it is closed or something succeeds

  const READING = 20_000; // milliseconds: also for those who read slowly, and want to undo
  let reading;

  function forgive() {
    for (const each of toasts?.querySelectorAll(".failed") ?? []) each.remove();
  }

  function tell(words, more) {
    forgive();
    status.textContent = words;
    undo.replaceChildren(...more);
    const how = undo.querySelector(".unseen");
    if (how) status.append(" ", how); // how to undo it is read out, too
    stay();
  }

  function stay() {
    clearTimeout(reading);
    if (status?.textContent) reading = setTimeout(leave, READING);
  }

  // Who closes a toast goes on where they were before.
  let before;
  toasts?.addEventListener("focusin", ({ relatedTarget }) => {
    if (relatedTarget && !toasts.contains(relatedTarget)) before = relatedTarget;
  });

  function leave() {
    if (document.hidden || toasts.matches(":hover, :focus-within")) stay();
    else tell("", []);
  }

  function fail(words) {
    forgive();
    const failure = document.getElementById("failure").content.cloneNode(true);
    failure.querySelector("p").textContent = words;
    toasts.append(failure);
  }

  // A browser reads out what a region gets, and not what it comes with.
  const done = status?.textContent;
  if (done) {
    status.textContent = "";
    setTimeout(() => {
      if (!status.textContent) tell(done, [...undo.children]);
    }, 300);
  }

  // --- the buttons of a row. They share a plain form, since 50 rows with htmx's attributes for each would be heavy.

  document.addEventListener("submit", (event) => {
    const { target: form, submitter } = event;
    if (!form.matches(".menu") || !isOurs(form)) return;
    event.preventDefault();
    press(submitter);
  });

  // As htmx does, it ignores what does not have the nonce of the page.
  function isOurs(form) {
    return form.getAttribute("hx-nonce") === document.querySelector("script[nonce]").nonce;
  }

  function press(button) {
    if (button.matches(".htmx-request")) return;
    const place = `#key-${parseInt(button.form.id.slice(1))}`;
    // The row becomes what the answer has. What it keeps is the same element: the focus, the box, and the open menu.
    const how = button.matches(".asks") ? { target: place, select: place, swap: "outerMorph ignoreTitle:true" } : {};
    const values = Object.fromEntries(new FormData(button.form, button));
    htmx.ajax(button.formMethod || "get", button.getAttribute("formaction"), { source: button, values, ...how });
  }

  // A key that was checked may not be on this list any more: it was deleted, or its verdict does not fit the filter.
  function isGone(button, { raw }) {
    if (!button.matches(".asks, #check-now") || (!raw.ok && raw.status !== 404)) return false;
    sessionStorage.setItem(CLOSED, "");
    if (raw.ok) location.assign(raw.url); // says what was done
    else location.reload();
    return true;
  }

  // A key that was just stored is checked when its row appears.
  function start() {
    for (const button of document.querySelectorAll("[data-starts]")) {
      delete button.dataset.starts;
      button.dataset.started = "";
      if (isOurs(button.form)) press(button);
    }
  }

  // --- dialogs

  // What somebody has typed is not thrown away by one key. A browser lets `cancel` be prevented only after another key.
  function keep(event) {
    if (event.defaultPrevented || !dialog?.open || session.open || discard.open || !isTyped(dialog)) return;
    event.preventDefault();
    discard.showModal();
  }

  dialog?.addEventListener("cancel", keep);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) keep(event);
  });

  // What came back with an answer is the default of its field. So it is compared with what was there before somebody typed:
  // that is in `data-before`, or it was empty.
  function isTyped(around) {
    if (around.matches("[data-holds]:has([data-again])")) return true; // lines were pasted
    const isBack = around.querySelector("[aria-invalid=true], .banner");
    const not = ["[type=hidden]", "[type=checkbox]", "[type=radio]", "[hidden]", "[readonly]", ":disabled"].join();
    const before = (field) => (isBack ? (field.dataset.before ?? "") : field.defaultValue);
    return [...around.querySelectorAll(`:is(input, textarea, select):not(${not})`)].some((field) =>
      field.options ? isChosen(field) : field.value !== before(field),
    );
  }

  function isChosen(select) {
    const before = [...select.options].find((option) => option.defaultSelected) ?? select.options[0];
    return select.value !== before.value;
  }

  for (const each of [dialog, session]) {
    each?.addEventListener("close", () => {
      if (each.open) return; // the event comes late, and the dialog is open again with something else
      const focused = document.activeElement;
      if (focused === document.body || !focused.checkVisibility()) opener()?.focus();
      const refresh = each === dialog && each.querySelector("[data-refreshes]");
      each.replaceChildren(); // with whatever was typed
      if (refresh) sessionStorage.setItem(CLOSED, "");
      if (refresh) location.assign(location.pathname + (refresh.dataset.refreshes ? `?${refresh.dataset.refreshes}` : location.search));
    });
  }

  // A page that is loaded again behind a dialog leads back to where somebody was, to what the dialog made, or to the button
  // that opens it.
  const CLOSED = "keyman-closed";
  const left = sessionStorage.getItem(CLOSED);
  if (left !== null) {
    sessionStorage.removeItem(CLOSED);
    focusFirst(document, [...(left ? [`#${left}`] : []), ".fresh .menu button", ".fresh .menu-button", "main form[action$='/new'] button"]);
  }

  // A dialog that was opened from a menu, which has closed since, leads back to the button of the menu.
  let menu;
  document.addEventListener("toggle", ({ target, newState }) => {
    if (newState === "open" && target.matches(".menu")) menu = target.id;
  }, true);

  function opener() {
    return document.querySelector(`[popovertarget="${menu}"]`);
  }

  document.addEventListener("keyman:signed-in", ({ detail: { account } }) => {
    session.close();
    // Another user's page, or one with no request to continue.
    if (document.body.dataset.account !== String(account) || !dialog.open) {
      sessionStorage.setItem(CLOSED, document.activeElement.id);
      location.reload();
    }
    // The field that needs it: the one that keyman refused or that is empty again, else the button that sends.
    const needing = ["[aria-invalid=true]", ":is(input, select, textarea):invalid", "[type=submit]"];
    needing.map((each) => dialog.querySelector(each)).find((each) => each)?.focus();
  });

  // Who signs in again is the person whose page this is, unless they say otherwise.
  function fillAddress() {
    const [address, password] = ["email", "password"].map((name) => session.querySelector(`#${name}`));
    if (!address || address.value || !document.body.dataset.email) return;
    address.value = document.body.dataset.email;
    address.removeAttribute("autofocus");
    password.setAttribute("autofocus", "");
  }

  // --- shortcuts: keys without a modifier, which can be switched off in Account (WCAG 2.1.4)

  const SHORTCUTS = {
    n: () => document.querySelector("main form[action$='/new'] button") || document.getElementById("new"),
    "/": () => document.querySelector("main [type=search]") || document.querySelector("main [role=search] select"),
    u: () => undo?.querySelector("button"),
    "?": () => document.getElementById("shortcuts"),
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox], [type=radio]), select, textarea, [contenteditable]");
    const changed = event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat;
    if (!("shortcuts" in document.body.dataset) || typing || changed || document.querySelector("dialog[open]")) return;
    const found = Object.hasOwn(SHORTCUTS, event.key) && SHORTCUTS[event.key]();
    if (!found) return;
    event.preventDefault(); // the key is not typed into the field that has the focus then
    // A dialog leads back to what had the focus. If nothing had it, that is the button.
    if (["/", "u"].includes(event.key) || document.activeElement === document.body) found.focus();
    if (!["/", "u"].includes(event.key)) found.click();
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
    if (button.dataset.pick) {
      const ticked = document.querySelector(".tick :checked");
      for (const box of document.querySelectorAll(".tick input")) box.checked = button.dataset.pick === "all";
      picked();
      if (button.dataset.pick === "none") {
        ticked?.focus(); // the bar with this button is gone
        heard.textContent = document.getElementById("picked").dataset.picked.replace("{count}", 0);
      }
    }
    if ("discard" in button.dataset) {
      discard.close();
      dialog.close();
      dialog.replaceChildren(); // at once: the event comes a little later
    }
    if ("dismiss" in button.dataset) {
      const toast = button.closest(".toast");
      if (toast.matches(".failed")) toast.remove();
      else tell("", []);
      if (before?.isConnected) before.focus();
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
      const [words, name] = button.querySelectorAll("[data-when=true], .unseen");
      button.nextElementSibling.textContent = `${words.textContent} ${name.textContent}`;
      setTimeout(() => {
        say(button, false);
        button.nextElementSibling.textContent = "";
      }, 3000);
    } catch {
      field.select(); // no permission: the person copies it by hand
      button.nextElementSibling.textContent = button.nextElementSibling.dataset.selected;
    }
  }

  // --- a plain form is sent only once, however often its button is pressed

  document.addEventListener("submit", (event) => {
    const form = event.target;
    for (const button of form.querySelectorAll("[data-reveal]")) reveal(button, false); // browsers keep what text fields had
    if (form.method !== "post" || form.hasAttribute("hx-post")) return;
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });

  addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  // --- a change is reported once, and exact times are shown in the reader's time zone

  const address = new URL(location.href);
  if (address.searchParams.has("done")) address.hash = ""; // the row, for those who have no script
  for (const name of ["done", "saved", "duplicate", "peeled", "unending"]) address.searchParams.delete(name); // and the `?` of a form without fields
  if (address.href !== location.href) history.replaceState(history.state, "", address);

  function localTimes() {
    const format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "long", timeStyle: "long" });
    for (const time of document.querySelectorAll("time[datetime]")) time.title = format.format(new Date(time.dateTime));
  }
  localTimes();
  start();
  // On a page of its own, a form that comes back leads to what was refused.
  document.querySelector("main :is([aria-invalid=true], [aria-describedby~=banner])")?.focus();
  addEventListener("pageshow", picked); // a browser keeps what was selected
})();
