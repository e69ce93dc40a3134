// The four views: quality, compare, template (with enrolment) and gallery.

import { call, working } from "./service.js";
import { confidence, dropZone, draw, facts, make, meter, oneIn, photoCard, picture, round, sentence, verdict } from "./faces.js";

const byId = id => document.getElementById(id);
const find = (id, selector) => document.querySelector(`#${id} ${selector}`);
const photos = count => count === 1 ? "1 photo" : `${count} photos`;

function quality() {
  const results = find("quality", ".results");
  dropZone(byId("quality-photos"), files => working(find("quality", ".status"), `Assessing ${photos(files.length)} …`, async () => {
    let faces = 0;
    for (const file of files) { // one by one, to show the first result while others are being assessed
      const assessed = await call("POST", "quality", [["photo", file]]);
      faces += assessed.faces.length;
      results.prepend(photoCard(file, assessed));
    }
    return `${photos(files.length)} assessed, ${faces === 1 ? "1 face" : `${faces} faces`} found.`;
  }));
}

const TITLES = { match: "Match", non_match: "No match", undecided: "Undecided" };
const MEANINGS = {
  match: "The photos show the same person, at the false match rate below.",
  non_match: "The photos show two different people.",
  undecided: "These photos do not allow a decision.",
};

function compare(info) {
  const files = { left: null, right: null };
  const results = find("compare", ".results");
  const select = byId("compare-fmr");
  for (const rate of info.max_fmrs) select.append(make("option", { value: rate, selected: rate === info.default_max_fmr }, `at most ${oneIn(rate)}`));
  const run = () => files.left && files.right && working(find("compare", ".status"), "Comparing …", async outdated => {
    const result = await call("POST", "compare", [["left", files.left], ["right", files.right], ["max_fmr", select.value]]);
    if (outdated()) return "";
    const side = name => make("article", { class: "photo" }, picture(files[name], result[name]),
      make("div", {}, ...(result[name].faces.length ? confidence(result[name].faces[0]) : [make("p", {}, sentence(result[name].reason))])));
    results.replaceChildren(
      verdict(result.decision, TITLES[result.decision], result.reason, facts([
        ["Score", result.score === null ? null : round(result.score, 1)],
        ["Likelihood", likelihood(result.llr)],
        ["False match rate", `at most ${oneIn(result.max_fmr)} pairs of different people`],
      ]), result.notes.length ? make("p", { class: "note" }, `Note: ${result.notes.join("; ")}.`) : null),
      make("div", { class: "pair" }, side("left"), side("right")));
    return `${TITLES[result.decision]}. ${MEANINGS[result.decision]}`;
  });
  for (const name of ["left", "right"]) {
    dropZone(byId(`compare-${name}`), ([file]) => {
      files[name] = file;
      find("compare", `[for=compare-${name}] .drop-title`).textContent = file.name;
      find("compare", `[for=compare-${name}] .drop-hint`).textContent = "choose or drop another photo";
      run();
    });
  }
  select.addEventListener("change", run);
}

function likelihood(llr) {
  if (llr === null) return null;
  const ratio = Math.exp(Math.abs(llr));
  const hypothesis = llr >= 0 ? "the same person" : "two people";
  if (ratio < 1.5) return "favours neither the same person nor two people";
  const factor = ratio > 1e6 ? "more than a million" : `about ${Number(ratio.toPrecision(2)).toLocaleString("en")}`;
  return `${factor} times more likely if the photos show ${hypothesis}`;
}

let members = []; // {file, ticket} of each photo in the template, in the order they were added

/**
 * Send the members to the service and return its response. Photos that it has already assessed are sent as tickets. A
 * service that has been restarted does not accept the tickets; it gets the photos again.
 */
