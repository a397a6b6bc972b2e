// Every text of a passage or a query becomes a text node, never HTML.
"use strict";

const at = (id) => document.getElementById(id);
let about = { systems: [] };
let current = "";
let latest = 0; // an answer to an earlier query is not shown after that to a later one

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

async function get(path) {
  const response = await fetch(path);
  const value = await response.json();
  if (!response.ok) throw new Error(value.error);
  return value;
}

function say(text, error = false) {
  at("status").textContent = text;
  at("status").className = error ? "error" : "";
}

function snippet(parts) {
  return make("p", { dir: "auto" }, ...parts.map(([text, hit]) => (hit ? make("mark", {}, text) : text)));
}

function count(n, what) {
  return `${n} ${what}${n === 1 ? "" : "s"}`;
}

function result(hit, other) {
  const facts = make("div", { class: "facts" }, make("span", {}, `rank ${hit.rank}`));
  facts.append(make("span", {}, `score ${hit.score.toFixed(3)}`));
  facts.append(make("span", {}, `${other.name}: ${other.rank ? `rank ${other.rank}` : `not in its first ${other.shown}`}`));
  if (hit.relevant !== null) {
    facts.append(make("span", { class: "badge" }, hit.relevant ? "✓ relevant" : "judged not relevant"));
  }
  const item = make("li", hit.relevant ? { class: "relevant" } : {});
  item.append(make("h3", { dir: "auto" }, hit.title || hit.id), facts, snippet(hit.snippet));
  if (!hit.whole) {
    const summary = make("summary", { "aria-label": `Whole passage of rank ${hit.rank}` }, "Whole passage");
    item.append(make("details", {}, summary, make("p", { dir: "auto", tabindex: "0" }, hit.text)));
  }
  return item;
}

function judgement(answer, list) {
  if (!answer.judged) return "";
  const ranks = list.results.filter((hit) => hit.relevant).map((hit) => hit.rank);
  if (!ranks.length) return ` · no relevant passage in its first ${list.results.length}`;
  return ` · relevant at rank ${ranks.join(", ")}`;
}

function show(answer) {
  const ranks = answer.lists.map((list) => new Map(list.results.map((hit) => [hit.id, hit.rank])));
  at("lists").replaceChildren(
    ...answer.lists.map((list, n) => {
      const { name } = about.systems[1 - n];
      const heading = make("h2", { id: `system${n}` }, about.systems[n].name);
      const section = make("section", { "aria-labelledby": `system${n}` }, heading);
      if (!n) heading.append(make("a", { href: "#system1", class: "jump" }, `${name} is below`));
      const facts = `${about.systems[n].about} · ${list.milliseconds} ms${judgement(answer, list)}`;
      section.append(make("p", { class: "quiet" }, facts));
      if (!list.results.length) section.append(make("p", {}, "Nothing found."));
      const other = (hit) => ({ name, rank: ranks[1 - n].get(hit.id), shown: ranks[1 - n].size });
      section.append(make("ol", {}, ...list.results.map((hit) => result(hit, other(hit)))));
      return section;
    }),
  );
  const found = answer.lists.map((list, n) => `${list.results.length} of ${about.systems[n].name}`).join(", ");
  const judged = answer.judged ? ` A query of the collection: ${count(answer.relevant, "relevant passage")}.` : "";
  say(`Passages: ${found}.${judged}`);
}

async function ask(query) {
  const own = ++latest;
  current = query;
  at("start").hidden = query !== "";
  at("query").value = query;
  document.title = query ? `${query} · lead` : "Search · lead";
  if (!query) {
    at("lists").replaceChildren();
    say("");
    return;
  }
  say("Searching …");
  at("lists").setAttribute("aria-busy", "true");
  try {
    const answer = await get(`search?q=${encodeURIComponent(query)}`);
    if (own === latest) show(answer);
  } catch (error) {
    if (own === latest) {
      at("lists").replaceChildren();
      say(error instanceof TypeError ? "No answer: is `lead serve` still running?" : error.message, true);
    }
  }
  if (own === latest) at("lists").removeAttribute("aria-busy");
}

function go(query) {
  history.pushState(null, "", query ? `?q=${encodeURIComponent(query)}` : location.pathname);
  return ask(query);
}

const asked = () => new URLSearchParams(location.search).get("q") || "";

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (matchMedia("(pointer: coarse)").matches) at("query").blur(); // a phone's keyboard covers the answer
  go(at("query").value.trim());
});
addEventListener("popstate", () => {
  if (asked() !== current) ask(asked()); // a link within the page keeps the query
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && !["INPUT", "TEXTAREA"].includes(document.activeElement.tagName)) {
    event.preventDefault();
    at("query").select();
  }
});

async function start() {
  try {
    about = await get("about");
  } catch {
    say("No answer: is `lead serve` still running?", true);
    return;
  }
  at("dataset").textContent = `${about.systems.map((system) => system.name).join(" and ")} on ${about.dataset}`;
  at("queries").append(...about.queries.map((query) => make("option", { value: query })));
  at("hint").hidden = !about.queries.length;
  for (const query of about.queries.slice(0, 4)) {
    const button = make("button", { type: "button", dir: "auto" }, query);
    button.addEventListener("click", () => go(query));
    at("examples").append(button);
  }
  if (asked()) ask(asked());
}

start();
