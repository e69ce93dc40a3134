// The four views: quality, compare, template with enrolment, gallery.

import { call, working } from "./service.js";
import { confidence, dropZone, draw, facts, make, meter, oneIn, photoCard, picture, round, sentence, verdict } from "./faces.js";

const byId = id => document.getElementById(id);
const part = (id, selector) => document.querySelector(`#${id} ${selector}`);
const photos = count => count === 1 ? "1 photo" : `${count} photos`;

function quality() {
  const results = part("quality", ".results");
  dropZone(byId("quality-photos"), files => working(part("quality", ".status"), `Assessing ${photos(files.length)} …`, async () => {
    let faces = 0;
    for (const file of files) { // one by one: the first answer stands there while others are looked at
      const assessed = await call("POST", "quality", [["photo", file]]);
      faces += assessed.faces.length;
      results.prepend(photoCard(file, assessed));
    }
    return `${photos(files.length)} assessed, ${faces === 1 ? "1 face" : `${faces} faces`} found.`;
  }));
}

const TITLES = { match: "Match", non_match: "No match", undecided: "Undecided" };
const MEANS = {
  match: "The same person, at the false match rate below.",
  non_match: "Two different people.",
  undecided: "These photos do not allow a decision.",
};

function compare(info) {
  const files = { left: null, right: null };
  const results = part("compare", ".results");
  const select = byId("compare-fmr");
  for (const rate of info.max_fmrs) select.append(make("option", { value: rate, selected: rate === info.default_max_fmr }, `at most ${oneIn(rate)}`));
  const run = () => files.left && files.right && working(part("compare", ".status"), "Comparing …", async late => {
    const found = await call("POST", "compare", [["left", files.left], ["right", files.right], ["max_fmr", select.value]]);
    if (late()) return "";
    const side = name => make("article", { class: "photo" }, picture(files[name], found[name]),
      make("div", {}, ...(found[name].faces.length ? confidence(found[name].faces[0]) : [make("p", {}, sentence(found[name].reason))])));
    results.replaceChildren(
      verdict(found.decision, TITLES[found.decision], found.reason, facts([
        ["Score", found.score === null ? null : round(found.score, 1)],
        ["Likelihood", likelihood(found.llr)],
        ["False match rate", `at most ${oneIn(found.max_fmr)} pairs of different people`],
      ]), found.notes.length ? make("p", { class: "note" }, `Note: ${found.notes.join("; ")}.`) : null),
      make("div", { class: "pair" }, side("left"), side("right")));
    return `${TITLES[found.decision]}. ${MEANS[found.decision]}`;
  });
  for (const name of ["left", "right"]) {
    dropZone(byId(`compare-${name}`), ([file]) => {
      files[name] = file;
      part("compare", `[for=compare-${name}] .drop-title`).textContent = file.name;
      part("compare", `[for=compare-${name}] .drop-hint`).textContent = "choose or drop another";
      run();
    });
  }
  select.addEventListener("change", run);
}

function likelihood(llr) {
  if (llr === null) return null;
  const times = Math.exp(Math.abs(llr));
  const more = llr >= 0 ? "if they show one person" : "if they show two people";
  if (times < 1.5) return "favours neither";
  return `${times > 1e6 ? "more than a million" : `about ${Number(times.toPrecision(2)).toLocaleString("en")}`} times more likely ${more}`;
}

let members = []; // {file, ticket} of the template, in the order they were added

/**
 * The service's answer about the members. What it has seen is sent as its ticket, not as the photo; a service that was
 * started anew gets the photos again.
 */
async function ask(path, ...fields) {
  const sent = members;
  const content = ({ file, ticket }) => ticket ? new File([ticket], file.name) : file;
  const once = () => call("POST", path, [...sent.map(one => ["photos", content(one)]), ...fields]);
  try {
    return await once();
  } catch (error) {
    if (error.status !== 410) throw error;
    for (const one of sent) one.ticket = null;
    return once();
  }
}

function template(info) {
  const results = part("template", ".results");
  const show = () => working(part("template", ".status"), `Assessing ${photos(members.length)} …`, async late => {
    byId("enrol").hidden = true;
    if (!members.length) { results.replaceChildren(); return ""; }
    const asked = members;
    const found = await ask("template", ["tickets", true]);
    asked.forEach((one, index) => { one.ticket = found.photos[index].ticket; });
    if (late()) return "";
    results.replaceChildren(summary(found), memberList(found, at => {
      members = members.filter((_, index) => index !== at);
      show().then(() => (results.querySelectorAll(".members button")[at] || byId("template-photos")).focus());
    }));
    byId("enrol").hidden = !info.gallery || found.kappa === null;
    return found.kappa === null ? "No usable face yet." : `The template's kappa is ${round(found.kappa)} with ${photos(members.length)}.`;
  });
  dropZone(byId("template-photos"), files => {
    members = [...members, ...files.map(file => ({ file, ticket: null }))].slice(0, info.limits.max_files);
    show();
  });
  byId("enrol").addEventListener("submit", event => { event.preventDefault(); enrol(); });
}

function summary(found) {
  return make("div", { class: "card" }, make("h2", {}, "The template"),
    found.kappa === null ? make("p", {}, "There is no usable face in these photos.")
      : make("p", { class: "big" }, "Kappa ", make("b", {}, round(found.kappa)), ` from ${photos(found.pooled.length)}`),
    found.warnings.length ? make("ul", { class: "reasons" }, ...found.warnings.map(text => make("li", {}, sentence(text)))) : null,
    found.kappa === null ? null : growth(found.grown));
}

