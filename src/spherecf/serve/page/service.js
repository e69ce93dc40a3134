// Calls to the service, with the access token.

const STORE = "spherecf-token";

// The token stands behind the # of the address, which browsers never send; it is taken out of sight at once.
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(STORE, given);
    history.replaceState(null, "", location.pathname);
  }
}

/** The service's JSON answer. Throws an Error with one sentence, and the answer's status. */
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
  if (response.status === 401) dispatchEvent(new CustomEvent("no-token", { detail: token ? "This token is wrong." : "" }));
  if (!response.ok) throw Object.assign(new Error(answer.error || `The service answered with status ${response.status}.`), { status: response.status });
  return answer;
}

const turns = new WeakMap();

/**
 * Run a piece of work with its state announced; errors are shown, not thrown. work(late) gives the closing sentence;
 * late() says that the same place has begun something newer, so that an answer must not be shown any more.
 */
export async function working(status, text, work) {
  const turn = (turns.get(status) || 0) + 1;
  turns.set(status, turn);
  const late = () => turns.get(status) !== turn;
  const say = (said, problem) => {
    if (late()) return;
    status.classList.toggle("problem", problem);
    status.textContent = said;
  };
  say(text, false);
  try {
    say(await work(late) || "", false);
  } catch (error) {
    say(error.message, true);
  }
}

export function keepToken(token) {
  sessionStorage.setItem(STORE, token);
}
