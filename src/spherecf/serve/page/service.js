// Calls to the service, with the access token, and status messages.

const STORE = "spherecf-token";

/** Move the token from the fragment of the address, which browsers never send, to the session storage. */
export function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    sessionStorage.setItem(STORE, token);
    history.replaceState(null, "", location.pathname);
  }
}

/** Call the service and return its JSON response. Throws an Error with one sentence and the HTTP status. */
export async function call(method, path, fields = null) {
  const headers = {};
  const token = sessionStorage.getItem(STORE);
  if (token) headers.Authorization = `Bearer ${token}`;
  let body;
  if (fields) {
    body = new FormData();
    for (const [name, value] of fields) body.append(name, value);
  }
  let response;
  try {
    response = await fetch(`/api/${path}`, { method, headers, body });
  } catch {
    throw new Error("The service cannot be reached. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.status === 401) dispatchEvent(new CustomEvent("no-token", { detail: token ? "This token is wrong." : "" })); // app.js shows the login
  if (!response.ok) throw Object.assign(new Error(answer.error || `The service answered with status ${response.status}.`), { status: response.status });
  return answer;
}

const runs = new WeakMap(); // number of runs started by status element

/**
 * Run a task and show its progress in a status element; errors are shown there, not thrown. task(outdated) returns the
 * final message. outdated() is true once a newer task uses the same element; its result must not be shown then.
 */
export async function working(status, text, task) {
  const run = (runs.get(status) || 0) + 1;
  runs.set(status, run);
  const outdated = () => runs.get(status) !== run;
  const showStatus = (message, problem) => {
    if (outdated()) return;
    status.classList.toggle("problem", problem);
    status.textContent = message;
  };
  showStatus(text, false);
  try {
    showStatus(await task(outdated) || "", false);
  } catch (error) {
    showStatus(error.message, true);
  }
}

export function keepToken(token) {
  sessionStorage.setItem(STORE, token);
}
