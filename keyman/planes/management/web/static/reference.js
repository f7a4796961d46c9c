"use strict";
// The API reference: opens the call that the address names, and sends calls with the session of the page.
(() => {
  // Also what the addresses of the reference were before: `#/operations/createKey`.
  function open() {
    const call = document.getElementById(location.hash.slice(1).replace("/operations/", ""));
    if (!call?.matches("details")) return;
    call.open = true;
    call.scrollIntoView();
  }
  addEventListener("hashchange", open);
  open();

  document.addEventListener("submit", (event) => {
    if (!event.target.matches(".try")) return;
    event.preventDefault();
    send(event.target);
  });

  async function send(form) {
    const [status, answer] = form.querySelectorAll(".answer");
    const button = form.querySelector("[type=submit]");
    if (button.ariaDisabled) return;
    answer.hidden = true;
    let asked;
    try {
      asked = new Request(...request(form));
    } catch {
      status.textContent = "Nothing was sent: a header has a character that no header can have.";
      return;
    }
    button.ariaDisabled = true; // and not `disabled`, which takes the focus away
    status.textContent = "Sending…";
    try {
      const reason = await refusal("public" in form.dataset);
      if (reason) {
        status.textContent = `Nothing was sent: ${reason}`;
        return;
      }
      const response = await fetch(asked);
      const text = await response.text();
      const links = ["location", "etag", "link", "retry-after"].filter((name) => response.headers.has(name));
      const headers = links.map((name) => `${name}: ${response.headers.get(name)}\n`).join("");
      status.textContent = `${response.status} ${response.statusText}`;
      answer.textContent = `${headers}${headers && "\n"}${pretty(text)}`;
      answer.hidden = !answer.textContent.trim();
    } catch {
      status.textContent = "keyman could not be reached.";
    } finally {
      button.ariaDisabled = null;
    }
  }

  // Why the session of the browser is not the one that this page says, or nothing. Another tab may have changed it.
  async function refusal(isPublic) {
    const { account } = document.body.dataset;
    const response = await fetch(document.querySelector("[data-me]").dataset.me, { headers: { Accept: "application/json" } });
    if (response.ok) {
      const { id } = await response.json();
      return String(id) === account ? "" : "somebody else has signed in with this browser. Reload the page.";
    }
    if (response.status !== 401) return `keyman cannot say who is signed in (${response.status}). Try again.`;
    return isPublic ? "" : "your session has ended. Reload the page, and sign in again.";
  }

  function request(form) {
    let path = form.dataset.path;
    const query = new URLSearchParams();
    const options = { method: form.dataset.method, headers: { Accept: "application/json" } };
    for (const { name, value, dataset } of form.querySelectorAll("[data-place]")) {
      if (!value.trim()) continue;
      if (dataset.place === "path") path = path.replace(`{${name}}`, encodeURIComponent(value));
      else if (dataset.place === "query") query.set(name, value);
      else if (dataset.place === "header") options.headers[name] = value;
      else {
        options.body = value;
        options.headers["Content-Type"] = "application/json";
      }
    }
    return [query.size ? `${path}?${query}` : path, options];
  }

  function pretty(text) {
    try {
      return JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      return text;
    }
  }
})();