/** How kappa grew from photo to photo: a line with a dot for each. */
function growth(grown) {
  if (grown.length < 2) return make("p", { class: "note" }, "Add more photos to see how kappa grows.");
  const width = Math.min(640, part("template", ".results").clientWidth - 40); // drawn at its size: letters stay readable
  const [height, left, bottom, top] = [190, 46, 28, 14];
  const most = Math.max(...grown.map(value => value || 0));
  const x = index => left + index * (width - left - 16) / (grown.length - 1);
  const y = value => height - bottom - (value || 0) / most * (height - bottom - top);
  const line = grown.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const last = x(grown.length - 1);
  const alt = `Kappa after each photo: ${grown.map(value => round(value)).join(", ")}`;
  return draw("svg", { class: "growth", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt },
    draw("path", { class: "area", d: `${line}L${last} ${height - bottom}L${left} ${height - bottom}Z` }),
    draw("path", { class: "rule", d: `M${left} ${height - bottom}H${width - 16}` }),
    draw("path", { class: "path", d: line }),
    ...grown.map((value, index) => draw("circle", { cx: x(index), cy: y(value), r: 5 })),
    draw("text", { x: left - 8, y: y(most) + 4, "text-anchor": "end" }, round(most)),
    draw("text", { x: left - 8, y: height - bottom + 4, "text-anchor": "end" }, "0"),
    draw("text", { x: left, y: height - 8 }, "first photo"),
    draw("text", { x: width - 16, y: height - 8, "text-anchor": "end" }, "last photo"));
}

function memberList(found, remove) {
  const row = (one, index) => {
    const url = URL.createObjectURL(members[index].file);
    const image = make("img", { src: url, alt: "" });
    image.addEventListener("load", () => URL.revokeObjectURL(url));
    image.addEventListener("error", () => image.replaceWith(make("span", { class: "unseen" })));
    return make("li", {}, image,
      make("div", {}, make("p", {}, make("strong", {}, one.name)), make("p", { class: "note" }, said(one)),
        one.weight > 0 ? meter(one.weight * 100) : null),
      make("button", { class: "quiet", type: "button", "aria-label": `Leave out ${one.name}`, onclick: () => remove(index) }, "Leave out"));
  };
  return make("ul", { class: "members" }, ...found.photos.map(row));
}

function said(one) {
  const share = `its share of the template is ${round(one.weight * 100)} %`;
  if (one.stranger) return `Looks like a different person than the rest. Leave it out unless you are sure; ${share}.`;
  if (one.reason) return sentence(one.reason);
  if (one.same_as !== null) return `Same picture as ${one.same_as}; counted once.`;
  return `${one.helps ? "Helps" : "Adds little"}: ${share}${one.reasons.length ? ` (${one.reasons.join(", ")})` : ""}.`;
}

async function enrol() {
  await working(part("enrol", ".status"), "Enrolling …", async () => {
    const done = await ask("gallery/identities", ["identity", byId("enrol-name").value],
      ["consent", byId("enrol-consent").checked], ["replace", byId("enrol-replace").checked]);
    byId("enrol-consent").checked = false;
    await list();
    return [`${done.identity} is enrolled from ${photos(done.media)}.`, ...done.warnings.map(sentence)].join(" ");
  });
  byId("enrol-replace-line").hidden = !part("enrol", ".status").textContent.includes("already");
}

const ANSWERS = { unknown: "Unknown person", undecided: "Undecided" };

function gallery(info) {
  byId("no-gallery").hidden = info.gallery;
  byId("with-gallery").hidden = !info.gallery;
  if (!info.gallery) return;
  dropZone(byId("gallery-photo"), ([file]) => working(part("gallery", ".status"), "Searching …", async late => {
    const found = await call("POST", "gallery/identify", [["photo", file]]);
    if (late()) return "";
    const title = found.identity || ANSWERS[found.answer];
    const rows = found.candidates.map(one => make("li", {}, make("div", {}, make("p", {}, make("strong", {}, one.identity)),
      make("p", { class: "note" }, [`score ${round(one.score, 1)}`, likelihood(one.llr)].filter(Boolean).join(", ")))));
    part("gallery", ".results").replaceChildren(verdict(found.answer, title, found.reason),
      photoCard(file, found.photo),
      rows.length ? make("h2", {}, "Nearest") : "", make("ul", { class: "people" }, ...rows));
    return found.identity ? `Identified: ${found.identity}.` : `${ANSWERS[found.answer]}.`;
  }));
  byId("tab-gallery").addEventListener("click", () => working(part("gallery", ".status"), "", list));
}

async function list() {
  const { identities } = await call("GET", "gallery/identities");
  const row = one => {
    const button = make("button", { class: "quiet", type: "button", "aria-label": `Remove ${one.identity}` }, "Remove");
    button.addEventListener("click", () => button.dataset.sure ? remove(one.identity) : confirm(button));
    return make("li", {}, make("div", {}, make("p", {}, make("strong", {}, one.identity)),
      make("p", { class: "note" }, `${photos(one.media)}, kappa ${round(one.kappa)}`)), button);
  };
  byId("people").replaceChildren(...(identities.length ? identities.map(row) : [make("li", { class: "dim" }, "Nobody yet.")]));
}

function confirm(button) { // the second press within a few seconds removes
  button.dataset.sure = "yes";
  button.textContent = "Press again to remove";
  setTimeout(() => { delete button.dataset.sure; button.textContent = "Remove"; }, 4000);
}

const remove = identity => working(part("gallery", ".status"), "Removing …", async () => {
  await call("DELETE", `gallery/identities/${encodeURIComponent(identity)}`);
  await list();
  byId("people").closest("section").focus();
  return `${identity} was removed.`;
});

export const views = [quality, compare, template, gallery];