async function sendMembers(path, ...fields) {
  const sent = members;
  const content = ({ file, ticket }) => ticket ? new File([ticket], file.name) : file;
  const send = () => call("POST", path, [...sent.map(member => ["photos", content(member)]), ...fields]);
  try {
    return await send();
  } catch (error) {
    if (error.status !== 410) throw error;
    for (const member of sent) member.ticket = null;
    return send();
  }
}

function template(info) {
  const results = find("template", ".results");
  const show = () => working(find("template", ".status"), `Assessing ${photos(members.length)} …`, async outdated => {
    byId("enrol").hidden = true;
    if (!members.length) { results.replaceChildren(); return ""; }
    const sent = members;
    const result = await sendMembers("template", ["tickets", true]);
    sent.forEach((member, index) => { member.ticket = result.photos[index].ticket; });
    if (outdated()) return "";
    results.replaceChildren(summary(result), memberList(result, removed => {
      members = members.filter((_, index) => index !== removed);
      show().then(() => (results.querySelectorAll(".members button")[removed] || byId("template-photos")).focus());
    }));
    byId("enrol").hidden = !info.gallery || result.kappa === null;
    return result.kappa === null ? "No usable face yet." : `The template has a kappa of ${round(result.kappa)} with ${photos(members.length)}.`;
  });
  dropZone(byId("template-photos"), files => {
    members = [...members, ...files.map(file => ({ file, ticket: null }))].slice(0, info.limits.max_files);
    show();
  });
  byId("enrol").addEventListener("submit", event => { event.preventDefault(); enrol(); });
}

function summary(result) {
  return make("div", { class: "card" }, make("h2", {}, "Template"),
    result.kappa === null ? make("p", {}, "There is no usable face in these photos.")
      : make("p", { class: "big" }, "Kappa ", make("b", {}, round(result.kappa)), ` from ${photos(result.pooled.length)}`),
    result.warnings.length ? make("ul", { class: "reasons" }, ...result.warnings.map(text => make("li", {}, sentence(text)))) : null,
    result.kappa === null ? null : growth(result.grown));
}

