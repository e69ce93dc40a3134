// What several views show: photos with outlined faces, confidences, verdicts.

const SVG = "http://www.w3.org/2000/svg";

/** An element: make("p", {class: "dim"}, "text", child). Text is always text, never markup. */
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") node.addEventListener("click", value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

export const round = (value, digits = 0) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });

/** "1 in 10,000" for 0.0001. */
export const oneIn = rate => `1 in ${round(1 / rate)}`;

/** A label with a file input, dropping included. Calls chosen(files). */
export function dropZone(input, chosen) {
  const zone = input.closest(".drop");
  const over = on => event => { event.preventDefault(); zone.classList.toggle("over", on); };
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", event => {
    over(false)(event);
    const files = [...event.dataTransfer.files];
    if (files.length) chosen(input.multiple ? files : files.slice(0, 1));
  });
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // so that the same photo may be chosen again
    if (files.length) chosen(files);
  });
}

/** The photo with its faces outlined. `assessed` is what the service said about it. */
export function picture(file, assessed) {
  const frame = make("figure", { class: "picture" });
  const url = URL.createObjectURL(file);
  const image = make("img", { src: url, alt: described(assessed) });
  image.addEventListener("load", () => URL.revokeObjectURL(url));
  image.addEventListener("error", () => {
    URL.revokeObjectURL(url);
    frame.replaceChildren(make("p", { class: "unseen" }, assessed.faces.length
      ? "Your browser cannot show this kind of picture; it was assessed nevertheless."
      : "No picture to show."));
  });
  frame.append(image);
  if (assessed.size_px && assessed.faces.length) frame.append(outlines(assessed));
  return frame;
}

function described(assessed) {
  const count = assessed.faces.length;
  return `${assessed.photo}: ${count === 1 ? "one face" : `${count || "no"} faces`} outlined`;
}

function outlines({ size_px: [width, height], faces }) {
  const size = Math.max(width, height);
  const group = (face, index) => {
    const [x, y, w, h] = face.box;
    const radius = Math.min(w, h) * .08;
    const box = name => draw("rect", { class: name, x, y, width: w, height: h, rx: radius });
    const letter = Math.max(size * .035, Math.min(w, size * .3) * .16);
    const label = draw("text", { x: x + letter * .35, y: y + letter * 1.1, "font-size": letter }, String(index + 1));
    const kind = `${index ? "" : "main"} ${face.percentile !== null && face.percentile < 10 ? "unsure" : ""}`;
    return draw("g", { class: kind.trim() }, box("under"), box("outline"), faces.length > 1 ? label : null);
  };
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...faces.map(group));
}

export function meter(percent) {
  const bar = make("i");
  bar.style.width = `${Math.max(0, Math.min(100, percent))}%`;
  return make("div", { class: "meter", "aria-hidden": "true" }, bar);
}

/** The confidence of one face, in words and numbers. */
export function confidence(face) {
  if (face.kappa === null) return [make("p", { class: "big" }, "Confidence unknown"), make("p", { class: "note" }, "The recogniser gives no direction for this face.")];
  const known = face.percentile !== null;
  const percent = Math.floor(face.percentile);
  return [
    make("p", { class: "big" }, "Confidence ", make("b", {}, known ? percent : round(face.kappa)),
      known ? " of 100" : " (kappa)"),
    known ? meter(face.percentile) : null,
    make("p", { class: "note" }, [
      known ? `Higher confidence than ${percent} % of the reference faces. Kappa ${round(face.kappa)}.` : "",
      face.facts ? `Eyes ${round(face.facts.eye_distance_px)} px apart, turned ${face.facts.yaw_degrees === null ? "–" : Math.abs(round(face.facts.yaw_degrees))}°.` : "",
    ].join(" ")),
  ];
}

const reasons = list => list.length ? make("ul", { class: "reasons" }, ...list.map(text => make("li", {}, text))) : null;

/** One photo with everything that is known about it. */
export function photoCard(file, assessed) {
  const faces = assessed.faces.map((face, index) => make("li", {},
    assessed.faces.length > 1 ? make("p", { class: "dim" }, `Face ${index + 1}${index ? "" : ", the main one"}`) : null,
    ...confidence(face), reasons(face.reasons)));
  const body = make("div", {}, make("h2", {}, assessed.photo),
    assessed.failure ? make("p", {}, `${sentence(assessed.reason)}`) : make("ul", { class: "faces" }, ...faces),
    assessed.notes.length ? make("p", { class: "note" }, `Note: ${assessed.notes.join("; ")}.`) : null);
  return make("article", { class: "photo" }, picture(file, assessed), body);
}

export const sentence = text => text ? text[0].toUpperCase() + text.slice(1).replace(/\.?$/, ".") : "";

const SIGNS = {
  match: ["M4 12.5l5 5L20 6.5"],
  non_match: ["M5 9h14", "M5 15h14", "M16 4L8 20"],
  undecided: ["M5 12h.01", "M12 12h.01", "M19 12h.01"],
};
SIGNS.identified = SIGNS.match;
SIGNS.unknown = ["M4 12a8 8 0 1 0 16 0a8 8 0 1 0-16 0", "M6.4 17.6L17.6 6.4"];

/** The outcome on top: a sign, the word for it, and why. */
export function verdict(kind, title, why, ...more) {
  const sign = draw("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, ...SIGNS[kind].map(d => draw("path", { d })));
  return make("div", { class: `card verdict ${kind}` }, make("h2", {}, sign, title), make("p", {}, sentence(why)), ...more);
}

/** A list of facts: [name, value] pairs, those without a value left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "–");
  return make("dl", {}, ...known.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}
