"use strict";

// The page of all endpoints (/docs, with the endpoint's name after #) and of one (/v2/models/NAME/docs).
const one = location.pathname.match(/^(\/v2\/models\/[^/]+(?:\/versions\/[^/]+)?)\/docs\/?$/);
const choice = document.getElementById("endpoint");
const problem = document.getElementById("problem");
let key = "";

// The key goes to this server only, and is not stored.
function authenticated(request) {
  if (key !== "" && new URL(request.url, location.href).origin === location.origin) {
    if (key.startsWith("hr_")) request.headers["x-api-key"] = key;
    else request.headers["authorization"] = "Bearer " + key;
  }
  return request;
}

function say(text) {
  problem.textContent = text;
  problem.hidden = text === "";
}

async function read(url) {
  const { headers } = authenticated({ url, headers: {} });
  const response = await fetch(url, { headers });
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw new Error(body.error || url + ": HTTP status " + response.status);
}

function addChoice(text, url) {
  const option = document.createElement("option");
  option.textContent = text;
  option.value = url;
  choice.append(option);
}

async function listEndpoints() {
  choice.replaceChildren();
  if (one !== null) {
    addChoice(decodeURIComponent(one[1].split("/")[3]), one[1] + "/openapi.json");
    return;
  }
  const { models } = await read("/v2/models");
  for (const name of models) addChoice(name, "/v2/models/" + name + "/openapi.json");
  addChoice("all", "/openapi.json");
  const named = decodeURIComponent(location.hash.slice(1));
  if (models.includes(named)) choice.selectedIndex = models.indexOf(named);
}

async function show() {
  const spec = await read(choice.value);
  SwaggerUIBundle({
    spec,
    dom_id: "#swagger-ui",
    requestInterceptor: authenticated,
    tryItOutEnabled: true,
    validatorUrl: null,
  });
}

async function attempt(...steps) {
  say("");
  try {
    for (const step of steps) await step();
  } catch (error) {
    say(error.message);
  }
}

choice.addEventListener("change", () => attempt(show));
document.getElementById("access").addEventListener("submit", (event) => {
  event.preventDefault();
  key = document.getElementById("key").value.trim();
  attempt(listEndpoints, show);
});
attempt(listEndpoints, show);