/** A line chart of kappa after each photo. */
function growth(grown) {
  if (grown.length < 2) return make("p", { class: "note" }, "Add more photos to see how kappa grows.");
  const width = Math.min(640, find("template", ".results").clientWidth - 40); // drawn at the size shown, to keep the text readable
  const [height, left, bottom, top] = [190, 46, 28, 14];
  const max = Math.max(...grown.map(value => value || 0));
  const x = index => left + index * (width - left - 16) / (grown.length - 1);
  const y = value => height - bottom - (value || 0) / max * (height - bottom - top);
  const line = grown.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const last = x(grown.length - 1);
  const alt = `Kappa after each photo: ${grown.map(value => round(value)).join(", ")}`;
  return draw("svg", { class: "growth", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": alt },
    draw("path", { class: "area", d: `${line}L${last} ${height - bottom}L${left} ${height - bottom}Z` }),
    draw("path", { class: "rule", d: `M${left} ${height - bottom}H${width - 16}` }),
    draw("path", { class: "path", d: line }),
    ...grown.map((value, index) => draw("circle", { cx: x(index), cy: y(value), r: 5 })),
    draw("text", { x: left - 8, y: y(max) + 4, "text-anchor": "end" }, round(max)),
    draw("text", { x: left - 8, y: height - bottom + 4, "text-anchor": "end" }, "0"),
    draw("text", { x: left, y: height - 8 }, "first photo"),
    draw("text", { x: width - 16, y: height - 8, "text-anchor": "end" }, "last photo"));
}

function memberList(result, remove) {
  const row = (photo, index) => {
    const url = URL.createObjectURL(members[index].file);
    const image = make("img", { src: url, alt: "" });
    image.addEventListener("load", () => URL.revokeObjectURL(url));
    image.addEventListener("error", () => image.replaceWith(make("span", { class: "unseen" })));
    return make("li", {}, image,
      make("div", {}, make("p", {}, make("strong", {}, photo.name)), make("p", { class: "note" }, contribution(photo)),
        photo.weight > 0 ? meter(photo.weight * 100) : null),
      make("button", { class: "quiet", type: "button", "aria-label": `Leave out ${photo.name}`, onclick: () => remove(index) }, "Leave out"));
  };
  return make("ul", { class: "members" }, ...result.photos.map(row));
}

function contribution(photo) {
  const share = `its share of the template is ${round(photo.weight * 100)} %`;
  if (photo.stranger) return `Looks like a different person from the others. Leave it out unless you are sure it is the same person; ${share}.`;
  if (photo.reason) return sentence(photo.reason);
  if (photo.same_as !== null) return `Duplicate of ${photo.same_as}; it counts only once.`;
  return `${photo.helps ? "Helps" : "Adds little"}: ${share}${photo.reasons.length ? ` (${photo.reasons.join(", ")})` : ""}.`;
}

async function enrol() {
  await working(find("enrol", ".status"), "Enrolling …", async () => {
    const enrolled = await sendMembers("gallery/identities", ["identity", byId("enrol-name").value],
      ["consent", byId("enrol-consent").checked], ["replace", byId("enrol-replace").checked]);
    byId("enrol-consent").checked = false;
    await list();
    return [`${enrolled.identity} is enrolled from ${photos(enrolled.media)}.`, ...enrolled.warnings.map(sentence)].join(" ");
  });
  byId("enrol-replace-line").hidden = !find("enrol", ".status").textContent.includes("already");
}

const ANSWERS = { unknown: "Unknown person", undecided: "Undecided" };

function gallery(info) {
  byId("no-gallery").hidden = info.gallery;
  byId("with-gallery").hidden = !info.gallery;
  if (!info.gallery) return;
  dropZone(byId("gallery-photo"), ([file]) => working(find("gallery", ".status"), "Searching …", async outdated => {
    const result = await call("POST", "gallery/identify", [["photo", file]]);
    if (outdated()) return "";
    const title = result.identity || ANSWERS[result.answer];
    const rows = result.candidates.map(candidate => make("li", {}, make("div", {}, make("p", {}, make("strong", {}, candidate.identity)),
      make("p", { class: "note" }, [`score ${round(candidate.score, 1)}`, likelihood(candidate.llr)].filter(Boolean).join(", ")))));
    find("gallery", ".results").replaceChildren(verdict(result.answer, title, result.reason),
      photoCard(file, result.photo),
      rows.length ? make("h2", {}, "Candidates") : "", make("ul", { class: "people" }, ...rows));
    return result.identity ? `Identified: ${result.identity}.` : `${ANSWERS[result.answer]}.`;
  }));
  byId("tab-gallery").addEventListener("click", () => working(find("gallery", ".status"), "", list));
}

async function list() {
  const { identities } = await call("GET", "gallery/identities");
  const row = person => {
    const button = make("button", { class: "quiet", type: "button", "aria-label": `Remove ${person.identity}` }, "Remove");
    button.addEventListener("click", () => button.dataset.confirming ? remove(person.identity) : confirm(button));
    return make("li", {}, make("div", {}, make("p", {}, make("strong", {}, person.identity)),
      make("p", { class: "note" }, `${photos(person.media)}, kappa ${round(person.kappa)}`)), button);
  };
  byId("people").replaceChildren(...(identities.length ? identities.map(row) : [make("li", { class: "dim" }, "No one is enrolled yet.")]));
}

/** Ask for a second press, which must follow within four seconds. */
function confirm(button) {
  button.dataset.confirming = "yes";
  button.textContent = "Press again to remove";
  setTimeout(() => { delete button.dataset.confirming; button.textContent = "Remove"; }, 4000);
}

const remove = identity => working(find("gallery", ".status"), "Removing …", async () => {
  await call("DELETE", `gallery/identities/${encodeURIComponent(identity)}`);
  await list();
  byId("people").closest("section").focus();
  return `${identity} was removed.`;
});

export const views = [quality, compare, template, gallery];
