"use strict";
// Several keys at once: takes pasted lines or a file, and keeps them in memory, not in the page, until they are stored.
// The server finds the keys, and no answer has one. So what was pasted is sent again when the person has chosen.
(() => {
  const dialog = document.getElementById("dialog");
  const MOST = 512 * 1024; // bytes of a file: the server refuses more
  let held = "";

  const panel = () => document.querySelector(".panel:has([data-several])");
  const panelForm = () => document.getElementById("several") || panel()?.querySelector("[data-several]");

  // While lines are held, Esc asks before it throws them away: see `isTyped` in `keyman.js`.
  function hold(text) {
    held = text;
    dialog?.toggleAttribute("data-holds", Boolean(text));
  }

  function send(form, text) {
    hold(text);
    if (form.elements.text) form.elements.text.value = text;
    form.requestSubmit();
  }

  // What is in the field counts, because it may have been corrected since it was sent.
  document.addEventListener("formdata", ({ target, formData }) => {
    if (!target.matches("[data-several]")) return;
    hold(formData.get("text") || held);
    formData.set("text", held);
  });

  // --- what is pasted into the field for one key, and files

  function isSeveral(text) {
    const lines = text.split(/[\r\n]+/).filter((line) => line.trim() && !line.trim().startsWith("#"));
    return lines.length > 1 && !isJson(text);
  }

  function isJson(text) {
    try {
      return typeof JSON.parse(text) === "object";
    } catch {
      return false;
    }
  }

  // Before the form for one key sees it.
  const paste = (event) => {
    const text = event.clipboardData?.getData("text") ?? "";
    const form = document.getElementById("several");
    if (event.target.id !== "api_key" || !form || !isSeveral(text)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    send(form, text);
  };
  document.addEventListener("paste", paste, true);

  async function take(file) {
    const form = panelForm();
    if (file && form && !form.querySelector("[data-again]")) send(form, await file.slice(0, MOST + 1).text());
  }

  document.addEventListener("change", ({ target }) => {
    if (target.matches("[data-lines]")) take(target.files[0]);
  });

  // --- the settings of a service that is chosen in a row. Who chooses a service or fills in a setting wants this key

  document.addEventListener("change", ({ target }) => {
    if (!target.matches(".several [name^=service-]")) return;
    const number = target.name.slice("service-".length);
    if (target.value) target.closest("tr").querySelector("[name=use]").checked = true;
    const fields = [...document.querySelectorAll("[data-settings-of]")].find((one) => one.dataset.settingsOf === target.value);
    for (const part of target.closest("tr").querySelectorAll(".settings, .soft")) part.remove();
    if (!fields) return;
    const copy = fields.firstElementChild.cloneNode(true);
    for (const part of [copy, ...copy.querySelectorAll("[id], [name]")]) {
      for (const name of ["id", "name", "aria-labelledby"]) {
        if (part.hasAttribute(name)) part.setAttribute(name, part.getAttribute(name).replaceAll("-ROW", `-${number}`));
      }
    }
    target.after(copy);
  });

  document.addEventListener("input", ({ target }) => {
    const box = target.closest(".several .settings") && target.closest("tr").querySelector("[name=use]");
    if (box && target.value) box.checked = true;
  });

  const hasFile = ({ dataTransfer }) => dataTransfer?.types.includes("Files") && panelForm();
  document.addEventListener("dragover", (event) => hasFile(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });

  // --- answers

  document.addEventListener("htmx:before:swap", ({ detail: { ctx } }) => {
    if (ctx.sourceElement.matches("[data-several]") && ctx.response?.status === 401) forget(true);
  });

  document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
    const form = panel()?.querySelector("[data-several]:not(#several)");
    if (!form || ctx.select !== "#panel" || document.getElementById("session").open) return;
    const again = form.querySelector("[data-again]");
    if (again && held) {
      again.hidden = true;
      form.elements.text.disabled = true;
    } else {
      if (!again && form.elements.text) form.elements.text.value = held; // nothing was found: correct it
      hold("");
    }
    if (!dialog.open) form.closest(".panel").querySelector("[autofocus]")?.focus();
  });

  document.addEventListener("htmx:error", ({ target }) => {
    if (target.id === "several") hold("");
  });

  // The lines have to be pasted again.
  function forget(isSaid) {
    hold("");
    const form = panel()?.querySelector("[data-several]:not(#several)");
    const again = form?.querySelector("[data-again]");
    if (again) {
      again.hidden = false;
      form.elements.text.disabled = false;
      form.elements.text.setAttribute("aria-invalid", "true");
    } else if (isSaid && !form) {
      document.getElementById("api_key-lost")?.toggleAttribute("hidden", false);
      document.getElementById("api_key")?.setAttribute("aria-invalid", "true");
    }
  }

  dialog?.addEventListener("close", () => {
    if (!dialog.open) hold("");
  });
  addEventListener("pagehide", () => {
    hold("");
  });
})();
