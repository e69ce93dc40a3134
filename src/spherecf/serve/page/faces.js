// Elements shared by the views: photos with outlined faces, confidences, results.

const SVG = "http://www.w3.org/2000/svg";

/** Create an HTML element: make("p", {class: "dim"}, "text", child). Strings become text, never markup. */
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Create an SVG element. */
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

/** Make the label of a file input a drop zone. Calls onFiles(files) for chosen or dropped files. */
export function dropZone(input, onFiles) {
  const zone = input.closest(".drop");
  const highlight = on => event => { event.preventDefault(); zone.classList.toggle("over", on); };
  zone.addEventListener("dragover", highlight(true));
  zone.addEventListener("dragleave", highlight(false));
  zone.addEventListener("drop", event => {
    highlight(false)(event);
    const files = [...event.dataTransfer.files];
    if (files.length) onFiles(input.multiple ? files : files.slice(0, 1));
  });
  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // allows the same photo to be chosen again
    if (files.length) onFiles(files);
  });
}

/** A photo with its faces outlined. `assessed` is the service's response for the photo. */
export function picture(file, assessed) {
  const frame = make("figure", { class: "picture" });
  const url = URL.createObjectURL(file);
  const image = make("img", { src: url, alt: altText(assessed) });
  image.addEventListener("load", () => URL.revokeObjectURL(url));
  image.addEventListener("error", () => {
    URL.revokeObjectURL(url);
    frame.replaceChildren(make("p", { class: "unseen" }, assessed.faces.length
      ? "Your browser cannot show this image format. The photo was assessed all the same."
      : "There is no image to show."));
  });
  frame.append(image);
  if (assessed.size_px && assessed.faces.length) frame.append(outlines(assessed));
  return frame;
}

function altText(assessed) {
  const count = assessed.faces.length;
  return `${assessed.photo}: ${count === 1 ? "one face" : `${count || "no"} faces`} outlined`;
}

function outlines({ size_px: [width, height], faces }) {
  const size = Math.max(width, height);
  const group = (face, index) => {
    const [x, y, w, h] = face.box;
    const radius = Math.min(w, h) * .08;
    const box = name => draw("rect", { class: name, x, y, width: w, height: h, rx: radius });
    const fontSize = Math.max(size * .035, Math.min(w, size * .3) * .16);
    const label = draw("text", { x: x + fontSize * .35, y: y + fontSize * 1.1, "font-size": fontSize }, String(index + 1));
    const classes = `${index ? "" : "main"} ${face.percentile !== null && face.percentile < 10 ? "unsure" : ""}`;
    return draw("g", { class: classes.trim() }, box("under"), box("outline"), faces.length > 1 ? label : null);
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
  const calibrated = face.percentile !== null;
  const percent = Math.floor(face.percentile);
  return [
    make("p", { class: "big" }, "Confidence ", make("b", {}, calibrated ? percent : round(face.kappa)),
      calibrated ? " of 100" : " (kappa)"),
    calibrated ? meter(face.percentile) : null,
    make("p", { class: "note" }, [
      calibrated ? `Higher confidence than ${percent} % of the reference faces. Kappa ${round(face.kappa)}.` : "",
      face.facts ? `Eyes ${round(face.facts.eye_distance_px)} px apart, turned ${face.facts.yaw_degrees === null ? "–" : Math.abs(round(face.facts.yaw_degrees))}°.` : "",
    ].join(" ")),
  ];
}

const reasons = list => list.length ? make("ul", { class: "reasons" }, ...list.map(text => make("li", {}, text))) : null;

/** A photo with its faces, their confidences and capture problems. */
export function photoCard(file, assessed) {
  const faces = assessed.faces.map((face, index) => make("li", {},
    assessed.faces.length > 1 ? make("p", { class: "dim" }, `Face ${index + 1}${index ? "" : " (main face)"}`) : null,
    ...confidence(face), reasons(face.reasons)));
  const body = make("div", {}, make("h2", {}, assessed.photo),
    assessed.failure ? make("p", {}, `${sentence(assessed.reason)}`) : make("ul", { class: "faces" }, ...faces),
    assessed.notes.length ? make("p", { class: "note" }, `Note: ${assessed.notes.join("; ")}.`) : null);
  return make("article", { class: "photo" }, picture(file, assessed), body);
}

/** Capitalise a text and end it with a full stop. */
export const sentence = text => text ? text[0].toUpperCase() + text.slice(1).replace(/\.?$/, ".") : "";

const SIGNS = {
  match: ["M4 12.5l5 5L20 6.5"],
  non_match: ["M5 9h14", "M5 15h14", "M16 4L8 20"],
  undecided: ["M5 12h.01", "M12 12h.01", "M19 12h.01"],
};
SIGNS.identified = SIGNS.match;
SIGNS.unknown = ["M4 12a8 8 0 1 0 16 0a8 8 0 1 0-16 0", "M6.4 17.6L17.6 6.4"];

/** The result at the top of a view: a sign, a title and the reason. */
export function verdict(kind, title, reason, ...more) {
  const sign = draw("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, ...SIGNS[kind].map(d => draw("path", { d })));
  return make("div", { class: `card verdict ${kind}` }, make("h2", {}, sign, title), make("p", {}, sentence(reason)), ...more);
}

/** A list of facts from [name, value] pairs. Pairs without a value are left out. */
export function facts(pairs) {
  const present = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "–");
  return make("dl", {}, ...present.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}
